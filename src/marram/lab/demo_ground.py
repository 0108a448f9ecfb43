"""What the demo stands on: what has to be installed, a folder of its own, a port, an end that cleans up, waiting.

None of it knows what the demo does with it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from marram.bus.http import CloudApi
from marram.bus.server import find_server
from marram.schema.errors import Conflict, NotReady, Permanent, Retryable
from marram.system.files import hold

_MARKER = ".marram-demo"
# What has to be installed besides the device's own packages.
_NEEDED = ("fastapi", "uvicorn", "sqlalchemy", "obstore", "nicegui", "onnx", "skimage", "sklearn")


def check_installed() -> None:
    """Raises NotReady naming what is missing, Missing where that is the broker."""
    find_server()
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise NotReady(
            f"the demo needs what is not installed here ({', '.join(missing)})", hint="pip install 'marram[demo]'"
        )


def free_port(wanted: int | None) -> int:
    """`wanted`, or 8080 where that is free, else any. Raises Conflict where a wanted one is taken."""
    for port in (wanted,) if wanted else (8080, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise Conflict(f"port {wanted} is taken", where="--port", hint="Leave --port out for a free one.")


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """The demo's folder, emptied of the last demo and locked. Raises Conflict, Permanent."""

    def taken(holder: str) -> Conflict:
        what = f"a demo runs in this folder (process {holder})"
        return Conflict(what, where=str(folder), hint="Name another: --folder")

    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / _MARKER).exists() and any(folder.iterdir()):
            raise Conflict(
                "this folder holds something that is not a demo's", where=str(folder), hint="Name another: --folder"
            )
        lock = hold(folder / _MARKER, taken)
        try:
            for old in folder.iterdir():
                if old.name != _MARKER:
                    shutil.rmtree(old) if old.is_dir() else old.unlink()
            yield
        finally:
            os.close(lock)
    except OSError as error:
        raise Permanent(f"cannot use this folder: {error.strerror}", where=str(folder)) from error


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end the demo as Ctrl-C does: cleaned up."""

    def end(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def until(done: Callable[[], bool], timeout_s: float, what: str, check: Callable[[], None]) -> None:
    """Poll until `done`; `check` raises where there is no point in waiting. Raises NotReady after `timeout_s`."""
    ends_s = time.monotonic() + timeout_s
    while True:
        check()
        with contextlib.suppress(Retryable):
            if done():
                return
        if time.monotonic() > ends_s:
            raise NotReady(f"{what} (waited {timeout_s:g} s)")
        time.sleep(0.1)


def healthy(url: str) -> bool:
    with CloudApi(url, timeout_s=2) as api:
        return api.health().ok


def command() -> str:
    """How a person types `marram` here: by its name, or by its path in this environment."""
    here = Path(sys.executable).parent / "marram"
    if shutil.which("marram") or not here.exists():
        return "marram"
    return os.path.relpath(here) if here.is_relative_to(Path.cwd()) else str(here)


def lines_of(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def write_json(file: Path, figures: dict[str, Any]) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise Permanent(f"cannot write it: {error.strerror}", where=str(file)) from error
