"""`reconstruction`: an autoencoder; the score is the mean squared error between what went in and what came out.

As MLPerf Tiny's anomaly detection (ad01) scores one window; in real numbers, whatever the file's quantisation.
"""

from __future__ import annotations

import numpy as np

from marram.runtime.contract import Tensor
from marram.runtime.postprocess.contract import Asked
from marram.schema.result import Result


def interpret(outputs: list[Tensor], asked: Asked) -> Result:
    """Raises Invalid where the output has another size than the input."""
    given = asked.real_input()
    if len(outputs) != 1 or outputs[0].size != given.size:
        raise asked.wrong(outputs, f"one output of {given.size} numbers, as the input has")
    error = outputs[0].reshape(-1).astype(np.float64) - given.reshape(-1)
    return Result(
        asked.card.task,
        asked.card.reference,
        score=float(np.mean(error * error)),
        threshold=asked.card.output.threshold,
    )
