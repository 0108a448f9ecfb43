"""What an inference answers. Plain dataclasses: they are made for every frame, so they must cost microseconds."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from marram.schema.model import Task


class Place(StrEnum):
    """Where one inference runs."""

    EDGE = "edge"
    CLOUD = "cloud"
    SPLIT = "split"
    PEER = "peer"  # another device of the fleet, with the model of the edge
    DROP = "drop"


@dataclass(frozen=True, slots=True)
class Detection:
    """One found object. `box` is x0, y0, x1, y1 in pixels of the frame; `points` are landmarks (x, y), for faces."""

    label: str
    confidence: float
    box: tuple[float, float, float, float]
    points: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Result:
    """The answer for one frame or reading; `model` is the `name@version` that gave it.

    Which fields are set follows from `task`: classification `label`, `confidence`, `top`; detection `detections`
    (and `label`, `confidence` of the surest); regression `value`, `unit`; anomaly `score`, `threshold`, `anomaly`.
    `extra` holds what functions added with `with_`.
    """

    task: Task
    model: str
    label: str | None = None
    confidence: float | None = None
    top: tuple[tuple[str, float], ...] = ()
    detections: tuple[Detection, ...] = ()
    value: float | None = None
    unit: str | None = None
    score: float | None = None
    threshold: float | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def with_(self, **extra: Any) -> Result:
        """A copy with `extra` added: `result.with_(people=3)`; conditions then read `result.people`."""
        return replace(self, extra={**self.extra, **extra})

    @property
    def anomaly(self) -> bool | None:
        """Whether `score` reaches `threshold`; None where either is absent."""
        return None if self.score is None or self.threshold is None else self.score >= self.threshold

    def to_dict(self) -> dict[str, Any]:
        """Only what is set, as plain JSON types; the inverse of `from_dict`. What CEL conditions see as `result`."""
        document: dict[str, Any] = {"task": self.task.value, "model": self.model}
        for name in ("label", "confidence", "value", "unit", "score", "threshold"):
            value = getattr(self, name)
            if value is not None:
                document[name] = value
        if self.top:
            document["top"] = [[label, confidence] for label, confidence in self.top]
        if self.task is Task.DETECTION:
            document["detections"] = [
                {"label": d.label, "confidence": d.confidence, "box": list(d.box)}
                | ({"points": [list(p) for p in d.points]} if d.points else {})
                for d in self.detections
            ]
        return {**self.extra, **document}

    @classmethod
    def from_dict(cls, document: dict[str, Any]) -> Result:
        """Raises KeyError or ValueError where `document` is not a result."""
        known = {"task", "model", "label", "confidence", "value", "unit", "score", "threshold", "top", "detections"}
        return cls(
            task=Task(document["task"]),
            model=document["model"],
            label=document.get("label"),
            confidence=document.get("confidence"),
            top=tuple((str(label), float(confidence)) for label, confidence in document.get("top", ())),
            detections=tuple(
                Detection(
                    d["label"],
                    float(d["confidence"]),
                    (float(d["box"][0]), float(d["box"][1]), float(d["box"][2]), float(d["box"][3])),
                    tuple((float(x), float(y)) for x, y in d.get("points", ())),
                )
                for d in document.get("detections", ())
            ),
            value=document.get("value"),
            unit=document.get("unit"),
            score=document.get("score"),
            threshold=document.get("threshold"),
            extra={k: v for k, v in document.items() if k not in known},
        )
