"""`filter: CONDITION`: a frame goes on only where the condition holds."""

from __future__ import annotations

from collections.abc import Iterable

from marram.pipeline.conditions import condition_of
from marram.pipeline.contract import Frame, Step, StepContext
from marram.schema.app import FilterStep


def make_step(spec: FilterStep, context: StepContext) -> Step:
    """Raises Invalid where the condition cannot be compiled."""
    condition = condition_of(spec, context)

    def step(frame: Frame) -> Iterable[Frame]:
        return (frame,) if condition(frame) else ()

    return step
