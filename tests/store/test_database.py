"""The database itself: migrations, faults named by what to do next, durability pragmas."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import text

from marram.schema.device import DeviceInfo
from marram.schema.errors import Conflict, Invalid, Missing, Refused, Retryable
from marram.schema.event import Event, EventKind, Recorded
from marram.store import Database, Store, open_store
from marram.store.tables import metadata


def test_the_migrations_build_the_tables(url: str) -> None:
    database = Database(url)
    with database.read() as connection:
        difference = compare_metadata(MigrationContext.configure(connection), metadata)
    assert difference == []
    database.close()


def test_what_was_stored_is_there_after_reopening(url: str) -> None:
    first = open_store(url)
    first.devices.add("pi", {"site": "a"}, DeviceInfo(cores=4))
    first.close()
    second = open_store(url)
    assert second.devices.get("pi").info.cores == 4
    second.close()


def test_two_that_open_a_new_database_at_once_both_succeed(url: str) -> None:
    code = "import sys; from marram.store import open_store; open_store(sys.argv[1]).check()"
    processes = [subprocess.Popen([sys.executable, "-c", code, url], stderr=subprocess.PIPE) for _ in range(3)]
    for process in processes:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors.decode()


def test_a_database_of_a_newer_marram_is_left_alone(url: str) -> None:
    database = Database(url)
    with database.write() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    database.close()
    with pytest.raises(Invalid, match="newer Marram"):
        Database(url)


def test_a_taken_key_is_a_conflict_and_nothing_of_the_transaction_stays(store: Store) -> None:
    store.devices.add("pi", {}, DeviceInfo())
    with pytest.raises(Conflict, match='"pi" exists already'):
        store.devices.add("pi", {}, DeviceInfo())
    assert store.devices.count() == 1


def test_the_check_asks_the_database(store: Store) -> None:
    assert store.check().split()[0] in ("sqlite", "postgresql")


@pytest.mark.parametrize("url", ["mysql://x/y", "nonsense://", "sqlite://", "://", "postgresql://localhost:notaport/x"])
def test_what_is_no_database_url_is_invalid(url: str) -> None:
    with pytest.raises(Invalid):
        Database(url)


# ---------------------------------------------------------------- SQLite


def test_a_commit_is_on_the_disk_before_it_is_told(tmp_path: Path) -> None:
    database = Database(tmp_path / "cloud.db")
    with database.read() as connection:
        assert connection.execute(text("PRAGMA journal_mode")).scalar_one() == "wal"
        assert connection.execute(text("PRAGMA synchronous")).scalar_one() == 2  # FULL
    database.close()


def test_a_file_that_is_no_database_is_told_so_and_kept(tmp_path: Path) -> None:
    file = tmp_path / "cloud.db"
    file.write_bytes(b"not a database, but long enough to look at" * 100)
    with pytest.raises(Invalid, match="not a sound database"):
        Database(file)
    assert file.read_bytes().startswith(b"not a database")


def test_a_database_that_another_program_holds_is_retryable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("marram.store.database._BUSY_TIMEOUT_MS", 50)
    store = open_store(tmp_path / "cloud.db")
    other = sqlite3.connect(tmp_path / "cloud.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Retryable, match="locked"):
        store.events.append("pi", [_record(1)])
    other.execute("ROLLBACK")
    other.close()
    assert store.events.append("pi", [_record(1)]) == 1
    store.close()


def test_a_full_disk_stores_nothing_of_the_batch_and_is_retryable(tmp_path: Path) -> None:
    store = open_store(tmp_path / "cloud.db")
    store.events.append("pi", [_record(1)])
    batch = [_record(n, size=5000) for n in range(2, 200)]
    with _file_size_limit(64_000), pytest.raises(Retryable):
        store.events.append("pi", batch)
    assert store.events.count() == 1
    assert store.events.append("pi", batch) == len(batch)
    assert store.events.count() == 1 + len(batch)
    store.close()


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Refused):
        Database(tmp_path / "file" / "cloud.db")


def test_nobody_else_can_read_it_in_whatever_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    before = os.umask(0o022)
    try:
        store = open_store(tmp_path / "cloud.db")
        store.devices.add("gate", {}, DeviceInfo())
        kept = [tmp_path / f"cloud.db{suffix}" for suffix in ("", "-wal", "-shm")]
        modes = [file.stat().st_mode & 0o077 for file in kept]
        store.close()
    finally:
        os.umask(before)
    assert modes == [0, 0, 0]


# ---------------------------------------------------------------- is it well?


def test_a_database_that_works_says_which_it_is(store: Store, url: str) -> None:
    assert store.check().startswith(url.partition(":")[0])


def test_the_check_fails_where_a_commit_would(tmp_path: Path) -> None:
    store = open_store(tmp_path / "cloud.db")
    store.check()
    with _file_size_limit((tmp_path / "cloud.db-wal").stat().st_size), pytest.raises(Retryable):
        store.check()
    store.check()
    store.close()


def test_the_check_fails_before_the_disk_is_quite_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(tmp_path / "cloud.db")
    monkeypatch.setattr("marram.store.database.ROOM_BYTES", shutil.disk_usage(tmp_path).total + 1)
    with pytest.raises(Retryable, match="the disk is full or nearly so"):
        store.check()
    store.close()


def test_the_check_really_commits_on_the_server(postgres_url: str) -> None:
    store = open_store(postgres_url)
    before = _transactions(store)
    store.check()
    assert _transactions(store) > before  # one that wrote: others get no number
    store.close()


def _transactions(store: Store) -> int:
    with store.database.read() as connection:
        snapshot = connection.execute(text("SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint"))
        return int(snapshot.scalar_one())


# ---------------------------------------------------------------- PostgreSQL


def test_a_server_that_is_away_is_retryable() -> None:
    with pytest.raises(Retryable, match="does not answer"):
        Database("postgresql://postgres@127.0.0.1:1/nothing")


def test_a_connection_that_the_server_cuts_is_replaced(postgres_url: str) -> None:
    store = open_store(postgres_url)
    store.events.append("pi", [_record(1)])
    with store.database.read() as connection:
        connection.execute(text("SELECT 1"))
    other = Database(postgres_url)
    with other.write() as connection:
        others = "pid <> pg_backend_pid() AND datname = current_database()"
        connection.execute(text(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}"))
    other.close()
    assert store.events.append("pi", [_record(1), _record(2)]) == 1
    store.close()


def test_the_password_is_in_no_message() -> None:
    with pytest.raises(Retryable) as error:
        Database("postgresql://postgres:hunter2@127.0.0.1:1/nothing")
    assert "hunter2" not in str(error.value)


# ---------------------------------------------------------------- the other nouns


def test_a_missing_device_sample_or_token_says_what_to_do(store: Store) -> None:
    for ask in (
        lambda: store.devices.get("no"),
        lambda: store.devices.remove("no"),
        lambda: store.devices.set_labels("no", {}),
        lambda: store.samples.get(1),
        lambda: store.samples.label(1, "cat"),
        lambda: store.tokens.remove("no"),
    ):
        with pytest.raises(Missing):
            ask()


def _record(sequence: int, size: int = 0) -> Recorded:
    return Recorded("stream-0123456789", sequence, Event(EventKind.RESULT, "gate", 1.0, {"fill": "x" * size}))


@contextmanager
def _file_size_limit(size_bytes: int) -> Iterator[None]:
    """Writing past `size_bytes` into any file fails, as on a full disk, in this process."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
