"""Exactly once where it is easiest to be off by one: the last event alone, two processes at once, a cut of power."""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import text

from marram.schema.event import Event, EventKind, Recorded
from marram.store import Objects, Store, open_store

STREAM = "stream-of-the-first-disk"


def batch(first: int, last: int, stream: str = STREAM) -> list[Recorded]:
    return [Recorded(stream, n, Event(EventKind.RESULT, "gate", 1.0, {"n": n})) for n in range(first, last + 1)]


def test_the_last_event_alone_is_known_again(store: Store) -> None:
    assert store.events.append("pi", batch(1, 5)) == 5
    assert store.events.append("pi", batch(5, 5)) == 0
    assert store.events.append("pi", batch(1, 1)) == 0
    totals = store.events.totals()
    assert (totals.stored, totals.duplicates) == (5, 2)
    [stream] = store.events.counts().streams
    assert (stream.stored, stream.duplicates, stream.last_sequence) == (5, 2, 5)


def test_no_two_processes_give_out_ids_at_once(postgres_url: str) -> None:
    """Else a tail by id passes over events whose transaction commits later than one with higher ids."""
    ours, theirs = open_store(postgres_url), open_store(postgres_url)
    later = threading.Thread(target=theirs.events.append, args=("pi", batch(1, 1)))
    database = ours.events._database
    try:
        with psycopg.connect(postgres_url, autocommit=True) as looking, database.write() as connection:
            database.order_ids(connection)
            later.start()
            query = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
            until_s = time.monotonic() + 30
            while looking.execute(query).fetchone() != (1,):
                assert later.is_alive(), "it did not wait for its turn"
                assert time.monotonic() < until_s
            assert connection.execute(text("SELECT count(*) FROM events")).scalar_one() == 0
        later.join(30)
        assert ours.events.count() == 1
    finally:
        ours.close()
        theirs.close()


@pytest.mark.skipif(sys.platform != "linux", reason="a descriptor's file is told by Linux's /proc")
def test_an_object_and_the_names_that_lead_to_it_are_on_the_disk_when_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What SQL says of an object is committed right after: a power cut must not leave a row without its object."""
    objects = Objects(tmp_path / "objects")
    synced: list[Path] = []
    fsync = os.fsync

    def told(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").resolve())
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", told)
    for put in (objects.put, lambda data: objects.put_stream([data]), lambda data: objects.put_many([data])[0]):
        synced.clear()
        body = put(os.urandom(10))
        file = next((tmp_path / "objects").rglob(body.sha256)).resolve()
        assert {file, file.parent, file.parent.parent} <= set(synced)
        assert synced.index(file) < synced.index(file.parent)
