"""One database, SQLite or PostgreSQL, and the two ways to touch it: `read()` and `write()`.

It exists so that the nouns beside it hold SQL only: pragmas, locks, migrations and the translation of the drivers'
errors live here. It must never acknowledge what is not on disk: SQLite runs WAL with synchronous=FULL.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    IntegrityError,
    InvalidRequestError,
    NoSuchModuleError,
    SQLAlchemyError,
)

from marram.schema.errors import Conflict, Invalid, MarramError, Permanent, Refused, Retryable
from marram.schema.units import format_size
from marram.schema.words import first_line
from marram.store.audit import pending, record
from marram.system.files import make_folder

# One writer at a time takes this: ids then become visible in the order they were given out, so that a reader who
# asks for everything after an id misses nothing. The number is arbitrary, its own for Marram.
_WRITE_LOCK_KEY = 0x6D6172
_MIGRATE_LOCK_KEY = 0x6D6173
_BUSY_TIMEOUT_MS = 10_000
# With less, SQLite's log (16 MB between two checkpoints) cannot grow and be folded into the file.
ROOM_BYTES = 32_000_000


class Database:
    """An open database, migrated to this program's newest schema.

    `url`: `sqlite:///path/to/file` (or just a path), or `postgresql://user:password@host/name`.
    Raises Invalid (not a database URL, or made by a newer Marram), Refused (no right to it), Retryable (not there now).
    """

    def __init__(self, url: str | Path) -> None:
        self.url = _parse(url)
        self.dialect = self.url.get_backend_name()
        # The URL without its password, for messages.
        self.name = str(self.url.database) if self.dialect == "sqlite" else self.url.render_as_string()
        self.path = Path(str(self.url.database)) if self.dialect == "sqlite" else None
        self._writing = threading.Lock()
        self._engine = self._open()
        with self._translated():
            self._migrate()

    def _open(self) -> Engine:
        if self.dialect == "sqlite":
            assert self.path is not None
            try:
                make_folder(self.path.parent)
            except OSError as error:
                raise Refused(f"cannot make the folder {self.path.parent}: {error.strerror}") from error
            # It holds the devices' secrets, in a folder that may be open to others. SQLite gives its log the same mode.
            with contextlib.suppress(OSError):  # there already; or not to be made: SQLite says why
                os.close(os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            engine = create_engine(
                self.url,
                pool_size=8,
                max_overflow=24,
                connect_args={"timeout": _BUSY_TIMEOUT_MS / 1000, "check_same_thread": False},
            )
            event.listen(engine, "connect", _set_pragmas)
            event.listen(engine, "begin", _begin)
            return engine
        return create_engine(
            self.url,
            pool_size=8,
            max_overflow=24,
            pool_pre_ping=True,  # a restarted server costs one reconnect, not one failed batch
            pool_timeout=10,
            connect_args={
                "connect_timeout": 5,
                "options": "-c statement_timeout=60000 -c idle_in_transaction_session_timeout=60000",
            },
        )

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that only reads; it sees one state of the database throughout."""
        with self._translated(), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that writes: committed, and on disk, when the block ends; undone where it raises.

        Inside `auditing` the first one that commits takes the act's row with it. Raises Conflict where a key is taken,
        Retryable where the database is locked, full or away.
        """
        act = pending()
        with self._translated(), self._writing, self._engine.connect() as connection:
            connection = connection.execution_options(marram_write=True)
            with connection.begin():
                if act is not None:
                    act.idle = False
                yield connection
                takes_row = act is not None and not act.idle
                if act is not None and takes_row:
                    record(connection, act)
            if act is not None:
                act.recorded = takes_row

    def order_ids(self, connection: Connection) -> None:
        """Until this transaction ends, no other gives out ids: a tail by id then misses none (SQLite: always so)."""
        if self.dialect == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _WRITE_LOCK_KEY})

    def check(self) -> str:
        """Commit something real to the disk; returns the database's version.

        Raises Retryable where it does not answer, is locked, or its disk is full or nearly so; Refused where it may not
        be written; Invalid where it is damaged.
        """
        if self.path is not None:
            # SQLite writes its log again from the start each few MB: one small commit finds room on a full disk.
            try:
                free = shutil.disk_usage(self.path.parent).free
            except OSError as error:
                raise Retryable(f"its folder cannot be looked at: {error.strerror}", where=self.name) from error
            if free < ROOM_BYTES:
                left = format_size(free)
                raise Retryable(f"the disk is full or nearly so: {left} free", where=self.name, hint="Make room.")
        # A change of nobody's data that still has to reach the disk: the file's header, a record in the server's log.
        change = (
            f"PRAGMA user_version={int(time.time())}"
            if self.dialect == "sqlite"
            else "SELECT pg_logical_emit_message(true, 'marram', 'check')"
        )
        query = "SELECT sqlite_version()" if self.dialect == "sqlite" else "SHOW server_version"
        with self.write() as connection:
            version = connection.execute(text(query)).scalar_one()
            connection.execute(text(change))
        return f"{self.dialect} {version}"

    def close(self) -> None:
        """Give every connection back. SQLite folds its write-ahead log into the file."""
        self._engine.dispose()

    # ------------------------------------------------------------ migrations

    def _migrate(self) -> None:
        """Bring the schema to the newest revision; two processes that start together do it once."""
        if self.path is not None:
            path = self.path.with_name(self.path.name + ".migrate.lock")
            try:
                lock = path.open("w")
            except OSError as error:
                raise Refused(f"cannot write here: {error.strerror}", where=str(path)) from error
            with lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                self._upgrade()
        else:
            self._upgrade()

    def _upgrade(self) -> None:
        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
        script = ScriptDirectory.from_config(config)
        with self._engine.connect() as connection:
            connection = connection.execution_options(marram_write=True)
            with connection.begin():
                if self.dialect == "postgresql":
                    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATE_LOCK_KEY})
                current = MigrationContext.configure(connection).get_current_revision()
                if current == script.get_current_head():
                    return
                if current is not None and current not in {revision.revision for revision in script.walk_revisions()}:
                    raise Invalid(
                        f"the database was made by a newer Marram (schema {current})",
                        where=self.name,
                        hint="Upgrade this machine's Marram: pip install -U marram",
                    )
                config.attributes["connection"] = connection
                command.upgrade(config, "head")

    # ------------------------------------------------------------ errors

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except MarramError:
            raise
        except IntegrityError as error:
            raise Conflict(f"it exists already: {_driver_words(error)}", where=self.name) from error
        except (DBAPIError, SQLAlchemyError, CommandError) as error:
            raise self._fault(error) from error

    def _fault(self, error: Exception) -> MarramError:
        """A driver's error, named by what the caller should do next."""
        line = _driver_words(error)
        low = line.lower()
        if "disk is full" in low or "no space" in low or "disk full" in low:
            return Retryable(
                "the disk is full; nothing was stored",
                where=self.name,
                hint="Make room; devices deliver again by themselves.",
            )
        if "locked" in low or "busy" in low:
            return Retryable("the database is locked by another program", where=self.name)
        if "readonly" in low or "read-only" in low or "authentication failed" in low or "permission denied" in low:
            return Refused(
                line, where=self.name, hint="Check who owns the file, or the user and password in --database."
            )
        if "not a database" in low or "malformed" in low:
            return Invalid(f"not a sound database: {line}", where=self.name, hint="Restore it from a backup.")
        if "unable to open" in low:
            return Refused("cannot open the database file", where=self.name, hint="Is the folder writable?")
        if isinstance(error, DBAPIError) and not isinstance(error, IntegrityError):
            name = type(error.orig).__name__
            if name in {
                "OperationalError",
                "InterfaceError",
                "AdminShutdown",
                "ConnectionTimeout",
                "QueryCanceled",
                "DiskFull",
            }:
                return Retryable(f"the database does not answer: {line}", where=self.name)
            if error.connection_invalidated:
                return Retryable(f"the connection to the database broke: {line}", where=self.name)
        if isinstance(error, (InvalidRequestError, CommandError)):
            return Permanent(line, where=self.name)
        return Permanent(line, where=self.name) if isinstance(error, DBAPIError) else Retryable(line, where=self.name)


