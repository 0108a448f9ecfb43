"""Events: the durable records a device makes, and their worth when the outbox is full."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class EventKind(StrEnum):
    """What happened. Order of worth, highest first: what a full outbox gives up last."""

    DROPPED = "dropped"  # the outbox's own count of what it gave up; never itself given up
    DEPLOYMENT = "deployment"  # a version of an app moved from one state to another here, and why
    ALERT = "alert"
    SAMPLE = "sample"  # key data: the input itself in `body`, the reason in `data`
    MESSAGE = "message"  # published by user code on a topic (`data["topic"]`, `data["payload"]` or `body`)
    RESULT = "result"
    METRIC = "metric"

    @property
    def worth(self) -> int:
        """0 is the most worth keeping."""
        return list(EventKind).index(self)


@dataclass(frozen=True, slots=True)
class Event:
    """One record. `time_s`: Unix time on the device's clock (which may be wrong or jump: order is by sequence).

    `data` holds plain JSON types; `body` holds bytes (a JPEG of a sample), `media` their type.
    """

    kind: EventKind
    app: str
    time_s: float
    data: dict[str, Any] = field(default_factory=dict)
    body: bytes | None = None
    media: str | None = None


@dataclass(frozen=True, slots=True)
class Recorded:
    """An event with its place in one outbox: (`stream`, `sequence`) is unique for ever.

    `stream` is the random id an outbox file gets when it is made, so a device whose disk was replaced starts a new
    stream instead of colliding with its old sequence numbers.
    """

    stream: str
    sequence: int
    event: Event
