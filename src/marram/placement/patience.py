"""Until when a cloud is waited for: generously where nothing presses, else until the edge could just still be on time.

Giving up on a cloud that is only slow makes several frames queue at the edge at once, while one that is away costs a
long wait but once, for what was under way. Functions of what they are given.
"""

from __future__ import annotations

from marram.placement.contract import Ask
from marram.placement.forecast import Forecast

_SLACK_S = 0.05
_UNKNOWN_S = 2.0
_ALONE_S = 5.0
_LONGEST_S = 60.0
# Beyond so many standard deviations a reply is overdue: one in two hundred, were the forecast right.
_OVERDUE = 2.6
_P95 = 1.645


def overdue_s(forecast: Forecast) -> float:
    """After so long a reply is late beyond chance."""
    return max(2 * forecast.total_s, forecast.at(_OVERDUE)) + _SLACK_S


def patience_s(forecast: Forecast, *, known: bool) -> float:
    """After so long a reply is not late but missing. `known`: the link and the model were measured."""
    longest_s = overdue_s(forecast)
    return min(longest_s if known else max(longest_s, _UNKNOWN_S), _LONGEST_S)


def spare_s(ask: Ask, edge: Forecast | None) -> float | None:
    """So long from now the edge can begin and mostly (95 %) be on time; None where it cannot."""
    if edge is None or not edge.service_s or ask.deadline_s is None:
        return None
    left_s = ask.deadline_s - edge.at(_P95)
    return left_s if left_s > 0 else None


def timeout_s(
    ask: Ask, chosen: Forecast, edge: Forecast | None, patient_s: float, *, measured: bool, hedged: bool
) -> float:
    """How long the cloud has: until the edge could just still answer in time, or well beyond what it takes.

    `patient_s`: after so long its reply is missing. `measured`: the edge ran before. `hedged`: it begins besides.
    """
    deadline_s = ask.deadline_s
    if edge is None:
        alone_s = min(max(4 * patient_s, _ALONE_S), _LONGEST_S)
        return alone_s if deadline_s is None or not ask.may_drop else min(alone_s, max(deadline_s, patient_s))
    if deadline_s is None or not measured:
        return patient_s
    if hedged or ask.may_drop:
        # The edge has begun by then, or a newer frame is worth more: it may still come in time.
        return max(deadline_s, 1e-3) if ask.may_drop else max(deadline_s, patient_s)
    left_s = spare_s(ask, edge)
    # Where the edge alone would be late anyway, giving up early saves nothing.
    return min(left_s, patient_s) if left_s is not None and left_s > chosen.total_s else patient_s
