"""An outbox file of Marram 0.1, which knew no deployments among its events: all of it counts as what it is."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from tests.bus.filling import event

from marram.bus import totals
from marram.bus.outbox import ROW_BYTES, Outbox, encode
from marram.schema.event import EventKind

# As that version made it, and the numbers that it gave its kinds.
SCHEMA = """
PRAGMA auto_vacuum = INCREMENTAL;
PRAGMA journal_mode = WAL;
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE events (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT, worth INTEGER NOT NULL, bytes INTEGER NOT NULL, record BLOB NOT NULL);
CREATE INDEX by_worth ON events (worth, sequence);
CREATE TABLE refused (sequence INTEGER PRIMARY KEY, reason TEXT NOT NULL, record BLOB NOT NULL);
CREATE TABLE totals (
    worth INTEGER PRIMARY KEY, rows INTEGER NOT NULL DEFAULT 0, bytes INTEGER NOT NULL DEFAULT 0,
    given_up INTEGER NOT NULL DEFAULT 0, given_up_told INTEGER NOT NULL DEFAULT 0,
    refused INTEGER NOT NULL DEFAULT 0, refused_told INTEGER NOT NULL DEFAULT 0);
CREATE TABLE progress (
    app TEXT, version INTEGER, frame INTEGER NOT NULL, name BLOB NOT NULL, PRIMARY KEY (app, version)) WITHOUT ROWID;
INSERT INTO meta VALUES ('stream', 'of-old-times'), ('format', '1');
"""
KINDS = ["dropped", "alert", "sample", "message", "result", "metric"]


def released(path: Path) -> None:
    """One event of each kind, `n + 1` given up and told of the `n`-th, ten times that refused."""
    database = sqlite3.connect(path)
    database.executescript(SCHEMA)
    for worth, name in enumerate(KINDS):
        record = encode(event(worth, EventKind(name), size=1000))
        size = len(record) + ROW_BYTES
        database.execute("INSERT INTO events (worth, bytes, record) VALUES (?, ?, ?)", (worth, size, record))
        told = (worth + 1, worth + 1, 10 * (worth + 1), 10 * (worth + 1))
        database.execute("INSERT INTO totals VALUES (?, 1, ?, ?, ?, ?, ?)", (worth, size, *told))
    database.commit()
    database.close()


def test_what_it_holds_and_has_given_up_is_what_it_was(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    released(path)
    outbox, other = Outbox(path), Outbox(path)
    assert outbox.stream == "of-old-times" and outbox.depth() == len(KINDS)
    for each in (outbox, other):
        assert each.given_up() == {name: n + 1 for n, name in enumerate(KINDS)}
        assert each.refused() == {name: 10 * (n + 1) for n, name in enumerate(KINDS)}
    assert [record.event.kind for record in outbox.read()] == [EventKind(name) for name in KINDS]
    outbox.refuse(4, "no alert")
    assert outbox.refused()["message"] == 41
    outbox.acknowledge(range(1, 7))
    assert outbox.depth() == outbox.size_bytes() == 0
    outbox.close()
    other.close()


def test_the_least_worth_is_still_given_up_first_and_deployments_last(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    released(path)
    outbox = Outbox(path)
    before = outbox.given_up()
    outbox.append([event(9, EventKind.DEPLOYMENT, size=1000)])
    order = []
    for _ in range(6):
        outbox.limit_bytes = outbox.size_bytes() - 1
        outbox.append([event(10, EventKind.DROPPED)])
        gone = {name for name, count in outbox.given_up().items() if count != before.get(name, 0)}
        before = outbox.given_up()
        order.append(gone)
    assert order == [{"metric"}, {"result"}, {"message"}, {"sample"}, {"alert"}, {"deployment"}]
    outbox.close()


def test_a_kind_keeps_its_number_for_ever() -> None:
    assert [kind.value for kind in totals.KINDS] == [*KINDS, "deployment"]
    assert set(totals.KINDS) == set(EventKind)
