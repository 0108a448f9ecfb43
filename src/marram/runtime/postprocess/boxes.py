"""What the detection forms share: keeping the best of overlapping boxes, and putting them into the frame."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from marram.runtime.postprocess.contract import Asked
from marram.schema.result import Detection, Result

# Boxes past this many (best first) are not even compared: a broken model must not stop a device with 10^5 boxes.
_MOST = 400

Floats = NDArray[np.float32]


def sigmoid(x: Floats) -> Floats:
    """1 / (1 + exp(-x)), without overflow."""
    bounded: Floats = np.exp(-np.clip(x, -80, 80))
    bounded += 1
    return np.divide(1, bounded, out=bounded)


def keep_best(boxes: Floats, scores: Floats, classes: NDArray[np.intp], overlap: float) -> list[int]:
    """Indices to keep, best first: greedy non-maximum suppression within each class.

    boxes: (N, 4) x0, y0, x1, y1; scores: (N,); classes: (N,). A box goes where its IoU with a better one exceeds
    `overlap`.
    """
    order = np.argsort(-scores, kind="stable")[:_MOST]
    areas = np.maximum(boxes[:, 2] - boxes[:, 0], 0) * np.maximum(boxes[:, 3] - boxes[:, 1], 0)
    kept: list[int] = []
    while order.size:
        best, rest = int(order[0]), order[1:]
        kept.append(best)
        width = np.minimum(boxes[best, 2], boxes[rest, 2]) - np.maximum(boxes[best, 0], boxes[rest, 0])
        height = np.minimum(boxes[best, 3], boxes[rest, 3]) - np.maximum(boxes[best, 1], boxes[rest, 1])
        shared = np.maximum(width, 0) * np.maximum(height, 0)
        union = np.maximum(areas[best] + areas[rest] - shared, 1e-9)
        order = rest[(shared / union <= overlap) | (classes[rest] != classes[best])]
    return kept


def detections(
    asked: Asked,
    boxes: Floats,
    scores: Floats,
    classes: NDArray[np.intp],
    points: Floats | None = None,
) -> Result:
    """A detection result from boxes (N, 4) in pixels of the input, and landmarks (N, K, 2) likewise.

    Drops what is below the asked confidence, has no area in the frame, or overlaps a better one of its class.
    """
    fit = asked.placed()
    sure = np.flatnonzero(scores >= asked.min_confidence)
    kept = sure[keep_best(boxes[sure], scores[sure], classes[sure], asked.card.output.overlap)] if sure.size else sure
    found = []
    for i in kept:
        x0, y0, x1, y1 = fit.box_to_frame(*(float(v) for v in boxes[i]))
        if x1 <= x0 or y1 <= y0:
            continue
        marks = () if points is None else tuple(fit.to_frame(float(x), float(y)) for x, y in points[i])
        found.append(Detection(asked.label(int(classes[i])), float(scores[i]), (x0, y0, x1, y1), marks))
    return Result(
        asked.card.task,
        asked.card.reference,
        label=found[0].label if found else None,
        confidence=found[0].confidence if found else None,
        detections=tuple(found),
    )
