"""The audit log: one row for every change, by whom, in the same transaction as the change.

`with auditing(actor, "device.remove", id):` names the act; the first transaction that `Database.write()` commits inside
it takes the row along, so there is never a change without its row, nor a row for what was undone. Each row holds the
digest of the one before: a row that was edited, taken out or put in is found by `Audit.verify()`. Triggers (migration
0002) refuse all three to whoever has only the cloud's own rights. What this chain cannot show by itself is that its end
was cut off together with the note of it (`audit_head`); whoever kept a `head` elsewhere can prove that too.

A row must never hold a secret: no password, no token, no hash of one.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Row, insert, select, text

from marram.store.documents import dump, load
from marram.store.tables import audit, audit_head
from marram.store.upsert import upsert

if TYPE_CHECKING:
    from marram.store.database import Database

# Those who do not come through the API: controllers and loops of the cloud itself.
CLOUD = "cloud"
FIRST = "0" * 64
_LOCK_KEY = 0x6D6174  # arbitrary, its own for Marram, as those of `database`
_PAGE = 2000
_LONGEST_ACTOR, _LONGEST_ACTION, _LONGEST_TARGET, _LONGEST_DETAIL = 200, 64, 400, 4000
# A detail whose name says that it is a secret is a mistake of ours, found by the first test that runs it.
_SECRET_WORDS = ("password", "secret", "hash")


@dataclass(slots=True)
class Act:
    """What somebody does, from its first transaction on: one row, however many transactions it takes."""

    actor: str
    action: str
    target: str
    detail: dict[str, Any] = field(default_factory=dict)
    recorded: bool = False
    # Of the transaction under way: it changes nothing, so it takes no row along.
    idle: bool = False


@dataclass(frozen=True, slots=True)
class AuditRow:
    """One change. `digest` is made of all the rest, `previous` (the digest of the row before) included."""

    id: int
    time_s: float
    actor: str
    action: str
    target: str
    detail: dict[str, Any]
    previous: str
    digest: str


@dataclass(frozen=True, slots=True)
class AuditFilter:
    """Which rows: None is any. `action` `device` means `device.remove` too, `actor` `user:ann` also her tokens."""

    actor: str | None = None
    action: str | None = None
    target: str | None = None
    since_s: float | None = None


@dataclass(frozen=True, slots=True)
class Verified:
    """What `verify` found: rows that hold, the last one's digest; where it is broken, the first such row and why."""

    rows: int
    head: str
    broken: int | None = None
    why: str = ""


_act: ContextVar[Act | None] = ContextVar("marram_act", default=None)
_actor: ContextVar[str] = ContextVar("marram_actor", default=CLOUD)


@contextmanager
def auditing(actor: str, action: str, target: str, **detail: Any) -> Iterator[Act]:
    """Changes inside this block are one act of `actor`, and leave one row. `detail` is anything JSON, never a secret.

    An act inside another has a row of its own, and the outer one, where it does nothing else, none.
    """
    for name in detail:
        if any(word in name for word in _SECRET_WORDS):
            raise AssertionError(f"{name} must not be in the audit log")
    act = Act(actor, action, target, dict(detail))
    token = _act.set(act)
    try:
        yield act
    finally:
        _act.reset(token)


def noted(**detail: Any) -> None:
    """Add what is only known inside the transaction (a version that was given, what was there before) to the act."""
    act = _act.get()
    if act is not None:
        act.detail.update(detail)


def unchanged() -> None:
    """Say inside a transaction that it changes nothing anybody could see (a use that was gone; an app version that is
    not deployed yet): it takes no row along, the act's next one may.
    """
    act = _act.get()
    if act is not None:
        act.idle = True


def actor() -> str:
    """Who acts here and now: whom `acting_as` named, else the cloud itself."""
    return _actor.get()


def acting_as(name: str) -> None:
    """From here on, in this task and the threads it starts, `actor()` is `name`: set once for each request."""
    _actor.set(name)


def pending() -> Act | None:
    """The act that has no row yet, for `Database.write()`."""
    act = _act.get()
    return None if act is None or act.recorded else act


