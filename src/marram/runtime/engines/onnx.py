"""ONNX Runtime (`.onnx`): CPU everywhere, CUDA and TensorRT where the installed build has them.

Spinning is off: waiting threads that spin double the CPU time of a small device, and starve the camera.
It must never read a model's external data from outside the bundle: ONNX Runtime itself refuses paths with "..".
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from marram.runtime import probe
from marram.runtime.contract import Accelerator, Session, Tensor, TensorInfo
from marram.runtime.installed import importing, installed
from marram.runtime.onnxfile import freed
from marram.runtime.session import CheckedSession
from marram.schema.errors import Invalid, NotReady
from marram.schema.model import Engine
from marram.schema.words import first_line

# A file that takes or gives integers says their scale here (as JSON {tensor: [scale, zero_point]}): ONNX keeps it in
# the graph, where ONNX Runtime does not show it. `build/quantize.py` writes it.
QUANTISATION_KEY = "marram.quantisation"

_PROVIDERS = {"tensorrt": "TensorrtExecutionProvider", "cuda": "CUDAExecutionProvider", "cpu": "CPUExecutionProvider"}
_DTYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(uint8)": "uint8",
    "tensor(int8)": "int8",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(bool)": "bool",
}


def load(file: Path, *, threads: int = 1, free: bool = False) -> Session:
    """See `contract.Engine.load`. Runs on CUDA where this build has it, else on the CPU.

    `MARRAM_ONNX_PROVIDERS=tensorrt,cuda,cpu` chooses otherwise. TensorRT only on request: it compiles for minutes.
    """
    return OnnxSession(file, threads, _wanted_providers(), freed(file) if free and file.is_file() else None)


def describe() -> list[Accelerator]:
    """CPU, CUDA, TensorRT."""
    rows = []
    for name, provider in reversed(_PROVIDERS.items()):
        device = {"cpu": "CPU", "cuda": "CUDA", "tensorrt": "TensorRT"}[name]
        try:
            available = provider in _runtime().get_available_providers()
        except NotReady as error:
            rows.append(
                Accelerator("onnx", device, False, str(error), present=name == "cpu" and installed(Engine.ONNX))
            )
            continue
        if not available:
            detail = f"this build of ONNX Runtime has no {device}; `pip install onnxruntime-gpu` brings one that has"
            rows.append(Accelerator("onnx", device, False, detail, present=False))
            continue
        rows.append(probe.attempt("onnx", device, _loader(provider), probe.onnx, _version))
    return rows


class OnnxSession(CheckedSession):
    """One InferenceSession with `threads` threads, of the file's `content` where that is other than it lies there."""

    # Each run has memory of its own; the weights and the threads are shared.
    parallel = True

    def __init__(self, file: Path, threads: int, providers: list[str], content: bytes | None = None) -> None:
        runtime = _runtime()
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 4  # what goes wrong is raised; the log would go past us to the terminal
        try:
            self._session: Any = runtime.InferenceSession(content or str(file), options, providers=providers)
        except _faults() as error:
            raise Invalid(
                f"not a model ONNX Runtime can load: {_reason(error)}", where=str(file), hint="Is the file complete?"
            ) from error
        self.providers: list[str] = list(self._session.get_providers())
        scales = _scales(self._session, file)
        super().__init__(
            str(file),
            tuple(_info(node, scales, file) for node in self._session.get_inputs()),
            tuple(_info(node, scales, file) for node in _spoken(self._session.get_outputs())),
        )
        self._input_names = [info.name for info in self.inputs]
        self._output_names = [info.name for info in self.outputs]
        self._faults = _faults()

    def _infer(self, tensors: list[Tensor]) -> list[Tensor]:
        try:
            answered: list[Tensor] = self._session.run(
                self._output_names, dict(zip(self._input_names, tensors, strict=True))
            )
        except self._faults as error:
            raise RuntimeError(_reason(error)) from error
        return answered

    def _free(self) -> None:
        self._session = None


def _wanted_providers() -> list[str]:
    available = _runtime().get_available_providers()
    asked = os.environ.get("MARRAM_ONNX_PROVIDERS")
    names = [n.strip() for n in (asked or "cuda,cpu").split(",")]
    unknown = [n for n in names if n not in _PROVIDERS]
    if unknown:
        raise Invalid(
            f'"{unknown[0]}" is no provider',
            where="MARRAM_ONNX_PROVIDERS",
            hint=f"Use some of {', '.join(_PROVIDERS)}.",
        )
    chosen = [_PROVIDERS[n] for n in names if _PROVIDERS[n] in available]
    if not chosen:
        raise NotReady(f"this build of ONNX Runtime has none of {', '.join(names)}", where="MARRAM_ONNX_PROVIDERS")
    return chosen


def _loader(provider: str) -> probe.Load:
    def load_there(file: Path, *, threads: int = 1) -> Session:
        session = OnnxSession(file, threads, [provider])
        if provider not in session.providers:  # ONNX Runtime falls back to the CPU with no more than a warning
            raise NotReady(f"{provider} did not start; a driver or library of it is missing")
        return session

    return load_there


def _scales(session: Any, file: Path) -> dict[str, tuple[float, int]]:
    text = session.get_modelmeta().custom_metadata_map.get(QUANTISATION_KEY)
    if text is None:
        return {}
    try:
        return {str(name): (float(scale), int(zero)) for name, (scale, zero) in json.loads(text).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise Invalid(f"its metadata {QUANTISATION_KEY} is malformed", where=str(file)) from error


def _spoken(nodes: list[Any]) -> list[Any]:
    """The outputs to ask for: without names and maps (scikit-learn's) beside numbers. All, where none is of numbers."""
    numbers = any(node.type.startswith("tensor(float") or node.type == "tensor(double)" for node in nodes)
    return [node for node in nodes if node.type in _DTYPES or not numbers]


def _info(node: Any, scales: dict[str, tuple[float, int]], file: Path) -> TensorInfo:
    if node.type not in _DTYPES:
        raise Invalid(
            f"tensor {node.name} is a {node.type}, which Marram does not speak",
            where=str(file),
            hint="From scikit-learn, export with zipmap=False." if node.type.startswith("seq(") else None,
        )
    shape = tuple(n if isinstance(n, int) else -1 for n in node.shape)
    scale, zero_point = scales.get(node.name, (None, 0))
    return TensorInfo(node.name, shape, _DTYPES[node.type], scale, zero_point)


def _runtime() -> Any:
    with importing(Engine.ONNX, "ONNX Runtime", "`pip install onnxruntime`"):
        import onnxruntime  # the engine is heavy: only where it is used
    return onnxruntime


def _faults() -> tuple[type[Exception], ...]:
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    names = ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NoModel", "NoSuchFile", "NotImplemented",
             "RuntimeException", "EPFail", "ModelLoaded")  # fmt: skip
    return (*(getattr(state, n) for n in names if hasattr(state, n)), RuntimeError, ValueError)


def _version() -> str:
    return f"onnxruntime {_runtime().__version__}"


def _reason(error: BaseException) -> str:
    return first_line(error).removeprefix("[ONNXRuntimeError] : ")
