"""The device's agent: one connection to the cloud, one keeper per app, one report every few seconds.

It is small and it stays: it imports no engine, no NumPy, no pipeline; what runs other people's code runs in workers.
Everything is level-triggered: the report carries what the device runs, the answer what it should run; a lost message
costs one interval. With the cloud away, even at boot, the last desired state goes on running.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from marram.bus import subjects
from marram.bus.client import Bus, BusState, Message
from marram.bus.codec import BenchNudge, pack_report, unpack_desired, unpack_secrets
from marram.bus.outbox import Outbox
from marram.bus.tls import TlsFiles
from marram.bus.uplink import Uplink
from marram.edge import deploy
from marram.edge.away import away
from marram.edge.bundles import Bundles
from marram.edge.cgroups import Groups
from marram.edge.deploy import AppRecord
from marram.edge.fetch import Fetcher
from marram.edge.ground import Ground
from marram.edge.journal import Journal
from marram.edge.keeper import Keeper
from marram.edge.metadata import SignedMetadata
from marram.edge.process import resident_bytes
from marram.edge.renewal import Renewal
from marram.edge.sandbox import isolation
from marram.edge.secrets import Secrets
from marram.edge.standing import Standing
from marram.edge.state import Credentials, Folder
from marram.edge.status import StatusSocket
from marram.edge.supervisor import Patience, StartLife, start_worker
from marram.edge.tasks import cancelled
from marram.edge.thermals import Thermals
from marram.edge.trustee import Trustee
from marram.edge.trustee_child import ChildTrustee
from marram.edge.vetting import Vetting
from marram.schema.device import AppState, Desired, DesiredApp, DeviceInfo, Reported
from marram.schema.errors import MarramError, NotReady, Retryable

log = logging.getLogger("marram.edge")

_AGAIN_S = 5.0
_DISK_PAUSE_S = 2.0
# Other devices' questions handled side by side; the cloud brings one at a time.
_ASKED = 4
# While the cloud stays away, that is said so often.
_SAY_AGAIN_S = 600.0


@dataclass(frozen=True, slots=True)
class Settings:
    """What a person may change of an agent."""

    report_every_s: float = 2.0
    # How long a stop waits for the cloud to take what is left in the outbox; what it does not take stays there.
    drain_s: float = 2.0
    patience: Patience = field(default_factory=Patience)


async def connect(folder: Folder, credentials: Credentials) -> Bus:
    """A device's way to its cloud, as itself."""
    tls = TlsFiles(folder.identity.own, folder.identity.authority)
    return await Bus.connect(credentials.brokers, credentials.device, tls=tls)


@dataclass(frozen=True, slots=True)
class Around:
    """What an agent stands on beside its folder: as a device has it, or as a rehearsal of hundreds in a process does.

    `connect`: its way to the cloud. `start`: starts its workers. `verify`: see `Ground`. `status`: whether it answers
    `marram edge status`. `about`: what it tells the cloud of itself. `groups`: control groups for its workers.
    `trustee`: who handles the keys and signatures of the device in that folder.
    """

    connect: Callable[[Folder, Credentials], Awaitable[Bus]] = connect
    start: StartLife = start_worker
    verify: Callable[[DesiredApp], Awaitable[None]] | None = None
    status: bool = False
    about: Callable[[], DeviceInfo] | None = None
    groups: Groups | None = None
    trustee: Callable[[Path], Trustee] = ChildTrustee


