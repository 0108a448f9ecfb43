"""Real agents on folders of their own, in one process and in virtual time; a cloud in a page, workers on a script.

What is real: agent, keepers, records, journal, outbox, uplink, fetching, installing. What is not: the broker
(`lab.hub`) and the workers, of which a keeper sees no more than this.
"""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from marram.bus import subjects
from marram.bus.client import Bus, Message
from marram.bus.codec import BlobAsk, pack_ack, pack_blob, pack_desired, unpack_batch, unpack_report
from marram.edge.agent import Agent, Around, Settings
from marram.edge.relay import Requester
from marram.edge.state import Credentials, Folder
from marram.edge.supervisor import Cause, Exit, Life, Patience, WorkerSpec
from marram.lab.hub import Hub
from marram.lab.imitation import Pretence
from marram.schema.device import AppState, Desired, DesiredApp, Reported, ReportedApp
from marram.schema.errors import MarramError
from marram.schema.event import EventKind
from marram.schema.journal import Entry
from marram.schema.model import File, Manifest


@dataclass(frozen=True, slots=True)
class Script:
    """What a version's worker does. `ends`: why and how long after its start of running; `stats`: what it shows."""

    ends: Exit | None = None
    after_s: float = 0.5
    stats: dict[str, Any] = field(default_factory=lambda: {"frames": 10})
    busy_s: float = 0.0
    loads: bool = True


GOOD = Script()
CRASHES = Script(Exit("exit status 7"))
HANGS = Script(Exit("hung: not a sign of life for 15 s", Cause.HANG, again=False), 15.0, {}, busy_s=15.0)
GROWS = Script(Exit("used 1 GB of memory", Cause.MEMORY, again=False))
FAILS = Script(stats={"frames": 0, "errors": 50, "last_error": "division by zero"})
BREAKS = Script(Exit("no such model", again=False), loads=False)


class Played(Pretence):
    """One life of a scripted worker."""

    def __init__(self, spec: WorkerSpec, script: Script, alive: list[Played]) -> None:
        super().__init__(spec)
        self.script, self._alive = script, alive
        self.resident_bytes = 50_000_000
        # Whether another version of its app still ran as this one was told to.
        self.beside = False
        alive.append(self)

    def end(self, end: Exit) -> None:
        if not self.exited.done():
            self._task.cancel()
            self._alive.remove(self)
            super().end(end)

    async def _live(self) -> None:
        await asyncio.sleep(0.1)
        if not self.script.loads:
            assert self.script.ends is not None
            self.end(self.script.ends)
            return
        self.verified.set()
        await self._going.wait()
        self.beside = any(life.running.is_set() for life in self._alive if life.spec.app == self.spec.app)
        await asyncio.sleep(0.1)
        self.running.set()
        begun_s = time.monotonic()
        while self.script.ends is None or time.monotonic() - begun_s < self.script.after_s:
            await asyncio.sleep(0.1 if time.monotonic() - begun_s < 2 else 1.0)
            self.stats, self.busy_s = dict(self.script.stats), self.script.busy_s
            self.news.set()
        self.end(self.script.ends)


