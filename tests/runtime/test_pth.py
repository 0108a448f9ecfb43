"""The reader of old `.pth` files: tensors come out as PyTorch wrote them, and nothing in the file is ever run."""

from __future__ import annotations

import contextlib
import pickle
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from marram.runtime.build import pth
from marram.schema.errors import Invalid


def save(value: Any, file: Path) -> Path:
    torch = pytest.importorskip("torch")
    torch.save(value, file, _use_new_zipfile_serialization=False)
    return file


def test_reads_what_pytorch_wrote(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    state = OrderedDict(
        a=torch.arange(24, dtype=torch.float32).reshape(2, 3, 4),
        turned=torch.arange(6, dtype=torch.float64).reshape(2, 3).T,
        half=torch.ones(3, dtype=torch.float16),
        steps=torch.tensor(7),
        empty=torch.zeros(0, 4),
    )
    assert list(pth.read(save({"one": state["a"]}, tmp_path / "one.pth"))) == ["one"]
    state["part"] = state["a"][1, 1:]  # shares its storage
    read = pth.read(save(state, tmp_path / "state.pth"))
    assert list(read) == list(state)
    for name, tensor in state.items():
        assert read[name].dtype == tensor.numpy().dtype
        np.testing.assert_array_equal(read[name], tensor.numpy())


class Bomb:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self.trace,)


def test_a_hostile_file_is_refused_and_does_nothing(tmp_path: Path) -> None:
    trace = tmp_path / "ran"
    with pytest.raises(Invalid, match="not a file of weights"):
        pth.read(save({"weights": Bomb(trace)}, tmp_path / "bomb.pth"))
    bare = tmp_path / "bare.pth"
    bare.write_bytes(pickle.dumps(Bomb(trace), protocol=2))
    with pytest.raises(Invalid, match=r"bare\.pth"):
        pth.read(bare)
    assert not trace.exists()


@pytest.mark.parametrize("value", [[1, 2], {"epoch": 3}, {"nested": {"w": 1.5}}, {}, "text"])
def test_what_is_no_state_of_tensors_is_refused_or_empty(tmp_path: Path, value: Any) -> None:
    file = save(value, tmp_path / "odd.pth")
    if value == {}:
        assert pth.read(file) == {}
    else:
        with pytest.raises(Invalid, match=r"odd\.pth"):
            pth.read(file)


def test_any_cut_is_invalid(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    whole = save({"w": torch.arange(50.0), "v": torch.ones(3)}, tmp_path / "whole.pth").read_bytes()
    cut = tmp_path / "cut.pth"
    for length in range(0, len(whole), 7):
        cut.write_bytes(whole[:length])
        with pytest.raises(Invalid):
            pth.read(cut)


def test_any_flipped_byte_is_read_or_refused_but_never_crashes(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    whole = save({"w": torch.arange(20.0)}, tmp_path / "whole.pth").read_bytes()
    rng = np.random.default_rng(3)
    file = tmp_path / "flipped.pth"
    for _ in range(400):
        content = bytearray(whole)
        content[rng.integers(len(content))] = rng.integers(256)
        file.write_bytes(content)
        with contextlib.suppress(Invalid):
            pth.read(file)


def test_a_tensor_may_not_reach_past_its_storage(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    whole = save({"w": torch.zeros(5, 5)}, tmp_path / "w.pth").read_bytes()
    size = b"K\x05K\x05\x86"  # BININT1 5, BININT1 5, TUPLE2: its size
    assert whole.count(size) == 1
    (tmp_path / "w.pth").write_bytes(whole.replace(size, b"K\xffK\x05\x86"))
    with pytest.raises(Invalid, match="past its storage"):
        pth.read(tmp_path / "w.pth")


def test_reading_needs_no_torch(tmp_path: Path) -> None:
    import subprocess

    code = "import sys, marram.runtime.build.pth; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
