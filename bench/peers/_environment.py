"""A virtual environment for each peer, under `build/peers/`, with the versions that its `NAME.txt` pins.

Made only when asked for (they are two gigabytes together) and kept; one whose `NAME.txt` has changed counts as absent.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_HERE = Path(__file__).parent
_DONE = "installed.txt"
_TIMEOUT_S = 900


def python(name: str) -> Path:
    """The interpreter of the peer `name`."""
    return _folder(name) / "bin" / "python"


def present(name: str) -> bool:
    """Whether all of what is pinned now was installed."""
    done = _folder(name) / _DONE
    return done.is_file() and done.read_bytes() == _pinned(name).read_bytes()


def install(name: str) -> str:
    """Make it, from the index that pip is set up with. What went wrong, "" where nothing did."""
    folder = _folder(name)
    shutil.rmtree(folder, ignore_errors=True)
    pip = [str(python(name)), "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--only-binary=:all:"]
    try:
        for command in ([sys.executable, "-m", "venv", str(folder)], [*pip, "-r", str(_pinned(name))]):
            done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
            if done.returncode != 0:
                faults = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
                return faults[0].removeprefix("ERROR: ") if faults else f"exit status {done.returncode}"
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    shutil.copyfile(_pinned(name), folder / _DONE)
    return ""


def _folder(name: str) -> Path:
    return ROOT / "build" / "peers" / name


def _pinned(name: str) -> Path:
    return _HERE / f"{name}.txt"
