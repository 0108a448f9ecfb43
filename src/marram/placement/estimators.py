"""What is known of the three delays, from measurements alone: service times at the edge and in the cloud, and the link.

Each estimator takes samples with their time and says what to expect now. None of them holds a clock, and none lets one
odd sample (a scheduling hiccup, a retransmission) throw it off; what it has not heard of for long it trusts less.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

# What is said to have taken longer (or is not a number) is not a measurement.
LONGEST_S = 3600.0


@dataclass(slots=True)
class ServiceTime:
    """How long one kind of work takes: an average that forgets, and quantiles of the last samples. Seconds."""

    alpha: float = 0.2
    typical_s: float | None = None
    heard_s: float = 0.0
    count: int = 0
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=32))

    def add(self, now_s: float, sample_s: float) -> None:
        """Take one sample in; a sample that is not a duration is ignored."""
        if not 0 <= sample_s <= LONGEST_S:
            return
        self.recent.append(sample_s)
        self.heard_s = now_s
        self.count += 1
        if self.typical_s is None:
            self.typical_s = sample_s
            return
        # One stall of ten times the usual is noise until it happens again: it moves the average as three times would.
        clipped = min(sample_s, 3 * self.typical_s + 1e-3)
        self.typical_s += max(self.alpha, 1 / self.count) * (clipped - self.typical_s)

    def hopeful_s(self, now_s: float, half_life_s: float) -> float | None:
        """What to expect, less the longer nothing was heard, so that a place once found slow is tried again.

        Known from three samples or more it falls to half at most: trying a place that is known to be slow costs more
        than it tells. From fewer it may have been a cold start, so it falls further.
        """
        if self.typical_s is None:
            return None
        age_s = max(0.0, now_s - self.heard_s - half_life_s)
        share: float = 0.5 ** (age_s / half_life_s)
        return self.typical_s * max(share, 0.5 if self.count >= 3 else 0.05)

    def quantile_s(self, share: float) -> float | None:
        """The quantile of the last samples."""
        if not self.recent:
            return None
        ordered = sorted(self.recent)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


@dataclass(slots=True)
class Queue:
    """Time spent waiting at a replica. It is other people's load: old news of it fades, half every second."""

    value_s: float = 0.0
    heard_s: float = 0.0

    def add(self, now_s: float, sample_s: float) -> None:
        if 0 <= sample_s <= LONGEST_S:
            self.value_s += 0.4 * (sample_s - self.value_s)
            self.heard_s = now_s

    def now(self, now_s: float) -> float:
        faded: float = self.value_s * 0.5 ** max(0.0, now_s - self.heard_s)
        return faded


# A Kalman filter over (round trip, seconds per byte). What wanders and how much, from the traces of `lab`:
_RTT_DRIFT = 0.20  # share of the round trip, per square root of a second
_RATE_DRIFT = 0.25  # share of the seconds per byte, likewise
_NOISE_FLOOR_S = 0.001
_NOISE_SHARE = 0.12
# Further off than so many standard deviations counts as so many: an outlier is a hint, a second one is a change.
_CLIP = 3.0
_MAX_STALE_S = 30.0


@dataclass(slots=True)
class LinkModel:
    """The link: `delay = rtt + bytes × seconds per byte`, both wandering, both learnt from every reply.

    A two-state Kalman filter (random walk; Welch & Bishop, "An introduction to the Kalman filter", 2006): small probes
    tell the round trip, large messages the rate, and where all messages are alike their delay is still predicted right.
    Its variance grows while nothing is heard, so the first samples after a silence count for more.
    """

    rtt_s: float | None = None
    per_byte_s: float = 0.0
    deviation_s: float = 0.0  # mean |error| of the predictions, as TCP keeps it (RFC 6298)
    heard_s: float = 0.0
    _var_rtt: float = 0.0
    _var_byte: float = 0.0
    _cov: float = 0.0

    @property
    def known(self) -> bool:
        return self.rtt_s is not None

    def predict(self, size_bytes: float) -> float:
        """Expected delay of so many bytes on an idle link, seconds; 0 before the first sample."""
        return (self.rtt_s or 0.0) + size_bytes * self.per_byte_s

    def add(self, now_s: float, size_bytes: float, delay_s: float) -> None:
        """One measured delay: from the first byte's turn on the link to the reply, without the replica's own time."""
        if not (0 <= delay_s <= LONGEST_S and size_bytes >= 0):
            return
        delay_s = max(delay_s, 1e-5)
        if self.rtt_s is None:
            self._begin(now_s, size_bytes, delay_s)
            return
        self._drift(now_s)
        error = delay_s - self.predict(size_bytes)
        self.deviation_s += 0.25 * (abs(error) - self.deviation_s)
        noise = (_NOISE_FLOOR_S + _NOISE_SHARE * self.predict(size_bytes)) ** 2
        gain_rtt = self._var_rtt + size_bytes * self._cov
        gain_byte = self._cov + size_bytes * self._var_byte
        spread = gain_rtt + size_bytes * gain_byte + noise
        limit = _CLIP * math.sqrt(spread)
        step = min(max(error, -limit), limit) / spread
        self.rtt_s = max(self.rtt_s + gain_rtt * step, 1e-5)
        self.per_byte_s = max(self.per_byte_s + gain_byte * step, 1e-10)
        self._var_rtt = max(self._var_rtt - gain_rtt * gain_rtt / spread, 1e-12)
        self._var_byte = max(self._var_byte - gain_byte * gain_byte / spread, 1e-24)
        self._cov -= gain_rtt * gain_byte / spread
        self._bound()

    def _begin(self, now_s: float, size_bytes: float, delay_s: float) -> None:
        # One sample cannot tell delay from rate: a small message is taken as all delay, a large one as half of each.
        share = 0.5 if size_bytes > 2000 else 0.9
        self.rtt_s = delay_s * share
        self.per_byte_s = delay_s * (1 - share) / max(size_bytes, 200)
        self._var_rtt = (0.3 * delay_s) ** 2
        # How many seconds a byte takes is all but unknown yet: 3G to Ethernet is a factor of a thousand.
        self._var_byte = max(self.per_byte_s, 2e-6) ** 2
        self._cov = 0.0
        self.deviation_s = delay_s / 2
        self.heard_s = now_s

    def _drift(self, now_s: float) -> None:
        elapsed = min(max(now_s - self.heard_s, 1e-3), _MAX_STALE_S)
        self.heard_s = max(now_s, self.heard_s)
        rtt = self.rtt_s or 0.0
        self._var_rtt = min(self._var_rtt + (_RTT_DRIFT * rtt) ** 2 * elapsed, rtt * rtt)
        rate = self.per_byte_s
        self._var_byte = min(self._var_byte + (_RATE_DRIFT * rate) ** 2 * elapsed, max(rate, 2e-6) ** 2)
        self._bound()

    def _bound(self) -> None:
        """Keep the covariance one: rounding and the caps must never make a variance of a sum negative."""
        limit = 0.99 * math.sqrt(self._var_rtt * self._var_byte)
        self._cov = min(max(self._cov, -limit), limit)
