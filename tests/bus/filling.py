"""What the tests of the outbox put into it."""

from __future__ import annotations

from marram.bus.outbox import Outbox
from marram.schema.event import Event, EventKind

KINDS = [kind for kind in EventKind if kind is not EventKind.DROPPED]


def event(number: int = 0, kind: EventKind = EventKind.RESULT, size: int = 0) -> Event:
    return Event(kind, "gate", 1.7e9 + number, {"n": number}, bytes(size) or None)


def numbers(outbox: Outbox, limit: int = 1_000_000) -> list[int]:
    return [record.event.data["n"] for record in outbox.read(limit, 1 << 40)]
