"""Room on the disk, taken before the first byte is fetched into it, so that two fetches never count on the same.

The file system sets the blocks aside for the partial file itself, beyond its end, so that its size still says how much
has come. Where it cannot, a second file holds the place and shrinks as bytes come. What is kept free for the outbox is
never taken. Blocking.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from marram.edge.disk import disk_fault
from marram.schema.errors import Retryable
from marram.schema.model import File
from marram.schema.units import format_size

_KEEP_SIZE = 1
_CANNOT = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_SUFFIX = ".room"


def fallocate(descriptor: int, offset: int, length: int) -> None:
    """Linux's own, which leaves the file's size alone. Raises OSError; ENOSYS where the system has none."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "fallocate64", None)
    if call is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    call.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    if call(descriptor, _KEEP_SIZE, offset, length) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


class Room:
    """The room of all files that are being fetched into `partial`. Safe from any thread."""

    def __init__(
        self, partial: Path, reserve_bytes: int, *, allocate: Callable[[int, int, int], None] = fallocate
    ) -> None:
        self._partial, self._reserve_bytes, self._allocate = partial, reserve_bytes, allocate
        self._lock = threading.Lock()
        self._takers: dict[str, int] = {}
        self._beside: set[str] = set()

    def take(self, files: Sequence[File]) -> None:
        """Room for all of `files`, less what is here of them; to be released as often.

        Raises Retryable where there is not enough (nothing is taken then), Permanent on other faults of the disk.
        """
        with self._lock:
            fresh = [file for file in files if file.sha256 not in self._takers]
            need = sum(max(0, file.size_bytes - self._here(file)) for file in fresh)
            free = shutil.disk_usage(self._partial).free
            if need and need + self._reserve_bytes > free:
                raise self._full(need, free)
            try:
                for file in fresh:
                    self._set_aside(file)
            except OSError as error:
                for file in fresh:
                    self._give_back(file)
                if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                    raise self._full(need, free) from error
                raise disk_fault(error, self._partial) from error
            for file in files:
                self._takers[file.sha256] = self._takers.get(file.sha256, 0) + 1

    def use(self, file: File, offset: int) -> None:
        """Bytes up to `offset` are about to be written. Raises OSError."""
        if file.sha256 in self._beside:
            os.truncate(self._place(file), max(0, file.size_bytes - offset))

    def release(self, files: Sequence[File]) -> None:
        """What was taken for `files` and not used; bytes that came stay."""
        with self._lock:
            for file in files:
                left = self._takers.pop(file.sha256, 1) - 1
                if left > 0:
                    self._takers[file.sha256] = left
                else:
                    self._give_back(file)

    def clear(self) -> None:
        """Give back all that a program left that was killed while it fetched. Raises OSError."""
        for place in self._partial.iterdir():
            if place.name.endswith(_SUFFIX):
                place.unlink()
            else:
                os.truncate(place, place.stat().st_size)

    def _here(self, file: File) -> int:
        try:
            return (self._partial / file.sha256).stat().st_size
        except OSError:
            return 0

    def _place(self, file: File) -> Path:
        return self._partial / (file.sha256 + _SUFFIX)

    def _set_aside(self, file: File) -> None:
        here = self._here(file)
        need = file.size_bytes - here
        if need <= 0:
            return
        with _opened(self._partial / file.sha256) as descriptor:
            try:
                self._allocate(descriptor, here, need)
                return
            except OSError as error:
                if error.errno not in _CANNOT:
                    raise
        self._beside.add(file.sha256)
        with _opened(self._place(file)) as descriptor:
            try:
                os.posix_fallocate(descriptor, 0, need)
            except OSError as error:
                if error.errno not in _CANNOT:
                    raise
                # Not even that: then it was looked at, which is all that can be done.

    def _give_back(self, file: File) -> None:
        with contextlib.suppress(OSError):
            if file.sha256 in self._beside:
                self._beside.discard(file.sha256)
                self._place(file).unlink(missing_ok=True)
            # Frees what lies beyond the end.
            partial = self._partial / file.sha256
            os.truncate(partial, partial.stat().st_size)

    def _full(self, need: int, free: int) -> Retryable:
        return Retryable(
            f"the disk is too full: {format_size(need)} to fetch, {format_size(free)} free, "
            f"{format_size(self._reserve_bytes)} of it kept for the outbox",
            where=str(self._partial.parent),
            hint="Free some space; it goes on by itself.",
        )


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
