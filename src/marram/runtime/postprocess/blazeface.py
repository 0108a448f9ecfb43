"""`blazeface`: faces with six landmarks, MediaPipe's short-range model: regressors [1, 896, 16], scores [1, 896, 1].

Anchors and decoding as in MediaPipe's `face_detection_short_range` graph (Bazarevsky et al., "BlazeFace", 2019): two
anchors in each cell of a 16×16 grid, six in each of 8×8, all of unit size; offsets in pixels of the input.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from marram.runtime.contract import Tensor
from marram.runtime.postprocess.boxes import detections, sigmoid
from marram.runtime.postprocess.contract import Asked
from marram.schema.result import Result


def interpret(outputs: list[Tensor], asked: Asked) -> Result:
    """Raises Invalid where the outputs are not BlazeFace's two."""
    rows, columns = asked.placed().size
    anchors = _anchors(rows, columns)
    wanted = f"two outputs [1, {len(anchors)}, 16] and [1, {len(anchors)}, 1]"
    if len(outputs) != 2 or any(o.ndim != 3 or o.shape[1] != len(anchors) for o in outputs):
        raise asked.wrong(outputs, wanted)
    regressors, raw = sorted(outputs, key=lambda o: -o.shape[2])
    if regressors.shape[2] != 16 or raw.shape[2] != 1:
        raise asked.wrong(outputs, wanted)
    scores = sigmoid(raw[0, :, 0].astype(np.float32))
    sure = scores >= asked.min_confidence
    offsets, centres = regressors[0, sure].astype(np.float32), anchors[sure]
    middle, half = centres + offsets[:, :2], offsets[:, 2:4] / 2
    boxes = np.concatenate([middle - half, middle + half], axis=1)
    points = centres[:, None] + offsets[:, 4:].reshape(-1, 6, 2)
    return detections(asked, boxes, scores[sure], np.zeros(len(boxes), np.intp), points)


@cache
def _anchors(rows: int, columns: int) -> NDArray[np.float32]:
    """Centres of the anchors in pixels, (N, 2) x, y: stride 8 with two a cell, then stride 16 with six."""
    centres = []
    for stride, each in ((8, 2), (16, 6)):
        y, x = np.divmod(np.arange((rows // stride) * (columns // stride)), columns // stride)
        cells = (np.stack([x, y], axis=1) + 0.5) * stride
        centres.append(np.repeat(cells, each, axis=0))
    return np.concatenate(centres).astype(np.float32)
