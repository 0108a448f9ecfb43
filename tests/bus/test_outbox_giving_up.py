"""The outbox within its limit: what it gave up or set aside it counted."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import tempfile
from collections import Counter
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from tests.bus.filling import KINDS, event

from marram.bus import codec
from marram.bus.outbox import ROW_BYTES, Outbox, encode
from marram.schema.event import Event, EventKind


def told(outbox: Outbox) -> Counter[str]:
    """What the DROPPED events among what waits tell."""
    counts: Counter[str] = Counter()
    for record in outbox.read(1_000_000, 1 << 40):
        if record.event.kind is EventKind.DROPPED:
            counts.update(record.event.data["counts"])
    return counts


def test_the_least_worth_and_the_oldest_go_first(tmp_path: Path) -> None:
    first = [event(n, kind, size=1000) for kind in KINDS for n in range(2)]
    room = sum(len(encode(each)) + ROW_BYTES for each in first) + 500  # for these and no other
    outbox = Outbox(tmp_path / "outbox.db", limit_bytes=room)
    outbox.append(first)
    assert outbox.given_up() == {}
    outbox.append([event(2, EventKind.ALERT, size=1000)])
    assert outbox.given_up() == {"metric": 1}
    outbox.append([event(n, EventKind.ALERT, size=1000) for n in range(3, 6)])
    assert outbox.given_up() == {"metric": 2, "result": 2}
    kept = [(r.event.kind.value, r.event.data["n"]) for r in outbox.read() if r.event.kind is not EventKind.DROPPED]
    worthy = ("deployment", "alert", "sample", "message")
    assert kept == [(kind, n) for kind in worthy for n in range(2)] + [("alert", n) for n in range(2, 6)]
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
