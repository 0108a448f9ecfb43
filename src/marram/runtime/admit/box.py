"""`python -m marram.runtime.admit.box FOLDER MODULE ARGUMENT…`: become `MODULE`, which sees `FOLDER` and little else.

What an engine does with a stranger's file may be anything at all. So before an engine (or a thread of it) is there, the
process gives up the rest of the file system: it reads the bundle, Python and its libraries, and writes only into the
temporary folder made for it (`TMPDIR`). A kernel without Landlock leaves that out; the bounds on memory and time stay.
"""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

from marram.system import landlock

_LIBRARIES = (
    "/usr",
    "/lib",
    "/lib64",
    "/lib32",
    "/opt",
    "/nix",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/etc/alternatives",
)
# How many processors there are, of which kind, and how much memory: engines ask.
_MACHINE = ("/sys/devices/system", "/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/sys/vm", "/proc/self")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random")


def confine(folder: Path) -> None:
    """Give up everything but reading `folder` and what Python needs, and `TMPDIR`. Raises OSError."""
    if not landlock.abi():
        return
    searched = [*sys.path, *os.environ.get("LD_LIBRARY_PATH", "").split(":")]
    package = Path(__file__).resolve().parents[3]
    places = {
        sys.prefix,
        sys.base_prefix,
        sys.exec_prefix,
        str(package),
        str(folder),
        *_LIBRARIES,
        *_MACHINE,
        *searched,
    }
    rules = [(os.path.realpath(place), landlock.READ) for place in sorted(places) if place]
    if scratch := os.environ.get("TMPDIR"):
        rules.append((os.path.realpath(scratch), landlock.ALL))
    landlock.restrict([*rules, *((device, landlock.READ | landlock.WRITE_FILE) for device in _DEVICES)])


def main(arguments: list[str]) -> None:
    """Does not come back but by the module's end."""
    confine(Path(arguments[0]))
    sys.argv = arguments[1:]
    runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1:])
