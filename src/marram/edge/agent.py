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
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from marram.bus import subjects
from marram.bus.client import Bus, BusState, Message
from marram.bus.codec import pack_report, unpack_desired
from marram.bus.outbox import Outbox
from marram.bus.uplink import Uplink
from marram.edge.away import away
from marram.edge.bundles import Bundles
from marram.edge.deploy import AppRecord
from marram.edge.fetch import Fetcher
from marram.edge.ground import Ground
from marram.edge.keeper import Keeper
from marram.edge.process import give_back_memory, resident_bytes
from marram.edge.state import Credentials, Folder
from marram.edge.status import StatusSocket
from marram.edge.supervisor import Patience
from marram.edge.tasks import cancelled
from marram.schema.device import Desired, DesiredApp, Reported
from marram.schema.errors import MarramError, Retryable

log = logging.getLogger("marram.edge")

_AGAIN_S = 5.0
_DISK_PAUSE_S = 2.0
# While the cloud stays away, that is said so often.
_SAY_AGAIN_S = 600.0


@dataclass(frozen=True, slots=True)
class Settings:
    """What a person may change of an agent."""

    report_every_s: float = 2.0
    # How long a stop waits for the cloud to take what is left in the outbox; what it does not take stays there.
    drain_s: float = 2.0
    patience: Patience = field(default_factory=Patience)


class Agent:
    """One device. `run` until `stop`; the caller holds the folder's lock."""

    def __init__(self, folder: Folder, credentials: Credentials, settings: Settings | None = None) -> None:
        self._folder, self._credentials = folder, credentials
        self._settings = settings or Settings()
        self._device = credentials.device
        self._desired = Desired()
        self._keepers: dict[str, Keeper] = {}
        self._running: dict[str, asyncio.Task[None]] = {}
        self._changed = asyncio.Event()
        self._stopping = asyncio.Event()
        self._started_s = time.monotonic()
        self._link = ""
        self._complained = ""

    def stop(self) -> None:
        """End clean: workers flush, the outbox is offered once more. Safe in a signal handler of the loop."""
        self._stopping.set()

    async def run(self) -> None:
        """Run the device. Raises MarramError where the folder cannot be used."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        bundles = Bundles(self._folder.path)
        bundles.make()
        outbox = await self._open_outbox()
        if outbox is None:
            return
        self._outbox = outbox
        self._bus = await Bus.connect(self._credentials.brokers, self._device, self._credentials.secret)
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
            forget=lambda app: outbox.progress(app, 0, ()),
        )
        log.info("device %s, process %d, folder %s", self._device, os.getpid(), self._folder.path)
        await self._bus.subscribe(subjects.desired(self._device), self._nudged)
        uplink = asyncio.create_task(_for_ever("the uplink", self._uplink.run))
        status = StatusSocket(self._folder.path, self.status)
        await status.open()
        self._resume()
        reports = asyncio.create_task(_for_ever("reporting", self._report_for_ever))
        give_back_memory()
        try:
            await self._stopping.wait()
            log.info("stopping")
        finally:
            ending = [reports, *self._running.values()]
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
            "link": self._away() or self._link or "connecting",
            "rtt_s": self._bus.rtt_s,
            "reported": self._reported().model_dump(mode="json"),
        }

    def _away(self) -> str:
        """What is to be said of a cloud that does not answer; "" where it does, or where it refuses us."""
        if self._bus.connected or self._bus.refused or not self._bus.why:
            return ""
        running = sum(keeper.running for keeper in self._keepers.values())
        return away(self._bus.url, self._bus.why, running, self._uplink.status(), self._outbox.limit_bytes)

    # ------------------------------------------------------------ desired

    def _resume(self) -> None:
        """Go on where the folder says we were, before a word from the cloud."""
        for name, record in self._folder.records().items():
            self._keep(name, record)
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
            self._want(name, app)

    def _want(self, name: str, app: DesiredApp) -> None:
        keeper = self._keepers.get(name)
        if keeper is not None:
            keeper.want(app)
            return
        log.info("%s: version %d is wanted", name, app.version)
        self._keep(name, AppRecord(target=app))

    def _keep(self, name: str, record: AppRecord) -> None:
        keeper = self._keepers[name] = Keeper(self._ground, record)
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
        self._changed.set()

    # ------------------------------------------------------------ report

    async def _nudged(self, message: Message) -> None:
        self._changed.set()

    def _on_state(self, state: BusState) -> None:
        if state is BusState.CLOSED:
            return
        up = state is BusState.CONNECTED
        words = f"refused: {self._bus.refused}" if self._bus.refused else "connected" if up else "down"
        if words != self._link:
            log.info("the link to the cloud: %s", words)
        self._link = words
        for keeper in self._keepers.values():
            keeper.link(up)
        if up:
            self._changed.set()

    async def _report_for_ever(self) -> None:
        swept: list[AppRecord] | None = None
        told_s = float("-inf")
        while True:
            self._changed.clear()
            if self._bus.connected:
                told_s = float("-inf")
                await self._report()
            elif (words := self._away()) and time.monotonic() - told_s > _SAY_AGAIN_S:
                told_s = time.monotonic()
                log.warning("%s", words)
            records = [keeper.record for keeper in self._keepers.values()]
            if records != swept and all(record.settled for record in records):
                await self._ground.sweep(self._needed)
                swept = records
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._settings.report_every_s):
                    await self._changed.wait()
                # Changes come in flocks (fetched, verified, provisional): one report for those of one moment.
                await asyncio.sleep(0.05)

    def _needed(self) -> list[DesiredApp]:
        records = [keeper.record for keeper in self._keepers.values()]
        return [*self._desired.apps, *(r.target for r in records), *(r.committed for r in records if r.committed)]

    async def _report(self) -> None:
        try:
            reported = self._reported()
            answer = await self._bus.request(subjects.report(self._device), pack_report(reported), timeout_s=5)
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
        )

    async def _last_words(self) -> None:
        """Offer the cloud what the workers flushed last, as long as it takes it."""
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
