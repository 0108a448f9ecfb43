"""A worker's own words (stdout, stderr) in a file that never grows past its size, and the last of them as a reason."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import os
from pathlib import Path
from typing import BinaryIO

from marram.edge.redactor import Redactor

LIMIT_BYTES = 1_000_000
_TAIL_LINES = 40
_CRASH = b"Fatal Python error:"
# A worker that floods its log is slowed by its own full pipe; neither the agent nor the flash pays for it.
_BURST_BYTES = 32_768
_PAUSE_S = 0.05


class LogFile:
    """Appends to `path`; at `limit_bytes` it becomes `path.1` and a new one begins. A full disk loses words only."""

    def __init__(self, path: Path, limit_bytes: int = LIMIT_BYTES, redactor: Redactor | None = None) -> None:
        """`redactor` blanks secrets out before anything is kept."""
        self._path, self._limit_bytes = path, limit_bytes
        self._redactor = redactor or Redactor(())
        self._tail: collections.deque[str] = collections.deque(maxlen=_TAIL_LINES)
        self._rest = b""
        self._fault = ""

    async def pump(self, stream: asyncio.StreamReader) -> None:
        """Take all that comes until the end of the stream."""
        file: BinaryIO | None = None
        try:
            while read := await stream.read(_BURST_BYTES):
                chunk = self._redactor.feed(read)
                self._remember(chunk)
                with contextlib.suppress(OSError):
                    if file is None:
                        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                        file = _open(self._path)
                    file.write(chunk)
                    if file.tell() > self._limit_bytes:
                        file.close()
                        file = None
                        self._path.replace(self._path.with_name(self._path.name + ".1"))
                if len(read) == _BURST_BYTES:
                    await asyncio.sleep(_PAUSE_S)
            self._remember(rest := self._redactor.end())
            if file is not None and rest:
                with contextlib.suppress(OSError):
                    file.write(rest)
        finally:
            if file is not None:
                file.close()

    def last_words(self) -> str:
        """The last line that says something; of a Python traceback that is the error itself."""
        lines = [*self._tail, self._rest.decode(errors="replace")]
        spoken = [line.strip() for line in lines if line.strip()]
        return (self._fault or (spoken[-1] if spoken else ""))[:300]

    def _remember(self, chunk: bytes) -> None:
        lines = (self._rest + chunk).split(b"\n")
        self._rest = lines.pop()[-2000:]
        # Python's own word on a crash; every thread's stack follows it, longer than the tail.
        self._fault = next((x.decode(errors="replace") for x in lines if x.startswith(_CRASH)), self._fault)
        self._tail.extend(line[-2000:].decode(errors="replace") for line in lines[-_TAIL_LINES:])


def _open(path: Path) -> BinaryIO:
    """For nobody else to read: it may hold what the app sees."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
    return os.fdopen(os.open(path, flags, 0o600), "ab", buffering=0)
