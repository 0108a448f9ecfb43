"""From the outbox to a database in the cloud, exactly once, whatever happens in between."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from marram.bus import codec, subjects, uplink
from marram.bus.client import Bus, Message, Timing
from marram.bus.outbox import Outbox
from marram.bus.uplink import Uplink
from marram.bus.writer import OutboxWriter
from marram.lab.gatehouse import Gatehouse
from marram.lab.shaper import Link
from marram.lab.traces import constant
from marram.schema.errors import Invalid, Retryable
from marram.schema.event import Event, EventKind

Connect = Callable[..., Awaitable[Bus]]
Until = Callable[..., Awaitable[None]]


class Sink:
    """An ingest in small: one SQLite table keyed (device, stream, sequence), acknowledged after the commit."""

    def __init__(self, path: Path) -> None:
        self.database = sqlite3.connect(path, isolation_level=None)
        self.database.execute("PRAGMA journal_mode = WAL")
        self.database.execute(
            "CREATE TABLE events (device, stream, sequence, n, PRIMARY KEY (device, stream, sequence))"
        )
        self.batches: list[tuple[int, int]] = []  # events, bytes
        self.again = 0
        self.poison: set[int] = set()

    async def handle(self, message: Message) -> bytes:
        records = codec.unpack_batch(message.payload)
        if any(r.event.data.get("n") in self.poison for r in records):
            raise Invalid("a poisoned record")
        device = subjects.device_of(message.subject)
        self.database.execute("BEGIN IMMEDIATE")
        stored = self.database.executemany(
            "INSERT OR IGNORE INTO events VALUES (?, ?, ?, ?)",
            [(device, r.stream, r.sequence, r.event.data.get("n")) for r in records],
        ).rowcount
        self.database.execute("COMMIT")
        self.again += len(records) - stored
        self.batches.append((len(records), len(message.payload)))
        return codec.pack_ack(stored, max(r.sequence for r in records))

    def stored(self) -> list[int]:
        return [n for (n,) in self.database.execute("SELECT n FROM events WHERE n IS NOT NULL ORDER BY sequence")]


def event(number: int, size: int = 0) -> Event:
    return Event(EventKind.RESULT, "gate", 1.7e9, {"n": number}, os.urandom(size) if size else None)


@pytest.fixture
def sink(tmp_path: Path) -> Iterator[Sink]:
    made = Sink(tmp_path / "sink.db")
    yield made
    made.database.close()


@pytest.fixture
async def cloud(connect: Connect, sink: Sink) -> Bus:
    bus = await connect()
    await bus.wait_connected(5)
    await bus.subscribe(subjects.INGEST, sink.handle, "ingest")
    return bus


@pytest.fixture
async def send(outbox: Outbox) -> AsyncIterator[Callable[[Bus], Uplink]]:
    """`send(bus)`: an uplink of d1 at work."""
    tasks: list[asyncio.Task[None]] = []

    def begin(bus: Bus) -> Uplink:
        made = Uplink(bus, outbox, "d1")
        tasks.append(asyncio.create_task(made.run()))
        return made

    yield begin
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


Send = Callable[[Bus], Uplink]


async def test_what_is_in_the_outbox_arrives_in_order(
    outbox: Outbox, sink: Sink, cloud: Bus, connect: Connect, send: Send, until: Until
) -> None:
    outbox.append([event(n) for n in range(2000)])
    uplink = send(await connect("d1"))
    await until(lambda: outbox.depth() == 0)
    assert sink.stored() == list(range(2000))
    assert max(events for events, _ in sink.batches) <= 500
    assert max(size for _, size in sink.batches) <= 256_000 + 100
    await until(lambda: uplink.status().waiting == 0)
    assert uplink.status().delivered == 2000
    assert uplink.status().error is None


async def test_what_comes_later_is_noticed_with_and_without_a_nudge(
    outbox: Outbox,
    sink: Sink,
    cloud: Bus,
    connect: Connect,
    send: Send,
    until: Until,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(uplink, "LOOK_ANYWAY_S", 3600.0)  # what looks now and then all the same hides nothing here
    device = await connect("d1")
    sending = send(device)
    await device.wait_connected(5)
    other = Outbox(outbox.path)  # as a worker has it
    other.append([event(0)])
    await until(lambda: sink.stored() == [0])
    other.append([event(1)])
    await until(lambda: sink.stored() == [0, 1])
    other.append([event(2)])
    sending.nudge()
    await until(lambda: sink.stored() == [0, 1, 2])
    other.close()


async def test_the_broker_killed_again_and_again_loses_and_doubles_nothing(
    broker: Gatehouse, outbox: Outbox, sink: Sink, cloud: Bus, connect: Connect, send: Send, until: Until
) -> None:
    send(await connect("d1"))
    writer = OutboxWriter(outbox)
    for n in range(6000):
        writer.emit(event(n, 100))
        if n % 1000 == 500:
            await until(lambda: broker.server.pid is not None)  # the last one may be starting still
            before = len(sink.batches)
            assert broker.server.pid is not None
            os.kill(broker.server.pid, signal.SIGKILL)
            await until(lambda before=before: len(sink.batches) > before)
        elif n % 100 == 0:
            await asyncio.sleep(0)
    writer.close()
    await until(lambda: outbox.depth() == 0)
    assert sink.stored() == list(range(6000))
    assert broker.server.restarts >= 5


async def test_cuts_and_resets_lose_and_double_nothing(
    broker: Gatehouse, outbox: Outbox, sink: Sink, cloud: Bus, connect: Connect, send: Send, until: Until
) -> None:
    async with Link("127.0.0.1", broker.port, constant(5e7, 0.004)) as link:
        device = await connect("d1", port=link.port, timing=Timing(ping_s=0.1, dead_after_s=0.5, retry_max_s=0.1))
        send(device)
        await device.wait_connected(5)
        sent = 0
        for turn in range(4):
            outbox.append([event(sent + n, 500) for n in range(400)])
            sent += 400
            before = len(sink.batches)
            await until(lambda before=before: len(sink.batches) > before)
            if turn % 2:
                link.cut()
                await until(lambda: not device.connected)
                link.heal()
            else:
                link.reset()
            await device.wait_connected(10)
        await until(lambda: outbox.depth() == 0)
    assert sink.stored() == list(range(sent))


async def test_an_acknowledgement_that_got_lost_doubles_nothing(
    outbox: Outbox, sink: Sink, connect: Connect, send: Send, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uplink, "ANSWER_S", 0.5)
    calls = 0

    async def forgetful(message: Message) -> bytes | None:
        nonlocal calls
        calls += 1
        reply = await sink.handle(message)
        return {1: None, 2: b"garbage", 3: codec.pack_ack(1, 10**9)}.get(calls, reply)

    cloud = await connect()
    await cloud.wait_connected(5)
    await cloud.subscribe(subjects.INGEST, forgetful)
    outbox.append([event(n) for n in range(10)])
    sending = send(await connect("d1"))
    await until(lambda: sending.error is not None)
    await until(lambda: outbox.depth() == 0)
    assert sink.stored() == list(range(10))
    assert sink.again >= 30
    await until(lambda: sending.status().error is None)


async def test_while_the_cloud_cannot_store_everything_waits(
    outbox: Outbox, sink: Sink, connect: Connect, send: Send, until: Until
) -> None:
    broken = True

    async def handle(message: Message) -> bytes:
        if broken:
            raise Retryable("the database is away")
        return await sink.handle(message)

    device = await connect("d1")
    sending = send(device)
    outbox.append([event(n) for n in range(5)])
    await until(lambda: sending.error is not None)  # nobody there at all
    cloud = await connect()
    await cloud.wait_connected(5)
    await cloud.subscribe(subjects.INGEST, handle)
    await until(lambda: "database is away" in str(sending.status().error))
    assert outbox.depth() == 5
    broken = False
    await until(lambda: outbox.depth() == 0)
    assert sink.stored() == list(range(5))


async def test_poisoned_records_are_set_aside_and_the_rest_goes_on(
    outbox: Outbox, sink: Sink, cloud: Bus, connect: Connect, send: Send, until: Until
) -> None:
    sink.poison = {3, 400, 401}
    outbox.append([event(n) for n in range(1000)])
    sending = send(await connect("d1"))
    await until(lambda: outbox.depth() == 0)
    assert sink.stored() == [n for n in range(1000) if n not in sink.poison]
    await until(lambda: sending.status().refused == 3)
    assert outbox.refused() == {"result": 3}
    dropped = sink.database.execute("SELECT count(*) FROM events WHERE n IS NULL").fetchone()
    assert dropped[0] >= 1, "the cloud is told"


async def test_a_cloud_that_calls_everything_invalid_is_believed_ever_more_slowly(
    outbox: Outbox,
    sink: Sink,
    cloud: Bus,
    connect: Connect,
    send: Send,
    until: Until,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pauses: list[tuple[float, float]] = []

    async def pause(_: Uplink, span_s: tuple[float, float]) -> None:
        pauses.append(span_s)
        await asyncio.Event().wait()

    monkeypatch.setattr(Uplink, "_pause", pause)
    sink.poison = set(range(20))
    device = await connect("d1")
    await device.wait_connected(5)
    outbox.append([event(n) for n in range(20)])
    sending = send(device)
    await until(lambda: pauses)
    assert pauses == [uplink.REFUSED_RETRY_S]
    assert sending.refused == 4 and outbox.refused() == {"result": 4}  # the other sixteen wait


async def test_what_the_outbox_gave_up_is_in_the_status(
    tmp_path: Path, connect: Connect, send: Send, outbox: Outbox, until: Until
) -> None:
    with contextlib.closing(Outbox(outbox.path, limit_bytes=20_000)) as small:
        small.append([event(n, 1000) for n in range(100)])
        given_up = small.given_up()
    assert given_up["result"] > 70
    sending = send(await connect("d1"))  # nobody takes them
    await until(lambda: sending.status().given_up == given_up)
    assert sending.status().waiting >= 100 - given_up["result"]
    assert sending.status().waiting_bytes > 0


async def test_big_events_go_alone(
    outbox: Outbox, sink: Sink, cloud: Bus, connect: Connect, send: Send, until: Until
) -> None:
    outbox.append([event(0), event(1, 3_000_000), event(2), event(3, 3_400_000), event(4)])
    send(await connect("d1"))
    await until(lambda: outbox.depth() == 0)
    assert sink.stored() == [0, 1, 2, 3, 4]


async def test_on_a_slow_link_batches_are_small_enough_for_inferences_to_pass(
    broker: Gatehouse, outbox: Outbox, sink: Sink, cloud: Bus, connect: Connect, send: Send, until: Until
) -> None:
    async with Link("127.0.0.1", broker.port, constant(1.6e5, 0.04, 1e7)) as link:  # 20 kB/s
        device = await connect("d1", port=link.port, timing=Timing())
        await device.wait_connected(10)
        outbox.append([event(n, 100) for n in range(1500)])
        send(device)
        await until(lambda: len(sink.batches) >= 6)
    # A quarter of a second's worth is 5 kB; the first, of 16 kB, cannot know, and a timer's noise is allowed for.
    assert all(size < 10_000 for _, size in sink.batches[1:6])


async def test_on_a_fast_link_batches_grow(
    outbox: Outbox, sink: Sink, cloud: Bus, connect: Connect, send: Send, until: Until
) -> None:
    outbox.append([event(n, 2000) for n in range(1000)])
    send(await connect("d1"))
    await until(lambda: outbox.depth() == 0)
    assert max(size for _, size in sink.batches) > 200_000


async def test_a_busy_cloud_does_not_look_like_a_slow_link(
    outbox: Outbox, sink: Sink, connect: Connect, send: Send, until: Until
) -> None:
    async def busy(message: Message) -> bytes:
        ack = codec.unpack_ack(await sink.handle(message))
        await asyncio.sleep(0.3)
        return codec.pack_ack(ack.stored, ack.high, 0.3)

    cloud = await connect()
    await cloud.wait_connected(5)
    await cloud.subscribe(subjects.INGEST, busy)
    outbox.append([event(n, 2000) for n in range(100)])
    send(await connect("d1"))
    await until(lambda: outbox.depth() == 0)
    assert max(size for _, size in sink.batches) > 50_000


async def test_a_device_that_is_refused_keeps_everything(
    broker: Gatehouse, outbox: Outbox, sink: Sink, cloud: Bus, connect: Connect, send: Send, until: Until
) -> None:
    await asyncio.to_thread(broker.set_devices, [])
    outbox.append([event(n) for n in range(5)])
    sending = send(await connect("d1"))
    await until(lambda: "refuses d1" in str(sending.status().error))
    assert sending.status().waiting == 5
    await asyncio.to_thread(broker.set_devices, ["d1"])
    await until(lambda: outbox.depth() == 0)
    assert sink.stored() == list(range(5))


async def test_a_corrupt_outbox_is_replaced_while_it_is_drained(
    outbox: Outbox, sink: Sink, cloud: Bus, connect: Connect, send: Send, until: Until
) -> None:
    sending = send(await connect("d1"))
    outbox.append([event(0)])
    await until(lambda: sink.stored() == [0])
    outbox.path.write_bytes(b"garbage" * 1000)
    outbox.append([event(1)])
    await until(lambda: sink.stored().count(1) == 1)
    await until(lambda: sending.status().error is None)
