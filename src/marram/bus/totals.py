"""How much the outbox holds of each kind, and has given up: kept beside the events, so that nothing has to be counted.

Every function runs in the outbox's transaction that changes the events themselves, and commits nothing.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

from marram.schema.event import EventKind

# What stands for a kind in the file (column `worth`). Files outlive versions of Marram: a kind keeps its number for
# ever, a new one takes the next, wherever its place in the order of worth is.
KINDS = (
    EventKind.DROPPED, EventKind.ALERT, EventKind.SAMPLE, EventKind.MESSAGE, EventKind.RESULT, EventKind.METRIC,
    EventKind.DEPLOYMENT,
)  # fmt: skip
NUMBERS = {kind: number for number, kind in enumerate(KINDS)}
# Those that may be given up, the least worth first.
GIVEN_UP = tuple(NUMBERS[kind] for kind in sorted(EventKind, key=lambda kind: -kind.worth) if kind.worth)
SCHEMA = """
-- What is in `events`, and since the file was made given up, reported as given up, refused: by kind (its number).
CREATE TABLE IF NOT EXISTS totals (
    worth INTEGER PRIMARY KEY, rows INTEGER NOT NULL DEFAULT 0, bytes INTEGER NOT NULL DEFAULT 0,
    given_up INTEGER NOT NULL DEFAULT 0, given_up_told INTEGER NOT NULL DEFAULT 0,
    refused INTEGER NOT NULL DEFAULT 0, refused_told INTEGER NOT NULL DEFAULT 0)
"""


def add_up(database: sqlite3.Connection, changes: Iterable[tuple[int, int, int]]) -> None:
    """Apply (worth, rows, bytes) to the totals."""
    sums: dict[int, list[int]] = {}
    for worth, rows, size in changes:
        sum_ = sums.setdefault(worth, [0, 0])
        sum_[0] += rows
        sum_[1] += size
    database.executemany(
        "UPDATE totals SET rows = rows + ?, bytes = bytes + ? WHERE worth = ?",
        [(rows, size, worth) for worth, (rows, size) in sums.items()],
    )


def count(database: sqlite3.Connection, column: str, worth: int, count: int) -> None:
    database.execute(f"UPDATE totals SET {column} = {column} + ? WHERE worth = ?", (count, worth))


def total(database: sqlite3.Connection, column: str) -> int:
    return int(database.execute(f"SELECT sum({column}) FROM totals").fetchone()[0] or 0)


def by_kind(database: sqlite3.Connection, column: str) -> dict[str, int]:
    rows = database.execute(f"SELECT worth, {column} FROM totals WHERE {column} > 0")
    return {KINDS[worth].value: count for worth, count in rows}
