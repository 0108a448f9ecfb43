"""A cloud and its whole fleet in one process: the cloud's real roles over a real database, real agents, no workers.

On virtual time (`virtual.run`) and over a `Hub`, so that an hour of a hundred devices on bad links takes a minute, and
anything can be cut or killed at any moment. What is rehearsed here is everything between `marram deploy` and the
report that says "committed": rollouts, desired states, signatures, fetching, installing, the deployment machine, the
outbox and its way into the database. Workers are imitated; identities and the broker have tests with real ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from marram.bus.client import Bus
from marram.cloud.fleet import Fleet
from marram.cloud.ingest import Ingest
from marram.cloud.provision import provision
from marram.cloud.state import CloudState, Hands
from marram.edge.agent import Agent, Around, Settings
from marram.edge.state import Credentials, Folder
from marram.edge.supervisor import WorkerSpec
from marram.lab.hub import Hub, Link
from marram.lab.imitation import Manner, imitating
from marram.lab.powercut.recording import mark
from marram.schema.device import DesiredApp, DeviceInfo
from marram.schema.event import EventKind
from marram.schema.model import File, Manifest
from marram.schema.rollout import Plan
from marram.store import EventFilter, Objects, open_store
from marram.trust.clock import Clock
from marram.trust.keys import Keys
from marram.trust.verifier import Verifier

APP = """\
app: {name}
source: {{mqtt: rehearsal/{name}}}
steps:
  - function: handler.py:handle
