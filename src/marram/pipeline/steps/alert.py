"""`alert: CONDITION [for 10 s]`: one event when the condition comes to hold, one when it holds no more.

Only the edges are told: a fault that lasts an hour is one alert, not thirty-six thousand.
"""

from __future__ import annotations

from collections.abc import Iterable

from marram.pipeline.conditions import Condition, condition_of
from marram.pipeline.contract import Frame, Step, StepContext
from marram.schema.app import AlertStep
from marram.schema.event import Event, EventKind


def make_step(spec: AlertStep, context: StepContext) -> Step:
    """Raises Invalid where the condition cannot be compiled."""
    return Alert(condition_of(spec, context), context)


class Alert:
    """Emits `alert` events with `state` `raised` or `recovered`; every frame goes on unchanged."""

    def __init__(self, condition: Condition, context: StepContext) -> None:
        self._condition = condition
        self._context = context
        self._raised_by: Frame | None = None

    def __call__(self, frame: Frame) -> Iterable[Frame]:
        holds = self._condition(frame)
        if holds and self._raised_by is None:
            self._raised_by = frame
            self._emit(frame, "raised")
        elif not holds and self._raised_by is not None:
            # Never negative, whatever the clock did meanwhile.
            lasted_s = max(0.0, frame.time_s - self._raised_by.time_s)
            self._raised_by = None
            self._emit(frame, "recovered", lasted_s=lasted_s)
        return (frame,)

    def _emit(self, frame: Frame, state: str, **more: float) -> None:
        data = {
            "state": state,
            "condition": self._condition.text,
            "frame": frame.index,
            "name": frame.name,
            "result": None if frame.result is None else frame.result.to_dict(),
            **more,
        }
        self._context.outlet.emit(Event(EventKind.ALERT, self._context.app.app, frame.time_s, data))
