"""LiteRT (`.tflite`): the device's engine; XNNPACK on the CPU, an Edge TPU where its delegate is installed.

Only `Interpreter`: `CompiledModel` holds the GIL while it computes, so a camera thread would starve. An interpreter
shared by threads answers wrongly now and then, without an error; `CheckedSession` refuses that.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from pathlib import Path
from typing import Any

from marram.runtime import probe
from marram.runtime.contract import Accelerator, Session, Tensor, TensorInfo
from marram.runtime.installed import importing
from marram.runtime.session import CheckedSession
from marram.schema.errors import Invalid, NotReady
from marram.schema.model import Engine
from marram.schema.words import first_line

_EDGE_TPU_LIBRARIES = ("libedgetpu.so.1", "libedgetpu.1.dylib", "edgetpu.dll")


def load(file: Path, *, threads: int = 1, free: bool = False) -> Session:
    """See `contract.Engine.load`. `MARRAM_EDGE_TPU=1` runs what was compiled for an Edge TPU on it."""
    delegates = [_edge_tpu()] if os.environ.get("MARRAM_EDGE_TPU") == "1" else []
    return LitertSession(file, threads, delegates)


def describe() -> list[Accelerator]:
    """The CPU, and an Edge TPU where its library is installed."""
    return [probe.attempt("litert", "CPU (XNNPACK)", load, probe.tflite, _version), _describe_edge_tpu()]


class LitertSession(CheckedSession):
    """One interpreter. Details are read once: asking for them costs more than a small model's run."""

    def __init__(self, file: Path, threads: int, delegates: list[Any]) -> None:
        interpreter_class = _interpreter_class()
        try:
            with _quiet:
                self._interpreter: Any = interpreter_class(
                    model_path=str(file), num_threads=threads, experimental_delegates=delegates or None
                )
                self._interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise Invalid(
                f"not a model LiteRT can load: {first_line(error)}", where=str(file), hint="Is the file complete?"
            ) from error
        inputs = self._interpreter.get_input_details()
        outputs = self._interpreter.get_output_details()
        super().__init__(str(file), tuple(map(_info, inputs)), tuple(map(_info, outputs)))
        self._input_indices = [d["index"] for d in inputs]
        self._output_indices = [d["index"] for d in outputs]
        self._shapes = [tuple(int(n) for n in d["shape"]) for d in inputs]

    def _infer(self, tensors: list[Tensor]) -> list[Tensor]:
        shapes = [t.shape for t in tensors]
        if shapes != self._shapes:  # a free length changed: the buffers have to be laid out anew
            for index, shape in zip(self._input_indices, shapes, strict=True):
                self._interpreter.resize_tensor_input(index, shape)
            self._interpreter.allocate_tensors()
            self._shapes = shapes
        for index, tensor in zip(self._input_indices, tensors, strict=True):
            self._interpreter.set_tensor(index, tensor)
        self._interpreter.invoke()
        # get_tensor copies; a live view of the interpreter's memory would make the next invoke raise.
        return [self._interpreter.get_tensor(index) for index in self._output_indices]

    def _free(self) -> None:
        self._interpreter = None


class _FirstTimeQuiet:
    """Keeps "Created TensorFlow Lite XNNPACK delegate" off the terminal. LiteRT says it once in a process, when the
    first interpreter is made, to file descriptor 2, and has no switch for it; so that is where it is caught.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._over = False
        self._saved: int | None = None

    def __enter__(self) -> None:
        self._lock.acquire()
        if not self._over:
            with contextlib.suppress(OSError):  # no stderr, nothing to keep quiet
                self._saved = os.dup(2)
                sink = os.open(os.devnull, os.O_WRONLY)
                os.dup2(sink, 2)
                os.close(sink)

    def __exit__(self, *fault: object) -> None:
        if self._saved is not None:
            os.dup2(self._saved, 2)
            os.close(self._saved)
            self._saved = None
        self._over = self._over or fault[0] is None
        self._lock.release()


_quiet = _FirstTimeQuiet()


def _info(detail: dict[str, Any]) -> TensorInfo:
    scale, zero_point = detail["quantization"]
    shape = tuple(int(n) for n in detail["shape_signature"])
    return TensorInfo(
        name=str(detail["name"]),
        shape=shape if shape else tuple(int(n) for n in detail["shape"]),
        dtype=detail["dtype"].__name__,
        scale=float(scale) if scale else None,
        zero_point=int(zero_point),
    )


def _interpreter_class() -> Any:
    with importing(Engine.LITERT, "LiteRT", "`pip install ai-edge-litert`"):
        from ai_edge_litert.interpreter import Interpreter  # the engine is heavy: only where it is used
    return Interpreter


def _version() -> str:
    from importlib.metadata import version

    return f"ai-edge-litert {version('ai-edge-litert')}"


def _edge_tpu() -> Any:
    _interpreter_class()
    from ai_edge_litert.interpreter import load_delegate

    for library in _EDGE_TPU_LIBRARIES:
        try:
            ctypes.CDLL(library)  # asked first: a delegate that fails to load complains again when it is collected
        except OSError:
            continue
        try:
            return load_delegate(library)
        except (ValueError, OSError) as error:
            raise NotReady(f"the Edge TPU does not answer: {first_line(error)}", hint="Is it plugged in?") from error
    raise NotReady("no Edge TPU library here", hint="Install libedgetpu1-std to use one.")


def _describe_edge_tpu() -> Accelerator:
    try:
        delegate = _edge_tpu()
    except NotReady as error:
        return Accelerator("litert", "Edge TPU", False, str(error), present="answer" in error.what)
    return probe.attempt(
        "litert", "Edge TPU", lambda file, threads=1: LitertSession(file, threads, [delegate]), probe.tflite, _version
    )
