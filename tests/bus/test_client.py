"""The supervised client against a real broker: killed, frozen, cut off, reset, slow, unwilling."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from marram.bus.client import Bus, BusState, Message, Timing
from marram.lab.gatehouse import Gatehouse
from marram.lab.shaper import Link
from marram.lab.traces import constant
from marram.schema.errors import (
    Invalid,
    MarramError,
    Missing,
    NotReady,
    Permanent,
    Refused,
    Retryable,
    Threat,
    Untrusted,
)

Connect = Callable[..., Awaitable[Bus]]
Until = Callable[..., Awaitable[None]]


# A dead connection is given up at once, as far as a busy machine lets one tell.
WATCHFUL = Timing(connect_s=5.0, ping_s=0.1, dead_after_s=0.5, retry_min_s=0.01, retry_max_s=0.1)


async def echo(message: Message) -> bytes:
    return message.payload


@pytest.fixture
async def cloud(connect: Connect) -> Bus:
    """The control user, answering on d.*.events with what it was sent."""
    bus = await connect()
    await bus.wait_connected(5)
    await bus.subscribe("d.*.events", echo, "ingest", parallel=8)
    return bus


@pytest.fixture
async def link(broker: Gatehouse) -> AsyncIterator[Link]:
    """A fast link to the broker that can be cut and reset."""
    async with Link("127.0.0.1", broker.port, constant(1e9, 0.001)) as shaped:
        yield shaped


# ---------------------------------------------------------------- speaking


async def test_a_request_is_answered(cloud: Bus, connect: Connect) -> None:
    device = await connect("d1")
    await device.wait_connected(5)
    assert await device.request("d.d1.events", b"hello", 5) == b"hello"
    big = bytes(3_500_000)
    assert await device.request("d.d1.events", big, 5) == big
    answers = await asyncio.gather(*(device.request("d.d1.events", b"%d" % n, 5) for n in range(200)))
    assert answers == [b"%d" % n for n in range(200)]
    assert device.rtt_s is not None


async def test_who_listens_no_more_answers_what_came_and_nothing_else(cloud: Bus, connect: Connect) -> None:
    came, go_on = asyncio.Semaphore(0), asyncio.Event()

    async def slow(message: Message) -> bytes:
        came.release()
        await go_on.wait()
        return message.payload

    await cloud.subscribe("probe", slow, "replicas", parallel=2)
    device = await connect("d1")
    await device.wait_connected(5)
    asked = [asyncio.create_task(device.request("probe", b"%d" % n, 30)) for n in range(5)]
    await came.acquire()
    ending = asyncio.create_task(cloud.unsubscribe("probe"))
    go_on.set()
    assert await asyncio.gather(*asked) == [b"%d" % n for n in range(5)]
    await ending
    with pytest.raises(NotReady, match="nobody answers"):
        await device.request("probe", b"", 30)
    await cloud.unsubscribe("never heard")


async def test_nobody_there_and_no_answer_are_told_apart(cloud: Bus, connect: Connect) -> None:
    async def never(_: Message) -> bytes | None:
        return None

    device = await connect("d1")
    await device.wait_connected(5)
    with pytest.raises(NotReady, match=r"nobody answers on infer\.yolo\.1"):
        await device.request("infer.yolo.1", b"", 30)
    await cloud.subscribe("probe", never)
    with pytest.raises(Retryable, match=r"within 0\.05 s") as caught:
        await device.request("probe", b"", 0.05)
    assert not isinstance(caught.value, NotReady)


@pytest.mark.parametrize("error", [Invalid("row 3 is bad"), Missing("no such model"), NotReady("still loading")])
async def test_what_a_handler_raises_its_asker_gets(cloud: Bus, connect: Connect, error: MarramError) -> None:
    async def failing(_: Message) -> bytes:
        raise error

    await cloud.subscribe("probe", failing)
    device = await connect("d1")
    await device.wait_connected(5)
    with pytest.raises(type(error), match=error.what) as caught:
        await device.request("probe", b"", 5)
    assert type(caught.value) is type(error)


async def test_a_failing_handler_is_logged_and_lives_on(
    cloud: Bus, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    async def fragile(message: Message) -> bytes:
        return b"%d" % (10 // int(message.payload))

    await cloud.subscribe("probe", fragile)
    device = await connect("d1")
    await device.wait_connected(5)
    with pytest.raises(Retryable, match="ZeroDivisionError"):
        await device.request("probe", b"0", 5)
    assert await device.request("probe", b"5", 5) == b"2"
    assert "the handler of probe failed" in caplog.text


async def test_too_big_is_invalid_both_ways(cloud: Bus, connect: Connect) -> None:
    async def huge(_: Message) -> bytes:
        return bytes(5_000_000)

    await cloud.subscribe("probe", huge)
    device = await connect("d1")
    await device.wait_connected(5)
    with pytest.raises(Invalid, match="5000000 bytes"):
        await device.request("d.d1.events", bytes(5_000_000), 5)
    with pytest.raises(Invalid, match="5000000 bytes"):
        await device.request("probe", b"", 5)
    with pytest.raises(Invalid, match="subject"):
        await device.request("no spaces", b"", 5)
    with pytest.raises(Invalid, match="subject"):
        await device.subscribe("no spaces", echo)
    assert await device.request("d.d1.events", b"fine", 5) == b"fine"  # nothing was broken by it


async def test_order_is_kept_unless_side_by_side_is_asked_for(cloud: Bus, connect: Connect, until: Until) -> None:
    seen: list[bytes] = []
    gate, inside = asyncio.Event(), 0

    async def in_order(message: Message) -> None:
        await asyncio.sleep(0)
        seen.append(message.payload)

    async def together(message: Message) -> bytes:
        nonlocal inside
        inside += 1
        await gate.wait()
        return message.payload

    await cloud.subscribe("d.*.report", in_order)
    await cloud.subscribe("probe", together, parallel=3)
    device = await connect("d1")
    await device.wait_connected(5)
    for n in range(100):
        await device.publish("d.d1.report", b"%d" % n)
    await until(lambda: len(seen) == 100)
    assert seen == [b"%d" % n for n in range(100)]
    asking = [asyncio.create_task(device.request("probe", b"%d" % n, 5)) for n in range(5)]
    await until(lambda: inside == 3)
    gate.set()
    await asyncio.gather(*asking)


# ---------------------------------------------------------------- a broker that is away


async def test_it_connects_once_the_broker_is_there(broker: Gatehouse, connect: Connect) -> None:
    broker.stop()
    device = await connect("d1")
    assert device.state is BusState.CONNECTING
    with pytest.raises(NotReady, match="does not answer"):
        await device.wait_connected(0.1)
    with pytest.raises(NotReady):
        await device.request("d.d1.events", b"", 5)
    with pytest.raises(NotReady):
        await device.publish("d.d1.report", b"")
    broker.start()
    await device.wait_connected(5)


async def test_killed_again_and_again(broker: Gatehouse, cloud: Bus, connect: Connect, until: Until) -> None:
    device = await connect("d1")
    states: list[BusState] = []
    device.on_state(states.append)
    for _ in range(3):
        await device.wait_connected(5)
        await cloud.wait_connected(5)
        assert await device.request("d.d1.events", b"x", 5) == b"x"
        assert broker.server.pid is not None
        os.kill(broker.server.pid, signal.SIGKILL)
        await until(lambda: not device.connected and not cloud.connected)
        with pytest.raises(NotReady):
            await device.request("d.d1.events", b"x", 5)
    await device.wait_connected(5)
    assert states == [BusState.CONNECTED] + [BusState.CONNECTING, BusState.CONNECTED] * 3
    assert device.reconnects == 3


async def test_what_waits_for_an_answer_is_told_at_once(
    broker: Gatehouse, cloud: Bus, connect: Connect, until: Until
) -> None:
    asked = asyncio.Event()

    async def never(_: Message) -> bytes | None:
        asked.set()
        return None

    await cloud.subscribe("probe", never)
    device = await connect("d1")
    await device.wait_connected(5)
    asking = asyncio.create_task(device.request("probe", b"", 3600))
    await asked.wait()
    assert broker.server.pid is not None
    os.kill(broker.server.pid, signal.SIGKILL)
    with pytest.raises(Retryable, match="lost while waiting"):
        await asking


async def test_nothing_sent_while_away_arrives_later(
    broker: Gatehouse, cloud: Bus, connect: Connect, until: Until
) -> None:
    seen: list[bytes] = []

    async def note(message: Message) -> None:
        seen.append(message.payload)

    await cloud.subscribe("d.*.report", note)
    device = await connect("d1")
    await device.wait_connected(5)
    assert broker.server.pid is not None
    os.kill(broker.server.pid, signal.SIGKILL)
    await until(lambda: not device.connected)
    with pytest.raises(NotReady):
        await device.publish("d.d1.report", b"old")
    await device.wait_connected(5)
    await cloud.wait_connected(5)
    await device.publish("d.d1.report", b"new")
    await until(lambda: seen)
    assert seen == [b"new"]


async def test_a_cut_is_noticed_and_healed(cloud: Bus, connect: Connect, link: Link, until: Until) -> None:
    device = await connect("d1", port=link.port, timing=WATCHFUL)
    await device.wait_connected(5)
    # With little under way our own watch notices, with much perhaps the kernel.
    for size, why in ((10, "no sign of life"), (200_000, "lost while waiting")):
        link.cut()
        asking = asyncio.create_task(device.request("d.d1.events", bytes(size), 3600))
        await until(lambda: not device.connected)
        with pytest.raises(Retryable, match=why):
            await asking
        link.heal()
        await device.wait_connected(10)
        assert await device.request("d.d1.events", b"x", 5) == b"x"


async def test_resets_are_survived(cloud: Bus, connect: Connect, link: Link, until: Until) -> None:
    device = await connect("d1", port=link.port)
    for count in range(5):
        await device.wait_connected(5)
        asking = [asyncio.create_task(device.request("d.d1.events", bytes(100_000), 30)) for _ in range(5)]
        await asyncio.sleep(0)
        link.reset()
        for result in await asyncio.gather(*asking, return_exceptions=True):
            assert isinstance(result, bytes | Retryable)
        await until(lambda count=count: device.reconnects == count + 1)


async def test_a_frozen_broker_is_noticed(broker: Gatehouse, cloud: Bus, connect: Connect, until: Until) -> None:
    device = await connect("d1", timing=WATCHFUL)
    await device.wait_connected(5)
    pid = broker.server.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        await until(lambda: not device.connected)
    finally:
        os.kill(pid, signal.SIGCONT)
    await device.wait_connected(10)
    await cloud.wait_connected(10)
    assert await device.request("d.d1.events", b"x", 5) == b"x"


async def test_a_slow_link_is_not_a_dead_one(broker: Gatehouse, cloud: Bus, connect: Connect) -> None:
    # 150 kB at 500 kbit/s take five times as long as a connection may be silent.
    async with Link("127.0.0.1", broker.port, constant(5e5, 0.05, 1e7)) as slow:
        device = await connect("d1", port=slow.port, timing=WATCHFUL)
        await device.wait_connected(10)
        assert len(await device.request("d.d1.events", bytes(150_000), 60)) == 150_000
        assert device.reconnects == 0


async def test_a_choked_link_says_so_and_piles_nothing_up(
    cloud: Bus, connect: Connect, link: Link, until: Until
) -> None:
    device = await connect("d1", port=link.port, timing=Timing(dead_after_s=1.0, ping_s=0.1))
    await device.wait_connected(5)
    link.cut()
    asking = [asyncio.create_task(device.request("d.d1.events", bytes(3_000_000), 3600)) for _ in range(4)]
    results = await asyncio.gather(*asking, return_exceptions=True)
    assert all(isinstance(result, Retryable) for result in results)
    assert any("choked" in str(result) for result in results)
    link.heal()
    await device.wait_connected(10)


@pytest.mark.skipif(sys.platform != "linux", reason="TCP_USER_TIMEOUT is Linux's; the watchdog serves elsewhere")
async def test_the_kernel_is_told_when_to_give_up(cloud: Bus, connect: Connect, link: Link, until: Until) -> None:
    device = await connect("d1", port=link.port, timing=WATCHFUL)
    for count in range(2):
        await device.wait_connected(5)
        assert device._session is not None
        connection = device._session._link._socket
        assert connection is not None
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 1000
        link.reset()
        await until(lambda count=count: device.reconnects == count + 1)


# ---------------------------------------------------------------- an unwilling broker


async def test_one_that_is_not_let_in_is_told_so_and_tries_again(
    broker: Gatehouse, connect: Connect, until: Until, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "marram.bus.client")
    broker.set_devices(["d2"])
    device = await connect("d1")
    await until(lambda: device.state is BusState.REFUSED)
    assert device.refused is not None
    with pytest.raises(Refused, match="Authorization Violation"):
        await device.wait_connected(1)
    with pytest.raises(NotReady, match="refuses d1"):
        await device.request("d.d1.events", b"", 5)
    assert len(caplog.records) == 1  # said once, however often it is tried
    broker.set_devices(["d1"])
    await device.wait_connected(5)
    assert device.refused is None


async def test_a_revoked_device_is_out_at_once(broker: Gatehouse, connect: Connect, until: Until) -> None:
    device, other = await connect("d1"), await connect("d2")
    await device.wait_connected(5)
    await other.wait_connected(5)
    await asyncio.to_thread(broker.set_devices, ["d2"])
    await until(lambda: device.state is BusState.REFUSED)
    assert other.connected and other.reconnects == 0


async def test_a_device_speaks_and_hears_only_as_itself(
    cloud: Bus, connect: Connect, until: Until, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[str] = []

    async def note(message: Message) -> None:
        heard.append(message.subject)

    one, two = await connect("d1"), await connect("d2")
    await one.wait_connected(5)
    await two.wait_connected(5)
    for subject in ("d.d2.events", "d.d2.report", "d.*.events", "$SYS.REQ.SERVER.PING", "_INBOX_d2.x"):
        with pytest.raises((Untrusted, Invalid)):
            await one.request(subject, b"", 5)
    for subject in ("d.d2.desired", "d.*.desired", "d.d2.events", "_INBOX_d2.>", "_INBOX.>", ">", "infer.>"):
        with pytest.raises(Untrusted) as refused:
            await one.subscribe(subject, note)
        assert refused.value.threat is Threat.NOT_YOURS
    await one.subscribe("d.d1.desired", note)
    assert await two.request("d.d2.events", b"secret", 5) == b"secret"
    for subject in ("d.d2.desired", "d.d1.desired", "infer.x.1", "anything"):
        await cloud.publish(subject, b"")
    await until(lambda: heard)
    # The broker takes one's subscriptions and publishes in order: whatever it would deliver came with the first.
    assert await two.request("d.d2.events", b"x", 5) == b"x"
    assert heard == ["d.d1.desired"]
    assert "does not permit d1" in caplog.text
    assert one.connected and one.reconnects == 0


async def test_no_answer_goes_where_only_we_may_speak(cloud: Bus, connect: Connect, until: Until) -> None:
    heard: list[bytes] = []

    async def note(message: Message) -> None:
        heard.append(message.payload)

    one, two = await connect("d1"), await connect("d2")
    await one.wait_connected(5)
    await two.wait_connected(5)
    await two.subscribe("d.d2.desired", note)
    assert one._session is not None
    await one._session.publish("d.d1.events", b"with our rights", reply="d.d2.desired")
    assert await one.request("d.d1.events", b"x", 5) == b"x"  # what came before has been answered, or not
    await cloud.publish("d.d2.desired", b"ours")
    await until(lambda: heard)
    assert heard == [b"ours"]


async def test_a_handshake_with_slow_auth_is_finished(until: Until) -> None:
    """As a broker with slow auth does: its own PING comes before the PONG that ends the handshake."""
    answered = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"server_id":"x","version":"2.15.1","headers":true,"max_payload":4000000}\r\n')
        while line := await reader.readline():
            if line.startswith(b"PING"):
                writer.write(b"PONG\r\n" if answered.is_set() else b"PING\r\n")
            elif line.startswith(b"PONG"):
                answered.set()
                writer.write(b"PONG\r\n")

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        bus = await Bus.connect(f"nats://127.0.0.1:{port}", "d1", "secret")
        await bus.wait_connected(5)
        assert answered.is_set()
        await bus.close()


@pytest.mark.parametrize(
    "greeting", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\xff" * 100_000, b"INFO {\r\n", b"INFO []\r\n", b""]
)
async def test_what_is_not_a_broker_is_tried_again_and_again(until: Until, greeting: bytes) -> None:
    visits = 0

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal visits
        visits += 1
        writer.write(greeting)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        bus = await Bus.connect(f"nats://127.0.0.1:{port}", "d1", "secret", timing=Timing(retry_max_s=0.05))
        await until(lambda: visits >= 3)
        assert bus.state is BusState.CONNECTING
        await bus.close()


async def test_closing_in_the_middle_of_an_attempt_ends() -> None:
    """A cancellation that comes together with a reply is swallowed by what is below us; closing ends all the same."""

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    draw = random.Random(7)
    async with server:
        port = server.sockets[0].getsockname()[1]
        for _ in range(60):
            bus = await Bus.connect(f"nats://127.0.0.1:{port}", "d1", "secret", timing=Timing(retry_min_s=0.001))
            await asyncio.sleep(draw.random() * 0.02)
            await bus.close()
            assert bus.state is BusState.CLOSED


async def test_an_error_that_closes_for_good_is_not_for_good(until: Until) -> None:
    """`-ERR` of most kinds makes nats-py give up for ever; we come again."""
    visits = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal visits
        visits += 1
        writer.write(b'INFO {"server_id":"x","version":"2.15.1","headers":true,"max_payload":4000000}\r\n')
        while line := await reader.readline():
            if line.startswith(b"PING"):
                writer.write(b"PONG\r\n")
            elif line.startswith(b"SUB"):
                writer.write(b"PONG\r\n-ERR 'User Authentication Expired'\r\n")

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        bus = await Bus.connect(f"nats://127.0.0.1:{port}", "d1", "secret", timing=Timing(retry_max_s=0.05))
        await until(lambda: visits >= 3)
        await bus.close()


async def test_it_takes_the_broker_that_is_there(broker: Gatehouse) -> None:
    with socket.create_server(("127.0.0.1", 0)) as dead:
        away = f"nats://127.0.0.1:{dead.getsockname()[1]}"
    bus = await Bus.connect([away, broker.url], "d1", tls=broker.identity("d1"))
    await bus.wait_connected(5)
    await bus.close()


@pytest.mark.parametrize("urls", [[], "localhost:4222", "http://localhost:80", "nats://"])
async def test_a_malformed_address_is_named(urls: str | list[str]) -> None:
    with pytest.raises(Invalid, match="broker"):
        await Bus.connect(urls, "d1", "secret")


async def test_closed_is_closed(cloud: Bus, connect: Connect) -> None:
    done = asyncio.Event()
    began = asyncio.Event()

    async def slow(_: Message) -> bytes:
        began.set()
        await asyncio.sleep(0.05)
        done.set()
        return b"done"

    await cloud.subscribe("probe", slow)
    device = await connect("d1")
    await device.wait_connected(5)
    asking = asyncio.create_task(device.request("probe", b"", 5))
    await began.wait()
    await cloud.close()  # lets the handler at work finish and reply
    assert done.is_set()
    assert await asking == b"done"
    await device.close()
    await device.close()
    assert device.state is BusState.CLOSED
    with pytest.raises(NotReady):
        await device.request("probe", b"", 5)
    with pytest.raises(Permanent):
        await device.wait_connected(1)


def test_a_device_can_afford_it() -> None:
    """The agent may have 45 MB in all; the bus alone must leave room, so it brings no numpy along."""
    code = (
        "import sys, psutil, marram.bus.client, marram.bus.uplink, marram.bus.writer;"
        "assert 'numpy' not in sys.modules;"
        "print(psutil.Process().memory_info().rss)"
    )
    rss = int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout)
    assert rss < 45e6
