"""`series: file`: the rows of a CSV, TSV or JSONL file (`.gz` too) as readings, or windows of them.

The file is streamed: its size costs no memory. A row that cannot be read (a wrong number of fields, a word or NaN where
numbers stand) is counted and stepped over, with its line.

- `columns`: which ones (default: all but the time); `motor.rpm` is a field of an object inside.
  Those whose first rows are mostly numbers are the `tensor`'s.
- `time`: the column that says when (default: one called time, timestamp, date or datetime): ISO 8601, or Unix seconds,
  milli-, micro- or nanoseconds. Without a zone it is this machine's local time.
- `window`, `every`: see `windows.Window`. Without `window`, `every: 100 ms` paces the rows as if they came
  from a sensor, and `every: 10` takes each tenth.
"""

from __future__ import annotations

import csv
import datetime
import gzip
import io
import json
import math
import re
import time
import zlib
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path
from typing import IO, Any

from marram.pipeline.contract import Frame, Position, Source
from marram.pipeline.pace import Pace
from marram.pipeline.windows import Row, Timed, Window, columns_of, tensor_of
from marram.schema.app import SeriesSource
from marram.schema.errors import Invalid, Missing
from marram.schema.words import did_you_mean, file_fault

_TIME_NAMES = ("time", "timestamp", "datetime", "date", "ts", "time_s")
# Unix times are told apart by their size: 1e11 s is the year 5138, 1e11 ms is 1973.
_UNIX_SCALES = ((1e17, 1e9), (1e14, 1e6), (1e11, 1e3))
_SAMPLE_ROWS = 20
_DECIMAL_COMMA = re.compile(r"^(\s*[+-]?\d*),(\d+(?:[eE][+-]?\d+)?\s*)$")
_JSON_NAMES = (".jsonl", ".ndjson", ".json")


def open_source(spec: SeriesSource, base: Path) -> Source:
    """Raises Missing where there is no such file, Invalid where it is no series or lacks a named column."""
    return Series(spec, base / spec.series)


