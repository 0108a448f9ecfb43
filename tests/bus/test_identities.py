"""Attackers at the broker, with the library itself and certificates of every wrong kind: nobody speaks as another."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import nats
import pytest
from nats.aio.client import Client
from tests.bus.conftest import QUICK

from marram.bus.accounts import ACCOUNTS, MAX_SUBSCRIPTIONS
from marram.bus.client import Bus, BusState, Message
from marram.bus.tls import TlsFiles
from marram.lab.gatehouse import Gatehouse
from marram.schema.errors import Invalid, Missing, Threat

Connect = Callable[..., Awaitable[Bus]]
Until = Callable[..., Awaitable[None]]


class Attacker:
    """A client without our own manners, with the identity of d1; `told`: what the broker said against it."""

    def __init__(self, broker: Gatehouse) -> None:
        self.broker = broker
        self.told: list[str] = []
        self.client: Client

    async def connect(self, tls: TlsFiles, user: str, password: str = "") -> None:
        async def note(error: Exception) -> None:
            self.told.append(str(error))

        self.client = await nats.connect(
            self.broker.url,
            tls=tls.context(),
            tls_handshake_first=True,
            user=user,
            password=password,
            allow_reconnect=False,
            connect_timeout=20,  # its own 2 s are few on a busy machine
            error_cb=note,
            inbox_prefix=f"_INBOX_{user}",
        )


@pytest.fixture
async def attacker(broker: Gatehouse) -> AsyncIterator[Attacker]:
    made = Attacker(broker)
    await made.connect(broker.identity("d1"), "d1")
    yield made
    await made.client.close()


async def refusal(bus: Bus, until: Until) -> str:
    await until(lambda: bus.state is BusState.REFUSED)
    return bus.refused or ""


# ---------------------------------------------------------------- let in, and no further


MAY_NOT_SAY = [
    "d.d2.events",
    "d.d2.desired",
    "d.d1.desired",
    "d.d1.anything",
    "_INBOX_d2.x",
    "_INBOX_CONTROL.x",
    "fleet.cut",
    # What replicas tell each other and hand on: a device cannot pose as one.
    "load.lite2.1",
    "hand.1.lite2.1.a",
    "served",
    "$SYS.REQ.SERVER.PING",
    "$SYS.REQ.USER.AUTH",
    "$JS.API.STREAM.CREATE.x",
    "anything",
]


async def test_what_it_may_not_say(attacker: Attacker, connect: Connect, until: Until) -> None:
    heard: list[str] = []

    async def note(message: Message) -> None:
        heard.append(message.subject)

    cloud = await connect()
    await cloud.wait_connected(10)
    await cloud.subscribe(">", note)
    for subject in MAY_NOT_SAY:
        attacker.told.clear()
        await attacker.client.publish(subject, b"x", reply="_INBOX_d1.y")
        await attacker.client.flush()
        await until(lambda: attacker.told)
        assert f'permissions violation for publish to "{subject}"'.lower() in attacker.told[0].lower()
    await attacker.client.publish("d.d1.events", b"x")
    await until(lambda: "d.d1.events" in heard)
    assert not {*MAY_NOT_SAY} & {*heard}


async def test_what_it_may_not_listen_to(attacker: Attacker, until: Until) -> None:
    for subject in (
        *(">", "*", "*.>", "d.>", "d.*.events", "d.d2.desired", "_INBOX.>", "_INBOX_d2.>", "$SYS.>"),
        # What others ask, and what replicas tell each other.
        *("infer.>", "infer.lite2.1", "infer.lite2.1.a", "probe", "probe.>", "load.>", "hand.>", "served"),
    ):
        attacker.told.clear()
        await attacker.client.subscribe(subject)
        await attacker.client.flush()
        await until(lambda: attacker.told)
        assert f'permissions violation for subscription to "{subject}"'.lower() in attacker.told[0].lower()


async def test_an_answer_cannot_be_sent_to_another(attacker: Attacker, connect: Connect, until: Until) -> None:
    asked: list[bool] = []
    spied: list[str] = []

    async def answer(message: Message) -> bytes:
        asked.append(message.wanted)
        return b"an answer"

    async def note(message: Message) -> None:
        spied.append(message.subject)

    cloud = await connect()
    await cloud.wait_connected(10)
    await cloud.subscribe("d.*.events", answer)
    for victim in ("_INBOX_d2.>", "d.d2.>"):
        await cloud.subscribe(victim, note)
    for reply in ("_INBOX_d2.x.1", "d.d2.desired", "_INBOX.x", "$SYS.REQ.SERVER.PING"):
        await attacker.client.publish("d.d1.events", b"x", reply=reply)
    assert (await attacker.client.request("d.d1.events", b"x", timeout=10)).data == b"an answer"
    assert asked == [False] * 4 + [True] and spied == []


async def test_its_subscriptions_are_bounded(attacker: Attacker, until: Until) -> None:
    with contextlib.suppress(nats.errors.Error):
        for number in range(MAX_SUBSCRIPTIONS + 1):
            await attacker.client.subscribe(f"_INBOX_d1.{number}")
    await until(lambda: "maximum subscriptions exceeded" in str(attacker.client.last_error).lower())


# ---------------------------------------------------------------- not let in


async def test_without_a_certificate_nothing_is_said_at_all(broker: Gatehouse) -> None:
    context = broker.identity("d1").context()
    bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    bare.check_hostname, bare.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection(("127.0.0.1", broker.port), 10) as plain, pytest.raises(ssl.SSLError):
        bare.wrap_socket(plain).recv(100)
    with socket.create_connection(("127.0.0.1", broker.port), 10) as plain:
        plain.sendall(b'CONNECT {"user":"CONTROL"}\r\nPING\r\n')
        with contextlib.suppress(ConnectionError):
            assert b"INFO" not in plain.recv(1000)
    with context.wrap_socket(socket.create_connection(("127.0.0.1", broker.port), 10)) as good:
        assert good.recv(5) == b"INFO " and good.version() == "TLSv1.3"


async def test_a_certificate_of_another_authority_with_the_same_name(
    broker: Gatehouse, tmp_path: Path, until: Until
) -> None:
    other = Gatehouse(tmp_path / "other")
    forged = TlsFiles(other.identity("d1").identity, broker.keys.ca_certificate)
    async with await Bus.connect(broker.url, "d1", tls=forged, timing=QUICK) as bus:
        said = await refusal(bus, until)
    assert said.startswith(f"{Threat.OTHER_CLOUD}: ")
    # And the device that believes in the other authority does not speak to this broker.
    async with await Bus.connect(broker.url, "d1", tls=other.identity("d1"), timing=QUICK) as bus:
        assert "not the cloud that this identity is of" in await refusal(bus, until)
    assert broker.refused == []  # neither came so far as to be asked about


async def test_a_device_is_let_in_under_no_other_name(broker: Gatehouse) -> None:
    for user in (*ACCOUNTS, "d2", ""):
        for password in ("", "guessed"):
            with pytest.raises(nats.errors.Error, match="Authorization Violation"):
                await Attacker(broker).connect(broker.identity("d1"), user, password)


async def test_a_service_without_its_password_is_nobody(broker: Gatehouse) -> None:
    for user in ("svc:test", "d1", "CONTROL"):
        with pytest.raises(nats.errors.Error, match="Authorization Violation"):
            await Attacker(broker).connect(broker.services, user)


async def test_an_expired_identity_says_so(broker: Gatehouse, until: Until) -> None:
    async with await Bus.connect(broker.url, "d1", tls=broker.renewed("d1", -60.0), timing=QUICK) as bus:
        assert (await refusal(bus, until)).startswith(f"{Threat.EXPIRED}: ")
        broker.renewed("d1")
        bus.reconnect()
        await bus.wait_connected(10)


async def test_a_device_cannot_pose_as_the_broker(broker: Gatehouse, until: Until) -> None:
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(broker.identity("d2").identity)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    server.wrap_socket(listener.accept()[0], server_side=True).close()
                except ssl.SSLError:
                    pass
                except OSError:
                    return

        threading.Thread(target=serve, daemon=True).start()
        url = f"nats://127.0.0.1:{listener.getsockname()[1]}"
        async with await Bus.connect(url, "d1", tls=broker.identity("d1"), timing=QUICK) as bus:
            assert (await refusal(bus, until)).startswith(f"{Threat.NOT_YOURS}: ")
        listener.shutdown(socket.SHUT_RDWR)


async def test_what_does_not_speak_tls_is_told(broker: Gatehouse, until: Until) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"INFO {}\r\n")
        await reader.read(10)
        writer.close()

    async with await asyncio.start_server(talk, "127.0.0.1", 0) as server:
        url = f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with await Bus.connect(url, "d1", tls=broker.identity("d1"), timing=QUICK) as bus:
            await until(lambda: bus.why)
            assert bus.why == "what answers there does not speak TLS"


async def test_an_identity_that_is_damaged_meanwhile_is_why(broker: Gatehouse, until: Until, tmp_path: Path) -> None:
    files = broker.identity("d1")
    mine = TlsFiles(tmp_path / "mine.pem", files.authority)
    mine.identity.write_text("garbage")
    async with await Bus.connect(f"nats://127.0.0.1:{broker.port}", "d1", tls=mine, timing=QUICK) as bus:
        await until(lambda: bus.why)
        assert str(mine.identity) in bus.why and "join again" in bus.why


def test_a_damaged_identity_is_named(broker: Gatehouse, tmp_path: Path) -> None:
    whole = broker.identity("d1")
    with pytest.raises(Missing, match=r"gone\.pem"):
        TlsFiles(tmp_path / "gone.pem", whole.authority).context()
    damaged = tmp_path / "damaged.pem"
    for content in (b"", b"rubbish", whole.identity.read_bytes()[:200], whole.authority.read_bytes()):
        damaged.write_bytes(content)
        with pytest.raises(Invalid, match=r"damaged\.pem.*damaged"):
            TlsFiles(damaged, whole.authority).context()


# ---------------------------------------------------------------- many, slow, gone


async def test_those_who_say_nothing_or_nonsense_keep_nobody_out(broker: Gatehouse, connect: Connect) -> None:
    standing = []
    for number in range(100):
        reader, writer = await asyncio.open_connection("127.0.0.1", broker.port)
        writer.write((b"", b"\x16\x03\x01", os.urandom(500), b"GET / HTTP/1.1\r\n\r\n")[number % 4])
        standing.append((reader, writer))
    device = await connect("d1")
    await device.wait_connected(10)
    for reader, writer in standing:
        with contextlib.suppress(ConnectionError):
            await reader.read()  # the broker ends every one of them by itself
        writer.close()
    assert device.connected and device.reconnects == 0


async def test_a_herd_comes_in(broker: Gatehouse, until: Until) -> None:
    names = [f"herd-{number}" for number in range(300)]
    broker.set_devices(names)
    made = [broker.identity(name) for name in names]
    buses = [await Bus.connect(broker.url, name, tls=tls) for name, tls in zip(names, made, strict=True)]
    await until(lambda: all(bus.connected for bus in buses), 90)
    await asyncio.gather(*(bus.close() for bus in buses))


async def test_fifty_come_back_to_a_broker_that_was_killed(broker: Gatehouse, until: Until) -> None:
    names = [f"pi-{number}" for number in range(50)]
    broker.set_devices(names)
    buses = [await broker.connect(name, timing=QUICK) for name in names]
    await until(lambda: all(bus.connected for bus in buses), 60)
    assert broker.server.pid is not None
    os.kill(broker.server.pid, signal.SIGKILL)
    await until(lambda: all(bus.reconnects and bus.connected for bus in buses), 60)
    await asyncio.gather(*(bus.close() for bus in buses))


async def test_while_nobody_says_who_may_come_in_those_inside_stay(
    broker: Gatehouse, connect: Connect, until: Until
) -> None:
    inside = await connect("d1")
    await inside.wait_connected(10)
    broker.leave_gate()
    outside = await connect("d2")
    await until(lambda: "timed out" in outside.why, 30)
    assert outside.state is BusState.CONNECTING  # it may be let in yet: nobody refused it
    assert inside.connected and inside.reconnects == 0
    broker.keep_gate()
    await outside.wait_connected(20)
    assert inside.reconnects == 0


async def test_a_renewed_identity_is_used_from_the_next_connection_on(
    broker: Gatehouse, connect: Connect, until: Until
) -> None:
    device = await connect("d1")
    await device.wait_connected(10)
    for turn in range(1, 4):
        broker.renewed("d1")
        device.reconnect()
        await until(lambda turn=turn: device.reconnects == turn and device.connected)