health: {{trial: 2 s, quiet: 30 s{health}}}
"""


@dataclass
class Site:
    """One device of the world: its folder, its link, how its versions behave; `recorded`: events it holds durable."""

    name: str
    folder: Folder
    link: Link
    manner: Callable[[WorkerSpec], Manner]
    recorded: set[tuple[str, int]] = field(default_factory=set)
    agent: Agent | None = None
    running: asyncio.Task[None] | None = None


class Killed(BaseException):
    """What a process that is killed says to itself: nothing catches it."""


class FleetProcess:
    """A fleet role with a database connection and a bus of its own, as in a process of its own.

    `writes`: it is killed at that transaction, on odd numbers just before the commit, on even ones just after it.
    `dead` is set then; it does nothing more, whatever it was in the middle of.
    """

    def __init__(self, state: CloudState, bus: Bus, writes: int | None) -> None:
        self._state, self._bus = state, bus
        self._fleet = Fleet(bus, state.store, state.objects, state.rollout, state.signing, state.safe)
        self.dead = asyncio.Event()
        self._left = writes
        self._loop = asyncio.get_running_loop()
        if writes is not None:
            database, early = state.store.database, writes % 2 == 1
            real = database.write

            @contextlib.contextmanager
            def write() -> Iterator[Any]:
                with real() as connection:
                    yield connection
                    if self._dies() and early:
                        raise Killed
                if self._left is not None and self._left <= 0:
                    raise Killed

            database.write = write  # type: ignore[method-assign]  # on this one alone

    def _dies(self) -> bool:
        assert self._left is not None
        self._left -= 1
        if self._left == 0:
            self._loop.call_soon_threadsafe(self.dead.set)
        return self._left <= 0

    async def start(self) -> None:
        await self._bus.wait_connected(10)
        await self._fleet.start()

    async def end(self) -> None:
        """It is gone; any number of times."""
        await self._fleet.stop()
        await self._bus.close()
        await asyncio.to_thread(self._state.store.close)


class World:
    """Use as `async with World(folder).open() as world`. One event loop; any number of devices."""

    def __init__(self, folder: Path, report_every_s: float = 2.0) -> None:
        self.folder = folder
        self.hub = Hub()
        self.sites: dict[str, Site] = {}
        self._settings = Settings(report_every_s=report_every_s, drain_s=0.0)
        self.fleets: list[FleetProcess] = []
        self.rests = False  # then no worker records anything

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[World]:
        """The cloud is there; devices are added."""
        self.folder.mkdir(parents=True, exist_ok=True)
        asyncio.get_running_loop().set_exception_handler(_unheard)
        self.state = await asyncio.to_thread(self._open_state)
        self.bus = await self.hub.connect("CLOUD")
        await self.bus.wait_connected(10)
        self.state.hands = Hands(nudge=self._nudge)
        self.ingest = Ingest(self.bus, self.state.store, self.state.objects)
        await self.ingest.start()
        await self.start_fleet()
        try:
            yield self
        finally:
            await asyncio.gather(*(self.stop_device(name) for name in self.sites))
            await self.stop_fleets()
            await self.bus.close()
            await asyncio.to_thread(self.ingest.close)
            await asyncio.to_thread(self.state.store.close)

    def _open_state(self) -> CloudState:
        keys = Keys(self.folder / "keys")
        provision(keys, time.time())
        scratch = self.folder / "scratch"
        scratch.mkdir(exist_ok=True)
        return CloudState(open_store(self.folder / "marram.db"), Objects(self.folder / "objects"), scratch, keys)

    # ------------------------------------------------------------ the cloud

    async def start_fleet(self, writes: int | None = None) -> FleetProcess:
        """One fleet process: it answers devices and takes rollouts on. `writes`: see `FleetProcess`."""
        process = FleetProcess(await asyncio.to_thread(self._open_state), await self.hub.connect("FLEET"), writes)
        await process.start()
        self.fleets.append(process)
        return process

    async def stop_fleets(self) -> None:
        """End every fleet process that still lives."""
        for process in self.fleets:
            await process.end()

    def _nudge(self, devices: list[str]) -> None:
        """Devices hear of it with their next report."""

    def ledger(self) -> tuple[int, int]:
        """Of the events that devices held durable: how many the database lacks, and how many are there once too often.

        Twice is what says the same of the same moment, under whatever number it came: a key of the database cannot be
        there twice, what it stands for can.
        """
        keys, told, last = set[tuple[str, str, int]](), Counter[tuple[str, str, float, str]](), 0
        results = EventFilter(kinds=(EventKind.RESULT,))
        while found := self.state.store.events.after(last, results, limit=10_000):
            last = found[-1].id
            keys.update((each.device, each.stream, each.sequence) for each in found)
            told.update((each.device, each.app, each.time_s, json.dumps(each.data)) for each in found)
        recorded = {(site.name, *key) for site in self.sites.values() for key in site.recorded}
        return len(recorded - keys), told.total() - len(told)

    def manifest(self, files: Mapping[str, bytes]) -> Manifest:
        """Upload `files`."""
        stored = {path: self.state.objects.put(content) for path, content in files.items()}
        return Manifest(
            files=[File(path=path, sha256=item.sha256, size_bytes=item.size_bytes) for path, item in stored.items()]
        )

    async def deploy(
        self,
        app: str,
        content: bytes,
        selector: Mapping[str, str] | None = None,
        plan: Plan | None = None,
        health: str = "",
    ) -> int:
        """Deploy an app whose bundle holds `content`, which alone makes it another version; the rollout's number."""

        def work() -> int:
            files = self.manifest(
                {"handler.py": b"def handle(event, context):\n    return event\n", "content": content}
            )
            page = APP.format(name=app, health=health)
            rolled = self.state.rollout.deploy(page, files, dict(selector or {}), plan)
            return rolled.deployment.id

        return await asyncio.to_thread(work)

    # ------------------------------------------------------------ devices

    async def add_device(
        self,
        name: str,
        manner: Callable[[WorkerSpec], Manner],
        labels: Mapping[str, str] | None = None,
        info: DeviceInfo | None = None,
        place: Path | None = None,
        starts: bool = True,
    ) -> Site:
        """A device that has joined, and `starts`; its folder is `place`, or one beside the cloud's."""
        folder = Folder(place or self.folder / "devices" / name)
        site = self.sites[name] = Site(name, folder, Link(), manner)

        def join() -> None:
            self.state.store.devices.add(name, dict(labels or {}), info or DeviceInfo())
            self.state.rollout.refresh(name)

        await asyncio.to_thread(join)
        if starts:
            self.start_device(name)
        return site

    async def attach_device(self, name: str, manner: Callable[[WorkerSpec], Manner], place: Path) -> Site:
        """One that this cloud knows already, whose folder `place` is."""
        site = self.sites[name] = Site(name, Folder(place), Link(), manner)
        self.start_device(name)
        return site

    def start_device(self, name: str) -> None:
        """Switch it on."""
        site = self.sites[name]
        site.agent = Agent(
            site.folder,
            Credentials(device=name, brokers=["hub://"]),
            self._settings,
            Around(
                connect=lambda folder, credentials: self.hub.connect(name, site.link, device=True),
                start=imitating(
                    site.manner,
                    site.link.cut,
                    lambda stream, sequence: site.recorded.add((stream, sequence)),
                    lambda: self.rests,
                ),
                verify=self._verify(site.folder),
            ),
        )
        site.running = asyncio.create_task(_started(site), name=f"device {name}")

    async def stop_device(self, name: str) -> None:
        """Pull its plug: nothing is flushed, nobody is told."""
        site = self.sites[name]
        if site.running is not None:
            site.link.cut()
            site.running.cancel()
            await asyncio.gather(site.running, return_exceptions=True)
            site.link.mend()
            site.running = site.agent = None

    def _verify(self, folder: Folder) -> Callable[[DesiredApp], Awaitable[None]]:
        """As the trustee does it, with metadata read straight from the cloud's shelf."""

        def work(app: DesiredApp) -> None:
            documents = {app.target: app.signed()} | {model.target: model.signed() for model in app.models}
            place = folder.path / "trust"
            clock = Clock(place / "clock.json")
            Verifier(place, self.state.signing.root(), clock).verify(
                documents, lambda name, most_bytes: self.state.signing.read(name)
            )
            # What it has seen signed it must never forget: see `powercut`.
            mark(f"trusted/{json.loads((place / 'timestamp.json').read_bytes())['signed']['version']}")

        async def verify(app: DesiredApp) -> None:
            await asyncio.to_thread(work, app)

        return verify


async def _started(site: Site) -> None:
    assert site.agent is not None
    await asyncio.to_thread(site.folder.make)
    await site.agent.run()


def _unheard(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Nobody waits for what a killed process leaves undone; of everything else we want to hear."""
    if not isinstance(context.get("exception"), Killed):
        loop.default_exception_handler(context)
