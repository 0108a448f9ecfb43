"""Whose fault it is that a worker could not write: its device's, whose disk is full, or that of the version it runs.

A version is never given up for what ails its device. But a worker runs other people's code, and is not believed when it
says that the disk is full: the agent looks for itself, and at what the app has written since its first start. Blocking.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from marram.system import files

# Less than this free, and a disk counts as full where a write failed: a commit of the outbox may take half of it.
ROOM_BYTES = 16_000_000
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_PROBE_BYTES = 65_536
# A file takes a block and a place in the file system's list, however small it is.
_LEAST_BYTES = 4096
# Beyond that many files nothing is counted any more: they take more than any worker should.
_MOST_FILES = 200_000


def full(outbox: Path, work: Path) -> bool:
    """Whether the disk is full (or read-only) where a worker with this outbox and working folder writes."""
    for place in (outbox.parent, work):
        try:
            if _free_bytes(place) < ROOM_BYTES:
                return True
            # A quota shows only to who writes.
            probe = place / ".probe"
            files.write(probe, bytes(_PROBE_BYTES))
            probe.unlink()
        except OSError as error:
            if error.errno in _NO_ROOM:
                return True
    return False


def written_bytes(outbox: Path, work: Path) -> int:
    """What lies in an app's working folder, and beside the outbox without being of it."""
    total = count = 0
    beside = (entry for entry in _entries(outbox.parent, deep=False) if not entry.name.startswith(outbox.name))
    for source in (_entries(work, deep=True), beside):
        for entry in source:
            try:
                total += max(_LEAST_BYTES, 512 * entry.stat(follow_symlinks=False).st_blocks)
            except OSError:
                continue
            count += 1
            if count >= _MOST_FILES:
                return total
    return total


def filled_itself(outbox: Path, work: Path, before_bytes: int) -> bool:
    """Whether a full disk would have room without what was written since `written_bytes` was `before_bytes`."""
    try:
        free_bytes = _free_bytes(outbox.parent)
    except OSError:
        return False
    # A quota: what is free says nothing.
    lacking = ROOM_BYTES - free_bytes if free_bytes < ROOM_BYTES else ROOM_BYTES
    return written_bytes(outbox, work) - before_bytes >= lacking


def _free_bytes(place: Path) -> int:
    found = os.statvfs(place)
    return found.f_bavail * found.f_frsize


def _entries(folder: Path, *, deep: bool) -> Iterator[os.DirEntry[str]]:
    waiting = [str(folder)]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    yield entry
                    if deep and stat.S_ISDIR(entry.stat(follow_symlinks=False).st_mode):
                        waiting.append(entry.path)
        except OSError:
            continue
