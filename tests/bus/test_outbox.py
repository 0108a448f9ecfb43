"""The outbox: what went in comes out, in order, until exactly that is acknowledged."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path

import msgpack
import pytest
from tests.bus.filling import event, numbers

from marram.bus import codec
from marram.bus.outbox import MAX_EVENT_BYTES, ROW_BYTES, Outbox, encode
from marram.bus.progress import Progress
from marram.schema.errors import Invalid, Permanent
from marram.schema.event import Event, EventKind


def test_events_come_out_as_they_went_in(outbox: Outbox) -> None:
    events = [
        event(1),
        event(2, EventKind.ALERT),
        Event(EventKind.SAMPLE, "gate", 5.0, {"a": [1, "ä"]}, b"\0\xff", "x/y"),
    ]
    last = outbox.append(events)
    records = outbox.read()
    assert [record.event for record in records] == events
    assert [record.sequence for record in records] == [last - 2, last - 1, last]
    assert {record.stream for record in records} == {outbox.stream}
    assert outbox.depth() == 3
    assert outbox.size_bytes() == sum(len(encode(e)) + ROW_BYTES for e in events)


def test_nobody_else_can_read_it_in_whatever_folder(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        outbox = Outbox(tmp_path / "outbox.db")
        outbox.append([event(1)])
        modes = {file.name: file.stat().st_mode & 0o077 for file in tmp_path.iterdir()}
        outbox.close()
    finally:
        os.umask(before)
    assert modes == dict.fromkeys(("outbox.db", "outbox.db-wal", "outbox.db-shm", "outbox.db.lock"), 0)


def test_a_clock_that_jumps_back_changes_nothing(outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    for n, now_s in enumerate((1.7e9, 1.2e9, 0.0, 1.7e9)):
        monkeypatch.setattr("time.time", lambda now_s=now_s: now_s)
        outbox.append([Event(EventKind.RESULT, "gate", now_s, {"n": n})])
    assert numbers(outbox) == [0, 1, 2, 3]
    assert [r.event.time_s for r in outbox.read()] == [1.7e9, 1.2e9, 0.0, 1.7e9]


def test_a_batch_is_what_read_would_give(outbox: Outbox) -> None:
    outbox.append([event(n) for n in range(10)])
    records = outbox.read()
    batch = outbox.batch()
    assert batch is not None
    assert codec.unpack_batch(batch.message) == records
    assert batch.message == codec.pack_batch(outbox.stream, records)
    assert batch.sequences == [record.sequence for record in records]


def test_reading_stops_at_either_limit_but_gives_one_at_least(outbox: Outbox) -> None:
    assert outbox.read() == []
    assert outbox.batch() is None
    outbox.append([event(n, size=1000) for n in range(10)])
    assert len(outbox.read(limit=3)) == 3
    assert len(outbox.read(max_bytes=3500)) == 3
    assert len(outbox.read(max_bytes=1)) == 1


def test_exactly_the_acknowledged_are_gone(outbox: Outbox) -> None:
    outbox.append([event(n) for n in range(10)])
    sequences = [record.sequence for record in outbox.read()]
    outbox.acknowledge([sequences[n] for n in (0, 3, 9)] + [10**12])
    assert numbers(outbox) == [1, 2, 4, 5, 6, 7, 8]
    outbox.acknowledge([])
    outbox.acknowledge(sequences)
    assert (outbox.depth(), outbox.size_bytes()) == (0, 0)


def test_sequences_are_never_used_again(tmp_path: Path) -> None:
    path, used = tmp_path / "outbox.db", set[int]()
    for _ in range(3):
        outbox = Outbox(path)
        outbox.append([event(n) for n in range(5)])
        sequences = [record.sequence for record in outbox.read()]
        assert not used & set(sequences)
        used |= set(sequences)
        outbox.acknowledge(sequences)
        outbox.close()


def test_the_stream_belongs_to_the_file(tmp_path: Path) -> None:
    first = Outbox(tmp_path / "a.db")
    again = Outbox(tmp_path / "a.db")
    other = Outbox(tmp_path / "b.db")
    assert first.stream == again.stream != other.stream
    assert len(first.stream) == 32
    for outbox in (first, again, other):
        outbox.close()


def test_too_big_or_not_plain_is_invalid_and_nothing_of_it_is_kept(outbox: Outbox) -> None:
    for bad in (event(size=MAX_EVENT_BYTES + 1), Event(EventKind.RESULT, "gate", 1.0, {"x": object()})):
        with pytest.raises(Invalid, match="gate"):
            outbox.append([event(1), bad])
    assert outbox.depth() == 0
    outbox.append([event(size=MAX_EVENT_BYTES - 100)])
    batch = outbox.batch()
    assert batch is not None
    assert len(batch.message) < codec.MAX_MESSAGE_BYTES


def test_a_closed_one_says_so(outbox: Outbox) -> None:
    outbox.close()
    outbox.close()
    with pytest.raises(Permanent, match="closed"):
        outbox.append([event()])
    with pytest.raises(Permanent, match="closed"):
        outbox.depth()


def test_a_record_that_does_not_decode_is_invalid(outbox: Outbox) -> None:
    outbox.append([event(1)])
    with contextlib.closing(sqlite3.connect(outbox.path)) as database, database:
        database.execute("UPDATE events SET record = ?", (msgpack.packb([1, 2, 3]),))
    with pytest.raises(Invalid):
        outbox.read()


def test_space_is_given_back_after_a_long_time_away(outbox: Outbox) -> None:
    outbox.append([event(n, size=100_000) for n in range(300)])
    while records := outbox.read(50, 1 << 40):
        outbox.acknowledge(record.sequence for record in records)
    for _ in range(20):
        outbox.append([event()])
        outbox.acknowledge(record.sequence for record in outbox.read())
    outbox.close()
    assert outbox.path.stat().st_size < 12_000_000  # of 30 MB: what is kept spare is 8 MB


def test_the_mark_changes_when_another_writes(outbox: Outbox) -> None:
    other = Outbox(outbox.path)
    before: set[tuple[int, int]] = {outbox.mark()}
    other.append([event()])
    assert outbox.mark() not in before
    other.close()


def test_how_far_each_version_came_outlives_the_process_and_is_forgotten_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    name = os.fsdecode(b"caf\xe9.jpg")
    outbox = Outbox(path)
    outbox.append_encoded([], progress=Progress("gate", 1, 7, name))
    outbox.append_encoded([], progress=Progress("gate", 2, 3))
    outbox.append_encoded([], progress=Progress("door", 1, 9))
    outbox.close()
    outbox = Outbox(path)
    assert outbox.progress("gate", 1, [1, 2]) == Progress("gate", 1, 7, name)
    assert outbox.progress("gate", 2, [1]) is None
    assert outbox.progress("gate", 1, [1]) == Progress("gate", 1, 7, name)
    assert outbox.progress("door", 1, [1]) == Progress("door", 1, 9)
    outbox.close()
