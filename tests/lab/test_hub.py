"""The broker in one process, on virtual time: what it carries, what a cut loses, whom it refuses."""

from __future__ import annotations

import asyncio
import time

import pytest

from marram.bus.client import Message
from marram.lab import virtual
from marram.lab.hub import Hub, Link, covers
from marram.schema.errors import Invalid, NotReady, Permanent, Refused, Retryable


def test_an_hour_passes_at_once_and_a_thread_holds_the_clock() -> None:
    async def work() -> tuple[float, float]:
        before_s = time.monotonic()
        await asyncio.sleep(3600)
        slept_s = time.monotonic() - before_s
        await asyncio.to_thread(lambda: sum(range(200_000)))
        return slept_s, time.monotonic() - before_s - slept_s

    real_s = time.perf_counter()
    slept_s, in_thread_s = virtual.run(work)
    assert slept_s == pytest.approx(3600)
    assert in_thread_s == 0
    assert time.perf_counter() - real_s < 600
    assert abs(time.time() - virtual.EPOCH_S) > 1  # its clocks are ours again


def test_a_run_that_would_wait_for_ever_says_so() -> None:
    async def work() -> None:
        await asyncio.Event().wait()

    with pytest.raises(Permanent, match="for ever"):
        virtual.run(work)


async def _echo(message: Message) -> bytes:
    if message.payload == b"bad":
        raise Invalid("not this")
    return message.payload * 2


def test_a_question_is_answered_by_one_of_a_queue_group_and_faults_travel() -> None:
    async def work() -> None:
        hub, heard = Hub(), []

        async def note(message: Message) -> bytes:
            heard.append(message.subject)
            return b"noted"

        for _ in range(2):
            server = await hub.connect("server")
            await server.subscribe("d.*.events", _echo, "ingest")
            await server.subscribe("told", note)
        device = await hub.connect("pi-1", device=True)
        await device.wait_connected(5)
        assert await device.request("d.pi-1.events", b"ab", 1) == b"abab"
        with pytest.raises(Invalid, match="not this"):
            await device.request("d.pi-1.events", b"bad", 1)
        with pytest.raises(NotReady, match="nobody"):
            await device.request("d.pi-1.report", b"", 1)
        with pytest.raises(Refused, match="permit"):
            await device.request("d.pi-2.events", b"", 1)
        await server.publish("told", b"")
        await asyncio.sleep(1)
        assert heard == ["told", "told"]

    virtual.run(work)


@pytest.mark.parametrize("after_s", [0.5, 1.5])
def test_what_is_on_its_way_when_a_link_is_cut_is_lost_question_or_answer(after_s: float) -> None:
    async def work() -> None:
        hub, link, heard = Hub(), Link(delay_s=1.0), []

        async def handle(message: Message) -> bytes:
            heard.append(message.payload)
            return b"done"

        server = await hub.connect("server", Link(delay_s=0.0))
        await server.subscribe("d.*.events", handle)
        device = await hub.connect("pi-1", link, device=True)
        await device.wait_connected(10)
        asking = asyncio.create_task(device.request("d.pi-1.events", b"x", 60))
        await asyncio.sleep(after_s)
        link.cut()
        with pytest.raises(Retryable):
            await asking
        await asyncio.sleep(300)
        assert not device.connected
        assert heard == ([] if after_s < 1 else [b"x"])
        link.mend()
        await device.wait_connected(60)
        assert await device.request("d.pi-1.events", b"y", 60) == b"done"

    virtual.run(work)


@pytest.mark.parametrize(
    ("pattern", "subject", "is_so"),
    [
        ("d.*.events", "d.a.events", True),
        ("d.*.events", "d.a.b.events", False),
        ("d.a.>", "d.a", False),
        ("d.a.>", "d.a.b.c", True),
        ("infer.>", "infer.x.1", True),
        ("d.a.events", "d.a.event", False),
        ("_INBOX_a.>", "_INBOX_a.>", True),
    ],
)
def test_patterns_cover_as_in_nats(pattern: str, subject: str, is_so: bool) -> None:
    assert covers(pattern, subject) is is_so
