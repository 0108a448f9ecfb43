"""Models, and the backs of their cuts, in memory and out of it again: one after another, each measured, within a bound.

Who comes first has it loaded, the others wait for that. What cannot be loaded is not tried again at every question.
Where there is no room the least worth is put aside (`shelf.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, TypeVarTuple, Unpack

from marram.runtime.bundle import Bundle
from marram.schema.errors import Busy, MarramError, NotReady, Permanent
from marram.serving.contract import Question
from marram.serving.lanes import Job, Lanes
from marram.serving.memory import give_back, resident_bytes
from marram.serving.shelf import Shelf
from marram.serving.warmup import file_of, warm

log = logging.getLogger(__name__)

_T = TypeVar("_T")
_Given = TypeVarTuple("_Given")
# Until a model was loaded once, it is taken to need so many times its file.
_GUESS = 2.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 60.0


@dataclass(frozen=True, slots=True)
class Limits:
    """`memory_bytes`: what all models together may take (None: no bound). `waiting`: so many questions may wait for one
    model. `load_s`: so long a question waits for a model that is being loaded. `cores` None: those this process has.
    """

    memory_bytes: int | None = None
    waiting: int = 64
    load_s: float = 10.0
    cores: int | None = None


@dataclass(eq=False, slots=True)
class Part:
    """A model version (`cut` ""), or the back of one of its cuts."""

    bundle: Bundle
    cut: str = ""
    lanes: Lanes | None = None
    loading: asyncio.Task[None] | None = None
    size_bytes: int = 0  # measured, once it was loaded
    expected: int = 0  # questions that wait for it to be loaded
    failed: MarramError | None = None
    failures: int = 0
    again_s: float = 0.0  # not tried again before

    @property
    def file(self) -> Path:
        return file_of(self.bundle, self.cut)


class Parts:
    """See the module's words. All methods on one event loop; `delivered` is told there which questions have ended."""

    def __init__(self, limits: Limits, delivered: Callable[[Sequence[Job]], None]) -> None:
        self._limits, self._delivered = limits, delivered
        self._cores = limits.cores or _cores()
        self._shelf: Shelf[Part] = Shelf(limits.memory_bytes)
        self._loading = asyncio.Lock()  # one after another: each is measured
        self._hands = ThreadPoolExecutor(2, thread_name_prefix="models")
        self._loop: asyncio.AbstractEventLoop | None = None

    def used(self, part: Part) -> None:
        """It was asked for."""
        self._shelf.used(part, time.monotonic())

    async def brought(self, part: Part, question: Question) -> Lanes:
        """The lanes of what is not in memory now. Raises NotReady, Busy, or what is wrong with it."""
        name = part.bundle.reference
        if part.failed is not None and time.monotonic() < part.again_s:
            raise NotReady(f"cannot be loaded: {part.failed.what}", where=name) from part.failed
        if part.expected >= self._limits.waiting:
            raise Busy(f"busy: {part.expected} wait for it to be loaded", waiting=part.expected, where=name)
        limit_s = min(self._limits.load_s, self._limits.load_s if question.left_s is None else question.left_s)
        part.expected += 1
        try:
            async with asyncio.timeout(limit_s):
                return await self.load(part)
        except TimeoutError as error:
            raise NotReady("is still being loaded", where=name, hint="Ask again in a moment.") from error
        finally:
            part.expected -= 1

    async def load(self, part: Part) -> Lanes:
        """The lanes of `part`, loaded by whoever comes first; who waits for it may go without ending it."""
        while (lanes := part.lanes) is None:  # put aside again before its turn came: once more
            if part.loading is None:
                part.loading = asyncio.create_task(self._bring(part), name=f"load {part.bundle.reference}")
                part.loading.add_done_callback(lambda task: task.cancelled() or task.exception())
            await asyncio.shield(part.loading)
        return lanes

    async def _bring(self, part: Part) -> None:
        try:
            async with self._loading:
                await self._fill(part)
        except MarramError as error:
            part.failures += 1
            pause_s = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** (part.failures - 1))
            part.failed, part.again_s = error, time.monotonic() + pause_s
            error.where = error.where or part.bundle.reference
            log.warning("not loaded: %s", error)
            raise
        finally:
            part.loading = None
        part.failed, part.failures = None, 0

    async def _fill(self, part: Part) -> None:
        needs_bytes = part.size_bytes
        if not needs_bytes:  # never loaded: a guess makes room, and refuses nobody
            most = self._shelf.room_bytes
            guess = int(_GUESS * _size_bytes(part.file))
            needs_bytes = guess if most is None else min(guess, most)
        await self._make_room(needs_bytes, frozenset())
        before, began_s = resident_bytes(), time.monotonic()
        try:
            ready = await self.in_thread(warm, part.bundle, part.cut, self._cores)
        except MarramError:
            raise
        except (RuntimeError, OSError, ValueError, MemoryError) as error:
            raise Permanent(f"cannot be loaded: {error}", where=part.bundle.reference) from error
        load_s = time.monotonic() - began_s
        part.size_bytes = max(resident_bytes() - before, _size_bytes(part.file))
        threads = len(ready.answerers) + (1 if len(ready.answerers) < self._cores else 0)
        part.lanes = Lanes(ready.answerers, ready.speed, threads, self._deliver, ready.alone)
        self._shelf.put(part, part.size_bytes, load_s, time.monotonic())
        try:
            await self._make_room(0, frozenset({part}))
        except NotReady:
            await self._unload(part)
            raise

    async def _make_room(self, size_bytes: int, keep: frozenset[Part]) -> None:
        for going in self._shelf.outgoing(size_bytes, time.monotonic(), keep):
            log.info("%s is put aside to make room", going.bundle.reference)
            await self._unload(going)

    async def _unload(self, part: Part) -> None:
        """No more questions from now on; returns once those it has are answered and its memory is free."""
        lanes, part.lanes = part.lanes, None
        self._shelf.remove(part)
        if lanes is not None:
            await self.in_thread(lanes.close)
            await self.in_thread(give_back)

    async def retire(self, part: Part) -> None:
        """It is served no more; returns once the questions it has are answered and its memory is free."""
        if part.loading is not None:
            with contextlib.suppress(MarramError):
                await part.loading
        await self._unload(part)

    async def in_thread(self, work: Callable[[Unpack[_Given]], _T], *arguments: *_Given) -> _T:
        """Something that blocks, elsewhere than on the loop."""
        self._loop = asyncio.get_running_loop()
        return await self._loop.run_in_executor(self._hands, work, *arguments)

    def close(self) -> None:
        """Nothing is loaded any more."""
        self._hands.shutdown(wait=False)

    def _deliver(self, jobs: Sequence[Job]) -> None:
        """In a lane's thread."""
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # the loop is gone, and all who asked with it
            self._loop.call_soon_threadsafe(self._delivered, jobs)


def _size_bytes(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
