"""The outbox: what it acknowledged it has, what it gave up it counted, whatever befalls process, disk or file."""

from __future__ import annotations

import contextlib
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from marram.bus import codec
from marram.bus.outbox import MAX_EVENT_BYTES, ROW_BYTES, Outbox, encode
from marram.schema.errors import Conflict, Invalid, Permanent, Retryable
from marram.schema.event import Event, EventKind

KINDS = [kind for kind in EventKind if kind is not EventKind.DROPPED]


def event(number: int = 0, kind: EventKind = EventKind.RESULT, size: int = 0) -> Event:
    return Event(kind, "gate", 1.7e9 + number, {"n": number}, bytes(size) or None)


def numbers(outbox: Outbox, limit: int = 1_000_000) -> list[int]:
    return [record.event.data["n"] for record in outbox.read(limit, 1 << 40)]


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    made = Outbox(tmp_path / "outbox.db")
    yield made
    made.close()


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


# ---------------------------------------------------------------- what is given up


def told(outbox: Outbox) -> Counter[str]:
    """What the DROPPED events among what waits tell."""
    counts: Counter[str] = Counter()
    for record in outbox.read(1_000_000, 1 << 40):
        if record.event.kind is EventKind.DROPPED:
            counts.update(record.event.data["counts"])
    return counts


