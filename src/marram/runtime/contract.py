"""The seam of the engines: `load(bundle, variant) -> Session`, `session.run(tensors) -> tensors`.

Sessions speak real numbers: float32 (or the model's own integer inputs where it takes raw pixels) in, float32 out.
A quantised model's scale and zero-point are applied inside the session, so preprocessing and postprocessing are the
same for every variant.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Tensor = NDArray[np.generic]


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One input or output as the file declares it. `shape` has -1 where free; `dtype` is NumPy's name.

    Where `scale` is not None: real = (quantised - zero_point) * scale (scale per tensor).
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    scale: float | None = None
    zero_point: int = 0


class Session(Protocol):
    """One loaded model on one engine. One session for each thread that infers, unless it is `parallel`."""

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    parallel: bool  # whether several threads may run it at once

    def run(self, tensors: list[Tensor]) -> list[Tensor]:
        """`tensors` in the order of `inputs`, shapes as declared; real-valued float32 (see the module's words).

        Returns float32 outputs (copies) in the order of `outputs`. Raises Invalid on a wrong shape or dtype.
        """
        ...

    def close(self) -> None:
        """Free the engine's memory; a closed session raises Permanent on `run`."""
        ...


class Engine(Protocol):
    """A runtime plug-in: a module `runtime/engines/NAME.py` with these functions; the file name is the registration."""

    def load(self, file: Path, *, threads: int = 1, free: bool = False) -> Session:
        """Raises Invalid where the file is no model this engine reads, NotReady where the engine is not installed.

        `free`: where the engine can, inputs and outputs whose first length is 1 are declared free (-1), so that several
        items run as one. Not every graph answers rightly then: whoever asks for it compares.
        """
        ...

    def describe(self) -> list[Accelerator]:
        """What this machine offers through this engine, each tried for real."""
        ...


@dataclass(frozen=True, slots=True)
class Accelerator:
    """One line of `marram runtime`: engine, what it runs on, whether a small model really ran on it, and details."""

    engine: str
    device: str
    ok: bool
    detail: str
    # False where this machine simply does not have it: nothing to mend.
    present: bool = True
