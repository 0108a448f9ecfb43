"""Engines in a process of their own, asked through shared memory: `EngineProcess` here, a `Host` there.

For who speaks a protocol with strangers and must not go down with an engine, nor wait for its threads: a crash there
fails what was under way with Retryable at once, and the process comes back with what it served, less a model that was
asked each time it ended (`Suspects`). It costs a hand-over each way, so where nobody else's code runs in the asking
process a `Host` of its own is the better choice.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import msgpack

from marram.schema.errors import Busy, MarramError, Missing, NotReady, Retryable
from marram.serving.contract import Answer, Question, ServedModel
from marram.serving.host import Key, Limits
from marram.serving.shm import Slots
from marram.serving.suspects import Suspects
from marram.serving.wire import Document, Pipe, answer_in, fault_in, put_beside, question_out, served_in, taken_from

log = logging.getLogger(__name__)

# A message on the bus is 4 MB at most; what is larger, or finds no slot, goes through the socket.
SLOTS, SLOT_BYTES = 64, 4 * 2**20 + 65536
# So many may be on their way at a time, waiting there included.
_MOST = 512
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 10.0
# Of a process that closed its socket the exit status is waited for so long: what it says counts (`Suspects`).
_STATUS_S = 1.0
DEFAULT = Limits()


@dataclass(eq=False, slots=True)
class _Asked:
    """A question on its way; its slot is its own until the answer came, even where nobody waits for that any more."""

    future: asyncio.Future[Document]
    slot: int | None
    key: Key | None = None  # of which model, where it is known here


@dataclass(eq=False, slots=True)
class _Link:
    """The process that runs now."""

    process: asyncio.subprocess.Process
    pipe: Pipe
    asked: dict[int, _Asked] = field(default_factory=dict)


class EngineProcess:
    """`Answering` by a process of its own. All methods on one event loop."""

    def __init__(self, limits: Limits = DEFAULT) -> None:
        self.limits = limits
        self.restarts = 0
        self._slots = Slots.make(SLOTS, SLOT_BYTES)
        self._link: _Link | None = None
        self._folders: dict[Key, Path] = {}  # what it has to serve, whatever becomes of the process
        self._served: dict[Key, ServedModel] = {}
        self._suspects: Suspects[Key] = Suspects()
        self._aside: dict[Key, tuple[float, str]] = {}  # put aside until then (monotonic), and why
        self._pause_s = _FIRST_PAUSE_S  # before the process is started anew
        self._number = 0
        self._started = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """Of the process that runs now."""
        return self._link.process.pid if self._link is not None else None

    @property
    def slots_free(self) -> int:
        """Slots of shared memory that no question has."""
        return self._slots.free

    async def start(self) -> None:
        """Start the process and wait until it listens."""
        self._task = asyncio.create_task(self._keep(), name="engine process")
        started = asyncio.create_task(self._started.wait())
        await asyncio.wait({started, self._task}, return_when=asyncio.FIRST_COMPLETED)
        if self._task.done():
            started.cancel()
            self._task.result()

    async def close(self) -> None:
        """End the process; who waits gets Retryable."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._slots.close()

    # ------------------------------------------------------------ answering

    async def infer(self, question: Question) -> Answer:
        """See `Answering.infer`; NotReady while the process is away."""
        document, parts = question_out(question)
        try:
            answered, body = await self._ask(document, parts, self._meant(question))
        except Missing as error:
            served = self._served.get(self._meant(question) or ("", 0))
            if served is not None and not served.ready:
                raise NotReady(served.reason, where=question.model) from error
            raise
        return answer_in(answered, body)

    def models(self) -> Sequence[ServedModel]:
        """See `Answering.models`."""
        return tuple(self._served.values())

    async def put(self, folder: Path) -> ServedModel:
        """As `Host.put`; it is served again whenever the process comes back."""
        answered, _ = await self._ask({"put": str(folder)}, [])
        served = served_in(answered["served"])
        key = (served.card.model, served.card.version)
        self._folders[key], self._served[key] = folder, served
        self._aside.pop(key, None)
        return served

    async def drop(self, name: str, version: int) -> None:
        """As `Host.drop`."""
        self._folders.pop((name, version), None)
        self._served.pop((name, version), None)
        self._aside.pop((name, version), None)
        with contextlib.suppress(Retryable):  # a process that is away, or ends over it, serves nothing anyway
            await self._ask({"drop": [name, version]}, [])

    def _meant(self, question: Question) -> Key | None:
        """Which of those served here; of several versions the newest that is ready."""
        fitting = [key for key in self._served if key[0] == question.model and question.version in (None, key[1])]
        return max(fitting, key=lambda key: (self._served[key].ready, key[1]), default=None)

    async def _ask(
        self, document: Document, parts: list[bytes | memoryview], key: Key | None = None
    ) -> tuple[Document, bytes]:
        link = self._link
        if link is None:
            raise NotReady("the engine's process is away", hint="It is being started again: ask again in a moment.")
        if len(link.asked) >= _MOST:
            raise Busy(f"busy: {len(link.asked)} wait here already", waiting=len(link.asked))
        slot = self._slots.take() if parts else None
        self._number += 1
        number = self._number
        asked = link.asked[number] = _Asked(asyncio.get_running_loop().create_future(), slot, key)
        document["id"] = number
        put_beside(document, parts, self._slots, slot)
        if slot is not None:
            document["slot"] = slot  # also where the question went through the socket: the answer may have room
        link.pipe.send(document)
        try:
            answered = await asked.future
        except asyncio.CancelledError:
            if number in link.asked:
                link.pipe.send({"id": number, "gone": True})
            raise
        return answered, answered["body"]

    # ------------------------------------------------------------ the process

    async def _keep(self) -> None:
        while True:
            try:
                link = self._link = await self._open()
                serving = asyncio.create_task(self._again(), name="engine models")
                self._started.set()
                try:
                    await self._hear(link)
                finally:
                    serving.cancel()
            except OSError as error:
                log.warning("the engine's process cannot be started: %s", error.strerror)
            finally:
                await self._lost()
            self.restarts += 1
            pause_s, self._pause_s = self._pause_s, min(_LONGEST_PAUSE_S, 2 * self._pause_s)
            log.warning("the engine's process ended; again in %.1f s", pause_s)
            await asyncio.sleep(pause_s)

    async def _open(self) -> _Link:
        ours, theirs = socket.socketpair()
        try:
            limits = msgpack.packb(asdict(self.limits)).hex()
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "marram.serving.engine_child", str(theirs.fileno())),
                *(str(self._slots.descriptor), str(SLOTS), str(SLOT_BYTES), limits),
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), self._slots.descriptor),
                start_new_session=True,  # Ctrl-C reaches us, and it ends as the socket does
            )
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        reader, writer = await asyncio.open_connection(sock=ours, limit=2**20)
        return _Link(process, Pipe(reader, writer))

    async def _again(self) -> None:
        """Let a process that is new serve what the last one did, each as soon as its pause is over."""
        due_s = {key: self._aside[key][0] if key in self._aside else 0.0 for key in self._folders}
        pauses_s: dict[Key, float] = {}
        while due_s:
            for key in sorted(due_s, key=lambda key: due_s[key]):
                folder, served = self._folders.get(key), self._served.get(key)
                if folder is None or served is None or served.ready:  # dropped, or put anew, meanwhile
                    del due_s[key]
                elif due_s[key] <= time.monotonic():
                    try:
                        answered, _ = await self._ask({"put": str(folder)}, [], key)
                    except MarramError as error:
                        log.warning("%s@%d is not served: %s", *key, error)
                        self._served[key] = replace(served, reason=str(error))
                        pauses_s[key] = min(_LONGEST_PAUSE_S, 2 * pauses_s.get(key, _FIRST_PAUSE_S))
                        due_s[key] = time.monotonic() + pauses_s[key]
                    else:
                        self._served[key] = served_in(answered["served"])
            self._pause_s = _FIRST_PAUSE_S
            await asyncio.sleep(max(0.0, min(due_s.values(), default=0.0) - time.monotonic()))

    async def _hear(self, link: _Link) -> None:
        while (document := await link.pipe.receive()) is not None:
            asked = link.asked.pop(document["id"], None)
            if asked is None:
                continue
            # Copied before the slot is given back: the next question is written over it.
            document["body"] = taken_from(document, self._slots) if "length" in document or "bytes" in document else b""
            if asked.slot is not None:
                self._slots.give_back(asked.slot)
            if asked.future.done():
                continue
            if "fault" in document:
                asked.future.set_exception(fault_in(document))
            else:
                asked.future.set_result(document)

    async def _lost(self) -> None:
        """Nobody waits for a process that is gone."""
        link, self._link = self._link, None
        if link is None:
            return
        link.pipe.close()
        try:
            async with asyncio.timeout(_STATUS_S):
                status = await link.process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                link.process.kill()
            status = await link.process.wait()
        over = [asked.key for asked in link.asked.values() if asked.key is not None]
        aside = self._suspects.ended(time.monotonic(), status, over)
        for asked in link.asked.values():
            if asked.slot is not None:
                self._slots.give_back(asked.slot)
            if not asked.future.done():
                asked.future.set_exception(Retryable("the engine's process ended over it"))
        link.asked.clear()
        away = "its process ended and is being started again"
        self._served = {key: replace(each, ready=False, reason=away) for key, each in self._served.items()}
        if aside is not None and aside.key in self._served:
            log.warning("%s@%d: %s", *aside.key, aside.reason)
            self._aside[aside.key] = time.monotonic() + aside.pause_s, aside.reason
        self._aside = {key: each for key, each in self._aside.items() if each[0] > time.monotonic()}
        for key, (_, reason) in self._aside.items():
            self._served[key] = replace(self._served[key], reason=reason)
