"""The caller's time as a policy lives by it, whatever the caller's clock does."""

from __future__ import annotations

import math

# A clock that goes back by less than this is two threads' reports in the wrong order, by more it was set. So was one
# that leaps ahead by more than an hour, which counts as an hour.
_DISORDER_S, _LEAP_S = 0.5, 3600.0


class Clock:
    """The caller's time made to rise: one that is set back, or is no number, stands still for a moment and goes on."""

    def __init__(self) -> None:
        self._now_s: float | None = None
        self._ahead_s = 0.0

    def __call__(self, told_s: float) -> float:
        if not -math.inf < told_s < math.inf:
            return self._now_s or 0.0
        now_s = told_s + self._ahead_s
        if self._now_s is None:
            self._now_s, self._ahead_s = 0.0, -told_s
        elif now_s >= self._now_s:
            self._ahead_s -= max(0.0, now_s - self._now_s - _LEAP_S)
            self._now_s = min(now_s, self._now_s + _LEAP_S)
        elif self._now_s - now_s > _DISORDER_S:
            self._ahead_s += self._now_s - now_s
        return self._now_s
