"""One life of one worker process: start it, talk with it, watch it, end it, and say why it ended.

The agent stays whole whatever a worker does: crash, hang, grow, flood its log, speak nonsense, leave children behind.
This module never restarts anything: what follows an end is the keeper's decision.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from marram.edge import blame, cgroups
from marram.edge.agent_end import AgentEnd
from marram.edge.before import Earlier
from marram.edge.disk import disk_fault
from marram.edge.logfile import LogFile
from marram.edge.neighbour import Neighbour
from marram.edge.process import kill_group, resident_bytes, signal_name, worker_environment
from marram.edge.redactor import Redactor
from marram.edge.relay import Among, Relay, Requester
from marram.edge.sandbox import Plan
from marram.schema.errors import Invalid, MarramError, Retryable
from marram.schema.health import Health
from marram.schema.units import format_size


@dataclass(frozen=True, slots=True)
class Patience:
    """How long, in seconds, a worker may take before the agent acts."""

    verify_s: float = 120  # start the interpreter, check and load the models
    silent_s: float = 15  # say nothing at all: every thread is stuck
    busy_s: float = 120  # spend in one step of the app on one frame
    stop_s: float = 8  # finish, flush the outbox and leave, once asked to


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """All that a worker is told. `models` maps `name@version` to the bundle's folder; `cloud` are CloudModel documents.

    `verify`: load every model once and wait for `go` before running. `started`: versions of the app that ran here and
    may run again; one among them goes on where its finite source was, any other starts at the beginning.
    `packages`: folders with what its functions require. `secrets`: those that its app declares, with their values.
    `plan`: all that it can use of the device's folder; None: it is not confined. `before`: the version that it
    replaces, to be asked about a few of the same inputs. `held_bytes`: what its app had written (`blame`) before the
    first start of this version; None where it is proven. `peers`: the models (name, version) with which it answers
    other devices that run the app, and they answer it.
    """

    device: str
    app: str
    version: int
    folder: Path
    models: dict[str, Path]
    cloud: list[dict[str, Any]]
    outbox: Path
    work: Path
    log: Path
    memory_bytes: int | None = None
    verify: bool = False
    started: tuple[int, ...] = ()
    plan: Plan | None = None
    held_bytes: int | None = None
    health: Health = field(default_factory=Health)
    packages: tuple[Path, ...] = ()
    before: Earlier | None = None
    secrets: dict[str, str] = field(default_factory=dict, repr=False)
    peers: frozenset[tuple[str, int]] = frozenset()

    def message(self) -> dict[str, Any]:
        """The channel's `start` message."""
        return {
            "t": "start",
            "device": self.device,
            "app": self.app,
            "version": self.version,
            "started": list(self.started),
            "folder": str(self.folder),
            "models": {name: str(folder) for name, folder in self.models.items()},
            "cloud": self.cloud,
            "outbox": str(self.outbox),
            "memory": self.memory_bytes,
            "verify": self.verify,
            "packages": [str(folder) for folder in self.packages],
            "before": self.before.message() if self.before else None,
            "secrets": self.secrets,
            "peers": bool(self.peers),
        }


class Cause(StrEnum):
    """What ended a worker."""

    STOPPED = "stopped"  # we did
    FINISHED = "finished"  # its source came to its end
    CRASH = "crash"
    HANG = "hang"
    MEMORY = "memory"
    GATE = "gate"  # it ran, but not as its app file asks
    DISK = "disk"  # the device's is full
    START = "start"  # the device cannot begin a process


@dataclass(frozen=True, slots=True)
class Exit:
    """Why a worker ended. `again`: another start may help. `evidence`: figures that decided.

    `engine`: an engine that does not load ends a worker like this. `filled`: the disk, full now, had room at its start.
    """

    reason: str
    cause: Cause = Cause.CRASH
    again: bool = True
    engine: bool = False
    filled: bool = False
    evidence: dict[str, Any] = field(default_factory=dict)

    @property
    def devices(self) -> bool:
        """Whether the device was at fault, and not the version."""
        return self.cause in (Cause.DISK, Cause.START)

    @property
    def finished(self) -> bool:
        """Whether its source came to its end."""
        return self.cause is Cause.FINISHED


