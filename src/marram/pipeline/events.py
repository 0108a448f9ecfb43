"""Results become events as the app's `send` says: every result, only changed ones, or none."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from marram.pipeline.contract import Frame, Outlet
from marram.placement.choosing import energy_j, money
from marram.placement.contract import Considered, Costs, Decision
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
        if placed.predicted_s is not None and math.isfinite(placed.predicted_s):
            data["predicted_ms"] = round(placed.predicted_s * 1e3, 2)
        if placed.reason:
            data["reason"] = placed.reason
        if placed.sent_bytes:
            data["sent_bytes"] = placed.sent_bytes
        data |= {name: True for name in ("hedged", "escalated") if getattr(placed, name)}
        if not placed.verified:
            data["verified"] = False
        if placed.decision is not None and placed.decision.considered:
            data["why"] = why_of(placed.decision)
    return data


# The ways that an event tells of, at most: the chosen one, the best to each other place, the next best.
MOST_WAYS = 4
# Likelier than that to be on time, a way is not told of its chance.
_CERTAIN = 0.995
# The parts of `Considered.total_s`, in the order in which they happen.
PARTS = ("wait", "front", "transfer", "rtt", "queue", "service")


def why_of(decision: Decision) -> dict[str, Any]:
    """Why it went there: what was predicted of each way, milliseconds, the chosen way first.

    Rounded, and without what is nothing, since it travels with every result: some 100 bytes a way.
    """
    why: dict[str, Any] = {"low_ms": _ms(decision.low_s), "high_ms": _ms(decision.high_s)}
    if decision.replica is not None:
        why["replica"] = decision.replica
    return why | {"ways": [_told(each, decision.costs) for each in _worth_telling(decision)]}


def _worth_telling(decision: Decision) -> list[Considered]:
    ranked = sorted(decision.considered, key=lambda each: (each.way != decision.way, bool(each.excluded), each.total_s))
    best = {each.way.place: each for each in reversed(ranked)}
    chosen = [each for each in ranked if best[each.way.place] is each]
    return (chosen + [each for each in ranked if each not in chosen])[:MOST_WAYS]


def _told(considered: Considered, costs: Costs) -> dict[str, Any]:
    way = considered.way
    told: dict[str, Any] = {"place": way.place.value}
    if way.codec:
        told |= {"codec": way.codec, "bytes": way.payload_bytes}
    if considered.excluded:
        return told | {"excluded": considered.excluded}
    parts = {f"{part}_ms": _ms(getattr(considered, f"{part}_s")) for part in PARTS}
    told |= {"total_ms": _ms(considered.total_s)} | {name: value for name, value in parts.items() if value}
    if considered.on_time is not None and considered.on_time < _CERTAIN:
        told["on_time"] = round(considered.on_time, 2)
    spent = {"energy_j": energy_j(considered, costs.edge_w, costs.send_w), "money": money(considered, costs)}
    return told | {name: float(f"{value:.3g}") for name, value in spent.items() if value and math.isfinite(value)}


def _ms(seconds: float) -> float | None:
    """Milliseconds, whole ones from 10 on; None for what is no number."""
    if not math.isfinite(seconds):
        return None
    value = round(seconds * 1e3, 1)
    return round(value) if value >= 10 or value == int(value) else value


def meaning(result: Result) -> object:
    """What has to differ for a result to count as changed: the label, the detected labels, normal or not, the value."""
    if result.task is Task.DETECTION:
        return sorted(found.label for found in result.detections)
    if result.task is Task.ANOMALY:
        return result.anomaly
    return result.value if result.task is Task.REGRESSION else result.label
