"""The device's outbox: events wait here, durable, until the cloud's database has them.

One SQLite file (WAL, `synchronous=FULL`). Workers append, each from its own process; the agent reads, sends and
acknowledges. What is over the limit is given up, the least worth first, and counted; the count itself is an event,
so that what the cloud has and what it is told was given up add up to what was recorded. It orders nothing by the
clock. A corrupt file is moved aside, never a reason to stop.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import secrets
import sqlite3
import struct
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from marram.bus import progress as marks
from marram.bus import totals
from marram.bus.codec import decode_event, encode_event, pack_encoded
from marram.bus.damage import is_damaged
from marram.bus.progress import Progress
from marram.bus.totals import NUMBERS
from marram.schema.errors import Invalid, MarramError, Permanent, Refused, Retryable
from marram.schema.event import Event, EventKind, Recorded
from marram.system.files import make_folder, sync

log = logging.getLogger(__name__)

MAX_EVENT_BYTES = 3_500_000  # what fits in one message of the bus, framing included
ROW_BYTES = 64  # what a row costs on disk beside its record, about
CHECK_BYTES = 32_000_000  # a file up to this size is checked whole at the start; a larger one as it is read
SPARE_PAGES = 2_000  # free pages (of 4 KB) kept for what comes next; more are given back to the disk
REFUSED_ROWS = 1_000  # how many refused records are kept for a person to look at
ASIDE_FILES = 8  # and how many files that were moved aside

_LEASE = struct.Struct("<q")
_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS events (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT, worth INTEGER NOT NULL, bytes INTEGER NOT NULL, record BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS by_worth ON events (worth, sequence);
CREATE TABLE IF NOT EXISTS once (key TEXT PRIMARY KEY, serial INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS refused (sequence INTEGER PRIMARY KEY, reason TEXT NOT NULL, record BLOB NOT NULL);
"""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Batch:
    """What the uplink sends at once: `message` is `codec.pack_batch` of the records with these `sequences`."""

    sequences: list[int]
    message: bytes