class Disk:
    """The disk under one life of a worker, looked at as it starts and as it ends. Blocking."""

    def __init__(self, spec: WorkerSpec) -> None:
        self._outbox, self._work, self._held_bytes = spec.outbox, spec.work, spec.held_bytes
        self._had_room = not blame.full(spec.outbox, spec.work)

    def judged(self, end: Exit) -> Exit:
        """An end that a part of ours told as the disk's (`Cause.DISK`), as it is."""
        if end.cause is not Cause.DISK:
            return end
        if not blame.full(self._outbox, self._work):
            return replace(end, cause=Cause.CRASH)
        if self._held_bytes is not None and blame.filled_itself(self._outbox, self._work, self._held_bytes):
            return replace(end, cause=Cause.CRASH, reason=f"it filled the disk itself: {end.reason}")
        return replace(end, filled=self._had_room)


class Life(Protocol):
    """One life of one worker, as a keeper needs it: a process (`Worker`), or a rehearsal's imitation of one.

    `busy_s`: at work on its present frame. `verified` is set once all it needs loads, `running` once the app runs,
    `news` with each new `stats`; `exited` is done when nothing of it is left. `pid` is 0 where there is no process.
    """

    spec: WorkerSpec
    started_s: float
    stats: dict[str, Any]
    resident_bytes: int
    busy_s: float
    verified: asyncio.Event
    running: asyncio.Event
    news: asyncio.Event
    exited: asyncio.Future[Exit]

    @property
    def pid(self) -> int: ...

    def go(self) -> None: ...

    def link(self, up: bool) -> None: ...

    async def answer(self, model: tuple[str, int], payload: bytes) -> bytes: ...

    async def stop(self) -> None: ...


# Starts one. Raises Retryable where the machine cannot.
StartLife = Callable[[WorkerSpec, Requester, Patience], Awaitable[Life]]


async def start_worker(spec: WorkerSpec, bus: Requester, patience: Patience) -> Life:
    """A `StartLife`: a process of its own, which may ask the cloud for what its app names."""
    allowed = {(model["name"], model["version"]) for model in spec.cloud}
    among = Among(spec.device, spec.app, spec.peers)
    return await Worker.start(spec, lambda channel: Relay(bus, channel, allowed, among), patience)


