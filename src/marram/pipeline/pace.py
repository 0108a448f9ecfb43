"""Paces a file as if it were a live source (`every: 100 ms`): a frame is due so often, and never sooner."""

from __future__ import annotations

import threading
import time


class Pace:
    """`wait` returns when the next frame is due. What comes late moves the schedule on: no burst follows."""

    def __init__(self, every_s: float | None) -> None:
        self._every_s = every_s
        self._due_s = 0.0
        self._closed = threading.Event()

    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed.is_set()

    def wait(self) -> bool:
        """Sleep until the next frame is due; False where `close` came first."""
        if self._every_s is not None:
            # Never longer than that, also where the clock was set back meanwhile.
            if self._closed.wait(min(max(0.0, self._due_s - time.monotonic()), self._every_s)):
                return False
            self._due_s = following(self._due_s, self._every_s)
        return not self._closed.is_set()

    def rest(self, span_s: float) -> None:
        """Sleep for `span_s`, or until `close`."""
        self._closed.wait(span_s)

    def close(self) -> None:
        """End all waiting. Safe from any thread, any number of times."""
        self._closed.set()


def following(due_s: float, every_s: float, came_s: float | None = None) -> float:
    """When the next frame is due after the one that was due at `due_s` and is taken now.

    A live one came at `came_s`, and the next will so long after it: who took it much too late would else take each one
    later, too, by as much.
    """
    now_s = time.monotonic()
    return due_s + every_s if due_s + every_s > now_s else (now_s if came_s is None else came_s) + every_s
