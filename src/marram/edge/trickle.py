"""A floor under how slowly bytes may come: a bad link is served, one who trickles for ever holds nobody up.

20 kbit/s, shared with everything else on the link, stay well above it. What falls below is given up for now, not for
good: what came so far is kept, and it goes on from there later. Links that answer nothing at all are not its business:
each question has its own time-out.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from marram.schema.errors import Threat, Untrusted
from marram.schema.units import format_size

WINDOW_S = 60.0
LEAST_BYTES_PER_S = 500.0


class Floor:
    """One file's progress. Make a new one for each attempt: what the link was away for does not count."""

    def __init__(self, what: str, now_s: Callable[[], float] | None = None) -> None:
        self._what, self._now_s = what, now_s or time.monotonic
        self._since_s, self._bytes = self._now_s(), 0

    def came(self, size_bytes: int) -> None:
        """An answer brought so much. Raises Untrusted (SLOW) where that is too little for too long."""
        self._bytes += size_bytes
        passed_s = self._now_s() - self._since_s
        if passed_s < WINDOW_S:
            return
        if self._bytes < LEAST_BYTES_PER_S * passed_s:
            raise Untrusted(
                f"{self._what}: {format_size(self._bytes)} in {passed_s:.0f} s",
                threat=Threat.SLOW,
                hint="It goes on from there later.",
            )
        self._since_s, self._bytes = self._now_s(), 0