@dataclass(eq=False)
class Worker:
    """A running worker process. Made by `start`; `exited` is done when nothing of it is left."""

    spec: WorkerSpec
    process: asyncio.subprocess.Process
    channel: AgentEnd
    patience: Patience
    relay: Relay
    started_s: float = field(default_factory=time.monotonic)
    stats: dict[str, Any] = field(default_factory=dict)
    verified: asyncio.Event = field(default_factory=asyncio.Event)
    running: asyncio.Event = field(default_factory=asyncio.Event)
    news: asyncio.Event = field(default_factory=asyncio.Event)
    resident_bytes: int = 0
    busy_s: float = 0.0
    group: Path | None = None
    disk: Disk | None = None

    def __post_init__(self) -> None:
        self.exited: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self._cause: Exit | None = None
        self._heard_s = time.monotonic()
        # When it was told to run the app (at once, unless it was to wait), and when it said that it does.
        self._going_s = None if self.spec.verify else self.started_s
        self._running_s: float | None = None
        self._finished = False
        self._neighbour = Neighbour(self.channel, self.spec.peers)
        self._redactor = Redactor(self.spec.secrets.values())
        self._log = LogFile(self.spec.log, redactor=Redactor(self.spec.secrets.values()))
        self._life: asyncio.Task[None] | None = None

    @classmethod
    async def start(cls, spec: WorkerSpec, relay: Callable[[AgentEnd], Relay], patience: Patience) -> Worker:
        """Start the process and tell it what to run. Raises Retryable where the machine cannot start one."""
        try:
            spec.work.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            fault = disk_fault(error, spec.work)
            raise Retryable(fault.what, where=fault.where, hint=fault.hint) from error
        disk = await asyncio.to_thread(Disk, spec)
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        group = None if spec.plan is None or not spec.plan.cgroup else Path(spec.plan.cgroup)
        if spec.plan is not None and group is not None and not cgroups.make(group, spec.memory_bytes):
            spec, group = replace(spec, plan=replace(spec.plan, cgroup="")), None
        confined = [] if spec.plan is None else ["marram.edge.sandbox", spec.plan.text()]
        try:
            # -P: what user code leaves in its working folder must not shadow a module.
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-P", "-m", *confined, "marram.edge.worker", str(theirs.fileno()), str(os.getpid()),
                stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
                pass_fds=[theirs.fileno()], env=worker_environment(os.environ), cwd=spec.work,
                start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            ours.close()
            raise Retryable(f"cannot start a worker for {spec.app}: {error.strerror or error}") from error
        finally:
            theirs.close()
        try:
            channel = await AgentEnd.open(ours)
        except BaseException:
            kill_group(process.pid)
            ours.close()
            raise
        worker = cls(spec, process, channel, patience, relay(channel), group=group, disk=disk)
        channel.send(spec.message())
        worker._life = asyncio.create_task(worker._live(), name=f"worker {spec.app}")
        return worker

    @property
    def pid(self) -> int:
        """Of its process."""
        return self.process.pid

    def link(self, up: bool) -> None:
        """The link to the cloud came or went."""
        self.relay.link(up)

    async def answer(self, model: tuple[str, int], payload: bytes) -> bytes:
        """What its app says to another device's question; see `Neighbour.ask`."""
        return await self._neighbour.ask(model, payload)

    def go(self) -> None:
        """Let a verified worker run its app."""
        self._going_s = self._heard_s = time.monotonic()
        self.channel.send({"t": "go"})

    async def stop(self) -> None:
        """Ask it to finish, wait, then make it. Safe at any time, from several callers."""
        if not self.exited.done():
            self._end(Exit("stopped", Cause.STOPPED))
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGTERM)
            done, _ = await asyncio.wait([self.exited], timeout=self.patience.stop_s)
            if not done:
                kill_group(self.process.pid)
                await asyncio.wait([self.exited])

    def kill(self, reason: str, cause: Cause = Cause.CRASH, *, again: bool = True) -> None:
        """End it at once."""
        self._end(Exit(reason, cause, again=again))
        kill_group(self.process.pid)

    def _end(self, cause: Exit) -> None:
        # The first cause is the true one: what follows is its consequence.
        self._cause = self._cause or cause

    # ------------------------------------------------------------ its life

    async def _live(self) -> None:
        assert self.process.stdout is not None
        ended = asyncio.create_task(self.process.wait())
        watching = asyncio.create_task(self._watch())
        hearing = [asyncio.create_task(self._listen()), asyncio.create_task(self._log.pump(self.process.stdout))]
        tasks: list[asyncio.Task[Any]] = [ended, watching, *hearing]
        try:
            # Its children may hold the pipe open for ever, and `wait` may wait for that too (Python 3.11): so the watch
            # looks as well.
            await asyncio.wait([ended, watching], return_when=asyncio.FIRST_COMPLETED)
            # What it said last may still be on its way.
            await asyncio.wait(hearing, timeout=1)
        finally:
            kill_group(self.process.pid)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self.relay.close()
            self._neighbour.close()
            self.channel.close()
            cause = self._cause or self._explain(self.process.returncode)
            if self.group is not None:
                cgroups.end(self.group)
            if self.disk is not None:
                cause = await asyncio.to_thread(self.disk.judged, cause)
            self.exited.set_result(cause)

    def _explain(self, code: int | None) -> Exit:
        words = self._log.last_words()
        if code is None:
            return Exit("lost sight of")
        if code == 0:
            return (
                Exit("its source came to its end", Cause.FINISHED) if self._finished else Exit("it left without a word")
            )
        if self.group is not None and cgroups.out_of_memory(self.group):
            limit = format_size(self.spec.memory_bytes) if self.spec.memory_bytes else "the device's"
            return Exit(f"used up its memory; its limit is {limit}", Cause.MEMORY, again=False)
        how = f"killed by {signal_name(-code)}" if code < 0 else f"exit status {code}"
        # Who is killed from outside said nothing of it: its words were of something else.
        before = "; its last words: " if code == -signal.SIGKILL else ": "
        return Exit(f"{how}{before}{words}" if words else how, engine=True)

    async def _listen(self) -> None:
        try:
            while (message := await self.channel.receive()) is not None:
                self._heard_s = time.monotonic()
                self._take(message)
        except MarramError as error:
            self.kill(f"speaks nonsense on its channel: {error.what}")

    def _take(self, message: dict[str, Any]) -> None:
        match message.get("t"):
            case "infer" | "probe":
                self.relay.ask(message)
            case "answer":
                self._neighbour.answered(message)
            case "beat":
                self._beat(message)
            case "stats":
                self.stats = self._redactor.plain(_bounded(message.get("stats")))
                self.news.set()
            case "verified":
                self.verified.set()
            case "running":
                self._running_s = time.monotonic()
                self.verified.set()
                self.running.set()
            case "finished":
                self._finished = True
            case "fatal":
                self._end(
                    Exit(
                        self._redactor.text(str(message.get("message")))[:500],
                        Cause.DISK if message.get("disk") else Cause.CRASH,
                        again=bool(message.get("again")),
                        engine=bool(message.get("engine")),
                    )
                )
            case other:
                raise Invalid(f"no message {other!r:.40}")

    def _beat(self, message: dict[str, Any]) -> None:
        busy_s = message.get("busy_s")
        if not isinstance(busy_s, (int, float)):
            return
        self.busy_s = float(busy_s)
        if busy_s > self.patience.busy_s:
            self.kill(f"hung: at work on one frame for {busy_s:.0f} s", Cause.HANG, again=False)

    async def _watch(self) -> None:
        """Until it ended."""
        looked_s = time.monotonic()
        while self.process.returncode is None:
            await asyncio.sleep(1)
            now_s = time.monotonic()
            # If this agent itself did not run for a while, the worker's words wait unread: give them a turn first.
            if now_s - looked_s < 3:
                self._check(now_s)
            looked_s = now_s

    def _check(self, now_s: float) -> None:
        used = cgroups.used_bytes(self.group) if self.group is not None else None
        self.resident_bytes = resident_bytes(self.process.pid) if used is None else used
        limit = self.spec.memory_bytes
        silent_s = now_s - self._heard_s
        if limit is not None and self.resident_bytes > limit:
            words = f"used {format_size(self.resident_bytes)} of memory; its limit is {format_size(limit)}"
            self.kill(words, Cause.MEMORY, again=False)
        elif not self.verified.is_set() and now_s - self.started_s > self.patience.verify_s:
            self.kill(f"hung: not ready {self.patience.verify_s:.0f} s after its start", Cause.HANG)
        elif self._running_s is not None:
            if silent_s > self.patience.silent_s:
                self.kill(f"hung: not a sign of life for {silent_s:.0f} s", Cause.HANG, again=False)
        # Importing a library may hold every thread up for long: until it runs, only this bound counts.
        elif self._going_s is not None and now_s - self._going_s > self.patience.verify_s:
            self.kill(f"hung: source, models and steps not open after {self.patience.verify_s:.0f} s", Cause.HANG)


def _bounded(stats: Any) -> dict[str, Any]:
    """A worker's figures, as small as they should be: one app must not make the device's report too big to send."""
    if not isinstance(stats, dict):
        return {}
    figures: dict[str, Any] = {}
    for key, value in itertools.islice(stats.items(), 100):
        if isinstance(key, str) and len(key) <= 64 and (value is None or isinstance(value, (bool, int, float, str))):
            figures[key] = value[:500] if isinstance(value, str) else value
    return figures
