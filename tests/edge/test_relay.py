from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import AsyncIterator
from concurrent.futures import Future
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
from tests.edge.world import DEVICE, LONG_S, Cloud

from marram.bus import subjects
from marram.bus.client import Bus, Message
from marram.bus.inferences import InferReply, InferRequest
from marram.edge.agent_end import AgentEnd
from marram.edge.channel import WorkerEnd
from marram.edge.relay import Among, Relay
from marram.edge.remote import ChannelRemote
from marram.pipeline.contract import CloudInput, Reply
from marram.schema.errors import Busy, Invalid, MarramError, NotReady, Refused, Retryable
from marram.schema.load import Load
from marram.schema.payload import Payload


@dataclass
class Pair:
    """A worker's remote and the agent's relay, joined by a real channel."""

    remote: ChannelRemote
    relay: Relay
    worker_end: WorkerEnd
    agent_end: AgentEnd
    bus: Bus

    def infer(
        self,
        model: str = "lite2",
        version: int = 1,
        timeout_s: float = 5,
        size: int = 1000,
        replica: str | None = None,
    ) -> Future[Reply]:
        payload = Payload("image/jpeg", os.urandom(size), (), (480, 640))
        return self.remote.infer(CloudInput(model, version, payload, replica), timeout_s)


@pytest.fixture
async def pair(cloud: Cloud) -> AsyncIterator[Pair]:
    bus = await cloud.server.connect(DEVICE)
    await bus.wait_connected(10)
    ours, theirs = socket.socketpair()
    agent_end, worker_end = await AgentEnd.open(ours), WorkerEnd(theirs)
    relay = Relay(bus, agent_end, {("lite2", 1)})
    remote = ChannelRemote(worker_end)

    async def agent() -> None:
        while (message := await agent_end.receive()) is not None:
            relay.ask(message)

    def worker() -> None:
        while (message := worker_end.receive()) is not None:
            if message["t"] == "reply":
                remote.answered(message)
            else:
                remote.link(message["up"])

    task = asyncio.create_task(agent())
    threading.Thread(target=worker, daemon=True).start()
    yield Pair(remote, relay, worker_end, agent_end, bus)
    worker_end.close()
    agent_end.close()
    await task
    await bus.close()


async def replica(cloud: Cloud) -> list[InferRequest]:
    """A replica that answers everything with a label; what it was asked."""
    asked: list[InferRequest] = []

    async def answer(message: Message) -> bytes:
        asked.append(InferRequest.unpack(message.payload))
        result = {"task": "classification", "model": "lite2", "label": "cat", "confidence": 0.9}
        return InferReply(result, None, 0.001, 0.02).pack()

    await cloud.bus.subscribe(subjects.infer("lite2", 1), answer, "replicas", parallel=8)
    return asked


async def failure(future: Future[Reply]) -> MarramError:
    with pytest.raises(MarramError) as caught:
        await asyncio.wait_for(asyncio.wrap_future(future), LONG_S)
    return caught.value


async def test_an_inference_goes_there_and_back(cloud: Cloud, pair: Pair) -> None:
    asked = await replica(cloud)
    replies = await asyncio.gather(*(asyncio.wrap_future(pair.infer(size=50_000)) for _ in range(20)))
    assert {r.result.label for r in replies if r.result} == {"cat"} and replies[0].service_s == 0.02
    assert (
        asked[0].payload.media == "image/jpeg"
        and len(asked[0].payload.body) == 50_000
        and asked[0].payload.frame_size == (480, 640)
    )


async def test_a_probe_carries_its_size(cloud: Cloud, pair: Pair) -> None:
    sizes: list[int] = []

    async def answer(message: Message) -> bytes:
        sizes.append(len(message.payload))
        return InferReply(None, None, 0, 0).pack()

    await cloud.bus.subscribe(subjects.PROBE, answer)
    reply = await asyncio.wrap_future(pair.remote.probe(6000, 5))
    assert reply.result is None and sizes == [6000]


async def test_only_what_the_app_names_is_asked(cloud: Cloud, pair: Pair) -> None:
    for model, version in (("other", 1), ("lite2", 2), ("*", 1), (">", 1), ("x.y", 1)):
        error = await failure(pair.infer(model, version))
        assert isinstance(error, Refused) and "does not name" in str(error)


