"""`jsonl: file`: every result as one JSON line, appended.

Lines are written by a thread of their own, so a slow or full disk holds no frame up. What cannot be written is lost,
counted, and told at the next `write`. A line is in the file whole or not at all, also after the disk was full. A file
that was moved away (logrotate) is made anew.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from contextlib import suppress
from pathlib import Path

from marram.pipeline.contract import Frame, Sink
from marram.pipeline.records import line
from marram.schema.app import JsonlSink
from marram.schema.errors import Invalid, Retryable
from marram.schema.words import file_fault

_LIMIT_LINES = 10_000
_CLOSE_S = 5.0


def open_sink(spec: JsonlSink, base: Path) -> Sink:
    """Raises Invalid where the file cannot be made."""
    path = base / spec.jsonl
    # Folders beside the app or in the worker's own place are made; elsewhere a missing one is more likely misspelt.
    if path.is_relative_to(base) or path.is_relative_to(Path.cwd()):
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
    return Jsonl(path)


class Jsonl:
    """See `contract.Sink`."""

    def __init__(self, path: Path, limit_lines: int = _LIMIT_LINES) -> None:
        self.lost = 0
        self._path = path
        self._lines: deque[bytes] = deque()
        self._limit_lines = limit_lines
        self._changed = threading.Condition()
        self._closed = False
        self._fault = ""
        try:
            self._file = self._open()
        except OSError as error:
            raise Invalid(f"cannot write {path} ({file_fault(error)})", where="sinks.jsonl") from error
        self._thread = threading.Thread(target=self._write_all, name="marram-jsonl", daemon=True)
        self._thread.start()

    def write(self, frame: Frame) -> None:
        """Hand one line to the writing thread. Raises Retryable once for each fault it has met since."""
        text = line(frame) + b"\n"
        with self._changed:
            if self._closed:
                self._lose(1, "it is closed")
            elif len(self._lines) >= self._limit_lines:
                self._lose(1, "the disk is too slow")
            else:
                self._lines.append(text)
            self._changed.notify_all()
            fault, self._fault = self._fault, ""
        if fault:
            raise Retryable(fault)

    def close(self) -> None:
        """Write what waits, then close the file. Raises Retryable where lines were lost since the last `write`."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(_CLOSE_S)
        with self._changed:
            if self._lines:  # the disk hangs: who ends the app does not wait for it
                self._lose(len(self._lines), "the disk does not answer")
                self._lines.clear()
        if self._fault:
            fault, self._fault = self._fault, ""
            raise Retryable(fault)

    def _open(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)

    def _write_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._lines or self._closed)
                lines = list(self._lines)
                self._lines.clear()
            if not lines:
                break
            try:
                self._append(b"".join(lines))
            except OSError as error:
                with self._changed:
                    self._lose(len(lines), file_fault(error))
                    # A full disk stays full for a while: do not spin on it.
                    if not self._closed:
                        self._changed.wait(0.2)
        with suppress(OSError):
            os.close(self._file)

    def _append(self, block: bytes) -> None:
        """The block, whole or not at all. Raises OSError."""
        self._follow()
        start = os.fstat(self._file).st_size
        written = 0
        try:
            while written < len(block):
                written += os.write(self._file, block[written:])
        except OSError:
            if written:
                # Also a pipe or a terminal may stand here, which cannot be shortened.
                with suppress(OSError):
                    os.ftruncate(self._file, start)
            raise

    def _follow(self) -> None:
        """Make the file anew where it was moved or deleted."""
        try:
            there, ours = self._path.stat(), os.fstat(self._file)
            moved = (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino)
        except FileNotFoundError:
            moved = True
        if moved:
            fresh = self._open()
            os.close(self._file)
            self._file = fresh

    def _lose(self, count: int, why: str) -> None:
        self.lost += count
        self._fault = f"cannot write {self._path} ({why}); {self.lost:,} lines are lost so far"
