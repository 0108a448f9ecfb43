"""`score`: one output with one number, how unusual the input is."""

from __future__ import annotations

from marram.runtime.contract import Tensor
from marram.runtime.postprocess.contract import Asked
from marram.schema.result import Result


def interpret(outputs: list[Tensor], asked: Asked) -> Result:
    """Raises Invalid where there is more than one number."""
    if len(outputs) != 1 or outputs[0].size != 1:
        raise asked.wrong(outputs, "one number")
    return Result(
        asked.card.task,
        asked.card.reference,
        score=float(outputs[0].reshape(-1)[0]),
        threshold=asked.card.output.threshold,
    )
