from __future__ import annotations

import asyncio
import os
import socket
import struct
import threading

import pytest

from marram.bus.codec import MAX_MESSAGE_BYTES
from marram.edge.agent_end import AgentEnd
from marram.edge.channel import WorkerEnd, encode
from marram.schema.errors import Invalid


async def pair() -> tuple[AgentEnd, WorkerEnd, socket.socket]:
    ours, theirs = socket.socketpair()
    return await AgentEnd.open(ours), WorkerEnd(theirs), theirs


async def test_messages_go_both_ways_in_order() -> None:
    agent, worker, _ = await pair()
    for number in range(100):
        assert worker.send({"t": "infer", "id": number, "payload": os.urandom(number * 300)})
    for number in range(100):
        message = await agent.receive()
        assert message is not None and message["id"] == number and len(message["payload"]) == number * 300
    agent.send({"t": "reply", "id": 1, "payload": bytes(3_000_000)})
    received = await asyncio.to_thread(worker.receive)
    assert received is not None and len(received["payload"]) == 3_000_000
    worker.close()
    assert await agent.receive() is None
    agent.close()


async def test_many_threads_never_mix_their_messages() -> None:
    agent, worker, _ = await pair()

    def talk(who: int) -> None:
        for number in range(50):
            assert worker.send({"t": "infer", "who": who, "id": number, "payload": bytes([who]) * 20_000})

    threads = [threading.Thread(target=talk, args=(who,)) for who in range(4)]
    for thread in threads:
        thread.start()
    last = dict.fromkeys(range(4), -1)
    for _ in range(200):
        message = await agent.receive()
        assert message is not None
        assert message["payload"] == bytes([message["who"]]) * 20_000
        assert message["id"] == last[message["who"]] + 1
        last[message["who"]] = message["id"]
    for thread in threads:
        thread.join()
    worker.close()
    agent.close()


async def test_an_agent_that_does_not_read_never_blocks_the_worker() -> None:
    agent, worker, _ = await pair()
    body = bytes(1_000_000)
    sent = 0
    while await asyncio.wait_for(asyncio.to_thread(worker.send, {"t": "infer", "payload": body}), 5):
        sent += 1
        assert sent < 100
    # What was taken arrives whole, once somebody reads.
    for _ in range(sent):
        message = await agent.receive()
        assert message is not None and len(message["payload"]) == len(body)
    worker.close()
    agent.close()


async def test_a_worker_that_does_not_read_costs_bounded_memory() -> None:
    agent, worker, _ = await pair()
    for _ in range(40):
        agent.send({"t": "reply", "payload": bytes(1_000_000)})
    assert agent._writer.transport.get_write_buffer_size() < 12_000_000
    worker.close()
    agent.close()


async def test_after_the_other_end_is_gone() -> None:
    agent, worker, _ = await pair()
    agent.close()
    assert await asyncio.to_thread(worker.receive) is None
    while worker.send({"t": "beat"}):
        await asyncio.sleep(0.01)
    worker.drain(1)
    worker.close()


@pytest.mark.parametrize(
    "garbage",
    [struct.pack(">I", 2**31), struct.pack(">I", 3) + b"\xc1\xc1\xc1", struct.pack(">I", 1) + b"\x90", b"\xff" * 64],
    ids=["huge", "no msgpack", "no mapping", "noise"],
)
async def test_nonsense_is_told_from_an_end(garbage: bytes) -> None:
    agent, worker, raw = await pair()
    raw.sendall(garbage)
    with pytest.raises(Invalid):
        await agent.receive()
    worker.close()
    agent.close()


async def test_a_cut_inside_a_message_is_an_end() -> None:
    agent, worker, raw = await pair()
    raw.sendall(encode({"t": "stats", "stats": {}})[:-1])
    worker.close()
    assert await agent.receive() is None
    agent.close()


def test_a_message_larger_than_a_frame_is_refused() -> None:
    with pytest.raises(Invalid, match="the most"):
        encode({"payload": bytes(MAX_MESSAGE_BYTES + 10_000)})
