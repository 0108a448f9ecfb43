"""Fetches files by content over the bus, in ranges: goes on where a cut left off, trusts nothing it was sent.

All that is under way at a time aims at a tenth of a second of the link, so that an inference or an event never waits
long behind a model on its way: one small range on a slow link, a few larger ones on a fast link, where the cloud looks
for the next while one travels. Small files travel several at once, since for them the round trip is what costs. A cut
costs at most what was under way. What arrives is only appended to a partial file; nobody reads it before its digest was
checked.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from marram.bus import subjects
from marram.bus.codec import BlobAsk, unpack_blob
from marram.edge.bundles import Bundles
from marram.edge.disk import disk_fault
from marram.edge.relay import Requester
from marram.edge.trickle import Floor
from marram.schema.errors import MarramError, Missing, Retryable, Threat, Untrusted
from marram.schema.model import File

SMALL_BYTES = 64_000
_SMALL_AT_ONCE = 4
_FIRST_BYTES = 16_000
_LEAST_BYTES = 8_000
_MOST_BYTES = 1_000_000
# Ranges asked for at once, where each is this large at least; together never more than the pace.
_AT_ONCE = 4
_WORTH_BYTES = 64_000
_AIM_S = 0.1
_TIMEOUT_S = 20.0
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0
# Where what came is not what was signed, it is fetched in vain: not so often.
_FIRST_DOUBT_S = 15.0
_LONGEST_DOUBT_S = 600.0


class Pace:
    """How much to ask for at once: as much as the link carries in a tenth of a second beyond its round trip."""

    def __init__(self) -> None:
        self.bytes = _FIRST_BYTES
        self._shortest_s = float("inf")

    @property
    def range_bytes(self) -> int:
        """How much to ask for in one question."""
        return self.bytes if self.bytes < _AT_ONCE * _WORTH_BYTES else self.bytes // _AT_ONCE

    def took(self, size_bytes: int, elapsed_s: float) -> None:
        """A range took `elapsed_s` from question to answer, `size_bytes` being under way with it and before it."""
        # The shortest answer seen stands for the round trip; it is slowly forgotten, since links change.
        self._shortest_s = min(1.01 * self._shortest_s, elapsed_s)
        if size_bytes < min(self.bytes, _LEAST_BYTES):
            return  # the end of a file says little about the link
        # Where all answers are alike, none of it counts as transfer, so more is asked for until they differ: on a link
        # of long round trips, small ranges would otherwise stay small and leave it idle.
        transfer_s = max(elapsed_s - self._shortest_s, 1e-4)
        fitting = int(size_bytes * _AIM_S / transfer_s)
        self.bytes = max(_LEAST_BYTES, min(_MOST_BYTES, 2 * self.bytes, fitting))

    def failed(self) -> None:
        """A range did not come in time."""
        self.bytes = max(_LEAST_BYTES, self.bytes // 2)


class Fetcher:
    """One device's fetching; several apps share it, and its pace."""

    def __init__(self, bus: Requester, bundles: Bundles, device: str) -> None:
        self._bus, self._bundles = bus, bundles
        self._subject = subjects.blob(device)
        self._pace = Pace()
        self._big = asyncio.Lock()
        self._small = asyncio.Semaphore(_SMALL_AT_ONCE)
        self._locks: dict[str, asyncio.Lock] = {}
        self.fetched_bytes = 0

    async def fetch(self, files: Sequence[File], waiting: Callable[[str], None]) -> None:
        """Bring `files` here, however long the link makes it wait; `waiting` is told why ("" when done).

        Raises Retryable where the disk has no room for all of them: nothing is fetched then. Where what comes is not
        what was announced (tampered, endless, slow), it waits too: whoever stands between can go away, and the version
        is none the worse for it.
        """
        taking = asyncio.ensure_future(asyncio.to_thread(self._bundles.room.take, files))
        try:
            await asyncio.shield(taking)
        except asyncio.CancelledError:
            # The thread goes on without us.
            taking.add_done_callback(lambda taken: None if taken.exception() else self._bundles.room.release(files))
            raise
        try:
            await self._fetch(files, waiting)
        finally:
            self._bundles.room.release(files)

    async def _fetch(self, files: Sequence[File], waiting: Callable[[str], None]) -> None:
        pause_s, doubt_s = _FIRST_PAUSE_S, _FIRST_DOUBT_S
        while True:
            before = self.fetched_bytes
            try:
                async with asyncio.TaskGroup() as group:
                    for file in files:
                        group.create_task(self._one(file))
                waiting("")
                return
            except* (Retryable, Missing, Untrusted) as faults:
                # Missing: the cloud has told us of a file before it has it, or lost it; both can mend.
                why: MarramError = _first(faults)
            except* MarramError as faults:
                raise _first(faults) from None
            waiting(str(why))
            if isinstance(why, Untrusted):
                await asyncio.sleep(doubt_s)
                doubt_s = min(2 * doubt_s, _LONGEST_DOUBT_S)
                continue
            if self.fetched_bytes > before:
                pause_s = _FIRST_PAUSE_S
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def _one(self, file: File) -> None:
        # Two apps may want one model at once: the second finds it here.
        async with self._locks.setdefault(file.sha256, asyncio.Lock()):
            turn = self._small if file.size_bytes <= SMALL_BYTES else self._big
            for attempt in (1, 2):
                if not await asyncio.to_thread(self._bundles.lacks, file):
                    return
                async with turn:
                    await self._ranges(file)
                try:
                    await asyncio.to_thread(self._bundles.accept, file)
                    return
                except Untrusted:
                    # The first time it may be bytes of our own that a power cut spoiled: fetch all of it anew.
                    if attempt == 2:
                        raise

    async def _ranges(self, file: File) -> None:
        partial = self._bundles.partial(file)
        fd = _open(partial)
        try:
            await self._pipeline(file, fd, os.fstat(fd).st_size)
        except OSError as error:
            raise disk_fault(error, partial) from error
        finally:
            os.close(fd)

    async def _pipeline(self, file: File, fd: int, offset: int) -> None:
        """Ask ahead, write in order: the partial file's size is what has come."""
        floor = Floor(file.path)
        coming: deque[tuple[int, asyncio.Task[bytes]]] = deque()
        asked = offset
        try:
            while offset < file.size_bytes:
                while asked < file.size_bytes:
                    length = min(self._pace.range_bytes, file.size_bytes - asked)
                    under_way = asked + length - offset
                    if coming and under_way > self._pace.bytes:
                        break
                    coming.append((length, asyncio.create_task(self._range(file, asked, length, under_way))))
                    asked += length
                length, first = coming.popleft()
                try:
                    data = await first
                finally:
                    first.cancel()
                self._bundles.room.use(file, offset + len(data))
                written = os.pwrite(fd, data, offset)
                offset += written
                self.fetched_bytes += written
                floor.came(written)
                if written < length:  # fewer than asked for: what was asked for behind it leaves a gap
                    await _drop(coming)
                    asked = offset
        finally:
            await _drop(coming)

    async def _range(self, file: File, offset: int, length: int, under_way: int) -> bytes:
        question = BlobAsk(file.sha256, offset, length).pack()
        asked_s = time.monotonic()
        try:
            data, size_bytes = unpack_blob(await self._bus.request(self._subject, question, _TIMEOUT_S))
        except Retryable:
            self._pace.failed()
            raise
        if size_bytes > file.size_bytes or len(data) > length:
            raise Untrusted(
                f"{file.path}: the cloud's file has {size_bytes} bytes; {file.size_bytes} were announced",
                threat=Threat.ENDLESS,
            )
        if size_bytes < file.size_bytes:
            raise Untrusted(
                f"{file.path}: the cloud's file has {size_bytes} bytes; {file.size_bytes} were announced",
                threat=Threat.TAMPERED,
            )
        if not data:
            raise Untrusted(f"{file.path}: an answer without a byte", threat=Threat.SLOW)
        self._pace.took(under_way - length + len(data), time.monotonic() - asked_s)
        return data


async def _drop(coming: deque[tuple[int, asyncio.Task[bytes]]]) -> None:
    """Nobody waits for these any more."""
    tasks = [task for _, task in coming]
    coming.clear()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise disk_fault(error, path) from error


def _first(faults: BaseExceptionGroup) -> MarramError:
    """The first of a group's errors."""
    first: BaseException = faults
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    assert isinstance(first, MarramError)
    return first
