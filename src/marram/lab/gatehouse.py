"""A real broker with identities of its own: for tests and rehearsals of whatever connects, without a whole cloud.

It has an authority, gives any device a certificate, and lets in those it was told of, by the same question and answer
as a cloud. What a cloud's store would decide is a set of names here; nothing of it outlives its folder.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Coroutine, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

from marram.bus.accounts import ACCOUNTS, CALLOUT, CONTROL, SYSTEM, Accounts, ServerFiles
from marram.bus.callout import Admitted, Caller, Callout
from marram.bus.client import Bus, Timing
from marram.bus.connections import Connections
from marram.bus.server import EmbeddedServer
from marram.bus.subjects import device_permissions
from marram.bus.tls import TlsFiles
from marram.schema.errors import Refused
from marram.trust import identity
from marram.trust.authority import DEVICE_LIFE_S, Authority
from marram.trust.keys import Keys

_READY_S = 20.0


class Gatehouse:
    """Use as a context manager, or `start` and `stop`; any thread may. Those it lets in: `set_devices`."""

    def __init__(self, folder: Path, devices: Iterable[str] = (), port: int = 0) -> None:
        self.keys = Keys(folder / "keys")
        self.authority = Authority.create(self.keys, time.time())
        if not self.keys.callout_seed.exists():
            self.keys.write(self.keys.callout_seed, Accounts.new_seed())
        self.accounts = Accounts(self.keys.read(self.keys.callout_seed))
        self._identities = folder / "identities"
        self._identities.mkdir(exist_ok=True)
        self.services = self._kept("service", self.authority.service_certificate("test", time.time()))
        self.files = ServerFiles(folder / "server.pem", self.keys.ca_certificate)
        self.keys.write(self.files.identity, self.authority.server_certificate(["127.0.0.1"], time.time()))
        self.server = EmbeddedServer(folder / "broker", self.accounts, self.files, port=port)
        self.refused: list[str] = []
        self._devices = frozenset(devices)
        self._loop: asyncio.AbstractEventLoop | None = None  # while it runs, in a thread of its own
        self._thread: threading.Thread | None = None
        self._buses: list[Bus] = []

    def __enter__(self) -> Gatehouse:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        return self.server.url

    @property
    def port(self) -> int:
        return self.server.port

    def start(self) -> None:
        """The broker runs and the gate is kept when this returns. Raises as `EmbeddedServer.start`, NotReady."""
        self.server.start()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="gatehouse", daemon=True)
        self._thread.start()
        self._run(self._keep_gate())

    def stop(self) -> None:
        """Any number of times."""
        if self._loop is not None and self._thread is not None:
            self._run(self._leave_gate())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
            self._loop = self._thread = None
        self.server.stop()

    def set_devices(self, devices: Iterable[str]) -> None:
        """Who is let in from now on; whoever is no longer among them is cut. Returns once that is so."""
        self._devices = frozenset(devices)
        if self._loop is not None:
            self._run(self._cut_others())

    def leave_gate(self) -> None:
        """From now on nobody answers the broker: nobody new is let in."""
        self._run(self._leave_gate())

    def keep_gate(self) -> None:
        """From now on it is answered again."""
        self._run(self._keep_gate())

    def identity(self, device: str, life_s: float = DEVICE_LIFE_S) -> TlsFiles:
        """A certificate of `device` by this authority, whether or not it is let in; the same files each time."""
        if (self._identities / f"{device}.pem").exists():
            return TlsFiles(self._identities / f"{device}.pem", self.keys.ca_certificate)
        return self.renewed(device, life_s)

    def renewed(self, device: str, life_s: float = DEVICE_LIFE_S) -> TlsFiles:
        """A new key and certificate, in the files that `identity` names. `life_s` may be negative: it has expired."""
        key = identity.new_key()
        issued = self.authority.device_certificate(identity.request(key, device), device, time.time(), life_s)
        return self._kept(device, key + issued.pem)

    async def connect(
        self, device: str | None = None, *, url: str | None = None, timing: Timing | None = None, name: str = ""
    ) -> Bus:
        """A bus of `device`; without a name, the control connection. `url`: where it is reached through a link."""
        if device is not None:
            return await Bus.connect(url or self.url, device, tls=self.identity(device), timing=timing, name=name)
        password = self.accounts.password(CONTROL)
        return await Bus.connect(url or self.url, CONTROL, password, tls=self.services, timing=timing, name=name)

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        assert self._loop is not None
        asyncio.run_coroutine_threadsafe(work, self._loop).result(_READY_S)

    # ------------------------------------------------------------ on the gatehouse's own loop

    async def _keep_gate(self) -> None:
        for user in (CALLOUT, SYSTEM):
            password = self.accounts.password(user)
            quick = Timing(retry_min_s=0.01, retry_max_s=0.1)
            bus = await Bus.connect(self.url, user, password, tls=self.services, timing=quick)
            self._buses.append(bus)
            await bus.wait_connected(_READY_S)
        callout, system = self._buses
        self._connections = Connections(system)
        await Callout(callout, self.accounts, self._admit).start()

    async def _leave_gate(self) -> None:
        while self._buses:
            await self._buses.pop().close()

    async def _admit(self, caller: Caller) -> Admitted:
        shown = self.authority.presented(caller.chain[0].encode())
        if caller.user != shown.device or shown.device not in self._devices:
            self.refused.append(caller.user)
            raise Refused(f'"{caller.user}" is not let in')
        return Admitted(shown.device, device_permissions(shown.device), shown.expires_s)

    async def _cut_others(self) -> None:
        present = await self._connections.all()
        await self._connections.cut(
            each for each in present if each.user not in self._devices and each.user not in ACCOUNTS
        )

    def _kept(self, name: str, pem: bytes) -> TlsFiles:
        file = self._identities / f"{name}.pem"
        self.keys.write(file, pem)
        return TlsFiles(file, self.keys.ca_certificate)
