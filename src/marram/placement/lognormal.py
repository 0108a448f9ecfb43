"""What a log-normal delay means for a deadline: chance of being on time, expected loss, what remains when overdue.

Closed forms, a microsecond each: they are taken many times in each decision.
"""

from __future__ import annotations

import math

_ROOT_HALF = math.sqrt(0.5)
_ROOT_2PI = math.sqrt(2 * math.pi)


def on_time(fixed_s: float, vary_s: float, spread: float, deadline_s: float) -> float:
    """P(fixed_s + vary_s·exp(spread·Z) <= deadline_s), Z standard normal."""
    spare_s = deadline_s - fixed_s
    if spare_s <= 0:
        return 0.0
    if vary_s <= 0 or spread <= 0:
        return 1.0 if vary_s <= spare_s else 0.0
    return 0.5 * math.erfc(-_ROOT_HALF * (math.log(spare_s) - math.log(vary_s)) / spread)


def expected_loss(fixed_s: float, vary_s: float, spread: float, deadline_s: float | None, miss_s: float) -> float:
    """The mean of the delay fixed_s + vary_s·exp(spread·Z), every delay beyond `deadline_s` counted as `miss_s`.

    No deadline: the mean delay. (Partial expectation of a log-normal variable: E[X; X <= k] = m·e^(s²/2)·Φ(a - s),
    a = ln(k/m)/s.)
    """
    if deadline_s is None:
        return fixed_s + vary_s * math.exp(0.5 * spread * spread)
    spare_s = deadline_s - fixed_s
    if spare_s <= 0:
        return miss_s
    if vary_s <= 0 or spread <= 0:
        return fixed_s + vary_s if vary_s <= spare_s else miss_s
    a = (math.log(spare_s) - math.log(vary_s)) / spread
    if a < -4:
        return miss_s
    chance = 0.5 * math.erfc(-_ROOT_HALF * a)
    part_s = vary_s * math.exp(0.5 * spread * spread) * 0.5 * math.erfc(_ROOT_HALF * (spread - a))
    return fixed_s * chance + part_s + miss_s * (1 - chance)


_LOW, _HIGH, _STEP = -3.0, 6.0, 0.125


def _exactly(z: float) -> tuple[float, float]:
    survival = 0.5 * math.erfc(z * _ROOT_HALF)
    hazard = math.exp(-0.5 * z * z) / _ROOT_2PI / survival
    low, high = z, z + 10.0
    for _ in range(40):
        middle = 0.5 * (low + high)
        if 0.5 * math.erfc(middle * _ROOT_HALF) > 0.5 * survival:
            low = middle
        else:
            high = middle
    return hazard, low


_TABLE = tuple(_exactly(_LOW + i * _STEP) for i in range(round((_HIGH - _LOW) / _STEP) + 1))


def beyond(z: float) -> tuple[float, float]:
    """Of a standard normal variable known to exceed `z`: its mean (the hazard at z) and its median.

    Interpolated in a table between -3 (nothing is known yet) and 6 (more says no more).
    """
    if z <= _LOW:
        return 0.0, 0.0
    place = (min(z, _HIGH - 1e-9) - _LOW) / _STEP
    at = int(place)
    share = place - at
    (hazard, median), (next_hazard, next_median) = _TABLE[at], _TABLE[at + 1]
    return hazard + share * (next_hazard - hazard), median + share * (next_median - median)