def _parse(url: str | Path) -> URL:
    words = str(url)
    if "://" not in words:
        return URL.create("sqlite", database=str(Path(words).absolute()))
    try:
        parsed = make_url(words)
        backend = parsed.get_backend_name()
    except (ArgumentError, NoSuchModuleError, ValueError) as error:
        raise Invalid(
            f'"{words}" is not a database URL', hint="Use sqlite:///FILE or postgresql://USER:PASSWORD@HOST/NAME."
        ) from error
    if backend == "postgres":
        parsed, backend = parsed.set(drivername="postgresql"), "postgresql"
    if backend == "sqlite" and not parsed.database:
        raise Invalid(f'"{words}" names no file', hint="Use sqlite:///FILE.")
    if backend not in ("sqlite", "postgresql"):
        raise Invalid(f'"{backend}" is not a database Marram knows', hint="Use sqlite:///FILE or postgresql://…")
    return parsed.set(drivername="postgresql+psycopg") if backend == "postgresql" else parsed


def _set_pragmas(connection: Any, _record: Any) -> None:
    # Transactions begin where we say (`_begin`), not where the sqlite3 module guesses.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in (
        f"busy_timeout={_BUSY_TIMEOUT_MS}",
        "journal_mode=WAL",
        "synchronous=FULL",  # a commit has reached the disk when it returns: only then is a batch acknowledged
        "wal_autocheckpoint=4000",  # 16 MB: a checkpoint costs two more flushes, so not one every few batches
        "cache_size=-16000",
        "temp_store=MEMORY",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin(connection: Connection) -> None:
    # IMMEDIATE takes the write lock at once and waits for it; an upgrade in mid-transaction would fail instead.
    immediate = connection.get_execution_options().get("marram_write")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")


def _driver_words(error: Exception) -> str:
    """What the driver itself says: SQLAlchemy's own words repeat the whole statement."""
    return first_line(getattr(error, "orig", None) or error)
