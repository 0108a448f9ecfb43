"""What a supervisor steps over, in the log: the first of each kind as a warning, all of them at debug with traceback.

The counters say how often something failed and what was said last; the log says where. A warning has no traceback:
it may be on somebody's terminal. It must never raise, nor let a fault that repeats with every frame fill a disk.
"""

from __future__ import annotations

import logging
import threading
import traceback
from pathlib import Path

from marram.schema.errors import MarramError


class Faults:
    """One supervisor's faults. `doing` names what failed, one of a few words, never one made for each frame."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._lock = threading.Lock()
        self._told: set[tuple[str, type[BaseException]]] = set()

    def tell(self, doing: str, error: BaseException) -> None:
        """Log `error`. Safe from any thread."""
        kind = (doing, type(error))
        with self._lock:
            first = kind not in self._told
            self._told.add(kind)
        if first:
            self._log.warning("%s: %s%s", doing, words(error), _place(error))
        self._log.debug("%s", doing, exc_info=error)


def words(error: BaseException) -> str:
    """An error as the operator reads it: ours speak for themselves, others name their kind."""
    return str(error) if isinstance(error, MarramError) else f"{type(error).__name__}: {error}"


def _place(error: BaseException) -> str:
    """Where a fault that is nobody's words was raised: ` (infer.py:210)`."""
    if isinstance(error, MarramError):
        return ""
    frames = traceback.extract_tb(error.__traceback__)
    return f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
