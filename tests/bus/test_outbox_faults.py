"""The outbox under killed writers, a failing disk, a spoilt file: it has what it acknowledged, it tells the rest."""

from __future__ import annotations

import contextlib
import resource
import signal
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.bus.filling import event, numbers

from marram.bus.outbox import ASIDE_FILES, Outbox
from marram.schema.errors import Invalid, Retryable
from marram.schema.event import Event, EventKind

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


def test_a_file_that_is_spoilt_in_a_loop_does_not_fill_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    for _ in range(ASIDE_FILES + 3):
        path.write_bytes(b"\xab" * 5000)
        Outbox(path).close()
    assert len(list(tmp_path.glob("outbox.db.corrupt-?"))) == len(list(tmp_path.glob("*.corrupt-*"))) == ASIDE_FILES


def test_a_file_that_says_it_is_of_another_format_is_moved_aside(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    Outbox(path).close()
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE meta SET value = '2' WHERE key = 'format'")
    outbox = Outbox(path)
    assert "another version of Marram" in outbox.read()[0].event.data["reason"]
    outbox.close()


@pytest.mark.parametrize(
    "change",
    [
        "DROP TABLE events",
        "DROP TABLE meta",
        "DROP TABLE once",
        "DROP TABLE totals",
        "ALTER TABLE events RENAME COLUMN record TO other",
        "DROP TABLE events; CREATE VIEW events AS SELECT 1 AS sequence, 1 AS worth, 1 AS bytes, x'00' AS record",
        "CREATE TRIGGER no BEFORE INSERT ON events BEGIN SELECT RAISE(ABORT, 'never again'); END",
        "UPDATE meta SET value = 'x' WHERE key = 'stream'",
    ],
)
def test_tables_that_an_app_has_changed_are_as_good_as_a_corrupt_file(tmp_path: Path, change: str) -> None:
    """It may write beside the agent; what it spoils must not keep all others from being heard."""
    path = tmp_path / "outbox.db"
    agent, worker = Outbox(path), Outbox(path)
    worker.append([event(n) for n in range(5)])
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.executescript(change)
    for outbox in (agent, worker):
        outbox.append([event(6)])
        outbox.close()
    agent = Outbox(path)
    agent.append([event(7)])
    agent.append_once("journal", [(1, event(8))])
    assert numbers_of_results(agent)[-2:] == [7, 8] and 8 <= len(agent.stream) <= 64
    agent.close()


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


def test_a_place_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "outbox.db"):
        with pytest.raises(Invalid, match=str(path)):
            Outbox(path)
