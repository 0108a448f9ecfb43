"""Whether what came back from elsewhere is an answer at all: a replica may be broken, another build, or lie.

A label is text, a confidence a number from 0 to 1, a box four finite numbers: anything else would spoil conditions,
statistics and whatever is steered by them. An answer that may be wrong is no matter of this module.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from marram.schema.errors import Invalid
from marram.schema.model import Task
from marram.schema.result import Result

# A model that finds more is out of order; the edge's own are bounded by their inputs.
MAX_DETECTIONS = 10_000
# Rounding in another machine's arithmetic may go that far past 1.
_SLACK = 1e-3


def check_answer(result: Result | None, task: Task) -> None:
    """Raises Invalid, saying what is wrong, where `result` is no answer to a question of `task`."""
    if result is None:
        raise Invalid("an answer without a result")
    if result.task is not task:
        raise Invalid(f"an answer for {result.task}, asked was {task}")
    if not isinstance(result.model, str) or not result.model:
        raise Invalid("an answer that does not say which model gave it")
    match task:
        case Task.CLASSIFICATION:
            _named(result.label, "label")
            _shares([result.confidence], "confidence")
            _shares([share for _, share in result.top], "confidence")
        case Task.DETECTION:
            if len(result.detections) > MAX_DETECTIONS:
                raise Invalid(f"an answer of {len(result.detections):,} detections")
            for found in result.detections:
                _named(found.label, "label of a detection")
                _shares([found.confidence], "confidence of a detection")
                _numbers(found.box, "box")
                for point in found.points:
                    _numbers(point, "point")
        case Task.REGRESSION:
            _numbers([result.value], "value")
        case Task.ANOMALY:
            _numbers([result.score], "score")
            if result.threshold is not None:
                _numbers([result.threshold], "threshold")


def _named(text: object, what: str) -> None:
    if not isinstance(text, str) or not text:
        raise Invalid(f"an answer without a {what}")


def _shares(values: Iterable[object], what: str) -> None:
    for value in values:
        if not _is_number(value) or not 0 <= value <= 1 + _SLACK:  # type: ignore[operator]
            raise Invalid(f"an answer with a {what} of {value!r:.40}")


def _numbers(values: Iterable[object], what: str) -> None:
    for value in values:
        if not _is_number(value):
            raise Invalid(f"an answer with a {what} of {value!r:.40}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
