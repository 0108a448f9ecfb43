"""The cloud's folder: made, proven writable, and held by one cloud at a time."""

from __future__ import annotations

import fcntl
import os
import tempfile
from pathlib import Path
from typing import IO

from marram.schema.errors import Conflict, Refused


class FolderLock:
    """Held until `release` or the end of the process, however that comes."""

    def __init__(self, folder: Path) -> None:
        """Raises Conflict where another cloud holds `folder`, Refused where it cannot be written."""
        make_folder(folder)
        self._file: IO[str] = (folder / "lock").open("a+", encoding="utf-8")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.seek(0)
            holder = self._file.read(20).strip() or "unknown"
            self._file.close()
            raise Conflict(
                f"a cloud runs in this folder already (process {holder})",
                where=str(folder),
                hint="Stop that one, or choose another: marram cloud --folder FOLDER",
            ) from error
        self._file.truncate(0)
        self._file.write(f"{os.getpid()}\n")
        self._file.flush()

    def release(self) -> None:
        """Any number of times."""
        self._file.close()


def make_folder(folder: Path) -> Path:
    """Create `folder` (0700) and prove that it can be written. Raises Refused."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".writable-"):
            return folder
    except OSError as error:
        raise Refused(
            f"cannot write here: {error.strerror}",
            where=str(folder),
            hint="Choose another folder: marram cloud --folder FOLDER",
        ) from error