class Agent:
    """One device. `run` until `stop`; the caller holds the folder's lock.

    It changes nothing of its process (no signal handler, no global): any number may run on one event loop.
    """

    def __init__(
        self,
        folder: Folder,
        credentials: Credentials,
        settings: Settings | None = None,
        around: Around | None = None,
    ) -> None:
        self._folder, self._credentials = folder, credentials
        self._settings = settings or Settings()
        self._around = around or Around()
        self._device = credentials.device
        self._desired = Desired()
        self._keepers: dict[str, Keeper] = {}
        # Of apps that are gone: what was given up of them, and what the journal may not have yet.
        self._gone: dict[str, AppRecord] = {}
        self._running: dict[str, asyncio.Task[None]] = {}
        self._changed = asyncio.Event()
        self._measuring: asyncio.Task[None] | None = None
        self._lines = asyncio.Event()
        self._thermals = Thermals()
        self._stopping = asyncio.Event()
        self._started_s = time.monotonic()
        self._link = ""
        self._complained = ""
        self._told_hold = ("", 0)
        # Told with the first report over each connection.
        self._about_told = False
        self._bringing_secrets: asyncio.Task[None] | None = None

    def stop(self) -> None:
        """End clean: workers flush, the outbox is offered once more. Safe in a signal handler of the loop."""
        self._stopping.set()

    async def run(self) -> None:
        """Run the device. Raises MarramError where the folder cannot be used."""
        bundles = Bundles(self._folder.path)
        bundles.make()
        outbox = await self._open_outbox()
        if outbox is None:
            return
        self._outbox = outbox
        self._bus = await self._around.connect(self._folder, self._credentials)
        self._bus.on_state(self._on_state)
        self._uplink = Uplink(self._bus, self._outbox, self._device)
        self._ground = Ground(
            folder=self._folder,
            bundles=bundles,
            fetcher=Fetcher(self._bus, bundles, self._device),
            bus=self._bus,
            device=self._device,
            patience=self._settings.patience,
            changed=self._changed.set,
            lines=self._lines.set,
            forget=lambda app: outbox.progress(app, 0, ()),
            needed=self._needed,
            start=self._around.start,
        )
        self._trustee = self._around.trustee(self._folder.path)
        self._standing = Standing(self._trustee, self._credentials.cloud)
        self._secrets = Secrets(self._folder.path, self._folder.identity.own, self._device, self._bus, self._trustee)
        self._ground.secrets, self._ground.groups = self._secrets.values, self._around.groups
        metadata = SignedMetadata(self._bus, self._device)
        self._ground.verify = self._around.verify or Vetting(self._trustee, metadata.fetch).verify
        self._journal = Journal(outbox)
        log.info("device %s, process %d, folder %s", self._device, os.getpid(), self._folder.path)
        await self._bus.subscribe(subjects.desired(self._device), self._nudged)
        await self._bus.subscribe(subjects.all_asked(self._device), self._asked, parallel=_ASKED)
        uplink = asyncio.create_task(_for_ever("the uplink", self._uplink.run))
        status = StatusSocket(self._folder.path, self.status)
        if self._around.status:
            await status.open()
        self._resume()
        reports = asyncio.create_task(_for_ever("reporting", self._report_for_ever))
        identity, cloud = self._folder.identity, self._credentials.cloud
        renewal = Renewal(identity, self._trustee, self._bus, self._device, cloud)
        renewing = asyncio.create_task(_for_ever("renewing", renewal.run))
        asking = asyncio.create_task(_for_ever("asking why it is refused", self._standing.run))
        journal = asyncio.create_task(_for_ever("the journal", self._write_for_ever))
        try:
            await self._stopping.wait()
            log.info("stopping")
        finally:
            measuring = [self._measuring] if self._measuring is not None else []
            ending = [reports, renewing, asking, *measuring, *self._running.values(), journal]
            await asyncio.gather(*map(cancelled, ending), return_exceptions=True)
            await self._last_words()
            await cancelled(uplink)
            await status.close()
            await self._bus.close()
            self._outbox.close()
            log.info("stopped, %d workers left", sum(not t.done() for t in self._running.values()))

    async def _open_outbox(self) -> Outbox | None:
        """The outbox; None where we are told to stop before the disk lets it be opened."""
        complained = False
        while not self._stopping.is_set():
            try:
                return await asyncio.to_thread(Outbox, self._folder.outbox)
            except Retryable as error:
                # Ending here would only make the system start us again and again.
                if not complained:
                    log.warning("waits for the disk: %s", error)
                complained = True
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_DISK_PAUSE_S):
                    await self._stopping.wait()
        return None

    def status(self) -> dict[str, object]:
        """For `marram edge status`."""
        return {
            "device": self._device,
            "link": self._away() or self._refused() or self._link or "connecting",
            "rtt_s": self._bus.rtt_s,
            "reported": self._reported().model_dump(mode="json"),
        }

    def _away(self) -> str:
        """What is to be said of a cloud that does not answer; "" where it does, or where it refuses us."""
        if self._bus.connected or self._bus.refused or not self._bus.why:
            return ""
        running = sum(keeper.running for keeper in self._keepers.values())
        return away(self._bus.url, self._bus.why, running, self._uplink.status(), self._outbox.limit_bytes)

    def _refused(self) -> str:
        """What is to be said of a cloud that refuses us, once it said why."""
        return f"refused: {self._standing.why}" if self._bus.refused and self._standing.why else ""

    # ------------------------------------------------------------ desired

    def _resume(self) -> None:
        """Go on where the folder says we were, before a word from the cloud."""
        for name, record in self._folder.records().items():
            if record.state is AppState.REMOVED:
                self._gone[name] = record
            else:
                self._keep(name, Keeper(self._ground, record))
        self._lines.set()
        desired = self._folder.desired()
        if desired is not None:
            self._apply(desired)

    def _apply(self, desired: Desired) -> None:
        self._desired = desired
        wanted = {app.name: app for app in desired.apps}
        for name, keeper in self._keepers.items():
            if name not in wanted:
                keeper.want(None)
        for name, app in wanted.items():
            self._want(name, app, desired.attempts.get(name, 0))

    def _want(self, name: str, app: DesiredApp, attempt: int) -> None:
        keeper = self._keepers.get(name)
        if keeper is not None:
            keeper.want(app, attempt)
            return
        log.info("%s: version %d is wanted", name, app.version)
        record = deploy.retarget(self._gone.pop(name, None), app, attempt, new_id=os.urandom(6).hex())
        self._keep(name, Keeper(self._ground, record, new=True))

    def _keep(self, name: str, keeper: Keeper) -> None:
        self._keepers[name] = keeper
        self._running[name] = asyncio.create_task(self._supervise(name, keeper), name=f"keeper {name}")

    async def _supervise(self, name: str, keeper: Keeper) -> None:
        """A keeper's own failure is its own: it starts again from its record, the others never notice."""
        while True:
            try:
                await keeper.run()
                break
            except Exception as error:  # supervisor of keepers: logged, started again
                log.error("%s: its keeper failed; it starts again", name, exc_info=error)
                await asyncio.sleep(_AGAIN_S)
        del self._keepers[name], self._running[name]
        self._gone[name] = keeper.record
        self._changed.set()
        self._lines.set()

    # ------------------------------------------------------------ the journal

    async def _write_for_ever(self) -> None:
        while True:
            self._lines.clear()
            try:
                await self._write()
            except MarramError as error:
                log.warning("the journal waits: %s", error)
                await asyncio.sleep(_AGAIN_S)
                continue
            with contextlib.suppress(TimeoutError):
                # A hold is only a file that somebody wrote, and its end perhaps only a moment.
                async with asyncio.timeout(self._settings.report_every_s):
                    await self._lines.wait()

    async def _write(self) -> None:
        """Bring what is written ahead into the outbox. Raises Retryable."""
        for name, keeper in list(self._keepers.items()):
            if lines := keeper.lines():
                await self._journal.bring(name, keeper.record.key, lines)
                keeper.told(lines[-1].serial)
        key, lines = self._ground.holding.lines()
        if lines and (key, len(lines)) != self._told_hold:
            await self._journal.bring("", key, lines)
            self._told_hold = key, len(lines)
            self._changed.set()
        for name, record in list(self._gone.items()):
            if record.journal:
                await self._journal.bring(name, record.key, record.journal)
            if self._gone.get(name) is not record:
                continue  # wanted again meanwhile
            if not record.refused:
                del self._gone[name]
                self._folder.remove_record(name)
                await self._journal.close(record.key)
            elif record.journal:
                record = self._gone[name] = deploy.told(record, record.serial)
                self._folder.save_record(record)

    # ------------------------------------------------------------ report

    async def _nudged(self, message: Message) -> None:
        if message.payload and (self._measuring is None or self._measuring.done()):
            asked = BenchNudge.unpack(message.payload)
            self._measuring = asyncio.create_task(self._measure(asked.model), name="measure")
        self._changed.set()

    async def _asked(self, message: Message) -> bytes | None:
        """Another device's question, which the cloud brought."""
        question = subjects.peer_question(message.subject)
        keeper = self._keepers.get(question.app)
        worker = None if keeper is None else keeper.worker
        if worker is None or not worker.running.is_set():
            raise NotReady(f"no app {question.app} runs here now")
        return await worker.answer((question.model, question.version), message.payload)

    async def _measure(self, model: str | None) -> None:
        """What a person asked for: one app after another, so that they do not take the machine from each other."""
        for keeper in list(self._keepers.values()):
            try:
                await keeper.measure(model)
            except MarramError as error:
                log.warning("%s: its variants could not be measured: %s", keeper.name, error)

    def _on_state(self, state: BusState) -> None:
        if state is BusState.CLOSED:
            return
        up = state is BusState.CONNECTED
        words = f"refused: {self._bus.refused}" if self._bus.refused else "connected" if up else "down"
        self._about_told = False
        self._standing.told(refused=state is BusState.REFUSED, connected=up)
        if words != self._link:
            log.info("the link to the cloud: %s", words)
        self._link = words
        for keeper in self._keepers.values():
            # The worker need not find out by itself.
            if keeper.worker is not None:
                keeper.worker.link(up)
        if up:
            self._changed.set()

    async def _report_for_ever(self) -> None:
        swept: set[tuple[str, int]] | None = None
        told_s = float("-inf")
        while True:
            self._changed.clear()
            if self._bus.connected:
                told_s = float("-inf")
                await self._report()
            elif (words := self._away()) and time.monotonic() - told_s > _SAY_AGAIN_S:
                told_s = time.monotonic()
                log.warning("%s", words)
            needed = {(app.name, app.version) for app in self._needed()}
            if not all(keeper.record.settled for keeper in self._keepers.values()):
                swept = None
            elif needed != swept:
                await self._ground.sweep()
                swept = needed
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._settings.report_every_s):
                    await self._changed.wait()
                # Changes come in flocks (fetched, verified, provisional): one report for those of one moment.
                await asyncio.sleep(0.05)

    def _needed(self) -> list[DesiredApp]:
        return [app for keeper in self._keepers.values() for app in keeper.record.kept]

    async def _report(self) -> None:
        try:
            reported = self._reported()
            if self._around.about is not None and not self._about_told:
                reported = reported.model_copy(update={"info": await asyncio.to_thread(self._around.about)})
            answer = await self._bus.request(subjects.report(self._device), pack_report(reported), timeout_s=5)
            self._about_told = self._about_told or reported.info is not None
            self._bring_secrets(unpack_secrets(answer))
            desired = unpack_desired(answer)
            if desired is not None and desired != self._desired:
                log.info("desired state %d: %s", desired.version, _names(desired))
                self._apply(desired)
                self._folder.save_desired(desired)
            self._complained = ""
        except Retryable:
            pass  # the next report repairs it
        except MarramError as error:
            if str(error) != self._complained:
                log.warning("the cloud's answer: %s", error)
            self._complained = str(error)

    def _bring_secrets(self, versions: dict[str, int]) -> None:
        """Beside the reports, which never wait for it."""
        if versions != self._secrets.versions and (self._bringing_secrets is None or self._bringing_secrets.done()):
            self._bringing_secrets = asyncio.create_task(self._secrets_told(versions))

    async def _secrets_told(self, versions: dict[str, int]) -> None:
        if changed := await self._secrets.told(versions):
            for keeper in self._keepers.values():
                keeper.secrets_changed(changed)

    def _reported(self) -> Reported:
        uplink = self._uplink.status()
        keepers = list(self._keepers.values())
        return Reported(
            desired_version=self._desired.version,
            apps=[keeper.reported() for keeper in keepers],
            outbox_depth=uplink.waiting,
            outbox_bytes=uplink.waiting_bytes,
            dropped=sum(uplink.given_up.values()),
            memory_bytes=resident_bytes(os.getpid()),
            uptime_s=time.monotonic() - self._started_s,
            time_s=time.time(),
            certificate_expires_s=(self._folder.identity.validity_s() or (None, None))[1],
            temperature_c=self._thermals.temperature_c(),
            throttled=self._thermals.throttled(),
            held=self._ground.holding.words(),
            isolation=isolation(self._around.groups),
        )

    async def _last_words(self) -> None:
        """Offer the cloud what the workers flushed last, as long as it takes it."""
        with contextlib.suppress(MarramError):
            await self._write()
        with contextlib.suppress(MarramError, TimeoutError):
            async with asyncio.timeout(self._settings.drain_s):
                self._uplink.nudge()
                while self._bus.connected and self._outbox.depth():
                    await asyncio.sleep(0.05)
                if self._bus.connected:
                    await self._bus.request(subjects.report(self._device), pack_report(self._reported()), timeout_s=1)


async def _for_ever(what: str, work: Callable[[], Awaitable[None]]) -> None:
    """Run a part of the agent again whenever it fails: the other parts never notice."""
    while True:
        try:
            await work()
        except Exception as error:  # supervisor of the agent's parts: logged, started again
            log.error("%s failed; it starts again", what, exc_info=error)
        await asyncio.sleep(_AGAIN_S)


def _names(desired: Desired) -> str:
    return ", ".join(f"{app.name} {app.version}" for app in desired.apps) or "no apps"
