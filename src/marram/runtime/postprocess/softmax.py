"""`softmax`: one output [1, N] that is already probabilities."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from marram.runtime.contract import Tensor
from marram.runtime.postprocess.contract import Asked
from marram.schema.errors import Invalid
from marram.schema.result import Result

_SLACK = 0.02  # what rounding and a quantised output's last step may add


def interpret(outputs: list[Tensor], asked: Asked) -> Result:
    """The `top` classes, likeliest first. Raises Invalid where the output is not one vector of probabilities."""
    shares = vector(outputs, asked)
    lowest, highest = float(shares.min()), float(shares.max())
    if lowest < -_SLACK or highest > 1 + _SLACK:
        raise Invalid(
            f'"softmax" takes probabilities, from 0 to 1; the model gave {lowest:.4g} to {highest:.4g}',
            where=f"{asked.card.model}: output.form",
            hint="Unbounded scores are `form: logits` in model.yaml.",
        )
    return ranked(shares, asked)


def vector(outputs: list[Tensor], asked: Asked) -> NDArray[np.float32]:
    """The one output as float32 [N]. Raises Invalid."""
    if len(outputs) != 1 or outputs[0].size < 1 or outputs[0].size != outputs[0].shape[-1]:
        raise asked.wrong(outputs, "one output [1, classes]")
    return outputs[0].reshape(-1).astype(np.float32, copy=False)


def ranked(probabilities: NDArray[np.float32], asked: Asked) -> Result:
    """A classification of float32 [N]; among equals the lower class first, so that answers are reproducible."""
    count = min(asked.options.top, probabilities.size)
    if count < probabilities.size:
        # Everything at or above the count-th likeliest: ties at the edge are then decided by the stable sort below.
        edge = np.partition(probabilities, -count)[-count]
        candidates = np.flatnonzero(probabilities >= edge)
    else:
        candidates = np.arange(probabilities.size)
    order = candidates[np.argsort(-probabilities[candidates], kind="stable")][:count]
    top = tuple((asked.label(int(i)), float(probabilities[i])) for i in order)
    return Result(asked.card.task, asked.card.reference, label=top[0][0], confidence=top[0][1], top=top)
