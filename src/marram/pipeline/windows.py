"""Readings gathered into windows: the last so much time, or so many rows, so often. Used by `series` and `mqtt`.

Time is the readings' own (a column of the file, the arrival of a message). Where it runs backwards (a clock was set, a
file starts over) the window starts anew: rows of two times in one window would be a series that never was.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

# A window of an hour at 25 kHz would fill the memory of a small device before anybody saw that it is too large.
MAX_ROWS = 1_000_000

Row = dict[str, Any]
Timed = tuple[float, Row]


class Window:
    """Rows of the last `span`, every `every`: seconds where float, rows where int. `every` is `span` unless given.

    A window of time that is due at T holds the rows of [T - span, T): at 1 Hz, `window: 2 s` always has two rows.
    A window of rows is due with its last row. `skipped` counts rows that `MAX_ROWS` pushed out.
    """

    def __init__(self, span: float | int, every: float | int | None = None) -> None:
        self.skipped = 0
        self._span = span
        self._every = span if every is None else every
        # Times are sums of decimal fractions; a row at 1.9999999 of a 10 Hz series is the row at 2.
        self._slack_s = 1e-6 * span if isinstance(span, float) else 0.0
        self._restart()

    @property
    def due_s(self) -> float:
        """When the next window of time is due, by the clock of `add`; infinite before the first row."""
        return self._due_s

    def _restart(self) -> None:
        self._rows: deque[Timed] = deque()
        self._since_due = 0
        self._first = True
        self._due_s = math.inf
        self._last_s = -math.inf

    def add(self, time_s: float, row: Row) -> list[Timed] | None:
        """Take one row in; the window's rows where one is due now, oldest first."""
        if time_s < self._last_s:
            self._restart()
        due = self.tick(time_s)
        if math.isinf(self._last_s) and isinstance(self._span, float):
            self._due_s = time_s + self._span
        self._last_s = time_s
        self._rows.append((time_s, row))
        self._since_due += 1
        self._trim()
        return self._by_rows(time_s) if due is None else due

    def tick(self, now_s: float) -> list[Timed] | None:
        """The window's rows where time alone made one due (windows of time, `every` a time)."""
        if not isinstance(self._span, float) or not isinstance(self._every, float):
            return None
        if now_s < self._due_s - self._slack_s:
            return None
        end_s, self._first = self._due_s, False
        # After a gap the schedule goes on from here, instead of catching up with windows of nothing.
        self._due_s += self._every * max(1, math.ceil((now_s - self._due_s + self._slack_s) / self._every))
        low_s, high_s = end_s - self._span - self._slack_s, end_s - self._slack_s
        return [timed for timed in self._rows if low_s <= timed[0] < high_s] or None

    def _by_rows(self, now_s: float) -> list[Timed] | None:
        """The window's rows where its last row made it due."""
        if isinstance(self._span, float):
            if isinstance(self._every, float):
                return None
            full = now_s >= self._due_s - self._slack_s
        else:
            full = len(self._rows) == self._span
        by_count = isinstance(self._every, int) and self._since_due >= self._every
        by_time = isinstance(self._every, float) and now_s >= self._due_s
        if not full or not (self._first or by_count or by_time):
            return None
        if isinstance(self._every, float):
            self._due_s = now_s + self._every
        self._first, self._since_due = False, 0
        if isinstance(self._span, int):
            return list(self._rows)
        return [timed for timed in self._rows if timed[0] > now_s - self._span + self._slack_s]

    def _trim(self) -> None:
        if isinstance(self._span, int):
            while len(self._rows) > self._span:
                self._rows.popleft()
            return
        # Rows that the next window cannot hold any more.
        next_s = self._due_s if isinstance(self._every, float) else self._last_s
        while self._rows and self._rows[0][0] < next_s - self._span - self._slack_s:
            self._rows.popleft()
        while len(self._rows) > MAX_ROWS:
            self._rows.popleft()
            self.skipped += 1


def columns_of(rows: Sequence[Timed], names: Sequence[str]) -> dict[str, list[Any]]:
    """A window as `Frame.reading` has it: {column: values, oldest first}."""
    return {name: [row[name] for _, row in rows] for name in names}


def tensor_of(rows: Sequence[Row], names: Sequence[str]) -> NDArray[np.float32]:
    """The numbers of `rows` as float32 [rows, columns]; `names` are numeric columns that every row has."""
    return np.array([[row[name] for name in names] for row in rows], dtype=np.float32).reshape(len(rows), len(names))