class Rig:
    """A cloud and any number of devices. `scripts`: by version; other versions are good ones."""

    def __init__(self, path: Path, scripts: dict[int, Script] | None = None) -> None:
        self.path, self.hub = path, Hub()
        self.scripts = scripts or {}
        self.desired: dict[str, Desired] = {}
        self.blobs: dict[str, bytes] = {}
        self.reports: dict[str, Reported] = {}
        self.stored: dict[str, dict[tuple[str, int], Entry | None]] = {}
        self.agents: dict[str, tuple[Agent, asyncio.Task[None]]] = {}
        self.alive: dict[str, list[Played]] = {}
        self.starts: dict[str, list[int]] = {}
        self.lives: list[Played] = []
        self.fetched = 0
        # Of agents started from now on, seconds.
        self.report_every_s = 0.5
        self.health = ""
        # Raised whenever a device asks whether an app is signed.
        self.doubt: MarramError | None = None
        # How often one asked.
        self.asked = 0
        # Raised whenever a device starts a worker.
        self.unable: MarramError | None = None

    async def open(self) -> Rig:
        bus = await self.hub.connect("CLOUD")
        await bus.wait_connected(10)
        await bus.subscribe(subjects.REPORTS, self._report, "fleet")
        await bus.subscribe(subjects.BLOBS, self._blob, "fleet", parallel=8)
        await bus.subscribe(subjects.INGEST, self._ingest, "ingest")
        return self

    # ------------------------------------------------------------ devices

    def folder(self, device: str) -> Folder:
        return Folder(self.path / device)

    async def start(self, device: str = "pi-1", folder: Folder | None = None) -> None:
        """Start the device's agent."""
        folder = folder or self.folder(device)
        folder.make()
        credentials = Credentials(device=device, brokers=["nats://hub"])
        alive = self.alive[device] = []

        async def connect(folder: Folder, credentials: Credentials) -> Bus:
            return await self.hub.connect(credentials.device, device=True)

        async def begin(spec: WorkerSpec, bus: Requester, patience: Patience) -> Life:
            if self.unable is not None:
                raise self.unable
            self.starts.setdefault(device, []).append(spec.version)
            self.lives.append(Played(spec, self.scripts.get(spec.version, GOOD), alive))
            return self.lives[-1]

        async def verify(app: DesiredApp) -> None:
            self.asked += 1
            if self.doubt is not None:
                raise self.doubt

        around = Around(connect=connect, start=begin, verify=verify)
        agent = Agent(folder, credentials, Settings(report_every_s=self.report_every_s), around)
        self.agents[device] = agent, asyncio.create_task(agent.run())

    async def stop(self, device: str = "pi-1") -> None:
        """A clean end."""
        agent, running = self.agents.pop(device)
        agent.stop()
        await running

    def copy(self, device: str, place: Path) -> None:
        """The device's folder as a power cut now would leave it."""
        shutil.copytree(self.path / device, place)

    # ------------------------------------------------------------ the cloud

    def app(self, version: int, name: str = "gate", size: int = 1000) -> DesiredApp:
        page = f"app: {name}\n{self.health}".encode()
        files = {"app.yaml": page, "data": version.to_bytes(4, "big") * (size // 4)}
        listed = []
        for path, body in files.items():
            digest = hashlib.sha256(body).hexdigest()
            self.blobs[digest] = body
            listed.append(File(path=path, sha256=digest, size_bytes=len(body)))
        return DesiredApp(name=name, version=version, files=Manifest(files=listed))

    def want(self, *apps: DesiredApp, device: str = "pi-1", **attempts: int) -> None:
        before = self.desired.get(device, Desired())
        self.desired[device] = Desired(version=before.version + 1, apps=list(apps), attempts=attempts)

    def told(self, device: str = "pi-1", name: str = "gate") -> ReportedApp | None:
        report = self.reports.get(device)
        return next((app for app in report.apps if app.name == name), None) if report else None

    async def until(
        self, condition: Callable[[ReportedApp], bool], device: str = "pi-1", within_s: float = 3600.0
    ) -> ReportedApp:
        """The first report of the app that fulfils `condition`, from now on."""
        self.reports.pop(device, None)
        deadline_s = time.monotonic() + within_s
        while time.monotonic() < deadline_s:
            await asyncio.sleep(0.1)
            app = self.told(device)
            if app is not None and condition(app):
                return app
        raise AssertionError(f"never so; last: {self.told(device)}")

    async def until_state(self, state: AppState, version: int, device: str = "pi-1") -> ReportedApp:
        return await self.until(lambda app: app.state is state and app.version == version, device)

    def journal(self, device: str = "pi-1", app: str = "gate") -> list[Entry]:
        """What the cloud's database has of the journal, in order."""
        return [entry for entry in self.stored.get(device, {}).values() if entry is not None]

    async def delivered(self, device: str = "pi-1") -> None:
        """Until the outbox is empty."""
        await asyncio.sleep(6)
        while self.reports[device].outbox_depth:
            await asyncio.sleep(0.5)

    async def _report(self, message: Message) -> bytes:
        device = subjects.device_of(message.subject)
        reported = self.reports[device] = unpack_report(message.payload)
        desired = self.desired.get(device, Desired())
        return pack_desired(desired if desired.version != reported.desired_version else None)

    async def _blob(self, message: Message) -> bytes:
        ask = BlobAsk.unpack(message.payload)
        body = self.blobs[ask.sha256]
        self.fetched += 1
        return pack_blob(body[ask.offset : ask.offset + ask.length], len(body))

    async def _ingest(self, message: Message) -> bytes:
        batch = unpack_batch(message.payload)
        stored = self.stored.setdefault(subjects.device_of(message.subject), {})
        for record in batch:
            entry = Entry.of(record.event) if record.event.kind is EventKind.DEPLOYMENT else None
            stored[record.stream, record.sequence] = entry
        return pack_ack(len(batch), max((r.sequence for r in batch), default=0))
