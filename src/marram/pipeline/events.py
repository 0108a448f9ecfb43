"""Results become events as the app's `send` says: every result, only changed ones, or none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from marram.pipeline.contract import Frame, Outlet
from marram.schema.app import App
from marram.schema.event import Event, EventKind
from marram.schema.model import Task
from marram.schema.result import Result


def result_sender(app: App, outlet: Outlet) -> Callable[[Frame], None]:
    """What the runner does with each frame at the end."""
    if app.send not in ("results", "changes"):
        return lambda frame: None
    last: list[object] = []

    def send(frame: Frame) -> None:
        if frame.result is None:
            return
        if app.send == "changes":
            now = meaning(frame.result)
            if last == [now]:
                return
            last[:] = [now]
        outlet.emit(Event(EventKind.RESULT, app.app, frame.time_s, data_of(frame)))

    return send


def data_of(frame: Frame) -> dict[str, Any]:
    """The frame's result and how it came to be, as plain JSON types: what is stored, printed and queried."""
    data = frame.result.to_dict() if frame.result is not None else {}
    data["frame"] = frame.index
    if frame.name:
        data["name"] = frame.name
    placed = frame.placed
    if placed is not None:
        data["place"] = placed.place.value
        data["latency_ms"] = round(placed.latency_s * 1e3, 2)
        data["fallback"], data["audit"] = placed.fallback, placed.audit
        if placed.predicted_s is not None:
            data["predicted_ms"] = round(placed.predicted_s * 1e3, 2)
        if placed.reason:
            data["reason"] = placed.reason
        if placed.sent_bytes:
            data["sent_bytes"] = placed.sent_bytes
    return data


def meaning(result: Result) -> object:
    """What has to differ for a result to count as changed: the label, the detected labels, normal or not, the value."""
    if result.task is Task.DETECTION:
        return sorted(found.label for found in result.detections)
    if result.task is Task.ANOMALY:
        return result.anomaly
    return result.value if result.task is Task.REGRESSION else result.label
