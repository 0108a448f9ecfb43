"""Was everything delivered exactly once? Counted at both ends: at the devices' outboxes, and row by row in the cloud.

Nothing here trusts a counter of either side: the devices' figure is the highest sequence number that their file ever
gave out, the cloud's is every row it answers with, key by key.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from marram.bus.http import CloudApi
from marram.schema.api import EventView
from marram.schema.errors import NotReady

_PAGE = 1000


@dataclass(frozen=True, slots=True)
class Mark:
    """How far an outbox had come: its `stream`, the highest sequence it gave out, and what it gave up or had refused.

    `waiting` events are still in it, from the sequence `oldest` on (None: it is empty).
    """

    stream: str
    highest: int
    given_up: int
    waiting: int
    oldest: int | None


@dataclass(slots=True)
class Ledger:
    """The account up to the marks: `recorded` on the devices, `stored` distinct rows in the cloud.

    `lost` were recorded, are not stored, and were not given up by a full outbox either; `duplicated` rows have the key
    of another.
    """

    recorded: int = 0
    stored: int = 0
    lost: int = 0
    duplicated: int = 0
    given_up: int = 0
    events: dict[str, list[EventView]] = field(default_factory=dict)


def read_mark(outbox: Path) -> Mark:
    """Read an outbox file beside whoever writes it, changing nothing. Raises NotReady where it cannot be read."""
    try:
        database = sqlite3.connect(f"file:{outbox}?mode=ro", uri=True, timeout=10)
        try:
            (stream,) = database.execute("SELECT value FROM meta WHERE key = 'stream'").fetchone()
            row = database.execute("SELECT seq FROM sqlite_sequence WHERE name = 'events'").fetchone()
            (gone,) = database.execute("SELECT coalesce(sum(given_up + refused), 0) FROM totals").fetchone()
            waiting, oldest = database.execute("SELECT count(*), min(sequence) FROM events").fetchone()
        finally:
            database.close()
    except (sqlite3.Error, TypeError) as error:
        raise NotReady(f"cannot read the outbox: {error}", where=str(outbox)) from error
    return Mark(stream, row[0] if row else 0, gone, waiting, oldest)


def read_ledger(api: CloudApi, marks: Mapping[str, Mark]) -> Ledger:
    """Compare every stored row with the marks (by device). Rows beyond a mark were recorded later and do not count."""
    ledger = Ledger(events={device: [] for device in marks})
    keys: Counter[tuple[str, str, int]] = Counter()
    after = 0
    while page := api.events(after=after, limit=_PAGE):
        for event in page:
            mark = marks.get(event.device)
            if mark is not None and event.stream == mark.stream and event.sequence <= mark.highest:
                key = (event.device, event.stream, event.sequence)
                keys[key] += 1
                if keys[key] == 1:
                    ledger.events[event.device].append(event)
        after = page[-1].id
    ledger.recorded = sum(mark.highest for mark in marks.values())
    ledger.stored = len(keys)
    ledger.duplicated = sum(keys.values()) - len(keys)
    ledger.given_up = sum(mark.given_up for mark in marks.values())
    ledger.lost = max(0, ledger.recorded - ledger.stored - ledger.given_up)
    return ledger


def delivered(outbox: Path, mark: Mark) -> bool:
    """Whether everything up to `mark` has left the outbox, which it does only when the cloud has committed it."""
    oldest = read_mark(outbox).oldest
    return oldest is None or oldest > mark.highest
