"""The victim of attacks on identities: a real cloud with its broker and listeners, and devices that joined it.

Everything is as in the field but sooner: it waits less between two attempts. The cloud runs on a loop in a thread of
its own, so that attacks are plain functions.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from fastapi import FastAPI

from marram.bus import subjects
from marram.bus.client import Bus, BusState, Message, Timing
from marram.bus.http import CloudApi
from marram.bus.tls import TlsFiles
from marram.cloud import eviction
from marram.cloud.api.desk import Desk
from marram.cloud.api.limits import FailureLimit
from marram.cloud.server import Cloud
from marram.cloud.settings import Settings
from marram.edge.join import join
from marram.edge.renewing import Renewing
from marram.edge.state import Credentials, Folder
from marram.lab.attacks.outcome import Outcome, attempt
from marram.schema.api import RenewAsk, TokenAsk
from marram.schema.errors import Threat, Untrusted
from marram.store import CertificateRow
from marram.trust import identity

_T = TypeVar("_T")
_LONG_S = 30.0
# What attackers say.
ATTACK = b"attack"
QUICK = Timing(connect_s=2.0, ping_s=0.1, dead_after_s=2.0, retry_min_s=0.01, retry_max_s=0.1, refused_max_s=0.2)


@dataclass(frozen=True, slots=True)
class Identity:
    """A device that joined, as whoever has its disk knows it."""

    folder: Folder
    credentials: Credentials

    @property
    def name(self) -> str:
        return self.credentials.device

    @property
    def own(self) -> bytes:
        """Key and certificate, PEM."""
        return self.folder.identity.own.read_bytes()

    @property
    def tls(self) -> TlsFiles:
        return TlsFiles(self.folder.identity.own, self.folder.identity.authority)

    def copy(self, path: Path) -> Identity:
        """Somebody has a copy of its disk."""
        shutil.copytree(self.folder.path, path)
        return Identity(Folder(path), self.credentials)

    def ask(self, signer: bytes | None = None, csr: bytes | None = None) -> RenewAsk:
        """To renew its certificate; `signer`: whose key makes the proof, its own by default."""
        csr = csr or identity.request(identity.new_key())
        certificate = identity.certificate_of(self.own)
        return RenewAsk(
            certificate=certificate.decode(), csr=csr.decode(), proof=identity.prove(signer or self.own, csr)
        )


class Scene:
    """Use as a context manager. `folder` takes the cloud and its devices, and what commands would know of it."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.cloud = Cloud(Settings(folder=folder / "cloud", port=0), lambda app, state: setattr(self, "app", app))
        self.app: FastAPI  # its HTTP API
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="scene", daemon=True)
        self._before: dict[str, Any] = {}
        self._named = 0
        self.victim: Identity  # connected all the time
        self.thief: Identity  # has joined, too
        self._bus: Bus
        self._spied: list[str] = []
        self._reconnects = 0  # of the victim, by us

    def __enter__(self) -> Scene:
        # A cloud tells this machine's commands where it is: those of whoever plays this are none of its business.
        self._before = {"home": os.environ.get("MARRAM_HOME"), "pace": eviction.PACE}
        os.environ["MARRAM_HOME"] = str(self.folder / "home")
        eviction.PACE = eviction.Pace(look_s=0.5, sweep_s=1.0)
        self._thread.start()
        self.run(self.cloud.start())
        self.victim, self.thief = self.join("victim"), self.join("thief")
        self.run(self._live())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.run(self._bus.close())
        self.run(self.cloud.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        eviction.PACE = self._before["pace"]
        os.environ.pop("MARRAM_HOME")
        if self._before["home"] is not None:
            os.environ["MARRAM_HOME"] = self._before["home"]

    async def _live(self) -> None:
        async def note(message: Message) -> None:
            if message.payload == ATTACK or message.subject.startswith("_INBOX"):
                self._spied.append(message.subject)

        self._bus = await self.connect(self.victim.name, self.victim.tls)
        await self._bus.wait_connected(_LONG_S)
        for subject in (subjects.desired(self.victim.name), f"_INBOX_{self.victim.name}.spied.>"):
            await self._bus.subscribe(subject, note)

    def elsewhere(self) -> None:
        """From here on attackers come from an address that has not failed yet."""
        self.app.state.failures, self.app.state.desk = FailureLimit(), Desk()

    def harm(self) -> str:
        """What an attack did to the victim; "" where it is as before."""
        if self._spied:
            return f"the victim was sent something on {self._spied.pop()}"
        if not self._bus.connected or self._bus.reconnects != self._reconnects:
            self._reconnects = self._bus.reconnects
            return "the victim lost its connection"
        return ""

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        """On the cloud's loop, to its end."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(4 * _LONG_S)

    @property
    def url(self) -> str:
        return self.cloud.tls_url

    @property
    def authority(self) -> bytes:
        return self.cloud.state.authority.certificate_pem

    def path(self, what: str) -> Path:
        """A fresh place in the folder."""
        self._named += 1
        return self.folder / f"{what}-{self._named}"

    # ------------------------------------------------------------ devices

    def token(self, **more: Any) -> str:
        return self.cloud.state.create_token(TokenAsk(**more)).token

    def join(self, name: str, token: str | None = None, url: str | None = None) -> Identity:
        """As `marram edge join` does."""
        folder = Folder(self.path(name))
        return Identity(folder, join(folder, url or self.url, token or self.token(), name=name))

    def api(self, token: str | None = None) -> CloudApi:
        """The cloud over HTTPS, as somebody who believes in its authority."""
        return CloudApi(self.url, token, authority=self.authority.decode())

    def plain(self, token: str | None) -> CloudApi:
        """The same over HTTP, on this machine."""
        return CloudApi(self.cloud.url, token)

    def renewed(self, victim: Identity) -> Identity:
        """The device renews, in place, and is seen with what it got."""
        Renewing(victim.folder.identity).over_https(self.url)
        self.meet_broker(victim)
        return victim

    def aged(self, victim: Identity, days: float) -> Identity:
        """The same device with a certificate that was made so long ago."""
        then_s, key = time.time() - 86400 * days, identity.new_key()
        issued = self.cloud.state.authority.device_certificate(identity.request(key), victim.name, then_s)
        row = CertificateRow(issued.serial, victim.name, issued.key_hash, issued.issued_s, issued.expires_s)
        self.cloud.state.store.certificates.add(row)
        victim.folder.identity.own.write_bytes(identity.accept(issued.pem, key, self.authority))
        return victim

    # ------------------------------------------------------------ the broker

    async def connect(self, user: str, tls: TlsFiles, url: str | None = None, inbox: str | None = None) -> Bus:
        """Somebody at the broker; whether it is let in is still to be seen. On the cloud's loop."""
        urls = url or self.cloud.state.hands.brokers
        return await Bus.connect(urls, user, tls=tls, inbox_prefix=inbox, timing=QUICK)

    def meet_broker(
        self, who: Identity, *, user: str | None = None, tls: TlsFiles | None = None, url: str | None = None
    ) -> None:
        """Connect as `who`, or otherwise than it would. Raises Untrusted or Refused where it is not let in.

        The broker keeps the reason to itself: it is taken from what the cloud tells its operator.
        """

        async def meet() -> None:
            before = self.refusals()
            bus = await self.connect(who.name if user is None else user, tls or who.tls, url)
            try:
                async with asyncio.timeout(_LONG_S):
                    while bus.state is BusState.CONNECTING:
                        await bus.changed()
                if bus.refused is not None:
                    raise self.why(bus, before)
            finally:
                await bus.close()

        self.run(meet())

    def why(self, bus: Bus, before: Counter[Threat | None]) -> Untrusted:
        """Why `bus` is refused, by what was refused since `before`."""
        told = [threat for threat, count in self.refusals().items() if threat and count > before[threat]]
        return Untrusted(bus.refused or "", threat=told[0] if told else None)

    def refusals(self) -> Counter[Threat | None]:
        assert self.cloud.gate is not None and self.cloud.gate.admission is not None
        return Counter(self.cloud.gate.admission.refusals.counts)

    def cut_victim(self) -> None:
        """What no attack may do."""

        async def cut() -> None:
            before = self._bus.reconnects
            self._bus.reconnect()
            async with asyncio.timeout(_LONG_S):
                while self._bus.reconnects == before or not self._bus.connected:
                    await self._bus.changed()

        self.run(cut())

    def kill_broker(self) -> None:
        """kill -9; it is back when this returns."""
        assert self.cloud.gate is not None and self.cloud.gate._server is not None
        server = self.cloud.gate._server
        before = {bus: bus.reconnects for bus in (self.cloud.bus, self._bus)}
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)

        async def back() -> None:
            async with asyncio.timeout(_LONG_S):
                while any(bus.reconnects == turns or not bus.connected for bus, turns in before.items()):
                    await asyncio.sleep(0.02)
            self._reconnects = self._bus.reconnects

        self.run(back())


class Suite:
    """Attacks by name, each on one scene."""

    def __init__(self) -> None:
        self._attacks: dict[str, tuple[str | frozenset[str], Callable[[Scene], object]]] = {}

    def add(self, name: str, expected: str | frozenset[str], attack: Callable[[Scene], object]) -> None:
        """See `attempt`."""
        assert name not in self._attacks, name
        self._attacks[name] = expected, attack

    def attack(
        self, name: str, expected: str | frozenset[str]
    ) -> Callable[[Callable[[Scene], object]], Callable[[Scene], object]]:
        """The function below is one."""

        def added(attack: Callable[[Scene], object]) -> Callable[[Scene], object]:
            self.add(name, expected, attack)
            return attack

        return added

    def names(self) -> list[str]:
        return list(self._attacks)

    def play(self, name: str, scene: Scene) -> Outcome:
        """One of them; the victim must be as before."""
        expected, attack = self._attacks[name]
        scene.elsewhere()
        outcome = attempt(name, expected, lambda: attack(scene))
        harm = scene.harm()
        return replace(outcome, reason=None, words=harm) if harm else outcome

    def mount(self, scene: Scene) -> Iterator[Outcome]:
        """One after the other."""
        for name in self._attacks:
            yield self.play(name, scene)
