"""Attacks at the broker: coming in as somebody else, and saying or hearing what is another's."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

from marram.bus import subjects
from marram.bus.accounts import ACCOUNTS
from marram.bus.client import Bus, Message
from marram.bus.tls import TlsFiles
from marram.lab.attacks.impostor import Impostor
from marram.lab.attacks.scene import ATTACK, Identity, Scene, Suite
from marram.schema.errors import NotReady, Permanent, Threat
from marram.trust import identity
from marram.trust.authority import Authority
from marram.trust.keys import Keys

SUITE = Suite()
_ANSWERED_S = 10.0


# ---------------------------------------------------------------- coming in


class _Bare(TlsFiles):
    """Somebody without a certificate."""

    def context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return context


@SUITE.attack("broker: no certificate", "the broker wants a certificate")
def _no_certificate(scene: Scene) -> None:
    scene.meet_broker(scene.victim, tls=_Bare(Path(), Path()))


@SUITE.attack("broker: a certificate of the same name by another authority", Threat.OTHER_CLOUD)
def _forged(scene: Scene) -> None:
    other = Authority.create(Keys(scene.path("other-cloud")), time.time())
    scene.meet_broker(scene.victim, tls=_shown(scene, other))


@SUITE.attack("broker: a certificate of this authority that was never given out", Threat.OTHER_CLOUD)
def _never_issued(scene: Scene) -> None:
    scene.meet_broker(scene.victim, tls=_shown(scene, scene.cloud.state.authority))


def _shown(scene: Scene, authority: Authority) -> TlsFiles:
    """A new key, and the victim's name on a certificate for it."""
    key = identity.new_key()
    issued = authority.device_certificate(identity.request(key), scene.victim.name, time.time())
    return _kept(scene, key + issued.pem)


def _kept(scene: Scene, pem: bytes) -> TlsFiles:
    file = scene.path("identity")
    file.write_bytes(pem)
    return replace(scene.victim.tls, identity=file)


@SUITE.attack("broker: as another device, with one's own certificate", Threat.NOT_YOURS)
def _other_name(scene: Scene) -> None:
    scene.meet_broker(scene.thief, user=scene.victim.name)


@SUITE.attack("broker: a device poses as a service", Threat.NOT_YOURS)
def _as_service(scene: Scene) -> None:
    scene.meet_broker(scene.thief, user="svc:cloud")


for _account in ACCOUNTS:

    @SUITE.attack(f"broker: a device poses as {_account}", f"the broker refuses {_account}")
    def _as_account(scene: Scene, account: str = _account) -> None:
        scene.meet_broker(scene.thief, user=account)


@SUITE.attack("broker: a service's certificate without its password, as a device", Threat.NOT_YOURS)
def _service_as_device(scene: Scene) -> None:
    authority = scene.cloud.state.authority
    scene.meet_broker(scene.victim, tls=_kept(scene, authority.service_certificate("cloud", time.time())))


@SUITE.attack("broker: the cloud's server certificate, as a device", "the broker does not accept the certificate")
def _server_as_device(scene: Scene) -> None:
    authority = scene.cloud.state.authority
    scene.meet_broker(scene.victim, tls=_kept(scene, authority.server_certificate(["victim"], time.time())))


@SUITE.attack("broker: an expired certificate", Threat.EXPIRED)
def _expired(scene: Scene) -> None:
    scene.meet_broker(scene.aged(scene.join("asleep"), 31))


@SUITE.attack("broker: a device stands where the broker was", Threat.NOT_YOURS)
def _device_as_broker(scene: Scene) -> None:
    with contextlib.closing(Impostor(scene.folder, scene.thief.own, scene.authority)) as impostor:
        scene.meet_broker(scene.victim, url=f"nats://{impostor.address}")


@SUITE.attack("broker: of another cloud", Threat.OTHER_CLOUD)
def _other_broker(scene: Scene) -> None:
    other = Authority.create(Keys(scene.path("other-cloud")), time.time())
    shown = other.server_certificate(["localhost"], time.time())
    with contextlib.closing(Impostor(scene.folder, shown, other.certificate_pem)) as impostor:
        scene.meet_broker(scene.victim, url=f"nats://{impostor.address}")


# ---------------------------------------------------------------- no longer welcome


@SUITE.attack("broker: a copy, after the device renewed", Threat.CLONED)
def _superseded(scene: Scene) -> None:
    device = scene.join("renewing")
    clone = device.copy(scene.path("clone"))
    scene.renewed(device)
    scene.meet_broker(clone)


@SUITE.attack("broker: a copy that was connected as the device renewed", Threat.CLONED)
def _superseded_while_connected(scene: Scene) -> None:
    device = scene.join("renewing-live")
    clone = device.copy(scene.path("clone"))
    _cut(scene, clone, lambda: scene.renewed(device))


