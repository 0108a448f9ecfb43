"""Workers that only behave like workers, so that hundreds of real agents fit into one process.

An imitation goes through a worker's life as a keeper sees it (loads, runs, shows figures, perhaps falls) and records
its results in the device's real outbox. What it does is a `Manner`, chosen by device and version; nothing of it is
known to the agent, or to the cloud, but by what a worker would show.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from marram.bus.outbox import Outbox
from marram.edge.relay import Requester
from marram.edge.supervisor import Cause, Disk, Exit, Life, Patience, StartLife, WorkerSpec
from marram.lab.powercut.recording import mark
from marram.schema.errors import MarramError, NotReady, Retryable
from marram.schema.event import Event, EventKind


@dataclass(frozen=True, slots=True)
class Manner:
    """How a version behaves on a device. Times in seconds since its start.

    `every_s`: between two looks at its figures, each with `frames` more frames, one of which is recorded.
    `falls_s`: it crashes then; `hushes_s`: the whole device falls silent then (`World` cuts its link).
    """

    loads_s: float = 0.2
    every_s: float = 1.0
    frames: int = 10
    errors: float = 0.0  # share of its frames
    p95_ms: float = 50.0
    confidence: float = 0.9
    falls_s: float | None = None
    hushes_s: float | None = None
    memory_bytes: int = 100_000_000


class Pretence(ABC):
    """A life with no process behind it, as a keeper sees one (`edge.supervisor.Life`); a subclass says how it goes."""

    def __init__(self, spec: WorkerSpec) -> None:
        self.spec = spec
        self.started_s = time.monotonic()
        self.stats: dict[str, Any] = {}
        self.resident_bytes, self.busy_s, self.pid = 0, 0.0, 0
        self.verified, self.running, self.news = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.exited: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self._going = asyncio.Event()
        if not spec.verify:
            self._going.set()
        self._task = asyncio.create_task(self._live(), name=f"imitation of {spec.app}")

    def go(self) -> None:
        self._going.set()

    def link(self, up: bool) -> None:  # noqa: B027 - most need not know
        pass

    async def answer(self, model: tuple[str, int], payload: bytes) -> bytes:
        raise NotReady(f"nothing runs {model[0]}@{model[1]} here")

    async def stop(self) -> None:
        if not self.exited.done():
            self._task.cancel()
            await asyncio.wait([self._task])
            self.end(Exit("stopped", Cause.STOPPED))

    def end(self, end: Exit) -> None:
        """It is over, unless it was."""
        if not self.exited.done():
            self.exited.set_result(end)

    @abstractmethod
    async def _live(self) -> None:
        """From its start; sets `verified`, waits for `_going`, sets `running`, then `news` with each new figure."""


class Imitation(Pretence):
    """One life. While it `rests`, it records nothing; `recorded` hears of each durable event."""

    def __init__(
        self,
        spec: WorkerSpec,
        manner: Manner,
        hush: Callable[[], None],
        rests: Callable[[], bool],
        recorded: Callable[[str, int], None],
    ) -> None:
        super().__init__(spec)
        self.manner, self.hush, self.rests, self.recorded = manner, hush, rests, recorded

    async def _live(self) -> None:
        outbox: Outbox | None = None
        disk = await asyncio.to_thread(Disk, self.spec)
        try:
            await asyncio.sleep(self.manner.loads_s)
            self.verified.set()
            await self._going.wait()
            outbox = await asyncio.to_thread(Outbox, self.spec.outbox)
            self.running.set()
            begun_s = time.monotonic()
            while True:
                await asyncio.sleep(self.manner.every_s)
                ran_s = time.monotonic() - begun_s
                if self.manner.falls_s is not None and ran_s >= self.manner.falls_s:
                    self.end(Exit("exit status 1: it fell, as it was told to", evidence=dict(self.stats)))
                    return
                if self.manner.hushes_s is not None and ran_s >= self.manner.hushes_s:
                    self.hush()
                await self._work(outbox)
        except MarramError as error:
            cause = Cause.DISK if isinstance(error, Retryable) else Cause.CRASH
            self.end(await asyncio.to_thread(disk.judged, Exit(f"exit status 1: {error}", cause)))
        finally:
            if outbox is not None:
                outbox.close()

    async def _work(self, outbox: Outbox) -> None:
        manner = self.manner
        errors = round(manner.frames * manner.errors)
        more = {"frames": manner.frames - errors, "edge": manner.frames - errors, "errors": errors}
        more["delays"] = more["edge"]
        self.stats = {
            **{name: self.stats.get(name, 0) + count for name, count in more.items()},
            "fps": manner.frames / manner.every_s,
            "p50_ms": manner.p95_ms / 2,
            "p95_ms": manner.p95_ms,
            "confidence_mean": manner.confidence,
            "confidence_frames": self.stats.get("confidence_frames", 0) + more["frames"],
            "last_error": "it failed, as it was told to" if errors else "",
        }
        self.resident_bytes = manner.memory_bytes
        self.news.set()
        if self.rests():
            return
        event = Event(EventKind.RESULT, self.spec.app, time.time(), {"frame": self.stats["frames"]})
        sequence = await asyncio.to_thread(outbox.append, [event])
        mark(f"recorded/{outbox.stream}/{sequence}")
        self.recorded(outbox.stream, sequence)


def imitating(
    manner: Callable[[WorkerSpec], Manner],
    hush: Callable[[], None],
    recorded: Callable[[str, int], None],
    rests: Callable[[], bool] = lambda: False,
) -> StartLife:
    """What an agent starts its workers with: each behaves as `manner` says; `recorded` hears of each durable event.

    While it `rests`, a worker records nothing.
    """

    async def start(spec: WorkerSpec, bus: Requester, patience: Patience) -> Life:
        return Imitation(spec, manner(spec), hush, rests, recorded)

    return start