async def test_without_a_replica_the_answer_comes_at_once(pair: Pair) -> None:
    assert isinstance(await failure(pair.infer(timeout_s=60)), Retryable)


async def test_a_silent_replica_is_a_timeout(cloud: Cloud, pair: Pair) -> None:
    async def silent(message: Message) -> None:
        return None

    await cloud.bus.subscribe(subjects.infer("lite2", 1), silent)
    assert isinstance(await failure(pair.infer(timeout_s=0.2)), Retryable)


@pytest.mark.parametrize("answer", [b"", b"\xc1", InferReply({"task": "none"}, None, 0, 0).pack()])
async def test_a_reply_that_is_none(cloud: Cloud, pair: Pair, answer: bytes) -> None:
    async def nonsense(message: Message) -> bytes:
        return answer

    await cloud.bus.subscribe(subjects.infer("lite2", 1), nonsense)
    assert isinstance(await failure(pair.infer()), Invalid)


async def test_a_replicas_fault_comes_as_ours(cloud: Cloud, pair: Pair) -> None:
    async def fails(message: Message) -> bytes:
        return InferReply(None, "not a picture", 0, 0).pack()

    await cloud.bus.subscribe(subjects.infer("lite2", 1), fails)
    fault = await failure(pair.infer())
    assert "not a picture" in str(fault) and isinstance(fault, Invalid)


async def test_a_busy_replica_is_nobodys_fault(cloud: Cloud, pair: Pair) -> None:
    async def busy(message: Message) -> bytes:
        return InferReply(None, "busy: 64 wait here already", 0.5, 0.01, 64, busy=True).pack()

    await cloud.bus.subscribe(subjects.infer("lite2", 1), busy)
    fault = await failure(pair.infer())
    assert isinstance(fault, Busy) and (fault.queue_s, fault.waiting) == (0.5, 64)


async def named(cloud: Cloud, name: str) -> Bus:
    """A replica with a name, on a connection of its own."""
    bus = await cloud.server.connect()
    await bus.wait_connected(10)

    async def answer(message: Message) -> bytes:
        loads = (Load(name, "lite2@1", 3, 0.06, 0.02),)
        return InferReply(None, None, 0.001, 0.02, 3, replica=name, loads=loads).pack()

    await bus.subscribe(subjects.infer("lite2", 1), answer, "replicas", parallel=8)
    await bus.subscribe(subjects.infer("lite2", 1, name), answer, parallel=8)
    await bus.subscribe(subjects.probe("lite2", 1), answer, "replicas")
    return bus


async def test_a_replica_is_asked_by_its_name_and_says_how_it_is(cloud: Cloud, pair: Pair) -> None:
    buses = [await named(cloud, name) for name in ("a", "b", "c")]
    replies = await asyncio.gather(*(asyncio.wrap_future(pair.infer(replica=name)) for name in "abcabc"))
    assert [reply.replica for reply in replies] == list("abcabc")
    assert replies[0].waiting == 3 and replies[0].loads == (Load("a", "lite2@1", 3, 0.06, 0.02),)
    for bus in buses:
        await bus.close()


async def test_one_that_is_gone_is_asked_as_whichever_takes_it_without_the_worker_noticing(
    cloud: Cloud, pair: Pair
) -> None:
    stays, goes = await named(cloud, "stays"), await named(cloud, "goes")
    await goes.close()
    reply = await asyncio.wrap_future(pair.infer(replica="goes"))
    assert reply.replica == "stays" and reply.gone
    assert not (await asyncio.wrap_future(pair.infer(replica="stays"))).gone
    await stays.close()
    assert isinstance(await failure(pair.infer(replica="goes", timeout_s=60)), NotReady)  # nobody at all: at once


@pytest.mark.parametrize("name", ["*", ">", "a.b", "a b", "", "x" * 65, 7, b"a"])
async def test_what_cannot_be_a_replicas_name_is_asked_nowhere(cloud: Cloud, pair: Pair, name: object) -> None:
    heard: list[str] = []

    async def listen(message: Message) -> bytes:
        heard.append(message.subject)
        return b""

    await cloud.bus.subscribe("infer.>", listen)
    message = {"t": "infer", "id": 1, "model": "lite2", "version": 1, "payload": b"x", "replica": name}
    sent: list[dict[str, object]] = []
    end = SimpleNamespace(send=sent.append)
    Relay(pair.bus, end, {("lite2", 1)}).ask(message)  # type: ignore[arg-type]
    assert sent[0]["kind"] == "invalid" and not heard


