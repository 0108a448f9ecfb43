"""Child processes whose life is tied to ours: they end when this process does, `kill -9` included.

On Linux the kernel ends them (a death signal set by a launcher that then becomes the program); elsewhere a sibling
waits on a pipe that only we hold open. Linux ties the signal to the thread that starts the child, not to the process:
start it from one that lives as long as the child should.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

_LINUX = sys.platform.startswith("linux")
# A launcher and not a `preexec_fn`, which would run Python between fork and exec of a process with threads.
_LINUX_LAUNCHER = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""
_GUARD = 'read line; kill -9 "$0"'


def tied(command: Sequence[str]) -> list[str]:
    """The command line to start instead of `command` (its first word a path), so that it ends with this process."""
    if not _LINUX:
        return list(command)
    return [sys.executable, "-I", "-S", "-c", _LINUX_LAUNCHER, str(os.getpid()), *command]


def guard(pid: int) -> subprocess.Popen[bytes] | None:
    """Where the kernel does not tie it: the sibling that kills `pid` once we are gone. `dismiss` it before that."""
    if _LINUX:
        return None
    return subprocess.Popen(
        ["/bin/sh", "-c", _GUARD, str(pid)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def dismiss(guarding: subprocess.Popen[bytes] | None) -> None:
    """End a guard whose child has ended, or it would kill whoever gets that number next."""
    if guarding is not None:
        guarding.kill()
        guarding.communicate()
