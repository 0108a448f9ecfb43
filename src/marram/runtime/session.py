"""What every engine's session shares: checks, the quantisation seam, closing, one thread at a time.

A plug-in subclasses `CheckedSession` and writes `_infer` (raw tensors in, raw tensors out) and `_free`; the promises
of `contract.Session` are kept here once. It must never hand out a view of an engine's memory: the next run would
change a caller's result.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

from marram.runtime.contract import Tensor, TensorInfo
from marram.schema.errors import Invalid, MarramError, Permanent
from marram.schema.words import first_line

_FLOAT32 = np.dtype(np.float32)


def quantise(real: NDArray[np.float32], info: TensorInfo) -> Tensor:
    """Real numbers to `info`'s integers: `round(real / scale) + zero_point`, saturating.

    Half rounds to even, as the engines' own Quantize does. NaN has no integer and becomes the zero-point.
    """
    assert info.scale is not None
    limits = np.iinfo(info.dtype)
    steps = np.rint(real / np.float32(info.scale)) + np.float32(info.zero_point)
    np.clip(steps, limits.min, limits.max, out=steps)
    if np.isnan(steps).any():
        steps = np.nan_to_num(steps, nan=info.zero_point)
    quantised: Tensor = steps.astype(info.dtype)
    return quantised


def dequantise(raw: Tensor, info: TensorInfo) -> NDArray[np.float32]:
    """Integers to real numbers: `(raw - zero_point) * scale`; what is not quantised is only converted to float32."""
    if info.scale is None:
        return np.array(raw, dtype=np.float32)
    real: NDArray[np.float32] = (raw.astype(np.float32) - np.float32(info.zero_point)) * np.float32(info.scale)
    return real


def fits(shape: tuple[int, ...], declared: tuple[int, ...]) -> bool:
    """Whether `shape` is what `declared` asks for (-1: any length)."""
    return len(shape) == len(declared) and all(d in (-1, s) for s, d in zip(shape, declared, strict=True))


def format_shape(shape: tuple[int, ...]) -> str:
    """(1, -1, 3) -> `[1, ?, 3]`."""
    return "[" + ", ".join("?" if length < 0 else str(length) for length in shape) + "]"


class CheckedSession(ABC):
    """A `contract.Session` in which only the engine's own call is left to write.

    `where` names the model's file in messages. Used by two threads at once it raises Permanent, unless the plug-in sets
    `parallel`: most engines answer wrongly then (LiteRT), or race.
    """

    parallel = False

    def __init__(self, where: str, inputs: tuple[TensorInfo, ...], outputs: tuple[TensorInfo, ...]) -> None:
        self.inputs = inputs
        self.outputs = outputs
        self._where = where
        self._door = threading.Condition()
        self._running = 0
        self._closed = False

    def run(self, tensors: list[Tensor]) -> list[Tensor]:
        """See `contract.Session.run`. A quantised input also takes its own integers, already quantised.

        Raises Invalid on a wrong number, shape or dtype of tensors, Permanent when closed, used by two threads at
        once, or where the engine fails.
        """
        with self._door:
            if self._running and not self.parallel:
                raise Permanent(
                    "one session was used by two threads at once",
                    where=self._where,
                    hint="Load one session per thread.",
                )
            if self._closed:
                raise Permanent("the session is closed", where=self._where, hint="Load the model again.")
            self._running += 1
        try:
            if len(tensors) != len(self.inputs):
                raise Invalid(f"takes {len(self.inputs)} tensors, got {len(tensors)}", where=self._where)
            raw = [self._entering(t, info) for t, info in zip(tensors, self.inputs, strict=True)]
            try:
                answered = self._infer(raw)
            except MarramError:
                raise
            except (RuntimeError, ValueError, TypeError, MemoryError) as error:
                raise Permanent(f"the engine failed: {first_line(error)}", where=self._where) from error
            return [dequantise(a, info) for a, info in zip(answered, self.outputs, strict=True)]
        finally:
            with self._door:
                self._running -= 1
                self._door.notify_all()

    def close(self) -> None:
        """See `contract.Session.close`. Waits for runs in progress; closing twice is no fault."""
        with self._door:
            first, self._closed = not self._closed, True
            self._door.wait_for(lambda: self._running == 0)
            if first:
                self._free()

    def _entering(self, tensor: Tensor, info: TensorInfo) -> Tensor:
        if not isinstance(tensor, np.ndarray):
            raise Invalid(f"input {info.name} takes an array, got {type(tensor).__name__}", where=self._where)
        if not fits(tensor.shape, info.shape):
            raise Invalid(
                f"input {info.name} takes shape {format_shape(info.shape)}, got {format_shape(tensor.shape)}",
                where=self._where,
            )
        if tensor.dtype == np.dtype(info.dtype):
            return tensor
        if tensor.dtype == _FLOAT32 and info.scale is not None:
            return quantise(np.asarray(tensor, dtype=np.float32), info)
        if tensor.dtype == _FLOAT32 and info.dtype in ("float16", "float64"):
            return tensor.astype(info.dtype)
        takes = info.dtype if info.scale is None else f"float32 or {info.dtype}"
        raise Invalid(f"input {info.name} takes {takes}, got {tensor.dtype}", where=self._where)

    @abstractmethod
    def _infer(self, tensors: list[Tensor]) -> list[Tensor]:
        """Raw tensors, checked, in the order of `inputs`, to raw outputs; the caller copies them at once."""

    @abstractmethod
    def _free(self) -> None:
        """Let go of the engine's memory."""
