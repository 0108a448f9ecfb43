"""What models take of this process's memory, and giving it back to the system when they are unloaded."""

from __future__ import annotations

import ctypes
import sys

import psutil

# malloc's parameters (mallopt(3)): M_ARENA_MAX.
_ARENA_MAX = -8
_ARENAS = 4


def resident_bytes() -> int:
    """The memory of this process that lies in RAM now."""
    return int(psutil.Process().memory_info().rss)


def few_arenas() -> None:
    """Let all threads share a few of malloc's arenas, before they start; elsewhere than on glibc nothing is done.

    Each arena keeps what was freed in it for itself, and every engine brings threads of its own: with one for each, a
    process that swaps models would grow by what each arena once held.
    """
    libc = _glibc()
    if libc is not None:
        libc.mallopt(_ARENA_MAX, _ARENAS)


def give_back() -> None:
    """Return what is free to the system; elsewhere than on glibc its malloc does that by itself."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "malloc_trim") and hasattr(libc, "mallopt") else None
