"""Static int8: close to the float file, quantised input with its scale told, float file untouched."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from marram.runtime.build.quantize import quantize_static
from marram.runtime.engines import PLUGINS
from marram.schema.errors import Invalid
from marram.schema.model import Engine

onnx = pytest.importorskip("onnx")
rng = np.random.default_rng(9)


def write_net(file: Path, layout: str = "NCHW") -> Path:
    """Conv 3→8, ReLU6, mean, Gemm 8→5; pixels channels first, or last with a Transpose."""
    helper, array = onnx.helper, onnx.numpy_helper.from_array
    constants = [
        array(rng.normal(0, 0.3, (8, 3, 3, 3)).astype(np.float32), "w"),
        array(rng.normal(size=8).astype(np.float32), "b"),
        array(rng.normal(size=(5, 8)).astype(np.float32), "v"),
        array(np.float32(0), "low"),
        array(np.float32(6), "high"),
    ]
    first = "x" if layout == "NCHW" else "planes"
    nodes = [] if layout == "NCHW" else [helper.make_node("Transpose", ["x"], ["planes"], perm=[0, 3, 1, 2])]
    nodes += [
        helper.make_node("Conv", [first, "w", "b"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Clip", ["c", "low", "high"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "v"], ["y"], transB=1),
    ]
    shape = [1, 3, 12, 12] if layout == "NCHW" else [1, 12, 12, 3]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", 1, shape)],
        [helper.make_tensor_value_info("y", 1, [1, 5])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.save(model, str(file))
    return file


def pictures(shape: tuple[int, ...], count: int = 30) -> Iterator[np.ndarray]:
    for _ in range(count):
        yield rng.uniform(-1, 1, shape).astype(np.float32)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_int8_is_close_to_float_and_takes_bytes(tmp_path: Path, layout: str) -> None:
    fp32, int8 = write_net(tmp_path / "fp32.onnx", layout), tmp_path / "int8.onnx"
    before = fp32.read_bytes()
    shape = (1, 3, 12, 12) if layout == "NCHW" else (1, 12, 12, 3)
    seen: list[int] = []
    quantize_static(fp32, int8, pictures(shape), progress=seen.append)
    assert seen == list(range(1, 31))
    assert fp32.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fp32.onnx", "int8.onnx"]
    exact, coarse = PLUGINS[Engine.ONNX].load(fp32), PLUGINS[Engine.ONNX].load(int8)
    reference = PLUGINS[Engine.REFERENCE].load(int8)
    (entry,) = coarse.inputs
    assert (entry.dtype, entry.shape) == ("uint8", shape)
    assert entry.scale == pytest.approx(2 / 255, rel=0.05)
    for picture in pictures(shape, 10):
        (wanted,), (got,) = exact.run([picture]), coarse.run([picture])
        assert np.abs(got - wanted).max() < 0.05 * np.abs(wanted).max() + 0.05
        np.testing.assert_allclose(reference.run([picture])[0], got, atol=0.05)


def test_nothing_to_calibrate_with_is_invalid_and_leaves_nothing(tmp_path: Path) -> None:
    fp32 = write_net(tmp_path / "fp32.onnx")
    with pytest.raises(Invalid, match=r"fp32\.onnx: there is nothing to calibrate with"):
        quantize_static(fp32, tmp_path / "int8.onnx", [])
    assert [p.name for p in tmp_path.iterdir()] == ["fp32.onnx"]


def test_what_is_no_model_is_invalid(tmp_path: Path) -> None:
    (tmp_path / "junk.onnx").write_bytes(b"junk" * 99)
    with pytest.raises(Invalid, match=r"junk\.onnx: not a model"):
        quantize_static(tmp_path / "junk.onnx", tmp_path / "out.onnx", pictures((1, 3, 12, 12)))


def test_an_input_of_the_wrong_shape_is_said(tmp_path: Path) -> None:
    fp32 = write_net(tmp_path / "fp32.onnx")
    with pytest.raises(Invalid, match=r"takes shape \[1, 3, 12, 12\], got \[1, 3, 9, 9\]"):
        quantize_static(fp32, tmp_path / "out.onnx", pictures((1, 3, 9, 9)))
