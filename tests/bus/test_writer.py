"""The way into the outbox: gathered from any thread, durable after `flush`, and no disk stops the app."""

from __future__ import annotations

import resource
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from marram.bus.outbox import MAX_EVENT_BYTES, Outbox
from marram.bus.progress import Progress
from marram.bus.writer import OutboxWriter
from marram.schema.event import Event, EventKind


def event(number: int = 0, kind: EventKind = EventKind.RESULT, size: int = 0) -> Event:
    return Event(kind, "gate", 1.7e9, {"n": number}, bytes(size) or None)


@contextmanager
def full_disk(outbox: Outbox) -> Iterator[None]:
    """No file of this process may grow beyond what the outbox's log has by now."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    log = Path(f"{outbox.path}-wal")
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (log.stat().st_size, before[1]))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, old)


def test_what_was_emitted_is_durable_after_flush_in_order(outbox: Outbox) -> None:
    writer = OutboxWriter(outbox)
    for n in range(5000):
        writer.emit(event(n))
    assert writer.flush(30)
    assert [r.event.data["n"] for r in outbox.read(10_000, 1 << 40)] == list(range(5000))
    assert writer.waiting() == 0
    writer.close()


def test_many_threads_emit(outbox: Outbox) -> None:
    writer = OutboxWriter(outbox, capacity=50)  # small, so that they have to wait for the disk

    def run(app: int) -> None:
        for n in range(500):
            writer.emit(event(app * 1000 + n))

    threads = [threading.Thread(target=run, args=(app,)) for app in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert writer.flush(30)
    seen = [r.event.data["n"] for r in outbox.read(10_000, 1 << 40)]
    for app in range(4):
        assert [n for n in seen if n // 1000 == app] == list(range(app * 1000, app * 1000 + 500))
    assert writer.given_up == 0
    writer.close()


def test_closing_commits_what_is_left(outbox: Outbox) -> None:
    writer = OutboxWriter(outbox)
    for n in range(1000):
        writer.emit(event(n))
    writer.close()
    writer.close()
    assert outbox.depth() == 1000
    writer.emit(event(1000))  # too late: said in the log, and the app lives on
    assert writer.given_up == 1


def test_what_cannot_be_recorded_is_counted_and_does_not_stop_the_app(
    outbox: Outbox, caplog: pytest.LogCaptureFixture
) -> None:
    writer = OutboxWriter(outbox)
    writer.emit(event(1))
    writer.emit(event(2, EventKind.SAMPLE, MAX_EVENT_BYTES + 1))
    writer.emit(Event(EventKind.MESSAGE, "gate", 1.0, {"x": {1, 2}}))
    writer.emit(event(3))
    assert writer.flush(30)
    assert writer.given_up == 2
    assert outbox.given_up() == {"sample": 1, "message": 1}
    records = outbox.read()
    assert [r.event.data.get("n") for r in records] == [1, 3, None]
    assert records[-1].event.data["counts"] == {"sample": 1, "message": 1}
    assert "cannot be recorded" in caplog.text
    writer.close()


def test_on_a_full_disk_events_wait_and_the_app_goes_on(
    outbox: Outbox, until_blocking: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    writer = OutboxWriter(outbox)
    writer.emit(event(0))
    assert writer.flush(30)
    with full_disk(outbox):
        for n in range(1, 1000):
            writer.emit(event(n, size=1000))
        until_blocking(lambda: writer.error is not None)
        assert writer.error is not None
        assert "outbox.db" in writer.error
        assert not writer.flush(0.05)
        assert writer.waiting() > 0
    assert writer.flush(30)  # it kept trying
    assert writer.error is None
    assert writer.failures > 0
    assert [r.event.data["n"] for r in outbox.read(10_000, 1 << 40)] == list(range(1000))
    assert len([r for r in caplog.records if r.name == "marram.bus.writer"]) == 1, "said once"
    writer.close()


def test_on_a_full_disk_the_least_worth_go_first_and_all_are_counted(
    outbox: Outbox, until_blocking: Callable[..., None]
) -> None:
    writer = OutboxWriter(outbox, capacity=100)
    writer.emit(event(0))
    assert writer.flush(30)
    emitted: Counter[str] = Counter()
    with full_disk(outbox):
        writer.emit(event(1, size=100_000))
        emitted["result"] += 1
        until_blocking(lambda: writer.error is not None)
        for n in range(300):
            kind = (EventKind.ALERT, EventKind.RESULT, EventKind.METRIC)[n % 3]
            writer.emit(event(n + 2, kind, 500))
            emitted[kind.value] += 1
        assert writer.given_up > 0
    assert writer.flush(30)
    stored = Counter(r.event.kind.value for r in outbox.read(10_000, 1 << 40) if r.event.kind is not EventKind.DROPPED)
    stored["result"] -= 1  # the first one
    assert stored + Counter(outbox.given_up()) == emitted
    assert stored["alert"] == 100, "what is worth most was kept"
    assert outbox.given_up()["metric"] == 100
    writer.close()


def test_closing_on_a_full_disk_ends(outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("marram.bus.writer.CLOSE_S", 0.1)
    writer = OutboxWriter(outbox)
    writer.emit(event(0))
    assert writer.flush(30)
    with full_disk(outbox):
        writer.emit(event(1, size=1_000_000))
        writer.close()
    assert writer.waiting() == 1


def mark(frame: int) -> Progress:
    return Progress("gate", 1, frame, f"{frame}.jpg")


def test_records_and_how_far_the_source_came_never_disagree(outbox: Outbox) -> None:
    writer = OutboxWriter(outbox)
    commits: list[tuple[int, int]] = []
    append = outbox.append_encoded

    def seen(records: Any, lost: Any = (), progress: Progress | None = None) -> int:
        last = append(records, lost, progress)
        reached = outbox.progress("gate", 1, [1])
        commits.append((outbox.depth(), -1 if reached is None else reached.frame))
        return last

    outbox.append_encoded = seen  # type: ignore[method-assign]  # looks between any two commits
    for frame in range(2000):  # two events a frame: no commit may end between them
        writer.record((event(frame), event(frame)), mark(frame))
    writer.close()
    assert len(commits) > 1
    assert all(depth == 2 * (frame + 1) for depth, frame in commits)
    assert outbox.progress("gate", 1, [1]) == mark(1999)


def test_frames_without_events_cost_no_commit_each(outbox: Outbox) -> None:
    writer = OutboxWriter(outbox)
    writer.record((), mark(0))
    writer.record((), mark(1))
    writer.record((event(),), mark(2))
    assert writer.flush(30)
    commits = outbox.mark()
    for frame in range(3, 2000):
        writer.record((), mark(frame))
    assert outbox.mark() == commits
    assert outbox.progress("gate", 1, [1]) == mark(2)
    # An event that belongs to no frame takes along how far the source has come; so does the end.
    writer.emit(event())
    assert writer.flush(30)
    assert outbox.progress("gate", 1, [1]) == mark(1999)
    writer.record((), mark(2000))
    writer.close()
    assert outbox.progress("gate", 1, [1]) == mark(2000)


def test_how_far_a_silent_source_came_is_written_after_a_while(outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("marram.bus.writer.PROGRESS_S", 0.0)
    written = threading.Event()
    append = outbox.append_encoded

    def seen(records: Any, lost: Any = (), progress: Progress | None = None) -> int:
        last = append(records, lost, progress)
        written.set()
        return last

    outbox.append_encoded = seen  # type: ignore[method-assign]  # tells of the commit
    writer = OutboxWriter(outbox)
    writer.record((), mark(7))
    assert written.wait(30)
    assert outbox.progress("gate", 1, [1]) == mark(7)
    writer.close()


def test_events_given_up_while_the_disk_fails_leave_the_rest_in_order(outbox: Outbox) -> None:
    writer = OutboxWriter(outbox, capacity=4)
    with full_disk(outbox):
        for frame in range(20):
            writer.record((event(frame), event(frame, EventKind.ALERT)), mark(frame))
        writer.record((), mark(20))
    assert writer.flush(30)
    kept = [r.event for r in outbox.read(100, 1 << 40) if r.event.kind is not EventKind.DROPPED]
    assert all(each.kind is EventKind.ALERT for each in kept)
    assert [each.data["n"] for each in kept] == sorted(each.data["n"] for each in kept)
    assert outbox.given_up()["result"] == 20
    assert len(kept) + sum(outbox.given_up().values()) == 40
    writer.close()
    assert outbox.progress("gate", 1, [1]) == mark(20)
