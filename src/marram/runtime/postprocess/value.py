"""`value`: one output with one number, a regression."""

from __future__ import annotations

from marram.runtime.contract import Tensor
from marram.runtime.postprocess.contract import Asked
from marram.schema.result import Result


def interpret(outputs: list[Tensor], asked: Asked) -> Result:
    """Raises Invalid where there is more than one number."""
    if len(outputs) != 1 or outputs[0].size != 1:
        raise asked.wrong(outputs, "one number")
    return Result(
        asked.card.task, asked.card.reference, value=float(outputs[0].reshape(-1)[0]), unit=asked.card.output.unit
    )
