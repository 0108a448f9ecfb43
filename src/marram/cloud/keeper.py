"""One replica process and what it serves: started while anything is wanted of it, told what to serve, started again.

Models are handed over one after another, each once the one before has its verdict: so a process that ends meanwhile was
ended by the model it was loading, and that one waits while the others are served again. Of a process that ends over
questions it is known which (`UnderWay`): who asked is told, and a model that was asked each time is put aside.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from marram.bus.client import Bus
from marram.bus.tls import TlsFiles
from marram.cloud.replica import BEAT_S, PASSWORD_VARIABLE, Order, Verdict
from marram.cloud.settings import BrokerAddress
from marram.cloud.underway import Asked, UnderWay
from marram.schema.errors import MarramError, Retryable
from marram.schema.words import first_line
from marram.serving.suspects import Suspects

log = logging.getLogger(__name__)

Key = tuple[str, int]
_STOP_S = 5.0
# Loading that takes longer hangs: no engine here needs a minute for what fits a machine.
_LOAD_S = 120.0
# A process that once said that its loop turns (`BEAT_S`) and does so no more hangs: it has to be silent over so many
# looks in a row, so that a machine that was asleep finds nothing amiss.
_LOOK_S = 2.5 * BEAT_S
_MOST_SILENT = 6
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 60.0
# A replica that ran so long was well: its next end starts with a short pause again.
_WELL_S = 30.0


class ReplicaState(StrEnum):
    """Where one model stands in one replica process."""

    STARTING = "starting"
    READY = "ready"
    WAITING = "waiting"  # failed, tried again after a pause
    STOPPED = "stopped"


@dataclass(slots=True)
class Served:
    """One model version in one process. `restarts`: how often it had to be served anew."""

    name: str
    version: int
    replica: int = 0
    state: ReplicaState = ReplicaState.STARTING
    reason: str = ""
    restarts: int = 0
    pid: int | None = None
    pause_s: float = 0.0  # before it is tried again, last time
    again_s: float = 0.0  # not tried before

    def ready(self, pid: int) -> None:
        self.state, self.reason, self.pid, self.pause_s = ReplicaState.READY, "", pid, 0.0

    def ended(self, reason: str) -> None:
        """It has to be served anew, and that is not its fault."""
        self.state, self.reason, self.pid = ReplicaState.STARTING, reason, None
        self.restarts += 1

    def failed(self, reason: str, pause_s: float | None = None) -> None:
        """It is why it is not served: the next try is after `pause_s`, else later each time."""
        self.ended(reason)
        self.pause_s = min(_LONGEST_PAUSE_S, 2 * self.pause_s or _FIRST_PAUSE_S) if pause_s is None else pause_s
        self.state, self.again_s = ReplicaState.WAITING, time.monotonic() + self.pause_s
        log.warning("%s@%d is not served: %s; again in %.1f s", self.name, self.version, reason, self.pause_s)


@dataclass(frozen=True, slots=True)
class Start:
    """How a replica process is started."""

    broker: BrokerAddress
    tls: TlsFiles
    folder: Path
    memory_bytes: int | None = None

    @property
    def environment(self) -> dict[str, str]:
        """What it finds there besides ours: the broker's password."""
        return {PASSWORD_VARIABLE: self.broker.password}

    def command(self, number: int) -> list[str]:
        memory = () if self.memory_bytes is None else ("--memory", str(self.memory_bytes))
        return [
            *(sys.executable, "-m", "marram.cloud.replica"),
            *("--nats", self.broker.url, "--user", self.broker.user, *memory),
            *("--identity", str(self.tls.identity), "--authority", str(self.tls.authority)),
            *("--details", str(self.folder / f"replica-{number}.fault.log")),
        ]


@dataclass(slots=True)
class _Child:
    """The process that runs now; `ending` is done once it ended.

    `heard`: whether it said anything since that was last set back. `hangs`: it fell silent, and was killed.
    """

    process: asyncio.subprocess.Process
    ending: asyncio.Task[int]
    readers: list[asyncio.Task[None]] = field(default_factory=list)
    verdicts: asyncio.Queue[Verdict] = field(default_factory=asyncio.Queue)
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=20))
    told: set[Key] = field(default_factory=set)
    heard: bool = False
    hangs: bool = False

    async def verdict(self, timeout_s: float | None) -> Verdict | None:
        """The next; None where it ended, or `timeout_s` passed, before."""
        waiting = asyncio.create_task(self.verdicts.get())
        try:
            await asyncio.wait({waiting, self.ending}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            return waiting.result() if waiting.done() else None
        finally:
            waiting.cancel()

    async def order(self, order: Order) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):  # it ended: seen elsewhere
            self.process.stdin.write(order.line())
            await self.process.stdin.drain()