class Outbox:
    """One file. Several processes may append, one drains. Every method is safe from any thread, and blocks on the disk.

    All of them raise Retryable where the disk fails (full, read-only, broken) and Permanent once closed.
    """

    def __init__(self, path: Path, limit_bytes: int = 500_000_000) -> None:
        """Open or make it. Raises Invalid (not a place for a file), Refused (no permission), Retryable (disk full)."""
        self.path = Path(path)
        self._log = Path(f"{path}-wal")
        self.limit_bytes = limit_bytes
        self.stream = ""
        self._thread_lock = threading.RLock()
        self._database: sqlite3.Connection | None = None
        self._inode = 0
        self._closed = False
        if self.path.is_dir():
            raise Invalid("a folder stands where the outbox belongs", where=str(self.path))
        try:
            make_folder(self.path.parent)
            # Guards the file itself, across processes: SQLite's own locks go with the file when that is moved aside.
            # It also says which records are under way to the cloud (the highest sequence), for all to see.
            self._guard = os.open(f"{self.path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except PermissionError as error:
            raise Refused(f"cannot keep an outbox here: {error.strerror}", where=str(self.path)) from error
        except OSError as error:
            kind = Retryable if error.errno in (errno.ENOSPC, errno.EDQUOT) else Invalid
            raise kind(f"cannot keep an outbox here: {error.strerror}", where=str(self.path)) from error
        try:
            self._guarded(lambda _: None)
        except BaseException:
            self.close()
            raise

    # ------------------------------------------------------------ appending

    def append(self, events: Sequence[Event]) -> int:
        """Record them, all or none; durable when it returns. Returns the sequence of the last (0 where there is none).

        Raises Invalid where an event is too big or not plain data.
        """
        return self.append_encoded([(event.kind, encode(event)) for event in events])

    def append_encoded(
        self,
        records: Sequence[tuple[EventKind, bytes]],
        lost: Sequence[EventKind] = (),
        progress: Progress | None = None,
    ) -> int:
        """Like `append`, for records made by `encode`. `lost`: events given up before they got here, to be counted.

        `progress`: how far the source has come with them.
        """
        rows = [(NUMBERS[kind], len(record) + ROW_BYTES, record) for kind, record in records]

        def work(database: sqlite3.Connection) -> int:
            database.executemany("INSERT INTO events (worth, bytes, record) VALUES (?, ?, ?)", rows)
            totals.add_up(database, ((worth, 1, size) for worth, size, _ in rows))
            for kind in lost:
                totals.count(database, "given_up", NUMBERS[kind], 1)
            if progress is not None:
                marks.write(database, progress)
            self._evict(database)
            return _last_sequence(database)

        return self._guarded(work) if rows or lost or progress else 0

    def append_once(self, key: str, events: Sequence[tuple[int, Event]]) -> None:
        """Record those of `events` (serial, event) whose serial is higher than any recorded under `key` before.

        One commit holds the events and the mark: whoever cannot know whether it came to that offers them again, with
        the same serials. Durable when it returns. Raises as `append`.
        """
        rows = [(serial, event.kind, encode(event)) for serial, event in sorted(events, key=lambda each: each[0])]

        def work(database: sqlite3.Connection) -> None:
            row = database.execute("SELECT serial FROM once WHERE key = ?", (key,)).fetchone()
            fresh = [(NUMBERS[kind], len(body) + ROW_BYTES, body) for n, kind, body in rows if not row or n > row[0]]
            if not fresh:
                return
            database.executemany("INSERT INTO events (worth, bytes, record) VALUES (?, ?, ?)", fresh)
            totals.add_up(database, ((worth, 1, size) for worth, size, _ in fresh))
            database.execute("INSERT OR REPLACE INTO once VALUES (?, ?)", (key, rows[-1][0]))
            self._evict(database)

        if rows:
            self._guarded(work)

    def forget_once(self, key: str) -> None:
        """Nothing more will be offered under `key`."""
        self._guarded(lambda database: database.execute("DELETE FROM once WHERE key = ?", (key,)))

    def _evict(self, database: sqlite3.Connection) -> None:
        """Give up the least worth, and of that the oldest, until all is within the limit again.

        Goes a little further within a kind (2 %), so as not to do it at every append. Never touches what is under way
        to the cloud: it would be both stored and counted as given up.
        """
        size = totals.total(database, "bytes")
        if size <= self.limit_bytes:
            return
        lease, slack = self._lease(), self.limit_bytes // 50
        if lease > _last_sequence(database):
            lease = 0  # of another file, or garbage
        for worth in totals.GIVEN_UP:
            if size <= self.limit_bytes:
                return
            excess, gone, freed, last = size - (self.limit_bytes - slack), 0, 0, 0
            oldest = "SELECT sequence, bytes FROM events WHERE worth = ? AND sequence > ? ORDER BY sequence"
            for sequence, row_bytes in database.execute(oldest, (worth, lease)):
                gone, freed, last = gone + 1, freed + row_bytes, sequence
                if freed >= excess:
                    break
            if gone:
                database.execute(
                    "DELETE FROM events WHERE worth = ? AND sequence > ? AND sequence <= ?", (worth, lease, last)
                )
                totals.add_up(database, [(worth, -gone, -freed)])
                totals.count(database, "given_up", worth, gone)
                size -= freed

    def progress(self, app: str, version: int, but: Collection[int]) -> Progress | None:
        """How far this version came; its other versions but these, and it itself unless it is one, are forgotten."""

        def work(database: sqlite3.Connection) -> Progress | None:
            marks.forget(database, app, but)
            return marks.read(database, app, version)

        return self._guarded(work)

    # ------------------------------------------------------------ draining

    def read(self, limit: int = 500, max_bytes: int = 256_000) -> list[Recorded]:
        """The oldest, in sequence order: as many as fit both limits, one at least where there is one.

        What it returns counts as under way until the next read: it is not given up meanwhile. Pending counts of what
        was given up become an event first.
        """
        return [
            Recorded(self.stream, sequence, decode_event(record)) for sequence, record in self._rows(limit, max_bytes)
        ]

    def batch(self, limit: int = 500, max_bytes: int = 256_000) -> Batch | None:
        """Like `read`, ready to be sent; None where there is nothing."""
        rows = self._rows(limit, max_bytes)
        return Batch([sequence for sequence, _ in rows], pack_encoded(self.stream, rows)) if rows else None

    def _rows(self, limit: int, max_bytes: int) -> list[tuple[int, bytes]]:
        def work(database: sqlite3.Connection) -> list[tuple[int, bytes]]:
            with contextlib.suppress(sqlite3.OperationalError):  # a full disk: what is there can still be delivered
                self._tell(database)
            rows: list[tuple[int, bytes]] = []
            size = 0
            for sequence, row_bytes, record in database.execute(
                "SELECT sequence, bytes, record FROM events ORDER BY sequence LIMIT ?", (limit,)
            ):
                size += row_bytes
                if rows and size > max_bytes:
                    break
                rows.append((sequence, record))
            self._take_lease(rows[-1][0] if rows else 0)
            return rows

        return self._guarded(work)

    def _tell(self, database: sqlite3.Connection) -> None:
        """Make an event of the counts not told yet, in the transaction that marks them told."""
        query = "SELECT worth, given_up - given_up_told, refused - refused_told FROM totals"
        rows = [row for row in database.execute(query) if row[1] or row[2]]
        if not rows:
            return
        data: dict[str, Any] = {
            "counts": {totals.KINDS[worth].value: given_up for worth, given_up, _ in rows if given_up}
        }
        if refused := {totals.KINDS[worth].value: count for worth, _, count in rows if count}:
            data["refused"] = refused
        database.execute("SAVEPOINT tell")
        try:
            database.execute("UPDATE totals SET given_up_told = given_up, refused_told = refused")
            self._insert(database, Event(EventKind.DROPPED, "", time.time(), data))
            database.execute("RELEASE tell")
        except sqlite3.Error:
            database.execute("ROLLBACK TO tell")
            database.execute("RELEASE tell")
            raise

    def acknowledge(self, sequences: Iterable[int]) -> None:
        """The cloud has them: delete exactly these. Those not there (any more) are passed over."""
        wanted = [(sequence,) for sequence in sequences]

        def work(database: sqlite3.Connection) -> None:
            gone: list[tuple[int, int, int]] = []
            for key in wanted:
                gone += [
                    (worth, -1, -size)
                    for worth, size in database.execute("SELECT worth, bytes FROM events WHERE sequence = ?", key)
                ]
            database.executemany("DELETE FROM events WHERE sequence = ?", wanted)
            totals.add_up(database, gone)
            spare = database.execute("PRAGMA freelist_count").fetchone()[0] - SPARE_PAGES
            for _ in range(min(spare, SPARE_PAGES // 4)):
                # Page by page: each is a row without columns, and Python ends a statement at the first of those.
                database.execute("PRAGMA incremental_vacuum(1)")

        if wanted:
            self._guarded(work)

    def refuse(self, sequence: int, reason: str) -> None:
        """The cloud calls it invalid: set it aside (table `refused`, the newest 1,000) so that the rest goes on."""

        def work(database: sqlite3.Connection) -> None:
            row = database.execute("SELECT worth, bytes FROM events WHERE sequence = ?", (sequence,)).fetchone()
            if row is None:
                return
            worth, size = row
            database.execute(
                "INSERT OR REPLACE INTO refused SELECT sequence, ?, record FROM events WHERE sequence = ?",
                (reason[:1000], sequence),
            )
            database.execute("DELETE FROM events WHERE sequence = ?", (sequence,))
            database.execute(
                "DELETE FROM refused WHERE sequence NOT IN "
                "(SELECT sequence FROM refused ORDER BY sequence DESC LIMIT ?)",
                (REFUSED_ROWS,),
            )
            totals.add_up(database, [(worth, -1, -size)])
            # A count that is refused is not counted again: that would never end.
            if worth != NUMBERS[EventKind.DROPPED]:
                totals.count(database, "refused", worth, 1)

        self._guarded(work)

    # ------------------------------------------------------------ looking

    def depth(self) -> int:
        """How many events wait."""
        return self._glance(lambda database: totals.total(database, "rows"))

    def size_bytes(self) -> int:
        """How many bytes wait."""
        return self._glance(lambda database: totals.total(database, "bytes"))

    def given_up(self) -> dict[str, int]:
        """How many events were given up since the file was made, by kind."""
        return self._glance(lambda database: totals.by_kind(database, "given_up"))

    def refused(self) -> dict[str, int]:
        """How many events the cloud refused since the file was made, by kind."""
        return self._glance(lambda database: totals.by_kind(database, "refused"))

    def mark(self) -> tuple[int, int]:
        """Cheap (no SQL, no lock): differs from the last one if anything was written in between, by any process."""
        try:
            status = self._log.stat()
        except OSError:
            return 0, 0
        return status.st_mtime_ns, status.st_size

    def close(self) -> None:
        """Any number of times."""
        with self._thread_lock:
            if self._closed:
                return
            self._closed = True
            if self._database is not None:
                with contextlib.suppress(sqlite3.Error):
                    self._database.close()
                self._database = None
            os.close(self._guard)

    # ------------------------------------------------------------ the file

    def _guarded(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        """`work` in one write transaction, alone among all threads and processes; durable when this returns."""
        with self._thread_lock, self._alone():
            try:
                return self._transaction(work)
            except sqlite3.DatabaseError as error:
                if not is_damaged(error):
                    raise self._fault(error) from error
                self._set_aside(error)
            try:
                return self._transaction(work)
            except sqlite3.DatabaseError as error:
                raise self._fault(error) from error

    def _glance(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        """`work` reading only, beside whoever writes."""
        with self._thread_lock:
            if self._database is not None and self._inode_now() == self._inode:
                try:
                    return work(self._database)
                except sqlite3.DatabaseError as error:
                    if not is_damaged(error):
                        raise self._fault(error) from error
        return self._guarded(work)

    def _transaction(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        if self._database is None or self._inode_now() != self._inode:
            self._open()
        database = self._database
        assert database is not None
        database.execute("BEGIN IMMEDIATE")
        try:
            result = work(database)
            database.execute("COMMIT")
            return result
        except BaseException:
            if database.in_transaction:
                with contextlib.suppress(sqlite3.Error):
                    database.execute("ROLLBACK")
            raise

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        if self._closed:
            raise Permanent("this outbox was closed", where=str(self.path))
        fcntl.flock(self._guard, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._guard, fcntl.LOCK_UN)

    def _open(self) -> None:
        """(Re)open the file; make it where there is none. Under the guard."""
        if self._database is not None:
            with contextlib.suppress(sqlite3.Error):
                self._database.close()
            self._database = None
        fresh = not self.path.exists()
        if fresh:
            # The remains of another file must not be taken for this one's.
            for suffix in ("-wal", "-shm"):
                Path(f"{self.path}{suffix}").unlink(missing_ok=True)
            self._take_lease(0)
            # For nobody else to read, in whatever folder; SQLite gives its log the same mode.
            with contextlib.suppress(OSError):  # SQLite says why
                os.close(os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
        database = sqlite3.connect(self.path, timeout=30, isolation_level=None, check_same_thread=False)
        try:
            # Before the first table: lets the file shrink again after a long time away.
            database.execute("PRAGMA auto_vacuum = INCREMENTAL")
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = FULL")
            database.execute("PRAGMA journal_size_limit = 16000000")
            if not fresh and self.path.stat().st_size <= CHECK_BYTES:
                found = database.execute("PRAGMA quick_check(1)").fetchone()[0]
                if found != "ok":
                    raise sqlite3.DatabaseError(f"malformed: {found}")
            database.execute("BEGIN IMMEDIATE")
            for statement in (*_SCHEMA.split(";"), totals.SCHEMA, marks.SCHEMA):
                database.execute(statement)
            database.execute("INSERT OR IGNORE INTO meta VALUES ('stream', ?)", (secrets.token_hex(16),))
            database.execute("INSERT OR IGNORE INTO meta VALUES ('format', '1')")
            database.executemany("INSERT OR IGNORE INTO totals (worth) VALUES (?)", [(n,) for n in NUMBERS.values()])
            about = dict(database.execute("SELECT key, value FROM meta"))
            database.execute("COMMIT")
            if not 8 <= len(about["stream"]) <= 64:
                raise sqlite3.DatabaseError("malformed: its stream has no name of ours")
            if about["format"] != "1":
                raise sqlite3.DatabaseError("malformed: it says that another version of Marram made it")
        except BaseException:
            database.close()
            raise
        if fresh:
            sync(self.path.parent)
        self._database, self._inode, self.stream = database, self._inode_now(), about["stream"]

    def _set_aside(self, error: Exception) -> None:
        """Move a corrupt file away, keeping all of it, and begin a new one that tells of it. Under the guard."""
        if self._database is not None:
            with contextlib.suppress(sqlite3.Error):
                self._database.close()
            self._database = None
        number = 1
        # The last place is used again: whoever spoils it in a loop does not fill the disk.
        while (aside := self.path.with_name(f"{self.path.name}.corrupt-{number}")).exists() and number < ASIDE_FILES:
            number += 1
        try:
            for suffix in ("-wal", "-shm", ""):  # the file itself last: it is what says that this happened
                if (part := Path(f"{self.path}{suffix}")).exists():
                    part.replace(f"{aside}{suffix}")
        except OSError as fault:
            raise Retryable(f"corrupt, and cannot be moved aside: {fault.strerror}", where=str(self.path)) from fault
        log.error("the outbox %s is corrupt (%s); moved aside to %s, a new one begins", self.path, error, aside)
        data = {"counts": {}, "corrupt": aside.name, "reason": str(error)}
        event = Event(EventKind.DROPPED, "", time.time(), data)
        try:
            self._transaction(lambda database: self._insert(database, event))
        except sqlite3.DatabaseError as fault:
            raise self._fault(fault) from fault

    def _insert(self, database: sqlite3.Connection, event: Event) -> None:
        """One of our own."""
        record = encode(event)
        number, size = NUMBERS[event.kind], len(record) + ROW_BYTES
        database.execute("INSERT INTO events (worth, bytes, record) VALUES (?, ?, ?)", (number, size, record))
        totals.add_up(database, [(number, 1, size)])

    def _inode_now(self) -> int:
        try:
            return self.path.stat().st_ino
        except OSError:
            return -1

    def _lease(self) -> int:
        data = os.pread(self._guard, _LEASE.size, 0)
        return int(_LEASE.unpack(data)[0]) if len(data) == _LEASE.size else 0

    def _take_lease(self, sequence: int) -> None:
        with contextlib.suppress(OSError):  # a full disk, at the very first
            os.pwrite(self._guard, _LEASE.pack(sequence), 0)

    def _fault(self, error: sqlite3.Error) -> MarramError:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_CANTOPEN):
            hint = "Check its permissions and its folder's."
        else:
            hint = "Free some space on the disk." if code == sqlite3.SQLITE_FULL else "Is the disk full or failing?"
        return Retryable(f"the outbox cannot be written: {error}", where=str(self.path), hint=hint)


def encode(event: Event) -> bytes:
    """An event as the outbox keeps it. Raises Invalid (too big, not plain data)."""
    record = encode_event(event)
    if len(record) > MAX_EVENT_BYTES:
        raise Invalid(f"an event of {len(record)} bytes: {MAX_EVENT_BYTES} fit", where=event.app)
    return record


def _last_sequence(database: sqlite3.Connection) -> int:
    row = database.execute("SELECT seq FROM sqlite_sequence WHERE name = 'events'").fetchone()
    return int(row[0]) if row else 0
