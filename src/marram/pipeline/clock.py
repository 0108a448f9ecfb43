"""The time that time limits and the policy live by: a monotonic clock that is held to its word.

A machine that wakes up, a virtual machine that moved or a broken kernel may show an earlier time than before. What
waits for a moment would then wait as long again, and a link would look as if it were busy for that long: here time
stands still instead, and goes on from where it was. A leap forward is believed: nobody can tell it from a long sleep.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class SteadyClock:
    """Seconds that never decrease. Safe from any thread; a call costs well under a microsecond."""

    def __init__(self, clock: Callable[[], float] | None = None) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._shown_s = self._clock_s()
        self._made_up_s = 0.0

    def __call__(self) -> float:
        with self._lock:
            shown_s = self._clock_s()
            self._made_up_s += max(0.0, self._shown_s - shown_s)
            self._shown_s = shown_s
            return shown_s + self._made_up_s

    def _clock_s(self) -> float:
        # Looked up anew each time: a rehearsal may put another clock in its place.
        return self._clock() if self._clock is not None else time.monotonic()
