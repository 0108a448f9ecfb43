"""How sure a model is of one answer, as its stratum: what a cascade learns apart.

Strata are fixed, equally wide steps of log-odds, so that 0.99 and 0.999 are as far from each other as 0.5 and 0.91, for
every model alike; being fixed, they may be kept over restarts and hold no knowledge of the data they judge. A detector
that found nothing says nothing of how sure it is of that, so empty answers are a stratum of their own; so are answers
without any measure of sureness.
"""

from __future__ import annotations

import math

from marram.schema.model import Task
from marram.schema.result import Result

# Log-odds of the lowest stratum's upper edge, and each step's width: 0.02 to 0.999994 in 64 steps.
_LOWEST, _STEP = -4.0, 0.25
LEVELS = 64
# No object was found; no measure of sureness (a quantity, a score without threshold).
EMPTY, UNTOLD = LEVELS, LEVELS + 1
STRATA = LEVELS + 2

_TINY = 1e-9


def sureness(result: Result) -> float | None:
    """0–1, more is surer; None where the answer does not say.

    - classification: the first label's confidence, less half of the second's, so that a close race is less sure;
    - detection: the confidence of the least sure box: any wrong box makes the answer wrong;
    - anomaly, regression with a threshold: how far from it, d / (1 + d) with d = |ln(score / threshold)|, so that twice
      the threshold is as sure as half of it.
    """
    if result.task is Task.CLASSIFICATION:
        return _of_labels(result)
    if result.task is Task.DETECTION:
        return min((found.confidence for found in result.detections), default=None)
    measured = result.score if result.task is Task.ANOMALY else result.value
    if measured is None or result.threshold is None or measured <= 0 or result.threshold <= 0:
        return None
    distance = abs(math.log(measured / result.threshold))
    return distance / (1 + distance)


def stratum_of(result: Result) -> int:
    """0 (least sure) to `LEVELS` - 1, `EMPTY` or `UNTOLD`."""
    if result.task is Task.DETECTION and not result.detections:
        return EMPTY
    sure = sureness(result)
    if sure is None or math.isnan(sure):
        return UNTOLD
    sure = min(max(sure, _TINY), 1 - _TINY)
    return min(max(math.ceil((math.log(sure / (1 - sure)) - _LOWEST) / _STEP), 0), LEVELS - 1)


def floor_of(stratum: int) -> float:
    """The least sureness that is in one of the levels (not `EMPTY`, `UNTOLD`)."""
    return 0.0 if stratum <= 0 else 1 / (1 + math.exp(-(_LOWEST + _STEP * (stratum - 1))))


def _of_labels(result: Result) -> float | None:
    if result.confidence is None:
        return None
    # With one label told, the second has at most what the first leaves.
    second = result.top[1][1] if len(result.top) > 1 else min(result.confidence, 1 - result.confidence)
    return result.confidence - second / 2
