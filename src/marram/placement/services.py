"""How long work takes at the edge and at replicas, whether a cloud model is asked at all: learnt from samples alone.

None of these holds a clock, none lets one odd sample (a scheduling hiccup) throw it off, and what was not heard of for
long is expected to be as it usually is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum

from marram.placement.balance import Balancer
from marram.schema.load import LONGEST_S

_LEAST_SPREAD, _MOST_SPREAD = 0.05, 1.0
# Of fewer samples than this each may have been a cold start.
_FEW = 3
# After a silence of so long what was known counts half, beside one that took less.
_OLD_S = 3.0
# Of a place's time at most this share is spent, in the long run, on keeping what is known of it true.
_RENEWING = 0.01
_FIRST_BAR_S, _LONGEST_BAR_S = 0.25, 16.0


@dataclass(slots=True)
class ServiceTime:
    """How long one kind of work takes: an average that forgets, its spread, and what it is at its usual best. Seconds.

    The logarithm of a sample is taken to be normal around that of `typical_s`, with standard deviation `spread`.
    """

    alpha: float = 0.2
    typical_s: float | None = None
    usual_s: float = 0.0
    heard_s: float = 0.0
    count: int = 0
    _variance: float = 0.01

    def add(self, now_s: float, sample_s: float) -> None:
        """Take one sample in; a sample that is not a duration is ignored."""
        if not 0 <= sample_s <= LONGEST_S:
            return
        silent_s, self.heard_s = max(0.0, now_s - self.heard_s), now_s
        self.count += 1
        if self.typical_s is None:
            self.typical_s = self.usual_s = sample_s
            return
        error = math.log((sample_s + 1e-4) / (self.typical_s + 1e-4))
        self._variance += max(0.05, 1 / (self.count + 4)) * (min(error * error, 1.0) - self._variance)
        # One stall of ten times the usual is noise until it happens again: it moves the average as three times would.
        clipped_s = min(sample_s, 3 * self.typical_s + 1e-3)
        kept = 1 - max(self.alpha, 1 / self.count)
        if clipped_s < self.typical_s:
            # What is old, and longer, may have been a slow spell; what came first a cold start.
            kept = 0.0 if self.count <= _FEW else kept * 0.5 ** (silent_s / _OLD_S)
        self.typical_s = clipped_s + kept * (self.typical_s - clipped_s)
        # Down soon, up slowly: what it takes when nothing else keeps the machine busy.
        self.usual_s += (0.2 if clipped_s < self.usual_s else 0.01) * (clipped_s - self.usual_s)

    @property
    def spread(self) -> float:
        """Standard deviation of the logarithm of a sample."""
        return min(max(math.sqrt(self._variance), _LEAST_SPREAD), _MOST_SPREAD)

    def hopeful_s(self, now_s: float, half_life_s: float, cold_share: float) -> float | None:
        """What to expect, tending to what is usual the longer nothing was heard: a slow spell may have passed.

        Frames are not sent to a slow place just to learn. Fewer than three samples may have been a cold start, without
        which it may take as little as `cold_share` of that.
        """
        if self.typical_s is None:
            return None
        age_s = now_s - self.heard_s - half_life_s
        if age_s <= 0:
            return self.typical_s
        share: float = 0.5 ** (age_s / half_life_s)
        if self.count < _FEW:
            return self.typical_s * max(share, cold_share)
        return min(self.typical_s, self.usual_s + (self.typical_s - self.usual_s) * share)

    def stale(self, now_s: float) -> bool:
        """Whether it is time to measure again what nobody asked for since: soon at first, then ever more seldom."""
        if self.typical_s is None:
            return False
        return now_s - self.heard_s >= self.typical_s * min(2.0 ** min(self.count - 1, 10), 1 / _RENEWING)


@dataclass(slots=True)
class Queue:
    """Time spent waiting at a replica. It is other people's load: old news of it fades, half every second."""

    value_s: float = 0.0
    heard_s: float = 0.0

    def add(self, now_s: float, sample_s: float) -> None:
        """Take one sample in."""
        if 0 <= sample_s <= LONGEST_S:
            self.value_s += 0.4 * (sample_s - self.value_s)
            self.heard_s = now_s

    def now(self, now_s: float) -> float:
        """What to expect now."""
        faded: float = self.value_s * 0.5 ** max(0.0, now_s - self.heard_s)
        return faded


class State(StrEnum):
    """Of a circuit breaker.

    | from | to | when |
    |---|---|---|
    | closed, half-open | open | a request failed; for twice as long each time |
    | open | half-open | that time is over: one request at a time is let through |
    | half-open, open | closed | a request was answered |
    """

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


@dataclass(slots=True)
class Breaker:
    """Leaves a cloud model alone that fails although the link is there: its replica hangs, or nobody serves it."""

    bar_s: float = 0.0
    until_s: float = -math.inf
    trial_until_s: float = -math.inf

    def state(self, now_s: float) -> State:
        """Where it stands."""
        if not self.bar_s:
            return State.CLOSED
        return State.OPEN if now_s < self.until_s else State.HALF_OPEN

    def allows(self, now_s: float) -> bool:
        """Whether a request may go now."""
        state = self.state(now_s)
        return state is State.CLOSED or (state is State.HALF_OPEN and now_s >= self.trial_until_s)

    def sent(self, now_s: float, patience_s: float) -> None:
        """A request went; where it is the trial, the next one waits for its end, `patience_s` at most."""
        if self.state(now_s) is State.HALF_OPEN:
            self.trial_until_s = now_s + min(patience_s, _LONGEST_BAR_S)

    def fail(self, now_s: float) -> None:
        """A request was not answered."""
        self.bar_s = min(max(_FIRST_BAR_S, 2 * self.bar_s), _LONGEST_BAR_S)
        self.until_s = now_s + self.bar_s
        self.trial_until_s = -math.inf

    def succeed(self) -> None:
        """A request was answered."""
        self.bar_s, self.until_s, self.trial_until_s = 0.0, -math.inf, -math.inf


@dataclass(slots=True)
class CloudModel:
    """One cloud model: what it takes there, who serves it, whether it is left alone."""

    balancer: Balancer
    service: ServiceTime = field(default_factory=ServiceTime)
    queue: Queue = field(default_factory=Queue)
    breaker: Breaker = field(default_factory=Breaker)