async def test_a_probe_about_a_model_tells_the_load_of_those_that_serve_it(cloud: Cloud, pair: Pair) -> None:
    bus = await named(cloud, "a")
    reply = await asyncio.wrap_future(pair.remote.probe(6000, 5, ("lite2", 1)))
    assert [load.replica for load in reply.loads] == ["a"]
    assert isinstance(await failure(pair.remote.probe(6000, 5, ("other", 1))), Refused)
    await bus.close()
    # Nobody serves it: whoever answers probes still tells what the link is like.

    async def answer(message: Message) -> bytes:
        return InferReply(None, None, 0, 0).pack()

    await cloud.bus.subscribe(subjects.PROBE, answer)
    assert (await asyncio.wrap_future(pair.remote.probe(6000, 5, ("lite2", 1)))).loads == ()


async def test_replicas_that_hang_do_not_hide_the_link_from_who_asks_other_devices(cloud: Cloud, pair: Pair) -> None:
    over = asyncio.Event()

    async def hang(message: Message) -> bytes:
        await over.wait()
        return InferReply(None, None, 0, 0).pack()

    async def answer(message: Message) -> bytes:
        return InferReply(None, None, 0, 0, replica="the-cloud").pack()

    await cloud.bus.subscribe(subjects.PROBE, hang, parallel=8)
    await cloud.bus.subscribe(subjects.peer_probe(DEVICE), answer)
    sent: asyncio.Queue[dict[str, object]] = asyncio.Queue()
    end = SimpleNamespace(send=sent.put_nowait)
    relay = Relay(pair.bus, end, (), Among(DEVICE, "gate", {("lite0", 1)}))  # type: ignore[arg-type]
    for number in (1, 2):
        relay.ask({"t": "probe", "id": number, "size": 200, "timeout_s": LONG_S})
    first = await asyncio.wait_for(sent.get(), LONG_S)
    assert (first["id"], b"the-cloud" in bytes(first["payload"])) == (2, True)  # type: ignore[call-overload]
    over.set()
    assert (await asyncio.wait_for(sent.get(), LONG_S))["id"] == 1


async def test_with_the_link_down_the_answer_comes_at_once(cloud: Cloud, pair: Pair) -> None:
    await cloud.bus.close()
    await asyncio.to_thread(cloud.server.stop)
    while pair.bus.connected:
        await asyncio.sleep(0.01)
    assert isinstance(await failure(pair.infer(timeout_s=60)), NotReady)
    pair.relay.link(False)
    while not (future := pair.infer(timeout_s=60)).done():  # until the word about the link has come
        await failure(future)
    assert isinstance(future.exception(), NotReady)


async def test_what_is_pending_fails_when_the_link_or_the_agent_goes(cloud: Cloud, pair: Pair) -> None:
    async def silent(message: Message) -> None:
        return None

    await cloud.bus.subscribe(subjects.infer("lite2", 1), silent)
    pending = pair.infer(timeout_s=60)
    pair.relay.link(False)
    assert isinstance(await failure(pending), NotReady)
    pair.relay.link(True)
    while (pending := pair.infer(timeout_s=60)).done():
        await asyncio.sleep(0.01)
    pair.remote.close()
    assert "agent is gone" in str(await failure(pending))
    assert pair.infer().done()


async def test_a_flood_of_questions_is_bounded(cloud: Cloud, pair: Pair) -> None:
    held = asyncio.Event()

    async def slow(message: Message) -> bytes:
        await held.wait()
        return InferReply(None, None, 0, 0).pack()

    await cloud.bus.subscribe(subjects.infer("lite2", 1), slow, parallel=200)
    futures = [pair.infer(timeout_s=30) for _ in range(200)]
    at_once = [f for f in futures if f.done()]
    assert len(at_once) >= 136
    held.set()
    for future in futures:
        assert (future.done() and future in at_once) or await asyncio.wrap_future(future)


async def test_a_stuck_agent_fails_what_is_overdue(pair: Pair) -> None:
    ours, theirs = socket.socketpair()
    end = WorkerEnd(theirs)
    remote = ChannelRemote(end)
    future = remote.probe(10, timeout_s=-2)
    remote.expire()
    assert isinstance(future.exception(), Retryable)
    end.close()
    ours.close()
