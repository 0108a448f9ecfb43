"""How far a finite source has come, kept in the outbox beside what was recorded on the way: one commit holds both.

So the mark and the records cannot disagree, wherever power fails: who starts again goes on after the last frame whose
records are durable. A row an app's version; nothing here commits or opens a file, that is the outbox's.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection
from dataclasses import dataclass

SCHEMA = """
CREATE TABLE IF NOT EXISTS progress (
    app TEXT, version INTEGER, frame INTEGER NOT NULL, name BLOB NOT NULL, PRIMARY KEY (app, version)) WITHOUT ROWID
"""


@dataclass(frozen=True, slots=True)
class Progress:
    """All that frame `frame` (and those before it) of this app's version led to is recorded; `name` is the frame's."""

    app: str
    version: int
    frame: int
    name: str = ""


def write(database: sqlite3.Connection, progress: Progress) -> None:
    """In the transaction that holds the frame's records."""
    row = (progress.app, progress.version, progress.frame, progress.name.encode("utf-8", "surrogateescape"))
    database.execute("INSERT OR REPLACE INTO progress VALUES (?, ?, ?, ?)", row)


def read(database: sqlite3.Connection, app: str, version: int) -> Progress | None:
    """None where nothing of this version was recorded yet."""
    query = "SELECT frame, name FROM progress WHERE app = ? AND version = ?"
    row = database.execute(query, (app, version)).fetchone()
    return None if row is None else Progress(app, version, row[0], row[1].decode("utf-8", "surrogateescape"))


def forget(database: sqlite3.Connection, app: str, but: Collection[int]) -> None:
    """Every version of `app` but these starts from its beginning."""
    known = database.execute("SELECT version FROM progress WHERE app = ?", (app,)).fetchall()
    gone = [(app, version) for (version,) in known if version not in but]
    database.executemany("DELETE FROM progress WHERE app = ? AND version = ?", gone)
