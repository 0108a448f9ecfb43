"""Exported programs are read without ever unpickling: what a hostile file could run stays unrun."""

from __future__ import annotations

import json
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from marram.runtime import probe
from marram.runtime.engines import torch as engine
from marram.schema.errors import Invalid
from marram.schema.model import Engine


class Bomb:
    """Unpickling it makes a file appear."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.trace,)


@pytest.fixture
def archive(float_model: Callable[[Engine], Path], tmp_path: Path) -> Callable[..., Path]:
    """A copy of the exported program with some members replaced (or added)."""

    def make(**changes: Callable[[bytes], bytes]) -> Path:
        original, copy = float_model(Engine.TORCH), tmp_path / "changed.pt2"
        with zipfile.ZipFile(original) as source, zipfile.ZipFile(copy, "w") as target:
            root = source.namelist()[0].partition("/")[0]
            for name in source.namelist():
                change = changes.pop(name.removeprefix(f"{root}/"), None)
                target.writestr(name, change(source.read(name)) if change else source.read(name))
            for name, change in changes.items():
                target.writestr(f"{root}/{name}", change(b""))
        return copy

    return make


def test_pickled_example_inputs_are_left_out(archive: Callable[..., Path], tmp_path: Path) -> None:
    trace = tmp_path / "ran"
    file = archive(**{"data/sample_inputs/model.pt": lambda _: pickle.dumps(Bomb(trace))})
    (y,) = engine.load(file).run([probe.INPUT])
    np.testing.assert_allclose(y, probe.OUTPUT)
    assert not trace.exists()
    pickle.loads(pickle.dumps(Bomb(trace)))  # noqa: S301 - the bomb itself works, so its silence above means something
    assert trace.exists()


def test_weights_that_are_pickled_are_refused(archive: Callable[..., Path], tmp_path: Path) -> None:
    trace = tmp_path / "ran"

    def pickled(content: bytes) -> bytes:
        document = json.loads(content)
        for entry in document["config"].values():
            entry["use_pickle"] = True
        return json.dumps(document).encode()

    file = archive(
        **{
            "data/weights/model_weights_config.json": pickled,
            "data/weights/weight_0": lambda _: pickle.dumps(Bomb(trace)),
        }
    )
    with pytest.raises(Invalid, match="pickle"):
        engine.load(file)
    assert not trace.exists()


@pytest.mark.parametrize(
    "name",
    [
        "data/weights/model.pt",
        "data/constants/model.pt",
        "data/constants/opaque_obj_0",
        "data/constants/custom_obj_0",
        "data/aotinductor/model/code.so",
        "serialized_state_dict.pt",
    ],
)
def test_members_that_could_be_code_are_refused(archive: Callable[..., Path], name: str) -> None:
    with pytest.raises(Invalid, match="neither"):
        engine.load(archive(**{name: lambda _: b"anything"}))


@pytest.mark.parametrize("target", ["torch.load", "torch.ops.load_library", "_operator.methodcaller", "os.system"])
def test_a_graph_that_calls_what_is_no_operator_is_refused(archive: Callable[..., Path], target: str) -> None:
    def hostile(content: bytes) -> bytes:
        document = json.loads(content)
        document["graph_module"]["graph"]["nodes"][0]["target"] = target
        return json.dumps(document).encode()

    with pytest.raises(Invalid, match="no operator of ATen"):
        engine.load(archive(**{"models/model.json": hostile}))


def test_a_pth_is_refused_with_the_way_out(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    file = tmp_path / "weights.pth"
    torch.save({"w": torch.zeros(2)}, file)
    with pytest.raises(Invalid, match=r"never unpickles.*torch\.export\.save"):
        engine.load(file)


def test_a_free_batch_stays_free(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    file = tmp_path / "free.pt2"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(
            torch.nn.Linear(4, 3).eval(), (torch.zeros(2, 4),), dynamic_shapes={"input": {0: torch.export.Dim("n")}}
        )
        torch.export.save(program, file)
    session = engine.load(file)
    assert session.inputs[0].shape == (-1, 4)
    for batch in (2, 5):
        assert session.run([np.zeros((batch, 4), np.float32)])[0].shape == (batch, 3)
