"""Whether two answers to one input say the same: what versions, codecs and cuts are compared by."""

from __future__ import annotations

from collections.abc import Sequence

from marram.schema.model import Task
from marram.schema.result import Detection, Result

# Boxes that overlap so far (IoU) are the same; values and scores this near (share of the larger) are the same.
SAME_BOX, SAME_VALUE, SAME_SCORE = 0.5, 0.05, 0.1


def disagree(old: Result, new: Result) -> bool:
    """Whether two answers to one input differ.

    Classification: another first label. Detection: a box of either without one of the same label in the other that
    overlaps it by half (IoU 0.5). Anomaly: another verdict (without a threshold: scores more than 10 % apart).
    Regression: values more than 5 % apart.
    """
    if new.task is Task.DETECTION:
        return _boxes_differ(old.detections, new.detections)
    if new.task is Task.ANOMALY:
        if old.anomaly is not None and new.anomaly is not None:
            return old.anomaly is not new.anomaly
        return _apart(old.score, new.score, SAME_SCORE)
    if new.task is Task.REGRESSION:
        return _apart(old.value, new.value, SAME_VALUE)
    return old.label != new.label


def lost(answer: Result, right: Result) -> float:
    """What is lost with `answer` where `right` is right: 0 where they agree, 1 where they do not.

    A detection may be right in part: 1 - F1 of its boxes, that is boxes without their like over all boxes of both.
    """
    if right.task is Task.DETECTION:
        boxes = len(answer.detections) + len(right.detections)
        return 1 - 2 * _alike(answer.detections, right.detections) / boxes if boxes else 0.0
    return float(disagree(answer, right))


def given_up(answer: Result, whole: Result) -> float:
    """The accuracy (0–1) that `answer` gives up beside `whole`, the same model's to the input as it is; no label known.

    Classification: how much less likely the model itself finds the label of `answer` than its own first. Averaged over
    inputs that is the share of right answers lost, as far as its probabilities are true; that two labels which it finds
    equally likely change places costs nothing. `whole.top` has every class, or those that count. Else: `lost`.
    """
    if whole.task is not Task.CLASSIFICATION or whole.confidence is None:
        return lost(answer, whole)
    return max(0.0, whole.confidence - dict(whole.top).get(answer.label or "", 0.0))


def _boxes_differ(old: Sequence[Detection], new: Sequence[Detection]) -> bool:
    return len(old) != len(new) or _alike(old, new) < len(old)


def _alike(old: Sequence[Detection], new: Sequence[Detection]) -> int:
    """How many pairs of the same label overlap by half. Greedy, the surest first, as detections are scored."""
    left = list(new)
    pairs = 0
    for box in sorted(old, key=lambda each: -each.confidence):
        near = [(overlap(box, each), n) for n, each in enumerate(left) if each.label == box.label]
        best, at = max(near, default=(0.0, 0))
        if best >= SAME_BOX:
            pairs += 1
            del left[at]
    return pairs


def overlap(one: Detection, other: Detection) -> float:
    """Intersection over union of two boxes."""
    ax0, ay0, ax1, ay1 = one.box
    bx0, by0, bx1, by1 = other.box
    shared = max(0.0, min(ax1, bx1) - max(ax0, bx0)) * max(0.0, min(ay1, by1) - max(ay0, by0))
    union = (ax1 - ax0) * (ay1 - ay0) + (bx1 - bx0) * (by1 - by0) - shared
    return shared / union if union > 0 else 0.0


def _apart(old: float | None, new: float | None, share: float) -> bool:
    if old is None or new is None:
        return old is not new
    return abs(old - new) > share * max(abs(old), abs(new))
