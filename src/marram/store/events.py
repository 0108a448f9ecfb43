"""Events: every durable record a device delivered, stored exactly once.

A batch is one transaction, and its key (device, stream, sequence) makes a redelivered record fall out by itself: so an
acknowledgement that got lost costs nothing. Nobody may acknowledge a batch before `append` has returned.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Connection, Select, Table, and_, func, select

from marram.schema.errors import Invalid
from marram.schema.event import EventKind, Recorded
from marram.store.database import Database
from marram.store.documents import dump, load
from marram.store.objects import Body
from marram.store.tables import events, samples, streams, totals
from marram.store.upsert import insert_ignore, upsert

_Query = TypeVar("_Query", bound=Select[Any])
# One look for a frame reads so many results at most: a quarter of a second, however many there are.
LOOKED_THROUGH = 50_000


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """One event as stored. `id` rises in the order of storing; `time_s` is the device's clock, `received_s` ours."""

    id: int
    device: str
    stream: str
    sequence: int
    kind: EventKind
    app: str
    time_s: float
    received_s: float
    data: dict[str, Any]
    media: str | None
    sha256: str | None
    size_bytes: int


@dataclass(frozen=True, slots=True)
class EventFilter:
    """Which events: every field that is set must match. Times are Unix seconds on the cloud's clock (received)."""

    device: str | None = None
    app: str | None = None
    kinds: tuple[EventKind, ...] = ()
    since_s: float | None = None
    until_s: float | None = None


@dataclass(frozen=True, slots=True)
class StreamCount:
    """What one outbox delivered. `duplicates`: redelivered records that were recognised and not stored again."""

    device: str
    stream: str
    stored: int
    duplicates: int
    first_sequence: int
    last_sequence: int


@dataclass(frozen=True, slots=True)
class Counts:
    """`stored` rows; `distinct` keys among them (so `stored - distinct` were stored twice); `duplicates` refused."""

    stored: int
    distinct: int
    duplicates: int
    by_kind: dict[str, int]
    streams: list[StreamCount]


@dataclass(frozen=True, slots=True)
class Totals:
    """Running counters: stored events by kind, and redelivered ones that were not stored again."""

    by_kind: dict[str, int]
    duplicates: int

    @property
    def stored(self) -> int:
        return sum(self.by_kind.values())


