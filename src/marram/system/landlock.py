"""Landlock: a Linux process gives up, for itself and all it starts, what it does not need. By system calls alone.

The kernel's list is of what stays allowed, and a rule on a folder holds for all that is in it, now and later. So that
a process may go on using the machine as before and only lose a few places, `everything_but` allows the neighbours of
each of those places, level by level from the root. See Linux, Documentation/userspace-api/landlock.rst.

It knows none of Marram's nouns. Older kernels have less of it: what a version lacks is left out, and `ABI` says so.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
import sys
from collections.abc import Iterable, Iterator, Mapping

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
REMOVE_FILE, MAKE_REG = 1 << 5, 1 << 8
_REFER, TRUNCATE = 1 << 13, 1 << 14
READ = EXECUTE | READ_FILE | READ_DIR
# Plain files, made, written and deleted: no link, no folder, no pipe, where somebody else will open what is there.
PLAIN = READ_FILE | READ_DIR | WRITE_FILE | TRUNCATE | MAKE_REG | REMOVE_FILE
# All of ABI 1 (13 rights) and those that later ones added. What may be asked of a device by ioctl is left to the
# device's owner and mode, as it is without Landlock.
_BY_ABI = {1: (1 << 13) - 1, 2: _REFER, 3: TRUNCATE}
_OF_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE
ALL = sum(_BY_ABI.values())
# Signals, and abstract sockets, to processes outside (ABI 6).
_SCOPES, _SCOPES_ABI = 0b11, 6

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_PATH_BENEATH = 1
_PR_SET_NO_NEW_PRIVS = 38


def _call(number: int, *arguments: object) -> int:
    """One system call. Raises OSError."""
    library = ctypes.CDLL(None, use_errno=True)
    library.syscall.restype = ctypes.c_long
    result = int(library.syscall(ctypes.c_long(number), *arguments))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def abi() -> int:
    """The kernel's Landlock version; 0 where it has none, or it is switched off, or this is no Linux."""
    if not sys.platform.startswith("linux"):
        return 0
    try:
        return _call(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(1))
    except OSError:
        return 0


def scopes(version: int) -> bool:
    """Whether that version keeps signals and abstract sockets in."""
    return version >= _SCOPES_ABI


def everything_but(closed: Mapping[str, int]) -> Iterator[tuple[str, int]]:
    """Rules that leave everything as it is but the places `closed`, each with what stays allowed there (0: nothing).

    Paths are real and absolute. Where a folder holds a closed place, its other entries are allowed as they are now;
    the folder itself is not: nothing new can be made directly in it, nor what appears there later be used.
    """
    ways = ways_to(closed)
    for way in ways:
        try:
            with os.scandir(way) as entries:
                found = [entry.path for entry in entries if not entry.is_symlink()]
        except OSError:
            continue
        yield from ((path, ALL) for path in found if path not in ways and path not in closed)
    yield from ((path, rights) for path, rights in closed.items() if rights)


def ways_to(places: Iterable[str]) -> set[str]:
    """Every folder above one of `places`."""
    found: set[str] = set()
    for place in places:
        while place != "/":
            place = os.path.dirname(place)  # noqa: PTH120 - thousands of them, at the start of each worker
            found.add(place)
    return found


def restrict(rules: Iterable[tuple[str, int]]) -> None:
    """From now on this thread, and whatever it starts, can use only what `rules` allow: (path, rights). For ever.

    Call it while the process has one thread. Signals and abstract sockets reach only those restricted with it, where
    the kernel has that. Paths that are not there are passed over. Raises OSError.
    """
    version = abi()
    handled = sum(rights for since, rights in _BY_ABI.items() if since <= version)
    attributes = [handled]
    if scopes(version):
        attributes += [0, _SCOPES]  # the one between is the network, which stays open
    packed = struct.pack(f"={len(attributes)}Q", *attributes)
    ruleset = _call(_CREATE_RULESET, packed, ctypes.c_size_t(len(packed)), ctypes.c_uint32(0))
    try:
        for path, rights in rules:
            _allow(ruleset, path, rights & handled)
        if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        _call(_RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint32(0))
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        place = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(place).st_mode):
            rights &= _OF_FILES
        if rights:
            # struct landlock_path_beneath_attr is packed: 8 bytes, then 4.
            _call(_ADD_RULE, ctypes.c_int(ruleset), _PATH_BENEATH, struct.pack("=Qi", rights, place), 0)
    finally:
        os.close(place)
