"""Several models in one process, each with its own queue: loaded, swapped, put aside and brought back while it answers.

`Host` is `serving.contract.Answering` by engines in this process. A model version is offered with `put`, which returns
once it is warm; from then on whoever names no version gets it, and `drop` of the older one lets that finish what it
began. So a swap is a `put` and a `drop`, and no question fails for it. The same version put again replaces itself so.

Where models together take more memory than they may, the least worth is put aside and loaded again when it is asked
for; whoever asks waits for that. Each cut of a model is a part of its own, loaded when it is first asked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar, TypeVarTuple, Unpack

from marram.runtime.bundle import Bundle
from marram.schema.errors import Busy, Invalid, MarramError, Missing, NotReady, Permanent, Retryable
from marram.serving.batching import Speed
from marram.serving.contract import Answer, Question, ServedModel
from marram.serving.lanes import Job, Lanes
from marram.serving.memory import give_back, resident_bytes
from marram.serving.shelf import Shelf
from marram.serving.warmup import file_of, warm

log = logging.getLogger(__name__)

Key = tuple[str, int]
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


DEFAULT = Limits()


@dataclass(eq=False, slots=True)
class _Part:
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


@dataclass(eq=False, slots=True)
class _Offer:
    """One version: what is known of it, and its parts by cut."""

    bundle: Bundle
    parts: dict[str, _Part]
    served: ServedModel


class Host:
    """See the module's words. All methods on one event loop; `close` at the end."""

    def __init__(self, limits: Limits = DEFAULT) -> None:
        self.limits = limits
        self._cores = limits.cores or _cores()
        self._offers: dict[Key, _Offer] = {}
        self._newest: dict[str, _Offer] = {}
        self._models: tuple[ServedModel, ...] = ()
        self._shelf: Shelf[_Part] = Shelf(limits.memory_bytes)
        self._asked: dict[Job, asyncio.Future[Answer]] = {}
        self._loading = asyncio.Lock()  # one after another: each is measured
        self._hands = ThreadPoolExecutor(2, thread_name_prefix="models")
        self._putting = asyncio.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None

    # ------------------------------------------------------------ answering

    async def infer(self, question: Question) -> Answer:
        """See `Answering.infer`."""
        part = self._part(question)
        lanes = part.lanes
        if lanes is None:
            began_s = time.monotonic()
            lanes = await self._brought(part, question)
            if question.left_s is not None:
                question = replace(question, left_s=question.left_s - (time.monotonic() - began_s))
        self._shelf.used(part, time.monotonic())
        job = lanes.submit(question, self.limits.waiting)
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._asked[job] = future
        try:
            return await future
        except asyncio.CancelledError:
            lanes.withdraw(job)
            raise
        finally:
            del self._asked[job]

    def models(self) -> Sequence[ServedModel]:
        """See `Answering.models`."""
        return self._models

    def queue_s(self, name: str, version: int) -> float:
        """How long a question to that model would wait now; 0 for one that is not in memory."""
        lanes = self._lanes(name, version)
        return lanes.queue_s() if lanes is not None else 0.0

    def waiting(self, name: str, version: int) -> int:
        """How many questions to that model wait or run."""
        lanes = self._lanes(name, version)
        return lanes.waiting if lanes is not None else 0

    def busy(self, name: str, version: int) -> bool:
        """Whether every lane of that model is at work."""
        lanes = self._lanes(name, version)
        return lanes is not None and lanes.busy

    def service_s(self, name: str, version: int) -> float:
        """How long one question to that model takes once it has its turn, as far as is known; 0 where nothing is."""
        speed = self.speed(name, version)
        return speed.run_s(1) + speed.prepare_s if speed is not None else 0.0

    def speed(self, name: str, version: int) -> Speed | None:
        """What is known of how fast that model is; None for one that is not in memory."""
        lanes = self._lanes(name, version)
        return lanes.speed if lanes is not None else None

    def in_memory(self) -> list[Key]:
        """The models that need not be loaded first."""
        return [key for key, offer in sorted(self._offers.items()) if offer.parts[""].lanes is not None]

    # ------------------------------------------------------------ what is served

    async def put(self, bundle: Bundle | Path) -> ServedModel:
        """Serve this version; returns once it is warm. One of the same name and version answers until then.

        Raises Missing, Invalid (the bundle), NotReady (no engine, no room), Permanent (it does not run). Then what was
        served before still is.
        """
        opened = bundle if isinstance(bundle, Bundle) else await self._in_thread(Bundle.open, bundle)
        card = opened.card
        key = (card.model, card.version)
        # On a device that serves what it runs, the fronts of cuts may lie, and no back.
        backs = [cut.name for cut in card.cuts if (opened.folder / cut.back).is_file()]
        parts = {cut: _Part(opened, cut) for cut in ("", *backs)}
        offer = _Offer(opened, parts, ServedModel(card, False, reason="being loaded"))
        async with self._putting:
            before = self._offers.get(key)
            if before is None:
                self._offers[key] = offer
                self._changed()
            try:
                lanes = await self._load(parts[""])
            except BaseException as error:
                if isinstance(error, MarramError):
                    offer.served = replace(offer.served, reason=str(error))
                elif before is None:
                    self._offers.pop(key, None)
                self._changed()
                raise
            session, engine = lanes.answerer.session, _engine(lanes)
            offer.served = ServedModel(card, True, session.inputs, session.outputs, engine)
            self._offers[key] = offer
            self._changed()
        if before is not None:
            await self._retire(before)
        return offer.served

    async def drop(self, name: str, version: int) -> None:
        """Serve it no more: it takes no more questions, and goes once those it has are answered. Not there: nothing."""
        offer = self._offers.pop((name, version), None)
        if offer is not None:
            self._changed()
            await self._retire(offer)

    async def close(self) -> None:
        """Answer what waits, then unload all."""
        for name, version in list(self._offers):
            await self.drop(name, version)
        self._hands.shutdown(wait=False)

    def _changed(self) -> None:
        self._newest = {}
        for (name, _), offer in sorted(self._offers.items()):
            if offer.served.ready or name not in self._newest:
                self._newest[name] = offer
        self._models = tuple(offer.served for _, offer in sorted(self._offers.items()))

    # ------------------------------------------------------------ finding

    def _part(self, question: Question) -> _Part:
        if question.version is None:
            offer = self._newest.get(question.model)
        else:
            offer = self._offers.get((question.model, question.version))
        if offer is None:
            wanted = question.model if question.version is None else f"{question.model}@{question.version}"
            here = ", ".join(served.card.reference for served in self._models) or "nothing"
            raise Missing(f"{wanted[:100]} is not served here", hint=f"Served here: {here}.")
        if (question.payload is None) == (not question.tensors):
            raise Invalid("a question has either a payload or tensors", where=question.model)
        cut = question.payload.cut if question.payload is not None else ""
        part = offer.parts.get(cut)
        if part is None:
            raise Missing(f'no cut "{cut[:100]}"', where=offer.bundle.reference)
        return part

    def _lanes(self, name: str, version: int) -> Lanes | None:
        offer = self._offers.get((name, version))
        return offer.parts[""].lanes if offer is not None else None

    # ------------------------------------------------------------ loading and unloading

    async def _brought(self, part: _Part, question: Question) -> Lanes:
        """The lanes of what is not in memory now. Raises NotReady, Busy, or what is wrong with it."""
        name = part.bundle.reference
        if part.failed is not None and time.monotonic() < part.again_s:
            raise NotReady(f"cannot be loaded: {part.failed.what}", where=name) from part.failed
        if part.expected >= self.limits.waiting:
            raise Busy(f"busy: {part.expected} wait for it to be loaded", waiting=part.expected, where=name)
        limit_s = min(self.limits.load_s, self.limits.load_s if question.left_s is None else question.left_s)
        part.expected += 1
        try:
            async with asyncio.timeout(limit_s):
                return await self._load(part)
        except TimeoutError as error:
            raise NotReady("is still being loaded", where=name, hint="Ask again in a moment.") from error
        finally:
            part.expected -= 1

    async def _load(self, part: _Part) -> Lanes:
        """The lanes of `part`, loaded by whoever comes first; who waits for it may go without ending it."""
        while (lanes := part.lanes) is None:  # put aside again before its turn came: once more
            if part.loading is None:
                part.loading = asyncio.create_task(self._bring(part), name=f"load {part.bundle.reference}")
                part.loading.add_done_callback(lambda task: task.cancelled() or task.exception())
            await asyncio.shield(part.loading)
        return lanes

    async def _bring(self, part: _Part) -> None:
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

    async def _fill(self, part: _Part) -> None:
        needs_bytes = part.size_bytes
        if not needs_bytes:  # never loaded: a guess makes room, and refuses nobody
            most = self._shelf.room_bytes
            guess = int(_GUESS * _size_bytes(part.file))
            needs_bytes = guess if most is None else min(guess, most)
        await self._make_room(needs_bytes, frozenset())
        before, began_s = resident_bytes(), time.monotonic()
        try:
            ready = await self._in_thread(warm, part.bundle, part.cut, self._cores)
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

    async def _make_room(self, size_bytes: int, keep: frozenset[_Part]) -> None:
        for going in self._shelf.outgoing(size_bytes, time.monotonic(), keep):
            log.info("%s is put aside to make room", going.bundle.reference)
            await self._unload(going)

    async def _retire(self, offer: _Offer) -> None:
        for part in offer.parts.values():
            if part.loading is not None:
                with contextlib.suppress(MarramError):
                    await part.loading
            await self._unload(part)

    async def _unload(self, part: _Part) -> None:
        """No more questions from now on; returns once those it has are answered and its memory is free."""
        lanes, part.lanes = part.lanes, None
        self._shelf.remove(part)
        if lanes is not None:
            await self._in_thread(lanes.close)
            await self._in_thread(give_back)

    # ------------------------------------------------------------ between threads and the loop

    async def _in_thread(self, work: Callable[[Unpack[_Given]], _T], *arguments: *_Given) -> _T:
        self._loop = asyncio.get_running_loop()
        return await self._loop.run_in_executor(self._hands, work, *arguments)

    def _deliver(self, jobs: Sequence[Job]) -> None:
        """In a lane's thread."""
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # the loop is gone, and all who asked with it
            self._loop.call_soon_threadsafe(self._delivered, jobs)

    def _delivered(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            future = self._asked.get(job)
            if future is None or future.done():
                continue
            outcome = job.outcome
            if isinstance(outcome, Answer):
                future.set_result(outcome)
            else:
                future.set_exception(outcome or Retryable("it ended without an answer"))


def _engine(lanes: Lanes) -> str:
    variant = getattr(lanes.answerer, "variant", None)
    return str(variant.engine.value) if variant is not None else ""


def _size_bytes(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
