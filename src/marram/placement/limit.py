"""How many requests one client may have under way: one more while that is used, a tenth less at each failure. Pure.

(AIMD, as Netflix's concurrency-limits has it: `AIMDLimit`.)
"""

from __future__ import annotations

_FIRST, _LEAST, _MOST = 8.0, 1.0, 64.0
_FALL = 0.9


class Limit:
    """Of one client's requests to one model."""

    def __init__(self) -> None:
        self._requests = _FIRST

    def room(self, under_way: int) -> int:
        """How many more may be asked beside those `under_way`."""
        return max(0, int(self._requests) - under_way)

    def answered(self, under_way: int) -> None:
        """One was answered; it was one of so many."""
        if 2 * under_way >= self._requests:
            self._requests = min(self._requests + 1, _MOST)

    def failed(self) -> None:
        """One took too long, or was refused for its queue."""
        self._requests = max(_LEAST, self._requests * _FALL)
