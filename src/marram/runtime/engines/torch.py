"""PyTorch exported programs (`.pt2`): an extra, for the cloud and for example programs. Never pickle.

`torch.export.load` would unpickle parts of an archive (example inputs always; weights, constants and custom objects
where the archive says so) and would call any function the graph names. So the archive is read as the zip file it is:
what is not plain JSON and raw tensors is refused, example inputs are left out, only operators of ATen are let through,
and PyTorch is handed that clean copy.
"""

from __future__ import annotations

import io
import json
import logging
import os
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from marram.runtime import probe
from marram.runtime.contract import Accelerator, Session, Tensor, TensorInfo
from marram.runtime.installed import importing, installed
from marram.runtime.session import CheckedSession
from marram.schema.errors import Invalid, MarramError, NotReady
from marram.schema.model import Engine
from marram.schema.words import first_line

_OPERATORS = ("torch.ops.aten.", "torch.ops.quantized_decomposed.", "torch.ops.prims.")
_ARITHMETIC = frozenset(
    f"_operator.{name}"
    for name in (
        *("add", "sub", "mul", "truediv", "floordiv", "mod", "neg", "pow"),
        *("getitem", "ge", "gt", "le", "lt", "eq", "ne", "and_", "or_", "not_"),
    )
)


def load(file: Path, *, threads: int = 1, free: bool = False) -> Session:
    """See `contract.Engine.load`. `threads` holds for all of PyTorch in this process; so PyTorch has it.

    Runs on the CPU; `MARRAM_TORCH_DEVICE=cuda` moves it. Raises Invalid for anything that holds a pickle.
    """
    clean = clean_archive(file)
    return TorchSession(file, clean, threads, os.environ.get("MARRAM_TORCH_DEVICE", "cpu"))


def describe() -> list[Accelerator]:
    """CPU, and CUDA where this build has it."""
    try:
        torch = pytorch()
    except NotReady as error:
        return [Accelerator("torch", "CPU", False, str(error), present=installed(Engine.TORCH))]
    rows = [probe.attempt("torch", "CPU", _loader("cpu"), _probe, _version)]
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name(0)
        rows.append(probe.attempt("torch", f"CUDA ({name})", _loader("cuda"), _probe, _version))
    else:
        rows.append(Accelerator("torch", "CUDA", False, "this PyTorch sees no CUDA device", present=False))
    return rows


def clean_archive(file: Path) -> io.BytesIO:
    """The exported program in `file` without its pickled example inputs. Raises Invalid where a pickle remains."""
    where = str(file)
    hint = "Save it with torch.export.save(torch.export.export(model, …), …)."
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
            root = names[0].partition("/")[0] + "/" if names else ""
            inside = {name.removeprefix(root): name for name in names}
            if "archive_format" not in inside:
                raise Invalid(
                    "not an exported program (.pt2); Marram never unpickles .pt and .pth", where=where, hint=hint
                )
            copy = io.BytesIO()
            with zipfile.ZipFile(copy, "w", zipfile.ZIP_STORED) as written:
                for short, name in inside.items():
                    content = _checked(short, archive.read(name), where)
                    written.writestr(name, content)
    except (zipfile.BadZipFile, EOFError, OSError, RuntimeError, NotImplementedError, ValueError) as error:
        raise Invalid(f"not an exported program (.pt2): {error}", where=where, hint=hint) from error
    copy.seek(0)
    return copy


class TorchSession(CheckedSession):
    """One exported program on `device`."""

    def __init__(self, file: Path, archive: io.BytesIO, threads: int, device: str) -> None:
        self._torch = torch = pytorch()
        torch.set_num_threads(threads)
        for name in ("torch.export", "torch._export"):  # it logs what it also raises
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            program = torch.export.load(archive)
            if device != "cpu":
                program = torch.export.passes.move_to_device_pass(program, device)
            self._module: Any = program.module()
        # The deserialiser meets a damaged archive with whatever its own code trips over.
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, AssertionError, IndexError,
                NotImplementedError, torch._export.serde.serialize.SerializeError) as error:  # fmt: skip
            raise Invalid(f"not an exported program PyTorch can load: {_reason(error)}", where=str(file)) from error
        self._device = device
        signature = program.graph_signature
        values = {node.name: node.meta.get("val") for node in program.graph.nodes}
        super().__init__(
            str(file),
            tuple(_info(name, values, file) for name in signature.user_inputs),
            tuple(_info(name, values, file) for name in signature.user_outputs),
        )

    def _infer(self, tensors: list[Tensor]) -> list[Tensor]:
        torch = self._torch
        with torch.inference_mode():
            # A copy where the array is read-only: PyTorch has no such tensors, and warns.
            given = [torch.from_numpy(t if t.flags.writeable else t.copy()).to(self._device) for t in tensors]
            answered = torch.utils._pytree.tree_leaves(self._module(*given))
            return [a.detach().cpu().numpy() for a in answered]

    def _free(self) -> None:
        self._module = None


