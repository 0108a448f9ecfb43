"""`Cloud`: the roles of one process composed: broker, store, objects, ingest, fleet, replicas, API.

Everything it starts, it stops, in the reverse order; and what it starts dies with it even after a kill -9. It holds no
state of its own: a restart on the same folder continues where the last one ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable

from fastapi import FastAPI

from marram.bus import subjects
from marram.bus.client import Bus
from marram.bus.codec import BenchNudge
from marram.cloud import fleet as fleet_role
from marram.cloud import ingest as ingest_role
from marram.cloud.access import write_context
from marram.cloud.answering import OverBus
from marram.cloud.api import create_app
from marram.cloud.api.askers import Askers
from marram.cloud.broker import Broker
from marram.cloud.fleet import Fleet
from marram.cloud.folder import FolderLock, make_folder
from marram.cloud.grpc_listener import GrpcListener
from marram.cloud.ingest import Ingest
from marram.cloud.listeners import Listeners, bracketed, reachable
from marram.cloud.peers import Peers
from marram.cloud.provision import check_belong, check_kept, provided, provision
from marram.cloud.renewals import Renewals
from marram.cloud.replicas import Key, Replicas, Start
from marram.cloud.settings import BrokerAddress, Role, Settings
from marram.cloud.state import CloudState, Hands, tried
from marram.schema.api import Check
from marram.schema.errors import Invalid, MarramError, Missing, NotReady, Retryable
from marram.schema.model import ModelCard
from marram.serving.oip.inference import Inference
from marram.serving.oip.rpc import Rpc
from marram.store import Objects, open_store
from marram.trust.keys import Keys

log = logging.getLogger(__name__)

_CHECK_S = 2.0
# Revoking a device waits so long for its connection to be cut; where nobody answers, it is cut a little later.
_CUT_S = 5.0

# Adds what stands on a floor above (the console) to the API's app before it is served.
Mount = Callable[[FastAPI, CloudState], None]


class Cloud:
    """One cloud process. `async with Cloud(settings).running() as cloud: …`, or `start`, `wait`, `stop`."""

    def __init__(self, settings: Settings, mount: Mount | None = None) -> None:
        self.settings = settings
        self.url = ""  # of the API on this machine, once started
        self.tls_url = ""  # for other machines
        self.grpc_port: int | None = None  # of the Open Inference Protocol, where it is wanted
        self.broker: BrokerAddress | None = None  # once started
        self.gate: Broker | None = None
        self.admin_token: str | None = None  # of this machine, where the API role runs
        self._mount = mount
        self._closing = contextlib.AsyncExitStack()
        self._failed: asyncio.Future[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._bus: Bus | None = None
        self._state: CloudState | None = None
        self.replicas: Replicas | None = None
        self._wanted: Callable[[], set[Key]] | None = None
        self.ingest: Ingest | None = None

    @property
    def state(self) -> CloudState:
        """Store, registry, rollout and the rest, once started."""
        assert self._state is not None, "not started"
        return self._state

    @property
    def bus(self) -> Bus:
        """The control connection, once started."""
        assert self._bus is not None, "not started"
        return self._bus

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Cloud]:
        """Started, and stopped at the end of the block."""
        await self.start()
        try:
            yield self
        finally:
            await self.stop()

    async def start(self) -> None:
        """Start every role and return once all of them work.

        Raises Conflict (folder or port taken), Refused (folder not writable), Invalid (settings), Retryable
        (database, broker or object store away).
        """
        self._loop = asyncio.get_running_loop()
        self._failed = self._loop.create_future()
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise

    async def wait(self) -> None:
        """Until a part that cannot be mended from here fails; raises why. Usually cancelled instead."""
        assert self._failed is not None, "not started"
        await asyncio.shield(self._failed)

    async def stop(self) -> None:
        """Stop what runs, newest first; any number of times."""
        await self._closing.aclose()

    async def _start(self) -> None:
        settings = self.settings
        if settings.nats is None and Role.API not in settings.roles:
            raise Invalid(
                f"a cloud that is only {', '.join(sorted(settings.roles))} needs a broker to meet the others",
                hint="Add --nats tls://HOST:4222, and the cloud's keys: --keys FOLDER",
            )
        lacks = settings.lacks
        if lacks:
            raise Invalid(
                f"a replica alone serves models that others keep, and is not told where: {' and '.join(lacks)}",
                hint="Give it the same as the cloud's other processes have: docs/cloud.md.",
            )
        listeners = None
        if Role.API in settings.roles:
            listeners = Listeners(settings.host, settings.port, settings.tls_port)
            self._closing.push_async_callback(listeners.stop)
            self.url, self.tls_url = listeners.url, listeners.tls_url
        if settings.nats is None:
            lock = await asyncio.to_thread(FolderLock, settings.folder)
            self._closing.callback(lock.release)
        else:
            await asyncio.to_thread(make_folder, settings.folder)
        self._state = await asyncio.to_thread(self._open_state)
        self._closing.push_async_callback(asyncio.to_thread, self._state.store.close)
        self.gate = Broker(settings, self._state.keys, self._state.authority)
        self._closing.push_async_callback(self.gate.stop)
        await self.gate.start()
        self.broker = self.gate.address
        self._bus = await self.gate.connect()
        self._closing.push_async_callback(self._bus.close)
        if Role.FLEET in settings.roles:
            await self.gate.guard(self._bus, self._state.store)
        self._state.hands = Hands(
            nudge=self._nudge,
            bench=self._bench,
            cut=self._cut,
            deployments_changed=self._wake,
            checks=self._checks,
            brokers=self._told_brokers(),
            url=self.tls_url,
        )
        await self._start_roles(self._state, self._bus)
        if listeners is not None:
            await self._start_api(self._state, listeners)

    # ------------------------------------------------------------ parts

    def _open_state(self) -> CloudState:
        settings = self.settings
        store = open_store(settings.database_url)
        try:
            scratch = make_folder(settings.folder / "scratch")
            for leftover in scratch.glob("upload-*"):  # of uploads that a crash cut off
                leftover.unlink(missing_ok=True)
            keys = Keys(settings.keys_folder)
            if settings.makes_keys:
                check_kept(keys, store)
                provision(keys, time.time())
            else:
                provided(keys)
                check_belong(keys, store)
            return CloudState(store, Objects(settings.objects_url), scratch, keys, settings.wheel_index)
        except BaseException:
            store.close()
            raise

    async def _start_roles(self, state: CloudState, bus: Bus) -> None:
        settings = self.settings
        if Role.INGEST in settings.roles:
            self.ingest = Ingest(bus, state.store, state.objects)
            await self.ingest.start()
            self._closing.push_async_callback(asyncio.to_thread, self.ingest.close)
            # Closed twice on purpose: first no more batches come, then the commits under way end, then the rest goes.
            self._closing.push_async_callback(bus.close)
        if Role.FLEET in settings.roles:
            fleet = Fleet(bus, state.store, state.objects, state.rollout, state.signing, state.safe)
            await fleet.start()
            self._closing.push_async_callback(fleet.stop)
            await Renewals(bus, state.enrolment).start()
            await Peers(bus, state.store).start()
        if Role.REPLICA in settings.roles:
            assert self.broker is not None and self.gate is not None
            asked = []
            for reference in settings.serve:  # a channel means what it points to now
                asked.append(await asyncio.to_thread(state.registry.pinned, reference))
                await asyncio.to_thread(state.registry.get, *asked[-1])  # a wrong --serve is told now
            start = Start(self.broker, self.gate.tls, settings.folder, settings.replica_memory_bytes)
            self._wanted = _wanted(state, asked)
            self.replicas = Replicas(state.registry, self._wanted, start, settings.replicas, bus)
            self.replicas.start()
            self._closing.push_async_callback(self.replicas.stop)
        elif settings.serve:
            raise Invalid("--serve needs the role replica", hint="Add --role replica, or leave --role out.")

    # ------------------------------------------------------------ the API

    async def _start_api(self, state: CloudState, listeners: Listeners) -> None:
        token = await asyncio.to_thread(state.access.first, self.settings.folder)
        self.admin_token = token.text
        answering = OverBus(self.bus, await asyncio.to_thread(_cards, state, self._wanted or _wanted(state, [])))
        answering.start()
        self._closing.push_async_callback(answering.stop)
        inference = Inference(answering)
        app = create_app(state, inference)
        if self.settings.grpc_port is not None:
            rpc = Rpc(inference, Askers(state.access, app.state.failures).by_metadata)
            listener = GrpcListener(self.settings.host, self.settings.grpc_port)
            await listener.start(rpc, state.authority)
            self._closing.push_async_callback(listener.stop)
            self.grpc_port = listener.port
        if self._mount is not None:
            self._mount(app, state)
        # Once more: it answers no longer before what it answers from goes.
        self._closing.push_async_callback(listeners.stop)
        await listeners.start(app, state.authority, self.settings.folder, self._ended)
        await asyncio.to_thread(write_context, self.url, token.text)

    def _ended(self, serving: asyncio.Task[None]) -> None:
        assert self._failed is not None
        if not self._failed.done() and not serving.cancelled() and serving.exception() is not None:
            self._failed.set_exception(Retryable(f"the HTTP server ended: {serving.exception()}"))

    # ------------------------------------------------------------ hands: called in any thread

    def _cut(self, device: str) -> None:
        assert self._loop is not None
        asked = asyncio.run_coroutine_threadsafe(self.bus.request(subjects.CUT, device.encode(), _CUT_S), self._loop)
        try:
            asked.result(_CUT_S + 1)
        except (MarramError, TimeoutError) as error:
            # It is let in nowhere any more, and the fleet role looks at everybody who is there now and then.
            log.warning("%s is revoked; its connection will be cut as soon as a fleet role can: %s", device, error)

    def _nudge(self, devices: list[str]) -> None:
        if devices:
            self._on_loop(fleet_role.nudge(self.bus, devices))

    def _bench(self, device: str, model: str | None) -> None:
        self._on_loop(self.bus.publish(subjects.desired(device), BenchNudge(model).pack()))

    def _wake(self) -> None:
        if self.replicas is not None and self._loop is not None:
            self._loop.call_soon_threadsafe(self.replicas.wake)

    def _on_loop(self, work: object) -> None:
        assert self._loop is not None and asyncio.iscoroutine(work)
        asyncio.run_coroutine_threadsafe(work, self._loop)

    def _checks(self) -> list[Check]:
        return [tried("broker", self._check_broker), tried("ingest", self._check_ingest)]

    def _check_broker(self) -> str:
        assert self.broker is not None
        if not self.bus.connected:
            raise NotReady(self.bus.refused or "not connected", where=self.broker.url)
        rtt_s = self.bus.rtt_s
        return self.broker.url if rtt_s is None else f"{self.broker.url}, {rtt_s * 1e3:.1f} ms"

    def _check_ingest(self) -> str:
        assert self._loop is not None
        asked = asyncio.run_coroutine_threadsafe(ingest_role.check(self.bus, _CHECK_S), self._loop)
        try:
            asked.result(_CHECK_S + 1)
        except TimeoutError as error:
            raise Retryable("ingest did not answer in time") from error
        return "a batch was acknowledged"

    def _told_brokers(self) -> list[str]:
        """What devices are told when they join."""
        if self.settings.brokers:
            return list(self.settings.brokers)
        assert self.broker is not None
        if self.settings.nats is not None:
            return [self.broker.url]
        return [f"nats://{bracketed(reachable(self.settings.host))}:{self.broker.url.rpartition(':')[2]}"]


def _cards(state: CloudState, wanted: Callable[[], set[Key]]) -> list[ModelCard]:
    cards = []
    for key in sorted(wanted()):
        with contextlib.suppress(Missing):  # whoever is to serve it says so
            cards.append(state.registry.get(*key).card)
    return cards


def _wanted(state: CloudState, asked: list[tuple[str, int | None]]) -> Callable[[], set[Key]]:
    def wanted() -> set[Key]:
        newest = {(name, state.registry.get(name, version).version) for name, version in asked}
        return newest | state.rollout.served()

    return wanted
