"""Files written so that power may fail at any byte, and a file that one process holds."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable
from pathlib import Path


def write(path: Path, content: bytes) -> None:
    """Replace `path` by `content` (mode 0600): a reader finds the old content or the new, never a mixture.

    It is on the disk when this returns. Raises OSError: the old content is then untouched, and nothing left beside it.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            left = memoryview(content)
            while left:
                left = left[os.write(descriptor, left) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync(path.parent)


def make_folder(path: Path) -> None:
    """Make `path`, and what is missing above it, for nobody else to read (0700); there already, it stays as it is.

    Its name is on the disk when this returns: else all that is written in it later could go with it. Raises OSError.
    """
    if path.is_dir():
        return
    if not path.parent.is_dir():
        make_folder(path.parent)
    path.mkdir(mode=0o700, exist_ok=True)
    sync(path.parent)


def sync(path: Path) -> None:
    """Bring a file's content, or a folder's names, to the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def hold(path: Path, taken: Callable[[str], Exception]) -> int:
    """Take the file `path` (made where it is not) for this process, until the returned descriptor is closed.

    The lock is the kernel's (flock): it ends with its holder, however that dies. The file names the holder's process;
    where another one holds it, what `taken` makes of that number (or of "unknown") is raised. Raises OSError where the
    file cannot be opened.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.pread(descriptor, 20, 0).decode(errors="replace").strip() or "unknown"
        os.close(descriptor)
        raise taken(holder) from error
    with contextlib.suppress(OSError):  # the number is for messages only: a full disk must not keep us out
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor
