"""A file system's faults in our words. It must import next to nothing: processes that start for one question use it."""

from __future__ import annotations

import errno
from pathlib import Path

from marram.schema.errors import MarramError, Permanent, Retryable
from marram.schema.words import file_fault


def disk_fault(error: OSError, path: Path) -> MarramError:
    """Retryable where the disk is full, else Permanent."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Retryable("the disk is full", where=str(path), hint="Free some space; it goes on by itself.")
    return Permanent(file_fault(error), where=str(path), hint="See its owner and rights.")