class Series:
    """See `contract.Source`; `frames` may be asked once."""

    live = False

    def __init__(self, spec: SeriesSource, path: Path) -> None:
        self.skipped = 0
        self.errors = 0
        self.last_error = ""
        self._spec = spec
        self._path = path
        self._start = 0
        paced = spec.window is None and isinstance(spec.every, float)
        self._pace = Pace(spec.every if paced else None)
        self._stride = spec.every if spec.window is None and isinstance(spec.every, int) else 1
        for field, value in (("window", spec.window), ("every", spec.every)):
            if value is not None and value <= 0:
                raise Invalid("must be more than 0", where=f"source.{field}")
        self._look()

    def close(self) -> None:
        """See `contract.Source`."""
        self._pace.close()

    def resume(self, reached: Position) -> None:
        """See `contract.Finite`. All rows are read again: windows reach back over the place."""
        self._start = reached.frame + 1

    def frames(self) -> Iterator[Frame]:
        """Every reading, or every window that is due. Raises Missing where the file went away meanwhile."""
        indices = count()
        while True:
            yielded = False
            for frame in self._once(indices):
                yielded = True
                yield frame
            # A file of nothing but bad rows, repeated, would spin without ever giving a frame.
            if not self._spec.repeat or not yielded or self._pace.closed():
                return

    def _once(self, indices: Iterator[int]) -> Iterator[Frame]:
        window = None if self._spec.window is None else Window(self._spec.window, self._spec.every)
        previous_s, last_s = -math.inf, -math.inf
        for number, (time_s, row) in enumerate(self._rows()):
            if self._pace.closed():
                return
            if window is None:
                if number % self._stride == 0 and (index := next(indices)) >= self._start:
                    if not self._pace.wait():
                        return
                    yield self._reading(index, time_s, row)
                continue
            rows = window.add(time_s, row)
            previous_s, last_s = last_s, time_s
            if rows is not None and (index := next(indices)) >= self._start:
                yield self._window(index, rows)
        if window is not None and not self._pace.closed() and previous_s <= last_s:
            # The row after the last would have come as long after it as it came after the one before.
            rows = window.tick(2 * last_s - previous_s) if math.isfinite(previous_s) else None
            if rows is not None and (index := next(indices)) >= self._start:
                yield self._window(index, rows)

    def _reading(self, index: int, time_s: float, row: Row) -> Frame:
        tensor = tensor_of([row], self._numeric)
        return Frame(index, time_s, time.monotonic(), reading=row, tensor=tensor, name=self._path.name)

    def _window(self, index: int, rows: list[Timed]) -> Frame:
        reading = columns_of(rows, self._columns)
        tensor = tensor_of([row for _, row in rows], self._numeric)
        return Frame(index, rows[-1][0], time.monotonic(), reading=reading, tensor=tensor, name=self._path.name)

    # ---------------------------------------------------------------- the file

    def _look(self) -> None:
        """Read as far as the first good row, so that what is wrong with the file is said when the app starts."""
        sample = [record for _, record in islice(self._records(), _SAMPLE_ROWS)]
        # They are read and counted again by `frames`.
        self.errors, self.last_error = 0, ""
        if not sample:
            raise Invalid(f"{self._path} holds no rows", where="source.series", hint="It needs a header and rows.")
        names = list(sample[0])
        for wanted in [*(self._spec.columns or ()), *([self._spec.time] if self._spec.time else ())]:
            if wanted not in names and all(_field(record, wanted) is None for record in sample):
                help_ = did_you_mean(wanted, names) or f"; it has {', '.join(names[:20])}"
                raise Invalid(f'{self._path.name} has no column "{wanted}"{help_}', where="source")
        self._time = self._spec.time or next(
            (name for name in names if name.strip().lower() in _TIME_NAMES and _time_of(sample[0][name]) is not None),
            None,
        )
        timed = isinstance(self._spec.window, float) or (
            self._spec.window is not None and isinstance(self._spec.every, float)
        )
        if timed and self._time is None:
            raise Invalid(
                f"a window of time needs to know when each row was measured, and {self._path.name} has no column "
                f"called {', '.join(_TIME_NAMES[:4])}",
                where="source.time",
                hint=f"Name it (`time: {names[0]}`), or count in rows (`window: 64`).",
            )
        self._columns = self._spec.columns or [name for name in names if name != self._time]
        self._numeric = [name for name in self._columns if _mostly_numbers([_field(row, name) for row in sample])]

    def _rows(self) -> Iterator[Timed]:
        """Good rows with their Unix time; bad ones counted."""
        numeric = frozenset(self._numeric)
        for line, record in self._records():
            if self._pace.closed():
                return
            try:
                row = {name: _value(record, name, name in numeric) for name in self._columns}
                time_s = time.time()
                if self._time is not None:
                    written = _field(record, self._time)
                    found = _time_of(written)
                    if found is None:
                        raise ValueError(f"{self._time} is {written!r:.40}, not a time")
                    time_s = found
                    row.setdefault(self._time, written)
            except ValueError as error:
                self._bad(line, str(error))
                continue
            yield time_s, row

    def _records(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """(line, {column: text or JSON value}) of each row that has the form of one."""
        stem = self._path.name.removesuffix(".gz").lower()
        try:
            with self._open() as text:
                yield from self._json_records(text) if stem.endswith(_JSON_NAMES) else self._csv_records(text)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            self._bad(0, f"is a damaged .gz file ({error}); what could be read was used")
        except OSError as error:
            raise _unreadable(self._path, error) from error

    def _open(self) -> IO[str]:
        if self._path.is_dir():
            raise Invalid(f"{self._path} is a folder, not a file", where="source.series")
        zipped = self._path.name.endswith(".gz")
        raw: Any = gzip.GzipFile(self._path) if zipped else self._path.open("rb")
        # What is not UTF-8 makes one bad row, not the end of the file.
        return io.TextIOWrapper(raw, encoding="utf-8-sig", errors="replace", newline="")

    def _csv_records(self, text: IO[str]) -> Iterator[tuple[int, dict[str, Any]]]:
        header_line = text.readline()
        if not header_line.strip():
            return
        delimiter = max(",;\t", key=header_line.count)
        names = [name.strip() for name in next(csv.reader([header_line], delimiter=delimiter))]
        # U+FFFD: bytes that are no UTF-8; a picture or an archive under a wrong name begins like this, too.
        if "\0" in header_line or "\ufffd" in header_line:
            raise Invalid(
                f"{self._path.name} does not begin with a header in UTF-8",
                where="source.series",
                hint=f"Is it text? Then convert it: iconv -f LATIN1 -t UTF-8 {self._path.name} (or UTF-16).",
            )
        if len(set(names)) != len(names):
            raise Invalid(
                f"{self._path.name} does not begin with a header of different column names", where="source.series"
            )
        # Numbers are no names, and a first row taken for a header would be lost; but 0, 1, 2 … are what pandas writes.
        if all(_number(name) is not None for name in names) and names != [str(n) for n in range(len(names))]:
            raise Invalid(
                f"{self._path.name} begins with numbers, not with a header of column names",
                where="source.series",
                hint=f"Write a first line with names, such as {delimiter.join('abcdefgh'[: len(names)])}",
            )
        reader = csv.reader(text, delimiter=delimiter)
        while True:
            try:
                fields = next(reader, None)
            except csv.Error as error:
                self._bad(reader.line_num + 1, str(error))
                continue
            if fields is None:
                return
            if delimiter == ";":  # where that parts the fields, the comma is the decimal sign
                fields = [_DECIMAL_COMMA.sub(r"\1.\2", field) for field in fields]
            if len(fields) == len(names):
                yield reader.line_num + 1, dict(zip(names, fields, strict=True))
            elif fields:
                self._bad(reader.line_num + 1, f"has {len(fields)} fields where the header has {len(names)}")

    def _json_records(self, text: IO[str]) -> Iterator[tuple[int, dict[str, Any]]]:
        for line, content in enumerate(text, start=1):
            if not content.strip():
                continue
            try:
                record = json.loads(content)
            except (ValueError, RecursionError):
                self._bad(line, "is not JSON")
                continue
            if isinstance(record, dict) and record:
                yield line, record
            else:
                self._bad(line, "is not a JSON object with columns")

    def _bad(self, line: int, fault: str) -> None:
        self.errors += 1
        self.last_error = f"{self._path.name}:{line} {fault}" if line else f"{self._path.name} {fault}"


def _value(record: dict[str, Any], name: str, is_number: bool) -> Any:
    """One field of a row. Raises ValueError where it is not what the column holds."""
    value = _field(record, name)
    if value is None and name not in record:
        raise ValueError(f"{name} is missing")
    if not is_number:
        return value
    number = _number(value)
    if number is None:
        raise ValueError(f"{name} is {value!r:.40}, not a number")
    return number


def _field(record: dict[str, Any], name: str) -> Any:
    """`rpm`, or `motor.rpm` of an object inside; None where it is not there."""
    if name in record:
        return record[name]
    outer, _, inner = name.partition(".")
    inside = record.get(outer) if inner else None
    return _field(inside, inner) if isinstance(inside, dict) else None


def _mostly_numbers(values: list[Any]) -> bool:
    """Whether a column is one of numbers: a gap or a word in its first rows makes bad rows, not a column of words."""
    numbers = sum(_number(value) is not None for value in values)
    gaps = sum(value in (None, "") or isinstance(value, float) for value in values if _number(value) is None)
    return 0 < numbers >= len(values) - gaps - numbers


def _number(value: Any) -> float | int | None:
    """A finite number, from JSON or from text; None for anything else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    if not isinstance(value, (int, float)):
        return None
    try:
        return value if math.isfinite(value) else None
    except OverflowError:
        return None


def _time_of(value: Any) -> float | None:
    """Unix seconds of a time as files write it; None where it is none."""
    number = _number(value)
    if number is not None:
        scale = next((scale for limit, scale in _UNIX_SCALES if abs(number) >= limit), 1.0)
        return float(number) / scale
    if not isinstance(value, str):
        return None
    try:
        return datetime.datetime.fromisoformat(value.strip()).timestamp()
    except (ValueError, OverflowError, OSError):
        return None


def _unreadable(path: Path, error: OSError) -> Invalid | Missing:
    if isinstance(error, FileNotFoundError):
        return Missing(f"no such file: {path}", where="source.series", hint="Paths are relative to the app file.")
    return Invalid(f"cannot read {path} ({file_fault(error)})", where="source.series")
