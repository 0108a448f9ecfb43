"""The cloud's folder: made, proven writable, and held by one cloud at a time."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from marram.schema.errors import Conflict, Refused
from marram.system import files


class FolderLock:
    """Held until `release` or the end of the process, however that comes."""

    def __init__(self, folder: Path) -> None:
        """Raises Conflict where another cloud holds `folder`, Refused where it cannot be written."""
        make_folder(folder)

        def taken(holder: str) -> Conflict:
            return Conflict(
                f"a cloud runs in this folder already (process {holder})",
                where=str(folder),
                hint="Stop that one, or choose another: marram cloud --folder FOLDER",
            )

        try:
            self._held: int | None = files.hold(folder / "lock", taken)
        except OSError as error:
            raise _unwritable(folder / "lock", error) from error

    def release(self) -> None:
        """Any number of times."""
        if self._held is not None:
            os.close(self._held)
            self._held = None


def make_folder(folder: Path) -> Path:
    """Create `folder` (0700) and prove that it can be written. Raises Refused."""
    try:
        files.make_folder(folder)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".writable-"):
            return folder
    except OSError as error:
        raise _unwritable(folder, error) from error


def _unwritable(path: Path, error: OSError) -> Refused:
    return Refused(
        f"cannot write here: {error.strerror}",
        where=str(path),
        hint="Choose another folder: marram cloud --folder FOLDER",
    )
