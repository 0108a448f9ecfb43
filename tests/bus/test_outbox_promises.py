"""What the outbox promises where no crash in a test can show it: the disk's own setting, a page nobody has read yet."""

from __future__ import annotations

import contextlib
import fcntl
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.bus.filling import event, numbers
from tests.bus.test_writer import full_disk

from marram.bus.outbox import Outbox
from marram.bus.writer import OutboxWriter
from marram.schema.event import EventKind


def test_a_commit_is_on_the_disk_before_it_is_told(outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed process loses nothing whatever the setting; only a power cut would show it, so the setting is asked."""
    opened: list[sqlite3.Connection] = []
    connect = sqlite3.connect

    def remembered(*args: object, **options: object) -> sqlite3.Connection:
        opened.append(connect(*args, **options))  # type: ignore[arg-type]
        return opened[-1]

    monkeypatch.setattr(sqlite3, "connect", remembered)
    with contextlib.closing(Outbox(outbox.path)):
        (database,) = opened
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert database.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL: each commit waits for the disk


def test_damage_nobody_would_have_read_yet_is_found_before_more_is_entrusted_to_the_file(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    with contextlib.closing(Outbox(path)) as outbox:
        outbox.append([event(n, size=300) for n in range(1000)])
    pages = path.stat().st_size // 4096
    with path.open("r+b") as file:  # records of the oldest events, which appending never looks at
        file.seek(pages // 3 * 4096)
        file.write(b"\xab" * 4096)
    with contextlib.closing(Outbox(path)) as outbox:
        outbox.append([event(7)])
        assert [record.event.kind for record in outbox.read(10_000, 1 << 40)] == [EventKind.DROPPED, EventKind.RESULT]


def test_what_fails_in_the_middle_of_an_append_leaves_nothing_of_it(
    outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox.append([event(1)])
    before = outbox.size_bytes()

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Outbox, "_evict", interrupted)
        with pytest.raises(KeyboardInterrupt):
            outbox.append([event(2), event(3)])
    assert (outbox.depth(), outbox.size_bytes()) == (1, before)
    outbox.append([event(4)])
    assert numbers(outbox) == [1, 4]


def test_what_is_given_up_while_the_disk_fails_and_fails_again_is_still_counted(
    outbox: Outbox, until_blocking: Callable[..., None]
) -> None:
    writer = OutboxWriter(outbox, capacity=10)
    writer.emit(event(0))
    assert writer.flush(30)
    with full_disk(outbox):
        writer.emit(event(1, size=100_000))
        until_blocking(lambda: writer.error is not None)
        for n in range(20):
            writer.emit(event(n + 2, EventKind.METRIC))
        failures = writer.failures
        until_blocking(lambda: writer.failures > failures + 1)  # tried again, with those counts in hand
    assert writer.flush(30)
    given_up = outbox.given_up()
    assert sum(given_up.values()) == writer.given_up > 0
    assert outbox.depth() - bool(given_up) + sum(given_up.values()) in (22, 21)
    writer.close()


def test_whoever_replaces_the_file_does_so_alone(outbox: Outbox) -> None:
    """SQLite's own locks go with a file that is moved aside; the guard beside it is what the others wait for."""
    outbox.append([event(1)])
    with Path(f"{outbox.path}.lock").open("r+b") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        appending = threading.Thread(target=outbox.append, args=([event(2)],))
        appending.start()
        appending.join(0.3)
        assert appending.is_alive()
    appending.join(30)
    assert numbers(outbox) == [1, 2]


def test_flush_waits_for_the_disk_not_for_the_queue(tmp_path: Path) -> None:
    begun, gate = threading.Event(), threading.Event()

    class Slow(Outbox):
        def append_encoded(self, *given: Any, **more: Any) -> int:
            begun.set()
            gate.wait(30)
            return super().append_encoded(*given, **more)

    with contextlib.closing(Slow(tmp_path / "outbox.db")) as outbox:
        writer = OutboxWriter(outbox)
        writer.emit(event(1))
        assert begun.wait(30)
        assert not writer.flush(0.05)
        assert writer.waiting() == 1
        gate.set()
        assert writer.flush(30)
        assert numbers(outbox) == [1]
        writer.close()
