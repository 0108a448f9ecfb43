"""`logits`: one output [1, N] of unbounded scores; the softmax is taken here."""

from __future__ import annotations

import numpy as np

from marram.runtime.contract import Tensor
from marram.runtime.postprocess.contract import Asked
from marram.runtime.postprocess.softmax import ranked, vector
from marram.schema.result import Result


def interpret(outputs: list[Tensor], asked: Asked) -> Result:
    """The `top` classes, likeliest first. Raises Invalid where the output is not one vector."""
    scores = vector(outputs, asked)
    powers = np.exp(scores - scores.max())  # the largest becomes exp(0): no overflow
    return ranked(powers / powers.sum(), asked)