@SUITE.attack("broker: two with one identity at once", Threat.CLONED)
def _double(scene: Scene) -> None:
    """The one that was there first stays, the other is cut and kept out."""
    device = scene.join("doubled")
    clone = device.copy(scene.path("clone"))

    async def live() -> None:
        before = scene.refusals()
        async with _connected(scene, device) as first, _connected(scene, clone) as second:
            speaking = [asyncio.create_task(_speak(bus)) for bus in (first, second)]
            try:
                await _refused(second)
            finally:
                for task in speaking:
                    task.cancel()
            if not first.connected or first.reconnects:
                raise Permanent("the one that was there first was cut")
            raise scene.why(second, before)

    scene.run(live())


@SUITE.attack("broker: revoked while connected", Threat.REVOKED)
def _revoked(scene: Scene) -> None:
    device = scene.join("sold")
    _cut(scene, device, lambda: scene.cloud.state.remove_device("sold"))


@SUITE.attack("broker: revoked, after a restart of the broker", Threat.REVOKED)
def _revoked_restarted(scene: Scene) -> None:
    device = scene.join("retired")
    scene.cloud.state.store.devices.revoke("retired")
    scene.kill_broker()
    scene.meet_broker(device)


def _cut(scene: Scene, who: Identity, act: Callable[[], object]) -> None:
    """`who` is connected as `act` is done. Raises why it is not let in again."""

    async def live() -> None:
        before = scene.refusals()
        async with _connected(scene, who) as bus:
            await asyncio.to_thread(act)
            await _refused(bus)
            raise scene.why(bus, before)

    scene.run(live())


@contextlib.asynccontextmanager
async def _connected(scene: Scene, who: Identity) -> AsyncIterator[Bus]:
    async with await scene.connect(who.name, who.tls) as bus:
        await bus.wait_connected(_ANSWERED_S)
        yield bus


async def _speak(bus: Bus) -> None:
    while True:
        with contextlib.suppress(NotReady):
            await bus.publish(subjects.PROBE, b"")
        await asyncio.sleep(0.1)


async def _refused(bus: Bus) -> None:
    async with asyncio.timeout(3 * _ANSWERED_S):
        while bus.refused is None:
            await bus.changed()


# ---------------------------------------------------------------- saying and hearing


def _as_thief(attack: Callable[[Bus], Coroutine[Any, Any, object]]) -> Callable[[Scene], None]:
    """`attack` by a device that joined, on its connection."""

    def play(scene: Scene) -> None:
        async def connected() -> None:
            async with _connected(scene, scene.thief) as bus:
                await attack(bus)

        scene.run(connected())

    return play


def _say(subject: str) -> Callable[[Scene], None]:
    return _as_thief(lambda bus: bus.request(subject, ATTACK, _ANSWERED_S))


def _hear(subject: str) -> Callable[[Scene], None]:
    async def note(message: Message) -> None: ...

    return _as_thief(lambda bus: bus.subscribe(subject, note))


_OTHERS = [make("victim") for make in (
    subjects.events, subjects.report, subjects.desired, subjects.blob, subjects.metadata, subjects.renew,
    subjects.secrets)]  # fmt: skip
for _subject in (
    *_OTHERS, "d.thief.desired", "d.thief.anything", "_INBOX_victim.spied.1", "_INBOX.x", "_INBOX_CONTROL.x",
    subjects.CUT, "$SYS.REQ.SERVER.PING", "$SYS.REQ.USER.AUTH", "$JS.API.INFO", "$JS.API.STREAM.CREATE.x", "anything",
):  # fmt: skip
    SUITE.add(f"saying: {_subject}", Threat.NOT_YOURS, _say(_subject))
for _subject in (
    *_OTHERS, ">", "*", "*.>", "d.>", "d.*.events", "_INBOX.>", "_INBOX_victim.>", "_INBOX_CONTROL.>", "$SYS.>",
    "$SYS.REQ.USER.AUTH", "$JS.API.>", "infer.>", subjects.CUT,
):  # fmt: skip
    SUITE.add(f"hearing: {_subject}", Threat.NOT_YOURS, _hear(_subject))


@SUITE.attack("saying: where the answer to a question should go", Threat.NOT_YOURS)
def _misdirected(scene: Scene) -> None:
    """The cloud would speak into the victim's inbox, with its own rights."""

    async def ask() -> None:
        async with await scene.connect("thief", scene.thief.tls, inbox="_INBOX_victim.spied") as bus:
            await bus.wait_connected(_ANSWERED_S)
            await bus.request(subjects.metadata("thief"), ATTACK, 1.0)

    scene.run(ask())
