"""`yunet`: faces with five landmarks. Twelve outputs: class, objectness, box, landmarks for strides of 8, 16, 32.

Decoding as in OpenCV's FaceDetectorYN (Wu et al., "YuNet: A Tiny Millisecond-level Face Detector", 2023): one prior a
cell, centre = (cell + offset) × stride, size = exp × stride, score = sqrt(class × objectness).
"""

from __future__ import annotations

import numpy as np

from marram.runtime.contract import Tensor
from marram.runtime.postprocess.boxes import detections
from marram.runtime.postprocess.contract import Asked
from marram.schema.result import Result

_STRIDES = (8, 16, 32)


def interpret(outputs: list[Tensor], asked: Asked) -> Result:
    """Raises Invalid where the outputs are not YuNet's twelve."""
    if len(outputs) != 12 or any(o.ndim != 3 for o in outputs):
        raise asked.wrong(outputs, "twelve outputs (class, objectness, box, landmarks for strides of 8, 16, 32)")
    rows, columns = asked.placed().size
    boxes, scores, points = [], [], []
    for level, stride in enumerate(_STRIDES):
        classes, objectness, box, marks = (outputs[kind * 3 + level][0] for kind in range(4))
        grid_y, grid_x = np.divmod(np.arange((rows // stride) * (columns // stride)), columns // stride)
        if box.shape != (grid_x.size, 4) or marks.shape != (grid_x.size, 10):
            raise asked.wrong(outputs, f"{grid_x.size} boxes at stride {stride}")
        score = np.sqrt(np.clip(classes[:, 0], 0, 1) * np.clip(objectness[:, 0], 0, 1))
        sure = score >= asked.min_confidence
        cells = np.stack([grid_x, grid_y], axis=1)[sure]  # (N, 2)
        centre = (cells + box[sure, :2]) * stride
        half = np.exp(np.minimum(box[sure, 2:], 10)) * stride / 2
        boxes.append(np.concatenate([centre - half, centre + half], axis=1))
        points.append((cells[:, None] + marks[sure].reshape(-1, 5, 2)) * stride)
        scores.append(score[sure])
    found = np.concatenate(scores)
    return detections(
        asked,
        np.concatenate(boxes).astype(np.float32),
        found.astype(np.float32),
        np.zeros(found.size, np.intp),
        np.concatenate(points).astype(np.float32),
    )