def record(connection: Connection, act: Act, now_s: float | None = None) -> None:
    """Append the act's row, as the last thing of its transaction: writers queue here for the end of the chain."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK_KEY})
    last = connection.execute(select(audit_head.c.id, audit_head.c.digest)).first()
    id, previous = (last.id + 1, last.digest) if last else (1, FIRST)
    row = {
        "id": id,
        "time_s": round(time.time() if now_s is None else now_s, 3),
        "actor": _cut(act.actor, _LONGEST_ACTOR),
        "action": _cut(act.action, _LONGEST_ACTION),
        "target": _cut(act.target, _LONGEST_TARGET),
        "detail": _detail(act.detail),
        "previous": previous,
    }
    row["digest"] = _digest(row)
    connection.execute(insert(audit), row)
    upsert(connection, audit_head, {"one": 1, "id": id, "digest": row["digest"]})


class Audit:
    """The table of changes; rows are only ever added, by `Database.write()` inside `auditing`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, actor: str, action: str, target: str, **detail: Any) -> None:
        """A row for what left no other trace in the database (content put into the object store)."""
        with auditing(actor, action, target, **detail), self._database.write():
            pass

    def list(self, which: AuditFilter | None = None, limit: int = 100, after: int | None = None) -> list[AuditRow]:
        """The first `limit` rows after id `after`, oldest first; without `after`, the last `limit`, oldest first."""
        query = select(audit)
        which = which or AuditFilter()
        if which.actor is not None:
            below = audit.c.actor.startswith(f"{which.actor}/", autoescape=True)
            query = query.where((audit.c.actor == which.actor) | below)
        if which.action is not None:
            below = audit.c.action.startswith(f"{which.action}.", autoescape=True)
            query = query.where((audit.c.action == which.action) | below)
        if which.target is not None:
            query = query.where(audit.c.target == which.target)
        if which.since_s is not None:
            query = query.where(audit.c.time_s >= which.since_s)
        order = audit.c.id.desc() if after is None else audit.c.id
        if after is not None:
            query = query.where(audit.c.id > after)
        with self._database.read() as connection:
            rows = [_row(row) for row in connection.execute(query.order_by(order).limit(limit))]
        return rows[::-1] if after is None else rows

    def verify(self, expected: tuple[int, str] | None = None) -> Verified:
        """Check every row against the one before it, and the end against the note of it.

        `expected`: id and digest of a row as somebody kept them outside of this database: it must still be there.
        Reads all of it, a page at a time.
        """
        with self._database.read() as connection:
            end = connection.execute(select(audit_head.c.id, audit_head.c.digest)).first()
            id, digest, at = 0, FIRST, {0: FIRST}
            wanted = {end.id if end else 0, expected[0] if expected else 0}
            page = select(audit).order_by(audit.c.id).limit(_PAGE)
            rows = connection.execute(page).all()
            while rows:
                for row in rows:
                    if why := _fault(row, id, digest):
                        return Verified(id, digest, min(row.id, id + 1), why)
                    id, digest = row.id, row.digest
                    if id in wanted:
                        at[id] = digest
                rows = connection.execute(page.where(audit.c.id > id)).all()
        if end is None and id:
            return Verified(id, digest, id, "the note of the log's end is gone")
        if end is not None and at.get(end.id) is None:
            return Verified(id, digest, id + 1, f"the log ended with row {end.id}; its last rows are gone")
        if end is not None and at[end.id] != end.digest:
            return Verified(id, digest, end.id, "it is not the row that the note of the log's end means")
        if expected is not None and at.get(expected[0]) != expected[1]:
            why = "it is not the row that you kept" if expected[0] <= id else "it is gone, with all that followed"
            return Verified(id, digest, expected[0], why)
        return Verified(id, digest)


def _fault(row: Row[Any], last: int, previous: str) -> str:
    """Why `row` does not follow the row `last`; "" where it does."""
    if row.id != last + 1:
        return "it was taken out of the log" if row.id > last + 1 else "its number was changed"
    if row.digest != _digest(row._asdict()):
        return "its content was changed"
    return "" if row.previous == previous else "the row before it was replaced"


def _digest(row: dict[str, Any]) -> str:
    """SHA-256 of the row as JSON: every column but the digest itself, in the order of the table."""
    names = ("id", "time_s", "actor", "action", "target", "detail", "previous")
    return hashlib.sha256(
        # `repr`: somebody wrote what is no text or number into the file, which is a change like any other.
        json.dumps([row[name] for name in names], separators=(",", ":"), default=repr).encode()
    ).hexdigest()


def _detail(detail: dict[str, Any]) -> str:
    written = dump(detail)
    return written if len(written) <= _LONGEST_DETAIL else dump({"cut": written[: _LONGEST_DETAIL // 2]})


def _cut(words: str, longest: int) -> str:
    """As much as its column takes, without what a database refuses."""
    words = words.replace("\x00", "�")
    return words if len(words) <= longest else words[: longest - 1] + "…"


def _row(row: Row[Any]) -> AuditRow:
    try:
        detail = load(row.detail)
    except (ValueError, TypeError):
        detail = None
    if not isinstance(detail, dict):  # somebody wrote into the file: `verify` says so, the rest can still be read
        detail = {"unreadable": str(row.detail)}
    return AuditRow(row.id, row.time_s, row.actor, row.action, row.target, detail, row.previous, row.digest)