class Events:
    """The table of events."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def append(
        self,
        device: str,
        batch: list[Recorded],
        bodies: Mapping[int, Body] | None = None,
        now_s: float | None = None,
    ) -> int:
        """Store a batch of one device's one stream in one transaction; returns how many of it were new.

        `bodies`: where the events' bodies lie in the object store, by sequence; they must be there already. Samples
        get a row of their own besides. When this returns, the batch is on disk.
        """
        if not batch:
            return 0
        if len({r.stream for r in batch}) != 1:
            raise Invalid("a batch holds the events of one stream")
        bodies = bodies or {}
        now_s = time.time() if now_s is None else now_s
        rows = [_row(device, record, bodies.get(record.sequence), now_s) for record in batch]
        with self._database.write() as connection:
            self._database.order_ids(connection)
            fresh = self._not_there(connection, rows)
            new = insert_ignore(connection, events, fresh)
            insert_ignore(connection, samples, [_sample_row(row) for row in fresh if _is_sample(row)])
            self._count(connection, rows, fresh)
        return new

    def _not_there(self, connection: Connection, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Those of `rows` that are not stored yet, each once. Nobody else stores any before this transaction ends."""
        unique = {row["sequence"]: row for row in rows}
        last = connection.execute(select(streams.c.last_sequence).where(_stream_of(rows, streams))).scalar()
        if last is not None and min(unique) <= last:
            span = events.c.sequence.between(min(unique), max(unique))
            for there in connection.execute(select(events.c.sequence).where(_stream_of(rows, events), span)).scalars():
                unique.pop(there, None)
        return list(unique.values())

    def _count(self, connection: Connection, rows: list[dict[str, Any]], fresh: list[dict[str, Any]]) -> None:
        """Bring the stream's and the kinds' counters up to what this transaction stores."""
        first, last = min(r["sequence"] for r in rows), max(r["sequence"] for r in rows)
        row = connection.execute(select(streams).where(_stream_of(rows, streams))).first()
        counts = {
            "device": rows[0]["device"],
            "stream": rows[0]["stream"],
            "stored": len(fresh) + (row.stored if row else 0),
            "duplicates": len(rows) - len(fresh) + (row.duplicates if row else 0),
            "first_sequence": min(first, row.first_sequence) if row else first,
            "last_sequence": max(last, row.last_sequence) if row else last,
        }
        upsert(connection, streams, counts)
        for kind, number in Counter(each["kind"] for each in fresh).items():
            upsert(connection, totals, {"kind": kind, "stored": number}, {"stored": totals.c.stored + number})

    def after(self, last_id: int, which: EventFilter | None = None, limit: int = 1000) -> list[StoredEvent]:
        """The next events after `last_id`, oldest first: a tail that asks with the last id it saw misses none."""
        query = _where(select(events).where(events.c.id > last_id), which).order_by(events.c.id).limit(limit)
        with self._database.read() as connection:
            return [_event(row) for row in connection.execute(query)]

    def newest(
        self, which: EventFilter | None = None, limit: int = 100, before_id: int | None = None
    ) -> list[StoredEvent]:
        """The newest events, newest first; `before_id` pages on."""
        query = _where(select(events), which).order_by(events.c.id.desc()).limit(limit)
        if before_id is not None:
            query = query.where(events.c.id < before_id)
        with self._database.read() as connection:
            return [_event(row) for row in connection.execute(query)]

    def of_frame(
        self, frame: int, which: EventFilter, limit: int, before_id: int | None = None
    ) -> tuple[list[StoredEvent], int | None]:
        """The newest results of the frame with this number, newest first, among the `LOOKED_THROUGH` newest of `which`
        below `before_id`; and the id below which to look on where those were too few, None where there are no more.
        """
        # As `dump` writes it; longer numbers, and what lies deeper in a result, are told apart below.
        hit = events.c.data.like(f'%"frame":{frame}_%').label("hit")
        query = _where(select(events.c.id, hit), replace(which, kinds=(EventKind.RESULT,)))
        query = query.order_by(events.c.id.desc()).limit(LOOKED_THROUGH)
        if before_id is not None:
            query = query.where(events.c.id < before_id)
        found: list[StoredEvent] = []
        looked, last_id = 0, None
        with self._database.read() as connection:
            for last_id, is_hit in connection.execute(query):
                looked += 1
                if not is_hit:
                    continue
                event = _event(connection.execute(select(events).where(events.c.id == last_id)).one())
                if event.data.get("frame") == frame:
                    found.append(event)
                    if len(found) == limit:
                        break
        ended = looked < LOOKED_THROUGH and len(found) < limit
        return found, None if ended else last_id

    def last_id(self) -> int:
        """The highest id given out and visible; 0 where there is none."""
        with self._database.read() as connection:
            return int(connection.execute(select(func.max(events.c.id))).scalar() or 0)

    def count(self, which: EventFilter | None = None) -> int:
        query = _where(select(func.count()).select_from(events), which)
        with self._database.read() as connection:
            return int(connection.execute(query).scalar_one())

    def counts(self, device: str | None = None) -> Counts:
        """The bookkeeping of exactly once, counted from the rows themselves (a full scan)."""
        which = EventFilter(device=device)
        keys = _where(select(events.c.device, events.c.stream, events.c.sequence), which).distinct().subquery()
        kinds = _where(select(events.c.kind, func.count().label("n")), which).group_by(events.c.kind)
        delivered = select(streams).order_by(streams.c.device, streams.c.stream)
        if device is not None:
            delivered = delivered.where(streams.c.device == device)
        with self._database.read() as connection:
            by_kind = {row.kind: int(row.n) for row in connection.execute(kinds)}
            unique = int(connection.execute(select(func.count()).select_from(keys)).scalar_one())
            per_stream = [StreamCount(**row._mapping) for row in connection.execute(delivered)]
        return Counts(
            sum(by_kind.values()), unique, sum(stream.duplicates for stream in per_stream), by_kind, per_stream
        )

    def totals(self) -> Totals:
        """What was ever stored, by kind, from the running counters: cheap however many events there are."""
        redelivered = select(func.coalesce(func.sum(streams.c.duplicates), 0))
        with self._database.read() as connection:
            by_kind = {row.kind: int(row.stored) for row in connection.execute(select(totals).order_by(totals.c.kind))}
            return Totals(by_kind, int(connection.execute(redelivered).scalar_one()))

    def apps(self) -> list[str]:
        """The names of the apps that ever sent an event."""
        with self._database.read() as connection:
            return [str(name) for name in connection.execute(select(events.c.app).distinct()).scalars()]


def _row(device: str, record: Recorded, body: Body | None, now_s: float) -> dict[str, Any]:
    event = record.event
    return {
        "device": device,
        "stream": record.stream,
        "sequence": record.sequence,
        "kind": event.kind.value,
        "app": _clean(event.app, 64) or "",
        # A clock gone wild (NaN, infinity) must not make a record undeliverable.
        "time_s": event.time_s if abs(event.time_s) < 1e15 else 0.0,
        "received_s": now_s,
        "data": dump(event.data),
        "media": _clean(event.media, 200),
        "sha256": body.sha256 if body else None,
        "size_bytes": body.size_bytes if body else 0,
    }


def _clean(text: str | None, length: int) -> str | None:
    """Short enough for its column, and without the NUL that PostgreSQL refuses."""
    return None if text is None else text.replace("\x00", "")[:length]


def _stream_of(rows: list[dict[str, Any]], table: Table) -> ColumnElement[bool]:
    """The rows' one stream, in `table`."""
    return and_(table.c.device == rows[0]["device"], table.c.stream == rows[0]["stream"])


def _is_sample(row: dict[str, Any]) -> bool:
    return row["kind"] == EventKind.SAMPLE.value and row["sha256"] is not None


def _sample_row(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "kind"}


def _where(query: _Query, which: EventFilter | None) -> _Query:
    if which is None:
        return query
    if which.device is not None:
        query = query.where(events.c.device == which.device)
    if which.app is not None:
        query = query.where(events.c.app == which.app)
    if which.kinds:
        query = query.where(events.c.kind.in_([kind.value for kind in which.kinds]))
    if which.since_s is not None:
        query = query.where(events.c.received_s >= which.since_s)
    if which.until_s is not None:
        query = query.where(events.c.received_s < which.until_s)
    return query


def _event(row: Any) -> StoredEvent:
    return StoredEvent(
        row.id,
        row.device,
        row.stream,
        row.sequence,
        EventKind(row.kind),
        row.app,
        row.time_s,
        row.received_s,
        load(row.data),
        row.media,
        row.sha256,
        row.size_bytes,
    )
