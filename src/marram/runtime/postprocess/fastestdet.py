"""`fastestdet`: one output [1, 5 + classes, rows, columns], a box for each cell of an anchor-free grid.

Channels: objectness, x, y, width, height, then class probabilities (the network ends in sigmoid and softmax). Decoding
as FastestDet's README and its ONNX Runtime example describe it (dog-qiuqiu/FastestDet): centre = (cell + tanh) / grid,
size = sigmoid as a share of the input, score = objectness^0.6 × class^0.4.
"""

from __future__ import annotations

import numpy as np

from marram.runtime.contract import Tensor
from marram.runtime.postprocess.boxes import detections, sigmoid
from marram.runtime.postprocess.contract import Asked
from marram.schema.result import Result


def interpret(outputs: list[Tensor], asked: Asked) -> Result:
    """Raises Invalid where the output is not such a grid."""
    if len(outputs) != 1 or outputs[0].ndim != 4 or outputs[0].shape[1] < 6:
        raise asked.wrong(outputs, "one output [1, 5 + classes, rows, columns]")
    grid = outputs[0][0].astype(np.float32, copy=False)  # (5 + C, R, K)
    _, rows, columns = grid.shape
    classes = grid[5:].argmax(axis=0)  # (R, K)
    likeliest = np.take_along_axis(grid[5:], classes[None], axis=0)[0]
    scores = np.maximum(grid[0], 0) ** 0.6 * np.maximum(likeliest, 0) ** 0.4
    cell_y, cell_x = np.nonzero(scores >= asked.min_confidence)
    picked = grid[1:5, cell_y, cell_x]  # (4, N)
    height, width = asked.placed().size
    x = (cell_x + np.tanh(picked[0])) / columns * width
    y = (cell_y + np.tanh(picked[1])) / rows * height
    half_w, half_h = sigmoid(picked[2]) * width / 2, sigmoid(picked[3]) * height / 2
    boxes = np.stack([x - half_w, y - half_h, x + half_w, y + half_h], axis=1).astype(np.float32)
    return detections(asked, boxes, scores[cell_y, cell_x], classes[cell_y, cell_x])