class Keeper:
    """See the module's words. All methods on one event loop."""

    def __init__(self, number: int, start: Start, fetch: Callable[[str, int], Path], bus: Bus | None = None) -> None:
        """`fetch` gives the folder of a model version's bundle (blocking; raises MarramError). On `bus` those are told
        whose question a process ended over.
        """
        self.number = number
        self.served: dict[Key, Served] = {}
        self._start = start
        self._fetch = fetch
        self._bus = bus
        self._suspects: Suspects[Key] = Suspects()
        self._changed = asyncio.Event()

    def want(self, wanted: set[Key]) -> None:
        """This is what it has to serve from now on."""
        for key in set(self.served) - wanted:
            self.served.pop(key).state = ReplicaState.STOPPED
        for key in wanted - set(self.served):
            self.served[key] = Served(*key, self.number)
        self._changed.set()

    async def keep(self) -> None:
        """Run the process again and again, with pauses that grow while it does not stay."""
        pause_s = _FIRST_PAUSE_S
        while True:
            while not self.served:
                self._changed.clear()
                await self._changed.wait()
            begin_s = time.monotonic()
            try:
                reason = await self._live()
            except OSError as error:
                reason = f"cannot start a process: {error.strerror}"
            except Exception as error:
                reason = f"{type(error).__name__}: {first_line(error)}"
                log.exception("replica %d cannot be run", self.number)
            if reason is None:
                continue
            if time.monotonic() - begin_s > _WELL_S:
                pause_s = _FIRST_PAUSE_S
            for served in self.served.values():
                if served.state is not ReplicaState.WAITING:
                    served.ended(reason)
            log.warning("replica %d ended: %s; again in %.1f s", self.number, reason, pause_s)
            await asyncio.sleep(pause_s)
            pause_s = min(_LONGEST_PAUSE_S, 2 * pause_s)

    # ------------------------------------------------------------ one life

    async def _live(self) -> str | None:
        """One life of the process; why it ended, None where that is no fault of its own."""
        under_way = UnderWay.make()
        try:
            return await self._live_with(under_way)
        finally:
            under_way.close()

    async def _live_with(self, under_way: UnderWay) -> str | None:
        process = await asyncio.create_subprocess_exec(
            *(*self._start.command(self.number), "--under-way", str(under_way.descriptor)),
            pass_fds=(under_way.descriptor,),
            stdin=asyncio.subprocess.PIPE,  # its end is how the replica learns that we are gone
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, **self._start.environment},
            start_new_session=True,  # Ctrl-C reaches us, and we end it in order
        )
        child = _Child(process, asyncio.create_task(process.wait()))
        assert process.stdout is not None and process.stderr is not None
        child.readers = [
            asyncio.create_task(_hear(child, process.stdout)),
            asyncio.create_task(_note(child, process.stderr)),
        ]
        watching = asyncio.create_task(_watch(child))
        try:
            if await child.verdict(None) is not None and await self._serve(child):
                return None
            code = await child.ending
            await asyncio.gather(*child.readers)
            return self._ended_over(under_way.left(), code, _how(child, code))
        finally:
            watching.cancel()
            await _terminate(process)
            await asyncio.gather(child.ending, return_exceptions=True)
            await self._tell(under_way.left())
            for reader in child.readers:
                reader.cancel()

    def _ended_over(self, asked: list[Asked], code: int, how: str) -> str | None:
        """Put aside who took it down again; why it ended, None where it may be started again at once: over a question
        it does not end for ever, since whose that is is put aside.
        """
        if not asked:
            return how
        aside = self._suspects.ended(time.monotonic(), code, (each.key for each in asked))
        for key, served in self.served.items():
            if aside is not None and key == aside.key:
                served.failed(aside.reason, aside.pause_s)
            elif served.state is not ReplicaState.WAITING:
                served.ended(how)
        log.warning("replica %d ended over %d questions: %s", self.number, len(asked), how)
        return None

    async def _tell(self, asked: list[Asked]) -> None:
        """Nobody waits for what a process that is gone had under way, however that ended."""
        error = Retryable("the replica's process ended over it")
        for each in asked:
            with contextlib.suppress(MarramError):  # the broker is away: nobody hears it, and nobody waits for long
                if self._bus is not None:
                    await self._bus.fail(each.answer_to, error)

    async def _serve(self, child: _Child) -> bool:
        """Tell the process what to serve as that changes; whether it may go, since nothing is wanted or one hangs."""
        while not child.ending.done():
            self._changed.clear()
            if not self.served:
                return True
            served = self._due(child)
            if served is not None:
                if not await self._hand_over(child, served):
                    return True
                continue
            for key in child.told - set(self.served):
                child.told.discard(key)
                await child.order(Order(key=key))
            await self._pause(child)
        return False

    def _due(self, child: _Child) -> Served | None:
        """Who is handed over next: those that failed before come last."""
        now_s = time.monotonic()
        open_ = [each for key, each in self.served.items() if key not in child.told and each.again_s <= now_s]
        return min(open_, key=lambda each: (each.pause_s, each.name, -each.version), default=None)

    async def _hand_over(self, child: _Child, served: Served) -> bool:
        """Let it be served; False where the process ended by it, or has to be."""
        served.state = ReplicaState.STARTING
        try:
            folder = await asyncio.to_thread(self._fetch, served.name, served.version)
        except MarramError as error:
            served.failed(str(error))
            return True
        await child.order(Order(folder=str(folder)))
        verdict = await child.verdict(_LOAD_S)
        if verdict is None:
            reason = "loading it did not end"
            if child.ending.done():
                await asyncio.gather(*child.readers)
                reason = _how(child, child.ending.result())
            served.failed(reason)
            for other in self.served.values():
                if other is not served and other.state is ReplicaState.READY:
                    other.ended(f"{served.name}@{served.version} took its process down")
            return False
        if verdict.error:
            served.failed(verdict.error)
        else:
            child.told.add((served.name, served.version))
            served.ready(child.process.pid)
            log.info("replica %d serves %s@%d", self.number, served.name, served.version)
        return True

    async def _pause(self, child: _Child) -> None:
        """Until something changes, the process ends, or a model is due again."""
        again_s = [each.again_s for key, each in self.served.items() if key not in child.told]
        timeout_s = max(0.0, min(again_s) - time.monotonic()) if again_s else None
        changed = asyncio.create_task(self._changed.wait())
        try:
            await asyncio.wait({changed, child.ending}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            changed.cancel()


async def _hear(child: _Child, stream: asyncio.StreamReader) -> None:
    async for line in stream:
        child.heard = True
        verdict = Verdict.of(line)
        if verdict is not None:
            child.verdicts.put_nowait(verdict)


async def _watch(child: _Child) -> None:
    """Kill the process where it hangs: the broker goes on giving it questions, and nobody gets an answer."""
    while not child.heard:
        await asyncio.sleep(_LOOK_S)
    silent = 0
    while silent < _MOST_SILENT:
        child.heard = False
        await asyncio.sleep(_LOOK_S)
        silent = 0 if child.heard else silent + 1
    child.hangs = True
    with contextlib.suppress(ProcessLookupError):
        child.process.kill()


def _how(child: _Child, code: int) -> str:
    """How it ended, in words: what killed it, and the last that it said."""
    if child.hangs:
        return f"it hung: it said nothing for {_MOST_SILENT * _LOOK_S:.0f} s, and was killed"
    said = child.lines[-1] if child.lines else ""
    if code < 0:
        return f"killed by signal {-code}" + (f"; its last words: {said}" if said else "")
    return said or f"exit status {code}"


async def _note(child: _Child, stream: asyncio.StreamReader) -> None:
    async for line in stream:
        text = line.decode(errors="replace").rstrip()
        if text:
            child.lines.append(text)
            log.debug("%s", text)


async def _terminate(process: asyncio.subprocess.Process) -> None:
    """End a process that may have ended already: in order, then by force."""
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(_STOP_S):
            await process.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
