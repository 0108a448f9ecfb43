"""What a device knows of one replica: what it was told, what it measured, whether the replica is left alone. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

# A delay once seen fades in about this time.
_DECAY_S = 1.0
_LONGEST_PAUSE_S = 16.0


@dataclass(slots=True)
class Known:
    """What is known of one replica. Times are of the caller's clock, durations in seconds."""

    name: str
    heard_s: float  # when anything was
    news_s: float = -math.inf  # of when `waiting` and `queue_s` are
    waiting: int = 0
    queue_s: float = 0.0
    uses: float = 0.0  # how often the news may still be used (Prequal's reuse budget)
    service_s: float | None = None
    path_s: float | None = None
    peak_s: float = 0.0  # peak-EWMA of what a request takes there
    peak_at_s: float = -math.inf
    pending: int = 0  # our own requests under way there
    pause_s: float = 0.0
    paused_until_s: float = -math.inf
    gone_s: float | None = None  # when nobody answered to its name

    def alone(self, now_s: float) -> bool:
        """Whether it is left alone: in its pause, or the one trial after that is under way."""
        return now_s < self.paused_until_s or (self.pause_s > 0 and self.pending > 0)

    def leave_alone(self, now_s: float, first_s: float) -> None:
        """It failed: no request for `first_s`, for twice as long each time that it fails again."""
        self.pause_s = min(max(first_s, 2 * self.pause_s), _LONGEST_PAUSE_S)
        self.paused_until_s = now_s + self.pause_s

    def back(self) -> None:
        """It answered, or spoke after it had been gone."""
        self.pause_s, self.paused_until_s, self.gone_s = 0.0, -math.inf, None

    def peak_now_s(self, now_s: float) -> float:
        """What a request takes there, as the delays seen lately have it."""
        return self.peak_s * _faded(now_s - self.peak_at_s)

    def took(self, now_s: float, delay_s: float) -> None:
        """One delay seen there: up at once, down slowly."""
        weight = _faded(now_s - self.peak_at_s)
        self.peak_s = max(delay_s, self.peak_s * weight + delay_s * (1 - weight))
        self.peak_at_s = max(now_s, self.peak_at_s)


def _faded(age_s: float) -> float:
    return math.exp(-max(0.0, age_s) / _DECAY_S)
