"""A model of one layer that every engine has to run for `marram runtime` to say PASS: `y = relu(W x + b)`.

Both files are 200 to 500 bytes and lie here as text, since making them needs libraries that a device does not have.
"""

from __future__ import annotations

import base64
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np

from marram.runtime.contract import Accelerator, Session
from marram.runtime.installed import installed
from marram.schema.errors import MarramError, NotReady
from marram.schema.model import Engine

WEIGHTS = np.array([[1, 0, -1, 2], [0.5, -2, 1, 0], [-1, -1, -1, -1]], np.float32)  # (3, 4)
BIAS = np.array([0.5, -0.25, 1], np.float32)
INPUT = np.array([[2, -1, 0, 1]], np.float32)  # (1, 4)
OUTPUT = np.array([[4.5, 2.75, 0]], np.float32)  # (1, 3), by hand

_TFLITE = """
CAAAAFRGTDNW////FAAAAIQAAACUAAAA4AEAAAMAAAADAAAAbAAAACgAAAAEAAAA5v///wQAAAAMAAAAAAAAPwAAgL4AAIA/AAAGAAgABAAG
AAAABAAAADAAAAAAAIA/AAAAAAAAgL8AAABAAAAAPwAAAMAAAIA/AAAAAAAAgL8AAIC/AACAvwAAgL8EAAQABAAAAAwAAABtYXJyYW0gcHJv
YmUAAAAAAQAAABQAAAAAAA4AGAAUABAADAAIAAQADgAAABQAAAAcAAAAbAAAAHAAAAB0AAAABAAAAG1haW4AAAAAAQAAABQAAAAAAA4AFgAA
ABAADAALAAQADgAAABgAAAAAAAAIGAAAABwAAAAAAAYACAAHAAYAAAAAAAABAQAAAAMAAAADAAAAAAAAAAEAAAACAAAAAQAAAAMAAAABAAAA
AAAAAAQAAACMAAAAWAAAACgAAAAEAAAAkP///wgAAAAMAAAAAQAAAHkAAAACAAAAAQAAAAMAAADg////DAAAAAIAAAAMAAAAAQAAAGIAAAAB
AAAAAwAAAAwAEAAMAAAACAAEAAwAAAAMAAAAAQAAAAwAAAABAAAAdwAAAAIAAAADAAAABAAAAAwADAAIAAAAAAAEAAwAAAAIAAAADAAAAAEA
AAB4AAAAAgAAAAEAAAAEAAAAAQAAABAAAAAMAAwACwAAAAAABAAMAAAACQAAAAAAAAk=
"""
_ONNX = """
CAg6tgEKIQoBeAoBdwoBYhIBeiIER2VtbSoNCgZ0cmFuc0IYAaABAgoMCgF6EgF5IgRSZWx1EgVwcm9iZSo7CAMIBBABQgF3SjAAAIA/AAAA
AAAAgL8AAABAAAAAPwAAAMAAAIA/AAAAAAAAgL8AAIC/AACAvwAAgL8qFQgDEAFCAWJKDAAAAD8AAIC+AACAP1oTCgF4Eg4KDAgBEggKAggB
CgIIBGITCgF5Eg4KDAgBEggKAggBCgIIA0IECgAQDQ==
"""


class Load(Protocol):
    """An engine's `load`."""

    def __call__(self, file: Path, *, threads: int = 1) -> Session: ...


def tflite() -> bytes:
    """The model as a `.tflite`."""
    return base64.b64decode(_TFLITE)


def onnx() -> bytes:
    """The model as an `.onnx` (opset 13)."""
    return base64.b64decode(_ONNX)


def attempt(
    engine: str, device: str, load: Load, model: Callable[[], bytes], version: Callable[[], str]
) -> Accelerator:
    """Load and run the model with `load`; says how long a run took, or what went wrong. Never raises MarramError."""
    with tempfile.TemporaryDirectory(prefix="marram-probe-") as folder:
        try:
            file = Path(folder) / "probe"
            file.write_bytes(model())
            session = load(file)
            try:
                (answer,) = session.run([INPUT])
                start = time.perf_counter()
                for _ in range(10):
                    session.run([INPUT])
                run_s = (time.perf_counter() - start) / 10
            finally:
                session.close()
        except NotReady as error:
            return Accelerator(engine, device, False, str(error), present=installed(Engine(engine)))
        except MarramError as error:
            return Accelerator(engine, device, False, str(error))
    if not np.allclose(answer, OUTPUT, rtol=1e-3):
        return Accelerator(engine, device, False, f"answered {answer.tolist()} where {OUTPUT.tolist()} is right")
    return Accelerator(engine, device, True, f"{version()}, {run_s * 1e6:.0f} µs a call")
