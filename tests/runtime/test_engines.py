"""The conformance suite of the engines' seam: what `runtime/contract.py` promises, every plug-in keeps."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from marram.runtime import probe
from marram.runtime.contract import Session
from marram.runtime.engines import PLUGINS
from marram.schema.errors import Invalid, Permanent
from marram.schema.model import Engine

ALL = list(Engine)
QUANTISED = [Engine.LITERT, Engine.ONNX, Engine.REFERENCE]

rng = np.random.default_rng(7)


def layer(x: np.ndarray) -> np.ndarray:
    return np.maximum(x @ probe.WEIGHTS.T + probe.BIAS, 0)


@pytest.fixture(params=ALL, ids=[e.value for e in ALL])
def engine(request: pytest.FixtureRequest) -> Engine:
    return request.param


@pytest.fixture
def session(engine: Engine, float_model: Callable[[Engine], Path]) -> Session:
    return PLUGINS[engine].load(float_model(engine))


def test_says_what_goes_in_and_comes_out(session: Session) -> None:
    (entry,), (answer,) = session.inputs, session.outputs
    assert (entry.shape, entry.dtype, entry.scale) == ((1, 4), "float32", None)
    assert (answer.shape, answer.dtype) == ((1, 3), "float32")
    assert entry.name and answer.name


def test_computes_the_layer(session: Session) -> None:
    for _ in range(20):
        x = rng.normal(size=(1, 4)).astype(np.float32)
        (y,) = session.run([x])
        assert y.dtype == np.float32
        assert y.shape == (1, 3)
        np.testing.assert_allclose(y, layer(x), rtol=1e-5, atol=1e-6)


def test_takes_views_and_read_only_arrays_and_writes_to_none(session: Session) -> None:
    wide = np.arange(8, dtype=np.float32).reshape(1, 8)
    before = wide.copy()
    wide.setflags(write=False)
    view = wide[:, ::2]  # not contiguous, not writeable
    np.testing.assert_allclose(session.run([view])[0], layer(before[:, ::2]), rtol=1e-5)
    np.testing.assert_array_equal(wide, before)


@pytest.mark.parametrize("shape", [(4,), (1, 5), (2, 4), (1, 4, 1), (0, 4)])
def test_a_wrong_shape_is_invalid_and_both_are_named(session: Session, shape: tuple[int, ...]) -> None:
    with pytest.raises(Invalid, match=r"takes shape \[1, 4\], got \[") as fault:
        session.run([np.zeros(shape, np.float32)])
    assert fault.value.where
    (y,) = session.run([probe.INPUT])  # and the session still works
    np.testing.assert_allclose(y, probe.OUTPUT)


@pytest.mark.parametrize("dtype", ["float64", "int32", "uint8", "bool", "complex64", "object"])
def test_a_wrong_dtype_is_invalid(session: Session, dtype: str) -> None:
    with pytest.raises(Invalid, match="takes float32, got"):
        session.run([np.zeros((1, 4), dtype)])


def test_a_wrong_number_of_tensors_is_invalid(session: Session) -> None:
    for tensors in ([], [probe.INPUT, probe.INPUT]):
        with pytest.raises(Invalid, match="takes 1 tensors"):
            session.run(tensors)
    with pytest.raises(Invalid, match="takes an array, got list"):
        session.run([[[1, 2, 3, 4]]])  # type: ignore[list-item]


def test_answers_are_copies(session: Session) -> None:
    (first,) = session.run([probe.INPUT])
    (second,) = session.run([probe.INPUT * 2])
    np.testing.assert_allclose(first, probe.OUTPUT)
    assert not np.array_equal(first, second)
    second[:] = 99  # writeable, and nobody else's
    np.testing.assert_allclose(session.run([probe.INPUT])[0], probe.OUTPUT)


def test_a_closed_session_says_so_and_closes_again(session: Session) -> None:
    session.close()
    session.close()
    with pytest.raises(Permanent, match="closed"):
        session.run([probe.INPUT])


def test_two_threads_get_right_answers_or_are_refused(session: Session) -> None:
    answers: list[np.ndarray] = []
    refused: list[Permanent] = []
    start = threading.Barrier(4)

    def ask(factor: float) -> None:
        start.wait()
        for _ in range(100):
            try:
                answers.append(session.run([probe.INPUT * np.float32(factor)])[0] - layer(probe.INPUT * factor))
            except Permanent as error:
                refused.append(error)

    threads = [threading.Thread(target=ask, args=(factor,)) for factor in (0.5, 1, 2, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) + len(refused) == 400
    np.testing.assert_allclose(np.array(answers), 0, atol=1e-4)
    assert all("two threads" in str(error) for error in refused)
    assert not (session.parallel and refused)


def test_several_items_run_as_one_where_the_engine_can_declare_the_first_length_free(
    engine: Engine, float_model: Callable[[Engine], Path]
) -> None:
    session = PLUGINS[engine].load(float_model(engine), free=True)
    assert session.inputs[0].shape[0] == (-1 if engine is Engine.ONNX else 1)
    if session.inputs[0].shape[0] == -1:
        x = rng.normal(size=(5, 4)).astype(np.float32)
        np.testing.assert_allclose(session.run([x])[0], layer(x), rtol=1e-5, atol=1e-6)
        assert session.outputs[0].shape == (-1, 3)


@pytest.mark.parametrize("damage", ["empty", "text", "noise", "half", "tail"])
def test_a_damaged_file_is_invalid_and_named(
    engine: Engine, damage: str, float_model: Callable[[Engine], Path], tmp_path: Path
) -> None:
    whole = float_model(engine).read_bytes()
    content = {
        "empty": b"",
        "text": b"this is no model\n" * 100,
        "noise": np.random.default_rng(1).bytes(5000),
        "half": whole[: len(whole) // 2],
        "tail": whole[:-20],
    }[damage]
    file = tmp_path / f"broken-{damage}{float_model(engine).suffix}"
    file.write_bytes(content)
    with pytest.raises(Invalid) as fault:
        PLUGINS[engine].load(file)
    assert file.name in str(fault.value)


def test_a_file_of_another_engine_is_invalid(engine: Engine, float_model: Callable[[Engine], Path]) -> None:
    other = Engine.ONNX if engine is Engine.LITERT else Engine.LITERT
    with pytest.raises(Invalid, match=float_model(other).name):
        PLUGINS[engine].load(float_model(other))


def test_an_absent_file_is_invalid(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="nowhere"):
        PLUGINS[engine].load(tmp_path / "nowhere")


def test_describes_what_it_runs_on(engine: Engine) -> None:
    rows = PLUGINS[engine].describe()
    assert rows
    assert {row.engine for row in rows} == {engine.value}
    assert rows[0].ok, rows[0].detail
    for row in rows:
        assert row.detail
        assert row.ok <= row.present


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
@pytest.mark.parametrize("engine", QUANTISED, ids=[e.value for e in QUANTISED])
class TestQuantised:
    """A quantised file speaks real numbers at the seam, by its own scale and zero-point."""

    def test_says_its_scale(self, engine: Engine, dtype: str, quantised_model: Callable) -> None:
        model = quantised_model(engine, dtype)
        (entry,) = PLUGINS[engine].load(model.file).inputs
        assert entry.dtype == dtype
        assert entry.scale == pytest.approx(model.input_scale)
        assert entry.zero_point == model.input_zero

    def test_real_in_real_out_within_a_step(self, engine: Engine, dtype: str, quantised_model: Callable) -> None:
        model = quantised_model(engine, dtype)
        session = PLUGINS[engine].load(model.file)
        for _ in range(50):
            x = rng.uniform(-3.9, 3.9, size=(1, 4)).astype(np.float32)
            (y,) = session.run([x])
            assert y.dtype == np.float32
            wanted = np.minimum(layer(x), 127 * model.output_scale)  # it saturates there
            # Half a step of each: the input through four weights, the weights themselves, the output.
            assert np.abs(y - wanted).max() <= model.output_scale / 2 + 4 * model.input_scale + 0.05

    def test_its_own_integers_go_straight_in(self, engine: Engine, dtype: str, quantised_model: Callable) -> None:
        model = quantised_model(engine, dtype)
        session = PLUGINS[engine].load(model.file)
        limits = np.iinfo(dtype)
        raw = rng.integers(limits.min, limits.max, size=(1, 4), endpoint=True).astype(dtype)
        real = (raw.astype(np.float32) - model.input_zero) * np.float32(model.input_scale)
        np.testing.assert_array_equal(session.run([raw])[0], session.run([real])[0])
        with pytest.raises(Invalid, match=f"takes float32 or {dtype}, got"):
            session.run([raw.astype(np.int16)])

    def test_what_is_out_of_range_saturates(self, engine: Engine, dtype: str, quantised_model: Callable) -> None:
        session = PLUGINS[engine].load(quantised_model(engine, dtype).file)
        far = np.array([[1e9, -np.inf, np.inf, 1e30]], np.float32)
        near = np.array([[1e3, -1e3, 1e3, 1e3]], np.float32)
        np.testing.assert_array_equal(session.run([far])[0], session.run([near])[0])


def test_the_fast_engines_agree_with_the_reference(quantised_model: Callable) -> None:
    file = quantised_model(Engine.ONNX, "uint8").file
    reference, fast = PLUGINS[Engine.REFERENCE].load(file), PLUGINS[Engine.ONNX].load(file)
    for _ in range(50):
        x = rng.normal(size=(1, 4)).astype(np.float32)
        np.testing.assert_allclose(reference.run([x])[0], fast.run([x])[0], atol=1 / 8)  # a tie may round either way


@pytest.mark.shared
def test_a_free_batch_is_laid_out_anew_and_back(shared_data: Path) -> None:
    session = PLUGINS[Engine.LITERT].load(shared_data / "models_tiny" / "ad01_fp32.tflite")
    assert session.inputs[0].shape == (-1, 640)
    five = rng.normal(size=(5, 640)).astype(np.float32)
    together = session.run([five])[0]
    for index in range(5):
        np.testing.assert_allclose(session.run([five[index : index + 1]])[0][0], together[index], rtol=1e-4, atol=1e-4)
