"""What a replica announces of its load: with its own replies, and of all that serve a model in answers to probes."""

from __future__ import annotations

import math
from dataclasses import dataclass

# Longer names are no names of replicas; more waiting and longer delays than these are not believed.
MAX_NAME = 64
MAX_WAITING = 100_000
LONGEST_S = 3600.0


@dataclass(frozen=True, slots=True)
class Load:
    """One replica's load for one model (`model`: `name@version`), `age_s` before it was sent.

    `waiting`: how many requests are queued or running; `queue_s`: what one that comes now would wait; `service_s`: what
    one takes there once it has its turn, 0 where none was served yet.
    """

    replica: str
    model: str
    waiting: int
    queue_s: float
    service_s: float
    age_s: float = 0.0

    @property
    def sane(self) -> bool:
        """Whether it can be true at all. Nothing else of it is believed without being measured."""
        return (
            isinstance(self.replica, str)
            and 0 < len(self.replica) <= MAX_NAME
            and isinstance(self.waiting, int)
            and 0 <= self.waiting <= MAX_WAITING
            and all(is_duration(value) for value in (self.queue_s, self.service_s, self.age_s))
        )


def is_duration(value: object) -> bool:
    """Whether a value that somebody else told is a duration in seconds: finite, not negative, not absurd."""
    return isinstance(value, (int, float)) and math.isfinite(value) and 0 <= value <= LONGEST_S
