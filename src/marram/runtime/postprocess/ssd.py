"""`ssd`: what TensorFlow Lite's `TFLite_Detection_PostProcess` operator gives; suppression is in the model already.

Four outputs: boxes [1, N, 4] (y0, x0, y1, x1 as shares of the input), classes [1, N], scores [1, N], count [1]; models
exported by TensorFlow 2 have them as scores, boxes, count, classes.
"""

from __future__ import annotations

import numpy as np

from marram.runtime.contract import Tensor
from marram.runtime.postprocess.boxes import detections
from marram.runtime.postprocess.contract import Asked
from marram.schema.result import Result


def interpret(outputs: list[Tensor], asked: Asked) -> Result:
    """Raises Invalid where the outputs are not the four of an SSD."""
    wanted = "four outputs: boxes [1, N, 4], classes, scores, count"
    if len(outputs) != 4:
        raise asked.wrong(outputs, wanted)
    if outputs[0].ndim == 3:
        boxes, classes, scores, count = outputs
    else:
        scores, boxes, count, classes = outputs
    if boxes.ndim != 3 or boxes.shape[2] != 4 or classes.size != boxes.shape[1] or scores.size != boxes.shape[1]:
        raise asked.wrong(outputs, wanted)
    if count.size != 1:
        raise asked.wrong(outputs, wanted)
    found = max(0, min(int(count.reshape(-1)[0]), boxes.shape[1]))
    rows, columns = asked.placed().size
    corners = boxes[0, :found][:, [1, 0, 3, 2]] * np.array([columns, rows, columns, rows], np.float32)
    return detections(
        asked,
        corners.astype(np.float32),
        scores.reshape(-1)[:found].astype(np.float32),
        classes.reshape(-1)[:found].astype(np.intp),
    )