def _checked(name: str, content: bytes, where: str) -> bytes:
    """The content to hand on for the archive's member `name`. Raises Invalid where it is not plain data."""
    refused = Invalid(f'"{name}" in it may be a pickle or native code, and Marram runs neither', where=where)
    if name.startswith("data/sample_inputs/"):
        return b""  # always a pickle, and never needed
    if name.startswith(("data/weights/", "data/constants/")):
        if name.endswith("_config.json"):
            for entry in _json(content, name, where).get("config", {}).values():
                path = str(entry.get("path_name", ""))
                if entry.get("use_pickle") or not path.startswith(("weight_", "tensor_")):
                    raise refused
        elif not Path(name).name.startswith(("weight_", "tensor_")):
            raise refused
    elif name.startswith("models/") and name.endswith(".json"):
        for target in _targets(_json(content, name, where)):
            if not target.startswith(_OPERATORS) and target not in _ARITHMETIC:
                raise Invalid(f'its graph calls "{target}", which is no operator of ATen', where=where)
    elif name not in ("archive_format", "archive_version", "byteorder") and not name.startswith((".data/", "extra/")):
        raise refused
    return content


def _json(content: bytes, name: str, where: str) -> Any:
    try:
        document = json.loads(content)
    except ValueError as error:
        raise Invalid(f'"{name}" in it is damaged', where=where) from error
    if not isinstance(document, dict):
        raise Invalid(f'"{name}" in it is damaged', where=where)
    return document


def _targets(document: Any) -> Iterator[str]:
    """Everything any graph in `document` calls, nested graphs included."""
    if isinstance(document, dict):
        if "target" in document and "inputs" in document:
            yield str(document["target"])
        for value in document.values():
            yield from _targets(value)
    elif isinstance(document, list):
        for value in document:
            yield from _targets(value)


def _info(name: str, values: dict[str, Any], file: Path) -> TensorInfo:
    value = values.get(name)
    if value is None or not hasattr(value, "shape"):
        raise Invalid(f"its {name} is no tensor", where=str(file))
    shape = tuple(n if isinstance(n, int) else -1 for n in value.shape)
    return TensorInfo(name, shape, str(value.dtype).removeprefix("torch."))


def _loader(device: str) -> probe.Load:
    def load_there(file: Path, *, threads: int = 1) -> Session:
        return TorchSession(file, clean_archive(file), threads, device)

    return load_there


def _probe() -> bytes:
    """The probe's layer, exported by the installed PyTorch itself."""
    torch = pytorch()
    linear = torch.nn.Linear(4, 3)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor(probe.WEIGHTS.tolist()))
        linear.bias.copy_(torch.tensor(probe.BIAS.tolist()))
    program = torch.export.export(torch.nn.Sequential(linear, torch.nn.ReLU()).eval(), (torch.zeros(1, 4),))
    with tempfile.TemporaryDirectory(prefix="marram-probe-") as folder:
        file = Path(folder) / "probe.pt2"
        torch.export.save(program, file)
        return file.read_bytes()


def pytorch() -> Any:
    """The package, loaded where it is used: 700 MB, and seconds. Raises NotReady where it is not there, or broken."""
    # Its threads wait for one another asleep: awake they take three times the processor time from whatever runs beside.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    with importing(Engine.TORCH, "PyTorch", "`pip install marram[torch]`"):
        import torch
        import torch.export.passes
    return torch


def _version() -> str:
    return f"torch {pytorch().__version__}"


def _reason(error: BaseException) -> str:
    return error.what if isinstance(error, MarramError) else first_line(error)
