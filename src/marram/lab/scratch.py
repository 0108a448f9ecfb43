"""Where rehearsals write, and how they keep their hundreds of devices from talking."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder that is gone afterwards; in memory where there is such a place: thousands of disks are written."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="marram-", dir=memory if memory.is_dir() else None) as name:
        yield Path(name)


@contextmanager
def quiet() -> Iterator[None]:
    """What an agent says of a damaged disk or a cut link is as it should be, a thousand times."""
    logger = logging.getLogger("marram")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)
