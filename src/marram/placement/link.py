"""The link as replies show it: round trip and seconds per byte, what of ours is still leaving, how sure that is.

`delay = rtt + bytes x seconds per byte`; both factors wander by shares, not by amounts, so both are kept as logarithms
in a two-state extended Kalman filter (random walk; Welch & Bishop, "An introduction to the Kalman filter", 2006). The
logarithm of a delay is what is observed: a small probe moves the round trip, a large message the rate. How fast the
rate wanders and how far single messages scatter is learnt as well, from the errors themselves (Mehra, "On the
identification of variances and adaptive Kalman filtering", 1970): errors of one sign in a row mean that it wanders
faster than was thought.

What is overdue says that the link is slower than was thought, for the decision at hand only: written into the estimate
it made it worse (the regret rose from 18 to 28 % in planning).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from marram.placement.constants import SHIPPED, Constants
from marram.placement.lognormal import beyond
from marram.schema.load import LONGEST_S

_SHORTEST_S = 1e-4
# Before anything is known: a mobile link, give or take a factor of seven.
_PRIOR_RTT_S, _PRIOR_PER_BYTE_S = 0.05, 4e-6
_PRIOR_VARIANCE = 4.0
# However long nothing was heard: within these of the last estimate (standard deviation 1, a factor of 2.7).
_MOST_RTT_VARIANCE, _MOST_RATE_VARIANCE = 0.25, 1.0
# A round trip wanders this much (variance of its logarithm, per second).
_RTT_DRIFT = 0.02
_LEAST_DRIFT, _MOST_DRIFT = 0.005, 3.0
_LEAST_NOISE, _MOST_NOISE = 0.0025, 0.25
# Later than expected by more than so many standard deviations counts as so many: an outlier is a hint, a second one is
# a change. Sooner is never an outlier: no message arrives faster than the link can carry it.
_CLIP = 3.0
_FORGET_AFTER_S = 60.0
_MOST_FLIGHTS = 256


@dataclass(slots=True)
class Flight:
    """A request or probe under way.

    `network_s`: what the link was expected to take; beyond `patience_s` it counts as `lost`, once. `doubted`: it is so
    late that a probe was asked for. `given_up`: nobody waits for it any more, but its bytes are still leaving. `left`:
    they have, since a later message was answered. `behind`: a probe that was sent while requests were under way, to see
    whether the link is there; how long it waited for those nobody knows, so it measures nothing.
    """

    sent_s: float
    key: str | None
    size: int
    network_s: float = 0.0
    patience_s: float = math.inf
    doubted: bool = False
    lost: bool = False
    given_up: bool = False
    left: bool = False
    behind: bool = False


class Delay(NamedTuple):
    """What a message sent now would take on the link: `wait_s` behind our own earlier ones, `rtt_s`, `transfer_s`.

    Medians, seconds; the natural logarithm of their sum has the standard deviation `spread`.
    """

    wait_s: float
    rtt_s: float
    transfer_s: float
    spread: float


class Link:
    """One device's way to the cloud. Time is the caller's; it never goes back."""

    def __init__(self, constants: Constants = SHIPPED) -> None:
        self._log_rtt, self._log_per_byte = math.log(_PRIOR_RTT_S), math.log(_PRIOR_PER_BYTE_S)
        self._var_rtt, self._var_rate, self._cov = _PRIOR_VARIANCE / 4, _PRIOR_VARIANCE, 0.0
        self._drift, self._noise, self._learn = constants.drift, constants.noise, constants.learn
        self._last_error = 0.0
        self._uploaded_s = -math.inf  # when the last answered message had left, by the estimate of the time
        self.flights: dict[int, Flight] = {}
        # What was last worked out of them, which the ways of one decision share: for what, and what it came to.
        self._worked_out: tuple[tuple[float, float, float], tuple[float, float, float]] | None = None
        self.heard_s = -math.inf
        self.known = False

    @property
    def rtt_s(self) -> float:
        return math.exp(self._log_rtt)

    @property
    def per_byte_s(self) -> float:
        return math.exp(self._log_per_byte)

    @property
    def measured(self) -> bool:
        """Whether the rate is known at least as well as after a long silence: by messages that were large enough."""
        return self.known and self._var_rate <= _MOST_RATE_VARIANCE

    # ------------------------------------------------ predicting

    def delay(self, now_s: float, size: int, processing_s: float) -> Delay:
        """Of `size` bytes sent now. `processing_s`: what the replica is expected to take for what is under way."""
        elapsed_s = min(max(now_s - self.heard_s, 0.0), 60.0)
        var_rate = min(self._var_rate + self._drift * elapsed_s, max(_MOST_RATE_VARIANCE, self._var_rate))
        var_rtt = min(self._var_rtt + _RTT_DRIFT * elapsed_s, max(_MOST_RTT_VARIANCE, self._var_rtt))
        rtt_s, log_per_byte, wait_s = math.exp(self._log_rtt), self._log_per_byte, 0.0
        if self.flights:
            wait_s, shift, keep = self._waiting(now_s, processing_s, var_rate)
            log_per_byte += shift
            var_rate *= keep
        transfer_s = size * math.exp(log_per_byte)
        total_s = rtt_s + wait_s + transfer_s
        of_rtt = rtt_s / total_s
        of_rate = 1 - of_rtt
        if not self.measured:
            # So wide a distribution is no straight line: how much longer it takes at a rate one deviation lower.
            deviation = math.sqrt(var_rate)
            of_rate = math.log(of_rtt + of_rate * math.exp(deviation)) / deviation
        variance = of_rtt * of_rtt * var_rtt + 2 * of_rtt * of_rate * self._cov + of_rate * of_rate * var_rate
        return Delay(wait_s, rtt_s, transfer_s, math.sqrt(max(variance, 0.0) + self._noise))

    def _waiting(self, now_s: float, processing_s: float, var_rate: float) -> tuple[float, float, float]:
        """See `_work_out`."""
        given = now_s, processing_s, var_rate
        if self._worked_out is None or self._worked_out[0] != given:
            self._worked_out = given, self._work_out(now_s, processing_s, var_rate)
        return self._worked_out[1]

    def _work_out(self, now_s: float, processing_s: float, var_rate: float) -> tuple[float, float, float]:
        """Until what is under way has left, seconds; and what the oldest of it being overdue says of the rate.

        That is a shift of log seconds per byte, and the share of its variance that remains: the mean and variance of a
        normal distribution cut off below at what has passed already.
        """
        flights = (flight for flight in self.flights.values() if not flight.left)
        head = next(flights, None)
        if head is None:
            return 0.0, 0.0, 1.0
        begin_s = max(head.sent_s, self._uploaded_s)
        rtt_s, per_byte_s = math.exp(self._log_rtt), math.exp(self._log_per_byte)
        leave_s = max(head.size, 1) * per_byte_s
        passed_s = now_s - begin_s - rtt_s - processing_s
        shift, keep = 0.0, 1.0
        left_s = max(0.0, begin_s + leave_s - now_s)
        if passed_s > 0:
            variance = var_rate + self._noise
            spread = math.sqrt(variance)
            z = (math.log(passed_s) - math.log(leave_s)) / spread
            hazard, median = beyond(z)
            gain = var_rate / variance
            shift = gain * spread * hazard
            keep = max(0.3, 1 - gain * hazard * (hazard - z))
            # It leaves no sooner than the median of what is left of its distribution.
            left_s = max(left_s, leave_s * math.exp(spread * median) - passed_s - rtt_s - processing_s)
            per_byte_s *= math.exp(shift)
        free_s = now_s + left_s
        for flight in flights:
            free_s = max(free_s, flight.sent_s) + flight.size * per_byte_s
        return max(0.0, free_s - now_s), shift, keep

    # ------------------------------------------------ learning

    def sent(self, number: int, flight: Flight) -> None:
        """It is on its way from `flight.sent_s` on."""
        self._worked_out = None
        self.flights.pop(number, None)
        self.flights[number] = flight
        # What a caller never reports the end of must not be waited for, nor kept, for ever.
        while True:
            oldest = next(iter(self.flights))
            if flight.sent_s - self.flights[oldest].sent_s <= _FORGET_AFTER_S and len(self.flights) <= _MOST_FLIGHTS:
                break
            del self.flights[oldest]

    def ended(self, number: int) -> Flight | None:
        """It is not under way any more; None where it was not."""
        self._worked_out = None
        return self.flights.pop(number, None)

    def measure(self, now_s: float, flight: Flight, processing_s: float) -> None:
        """The reply to `flight`, which is no longer under way, came now; the replica took `processing_s` of that."""
        self._worked_out = None
        if not flight.behind:
            # Its own turn on the link began when it was sent, or when the one before it had left.
            begin_s = max(flight.sent_s, self._uploaded_s)
            delay_s = now_s - processing_s - begin_s
            if 0 < delay_s <= LONGEST_S:
                self._observe(now_s, max(flight.size, 1), max(delay_s, _SHORTEST_S))
            self._uploaded_s = max(begin_s, now_s - processing_s - self.rtt_s)
        # One after another: what was sent before it had left before it.
        for other in self.flights.values():
            if other.sent_s <= flight.sent_s:
                other.left = True

    def _observe(self, now_s: float, size: int, delay_s: float) -> None:
        elapsed_s = min(max(now_s - self.heard_s, 0.0), 60.0) if self.known else 0.0
        self.heard_s, self.known = max(now_s, self.heard_s), True
        self._var_rate = min(self._var_rate + self._drift * elapsed_s, max(_MOST_RATE_VARIANCE, self._var_rate))
        self._var_rtt = min(self._var_rtt + _RTT_DRIFT * elapsed_s, max(_MOST_RTT_VARIANCE, self._var_rtt))
        rtt_s, transfer_s = self.rtt_s, size * self.per_byte_s
        of_rtt = rtt_s / (rtt_s + transfer_s)
        of_rate = 1 - of_rtt
        gain_rtt = of_rtt * self._var_rtt + of_rate * self._cov
        gain_rate = of_rtt * self._cov + of_rate * self._var_rate
        variance = of_rtt * gain_rtt + of_rate * gain_rate + self._noise
        error = min(math.log(delay_s / (rtt_s + transfer_s)), _CLIP * math.sqrt(variance))
        self._log_rtt += gain_rtt / variance * error
        self._log_per_byte += gain_rate / variance * error
        # A round trip is never longer than a delay that holds it: what a stall made of it is gone with the next reply.
        self._log_rtt = min(max(self._log_rtt, -9.0), math.log(delay_s))
        self._log_per_byte = min(max(self._log_per_byte, -23.0), 5.0)
        self._var_rtt = max(self._var_rtt - gain_rtt * gain_rtt / variance, 1e-6)
        self._var_rate = max(self._var_rate - gain_rate * gain_rate / variance, 1e-6)
        # Rounding must never make the variance of a sum negative.
        bound = 0.99 * math.sqrt(self._var_rtt * self._var_rate)
        self._cov = min(max(self._cov - gain_rtt * gain_rate / variance, -bound), bound)
        self._adapt(error / math.sqrt(variance))

    def _adapt(self, error: float) -> None:
        """`error` in standard deviations: larger than 1 on average means more of both, alike in a row more drift."""
        surprise = min(max(error * error - 1, -1.0), 4.0)
        run = min(max(error * self._last_error, -2.0), 4.0)
        self._noise = min(max(self._noise * math.exp(self._learn * surprise), _LEAST_NOISE), _MOST_NOISE)
        self._drift = min(max(self._drift * math.exp(self._learn * (surprise + run)), _LEAST_DRIFT), _MOST_DRIFT)
        self._last_error = error
