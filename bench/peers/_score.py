"""What was measured of one server, and how two are compared. No I/O.

Every window of a server stands between two of the bare loop: a rate is told as its share of their mean, so that what
else the machine does weighs on both. Servers are compared window by window, those of the same round.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from bench.peers._client import Window


@dataclass(slots=True)
class Score:
    """`shares` and `rates` by requests in flight, one a window; `over_ms`: with one in flight, the median latency less
    the bare loop's; `client`: the client's share of a core in each window; `cpu_ms`: the server's processor time for
    a picture, which a busy machine lengthens less than it does the clock's.
    """

    rates: dict[int, list[float]] = field(default_factory=dict)
    shares: dict[int, list[float]] = field(default_factory=dict)
    p99_ms: dict[int, list[float]] = field(default_factory=dict)
    over_ms: list[float] = field(default_factory=list)
    client: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)
    ready_s: list[float] = field(default_factory=list)
    weight_mb: list[float] = field(default_factory=list)
    answers: int = 0
    wrong: int = 0

    def loaded(self, in_flight: int, window: Window, bare_per_s: float, cpu_s: float) -> None:
        """Note a window with `in_flight` requests under way, the bare loop's rate around it, the server's CPU time."""
        self.rates.setdefault(in_flight, []).append(window.per_s)
        self.shares.setdefault(in_flight, []).append(window.per_s / bare_per_s)
        self.p99_ms.setdefault(in_flight, []).append(quantile(window.latencies_s, 0.99) * 1e3)
        self.client.append(window.cpu_s / window.elapsed_s)
        self.cpu_ms.append(cpu_s / window.total * 1e3)

    def alone(self, window: Window, bare_ms: float) -> None:
        """Note a window with one request under way, and the bare loop's latency beside it."""
        self.over_ms.append(statistics.median(window.latencies_s) * 1e3 - bare_ms)

    def share(self, in_flight: int) -> float:
        """The median window's share of the bare loop's rate."""
        return statistics.median(self.shares[in_flight])

    def best(self) -> int:
        """The number in flight at which that is largest."""
        return max(self.shares, key=self.share)


@dataclass(frozen=True, slots=True)
class Comparison:
    """One server's rate over another's, less 1: the median of the paired windows, and half of what they range over."""

    gap: float
    spread: float

    @property
    def slower(self) -> bool:
        """Beyond the spread."""
        return self.gap + self.spread < 0


def compare(ours: Sequence[float], theirs: Sequence[float]) -> Comparison:
    """Window by window. There must be one pair at least."""
    ratios = [one / other for one, other in zip(ours, theirs, strict=True)]
    return Comparison(statistics.median(ratios) - 1, spread(ratios))


def spread(values: Sequence[float]) -> float:
    """Half of the range."""
    return (max(values) - min(values)) / 2


def quantile(values: Sequence[float], share: float) -> float:
    """The value that `share` of them do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