def test_the_least_worth_and_the_oldest_go_first(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox.db", limit_bytes=12_000)
    for kind in KINDS:
        outbox.append([event(n, kind, size=1000) for n in range(2)])
    assert outbox.given_up() == {}
    outbox.append([event(2, EventKind.ALERT, size=1000)])
    assert outbox.given_up() == {"metric": 1}
    outbox.append([event(n, EventKind.ALERT, size=1000) for n in range(3, 6)])
    assert outbox.given_up() == {"metric": 2, "result": 2}
    kept = [(r.event.kind.value, r.event.data["n"]) for r in outbox.read() if r.event.kind is not EventKind.DROPPED]
    worthy = [("alert", 0), ("alert", 1), ("sample", 0), ("sample", 1), ("message", 0), ("message", 1)]
    assert kept == worthy + [("alert", n) for n in range(2, 6)]
    assert told(outbox) == {"metric": 2, "result": 2}
    outbox.close()


def test_alerts_alone_are_bounded_too_and_counts_are_never_given_up(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox.db", limit_bytes=10_000)
    for n in range(100):
        outbox.append([event(n, EventKind.ALERT, size=500)])
        if n % 10 == 0:
            outbox.read()  # makes a DROPPED event of what was given up so far
    assert outbox.size_bytes() <= 10_000 + 2_000
    kept = [r for r in outbox.read(1000, 1 << 40) if r.event.kind is EventKind.ALERT]
    assert told(outbox)["alert"] == 100 - len(kept) == outbox.given_up()["alert"]
    outbox.close()


def test_what_is_under_way_is_not_given_up(tmp_path: Path) -> None:
    """It may be stored in the cloud already: giving it up would count it twice."""
    path = tmp_path / "outbox.db"
    agent, worker = Outbox(path, 5_000), Outbox(path, 5_000)
    worker.append([event(n, EventKind.METRIC, size=1000) for n in range(4)])
    under_way = [record.sequence for record in agent.read(limit=2)]
    worker.append([event(n, EventKind.RESULT, size=1000) for n in range(4)])
    assert worker.given_up() == {"metric": 2, "result": 2}
    assert set(under_way) < {record.sequence for record in agent.read(100)}
    agent.acknowledge(under_way)
    [first] = agent.read(limit=1)  # only this one now
    worker.append([event(n, EventKind.ALERT, size=1000) for n in range(6)])
    assert worker.given_up()["result"] == 3
    assert first in agent.read()
    agent.close()
    worker.close()


def test_a_refused_record_is_set_aside_and_counted(outbox: Outbox) -> None:
    outbox.append([event(n) for n in range(3)])
    bad = outbox.read()[1].sequence
    outbox.refuse(bad, "not this one")
    outbox.refuse(bad, "not this one")
    records = outbox.read()
    assert [r.event.data.get("n") for r in records] == [0, 2, None]
    assert records[-1].event.kind is EventKind.DROPPED
    assert records[-1].event.data == {"counts": {}, "refused": {"result": 1}}
    assert outbox.refused() == {"result": 1}
    with contextlib.closing(sqlite3.connect(outbox.path)) as database:
        [(sequence, reason, record)] = database.execute("SELECT sequence, reason, record FROM refused")
    assert (sequence, reason, codec.decode_event(record)) == (bad, "not this one", event(1))


def test_a_refused_count_does_not_make_another(outbox: Outbox) -> None:
    outbox.append([event()])
    outbox.refuse(outbox.read()[0].sequence, "bad")
    outbox.refuse(outbox.read()[0].sequence, "bad")
    assert outbox.read() == []


class Accounting(RuleBasedStateMachine):
    """Whatever is appended, read, acknowledged, refused or reopened: nothing is lost that was not counted."""

    LIMIT = 4_000

    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.mkdtemp()
        self.outbox = Outbox(Path(self.folder) / "outbox.db", self.LIMIT)
        self.recorded: Counter[str] = Counter()
        self.delivered: dict[int, Event] = {}
        self.told: Counter[str] = Counter()
        self.under_way: list[int] = []
        self.highest = self.lease = 0
        self.number = 0

    @rule(kinds=st.lists(st.sampled_from(KINDS), max_size=8), size=st.sampled_from([0, 10, 300, 1500, 5000]))
    def append(self, kinds: list[EventKind], size: int) -> None:
        events = []
        for kind in kinds:
            self.number += 1
            events.append(event(self.number, kind, size))
            self.recorded[kind.value] += 1
        last = self.outbox.append(events)
        assert last == 0 if not events else last > self.highest
        self.highest = max(self.highest, last)
        if events and self.outbox.size_bytes() > self.LIMIT:
            with contextlib.closing(sqlite3.connect(self.outbox.path)) as database:
                query = "SELECT sequence FROM events WHERE worth > 0"
                assert all(sequence <= self.lease for (sequence,) in database.execute(query))

    @rule(limit=st.integers(1, 20), max_bytes=st.sampled_from([1, 500, 3000, 10**6]))
    def read(self, limit: int, max_bytes: int) -> None:
        records = self.outbox.read(limit, max_bytes)
        sequences = [record.sequence for record in records]
        assert sequences == sorted(set(sequences))
        assert len(records) <= limit
        order = [r.event.data["n"] for r in records if r.event.kind is not EventKind.DROPPED]
        assert order == sorted(order)
        self.batch = {record.sequence: record.event for record in records}
        self.under_way = sequences
        self.lease = max(sequences, default=0)

    @precondition(lambda self: self.under_way)
    @rule(data=st.data())
    def acknowledge(self, data: st.DataObject) -> None:
        """The cloud takes any part of them, and may be sent them again."""
        chosen = data.draw(st.sets(st.sampled_from(self.under_way)))
        for sequence in chosen:
            if sequence not in self.delivered and self.batch[sequence].kind is EventKind.DROPPED:
                self.told.update(self.batch[sequence].data["counts"])
                self.told.update(self.batch[sequence].data.get("refused", {}))
            assert self.delivered.get(sequence, self.batch[sequence]) == self.batch[sequence]
            self.delivered[sequence] = self.batch[sequence]
        self.outbox.acknowledge(chosen)
        self.under_way = [sequence for sequence in self.under_way if sequence not in chosen]

    @precondition(lambda self: self.under_way)
    @rule()
    def refuse(self) -> None:
        if self.batch[self.under_way[0]].kind is not EventKind.DROPPED:
            self.outbox.refuse(self.under_way.pop(0), "bad")

    @rule()
    def reopen(self) -> None:
        stream = self.outbox.stream
        self.outbox.close()
        self.outbox = Outbox(Path(self.folder) / "outbox.db", self.LIMIT)
        assert self.outbox.stream == stream

    def teardown(self) -> None:
        if not hasattr(self, "outbox"):
            return
        for record in self.outbox.read(10**6, 1 << 40):
            self.delivered[record.sequence] = record.event
            if record.event.kind is EventKind.DROPPED:
                self.told.update(record.event.data["counts"])
                self.told.update(record.event.data.get("refused", {}))
        self.outbox.acknowledge(self.delivered)
        stored = Counter(e.kind.value for e in self.delivered.values() if e.kind is not EventKind.DROPPED)
        assert stored + self.told == self.recorded
        assert self.told == Counter(self.outbox.given_up()) + Counter(self.outbox.refused())
        assert (self.outbox.depth(), self.outbox.size_bytes()) == (0, 0)
        numbers = [e.data["n"] for e in self.delivered.values() if e.kind is not EventKind.DROPPED]
        assert len(numbers) == len(set(numbers))
        self.outbox.close()
        shutil.rmtree(self.folder)


TestAccounting = Accounting.TestCase
TestAccounting.settings = settings(
    max_examples=25, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


# ---------------------------------------------------------------- crashes, and several at once

WRITER = """
import sys
from pathlib import Path
from marram.bus.outbox import Outbox
from marram.schema.event import Event, EventKind
outbox = Outbox(Path(sys.argv[1]), int(sys.argv[4]))
for number in range(int(sys.argv[3])):
    events = [Event(EventKind.RESULT, sys.argv[2], 1.0, {"n": number * 7 + k}, bytes(500)) for k in range(7)]
    last = outbox.append(events)
    print(number, last, flush=True)
"""


def writer(path: Path, app: str, rounds: int, limit: int = 500_000_000) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(path), app, str(rounds), str(limit)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_what_a_killed_writer_had_acknowledged_is_all_there(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    acknowledged = -1
    for n in range(4):
        process = writer(path, f"app-{n}", 1_000_000)
        assert process.stdout is not None
        for _ in range(20 + 13 * n):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        rest = [line for line in process.stdout.read().split("\n") if line.endswith(tuple("0123456789"))]
        process.wait()
        acknowledged = 19 + 13 * n + max(0, len(rest) - 1)  # the last line may be cut short
        outbox = Outbox(path)
        mine = [r.event.data["n"] for r in outbox.read(10**6, 1 << 40) if r.event.app == f"app-{n}"]
        outbox.close()
        assert mine == list(range(len(mine))), "in order, none missing"
        assert len(mine) % 7 == 0, "all of an append or none"
        assert len(mine) >= 7 * (acknowledged + 1)


def test_several_processes_write_while_one_drains(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    outbox = Outbox(path)
    processes = [writer(path, f"app-{n}", 60) for n in range(3)]
    seen: dict[int, Event] = {}
    while True:
        done = all(process.poll() is not None for process in processes)
        records = outbox.read(50)
        for record in records:
            assert record.sequence not in seen
            seen[record.sequence] = record.event
        outbox.acknowledge(record.sequence for record in records)
        if done and not records:
            break
    for process in processes:
        process.communicate()
        assert process.returncode == 0
    assert list(seen) == sorted(seen), "what is read later has a later sequence"
    for n in range(3):
        assert [e.data["n"] for e in seen.values() if e.app == f"app-{n}"] == list(range(420))
    assert outbox.depth() == 0
    outbox.close()


def test_killed_writers_of_a_full_outbox_leave_the_counts_right(tmp_path: Path) -> None:
    path, limit = tmp_path / "outbox.db", 100_000
    appended = 0
    for n in range(3):
        process = writer(path, f"app-{n}", 1_000_000, limit)
        assert process.stdout is not None
        for _ in range(60):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        process.communicate()
        outbox = Outbox(path, limit)
        with contextlib.closing(sqlite3.connect(path)) as database:
            (appended,) = database.execute("SELECT seq FROM sqlite_sequence WHERE name = 'events'").fetchone()
            (size,) = database.execute("SELECT sum(bytes) FROM events").fetchone()
        assert outbox.size_bytes() == size <= limit
        assert outbox.depth() + sum(outbox.given_up().values()) == appended
        outbox.close()


# ---------------------------------------------------------------- a failing disk, a spoilt file


def test_a_full_disk_is_retryable_and_loses_nothing(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox.db")
    outbox.append([event(n) for n in range(100)])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    kept = 100
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
        with pytest.raises(Retryable, match=r"outbox\.db"):
            for _ in range(100):
                outbox.append([event(n, size=20_000) for n in range(kept, kept + 2)])
                kept += 2
        assert outbox.depth() == kept
        assert numbers(outbox, 50) == list(range(50))  # still read
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, old)
    outbox.append([event(n) for n in range(kept, kept + 10)])
    assert numbers(outbox) == list(range(kept + 10))
    outbox.close()


def spoil(path: Path, how: str) -> None:
    size = path.stat().st_size
    with path.open("r+b") as file:
        if how == "garbage":
            file.write(b"garbage " * (size // 8))
        elif how == "header":
            file.write(b"\0" * 100)
        elif how == "half":
            file.truncate(size // 2)
        elif how == "odd":
            file.truncate(size // 2 + 1234)
        elif how == "middle":
            file.seek(4096)
            file.write(b"\xab" * (size - 8192))


@pytest.mark.parametrize("how", ["garbage", "header", "half", "odd", "middle"])
def test_a_corrupt_file_is_moved_aside_and_told(tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "outbox.db"
    outbox = Outbox(path)
    outbox.append([event(n, size=100) for n in range(500)])
    stream = outbox.stream
    outbox.close()
    spoil(path, how)
    outbox = Outbox(path)
    assert outbox.stream != stream, "old sequences mean nothing in the new one"
    outbox.append([event(1)])
    records = outbox.read()
    assert [record.event.kind for record in records] == [EventKind.DROPPED, EventKind.RESULT]
    assert records[0].event.data["corrupt"] == "outbox.db.corrupt-1"
    assert (tmp_path / "outbox.db.corrupt-1").stat().st_size > 0
    assert "moved aside" in caplog.text
    outbox.close()


def test_a_file_that_spoils_while_it_is_open_is_replaced_for_everybody(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    agent, worker = Outbox(path), Outbox(path)
    worker.append([event(n, size=2000) for n in range(500)])
    # Without the log, everything is in the file; both have it open.
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    spoil(path, "middle")
    records = agent.read(10**6, 1 << 40)
    assert [record.event.kind for record in records] == [EventKind.DROPPED]
    worker.append([event(7)])
    assert numbers_of_results(agent) == [7]
    assert worker.stream == agent.stream
    assert worker.depth() == agent.depth() == 2
    agent.close()
    worker.close()


def numbers_of_results(outbox: Outbox) -> list[int]:
    return [r.event.data["n"] for r in outbox.read(10**6, 1 << 40) if r.event.kind is EventKind.RESULT]


def test_a_file_that_is_taken_away_is_made_again(outbox: Outbox) -> None:
    outbox.append([event(1)])
    stream = outbox.stream
    for part in outbox.path.parent.glob("outbox.db*"):
        if not part.name.endswith(".lock"):
            part.unlink()
    outbox.append([event(2)])
    assert numbers(outbox) == [2]
    assert outbox.stream != stream


@given(garbage=st.binary(max_size=3000))
@settings(max_examples=25, deadline=None)
def test_whatever_stands_there_it_opens(garbage: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "outbox.db"
        path.write_bytes(garbage)
        Path(f"{path}-wal").write_bytes(garbage)
        Path(f"{path}.lock").write_bytes(garbage)
        outbox = Outbox(path, 10_000)
        outbox.append([event(n, size=1000) for n in range(30)])
        assert outbox.size_bytes() <= 10_000
        outbox.close()


def test_a_newer_format_is_left_alone(outbox: Outbox) -> None:
    outbox.close()
    with contextlib.closing(sqlite3.connect(outbox.path)) as database, database:
        database.execute("UPDATE meta SET value = '2' WHERE key = 'format'")
    with pytest.raises(Conflict, match="newer"):
        Outbox(outbox.path)


def test_a_place_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "outbox.db"):
        with pytest.raises(Invalid, match=str(path)):
            Outbox(path)


def test_a_record_that_does_not_decode_is_invalid(outbox: Outbox) -> None:
    outbox.append([event(1)])
    with contextlib.closing(sqlite3.connect(outbox.path)) as database, database:
        database.execute("UPDATE events SET record = ?", (msgpack.packb([1, 2, 3]),))
    with pytest.raises(Invalid):
        outbox.read()


def test_space_is_given_back_after_a_long_time_away(outbox: Outbox) -> None:
    outbox.append([event(n, size=100_000) for n in range(300)])
    full = outbox.path.stat().st_size + Path(f"{outbox.path}-wal").stat().st_size
    while records := outbox.read(50, 1 << 40):
        outbox.acknowledge(record.sequence for record in records)
    for _ in range(20):
        outbox.append([event()])
        outbox.acknowledge(record.sequence for record in outbox.read())
    outbox.close()
    assert outbox.path.stat().st_size < full / 2


def test_the_mark_changes_when_another_writes(outbox: Outbox) -> None:
    other = Outbox(outbox.path)
    before: set[tuple[int, int]] = {outbox.mark()}
    other.append([event()])
    assert outbox.mark() not in before
    other.close()
