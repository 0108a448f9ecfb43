"""The shaped link, over real sockets: what arrives, how late, and what a cut, a heal and a reset do."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from marram.lab.link import LinkProcess
from marram.lab.shaper import Link
from marram.lab.traces import constant
from marram.schema.errors import Conflict, NotReady, Permanent

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def server(handler: Handler) -> AsyncIterator[int]:
    listening = await asyncio.start_server(handler, "127.0.0.1", 0)
    try:
        yield listening.sockets[0].getsockname()[1]
    finally:
        listening.close()


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError, asyncio.CancelledError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


async def ask(port: int, data: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    answer = await reader.readexactly(len(data))
    writer.close()
    return answer


async def test_bytes_arrive_whole_in_order_and_no_sooner_than_the_trace_allows() -> None:
    data = random.Random(1).randbytes(200_000)
    async with server(echo) as port, Link("127.0.0.1", port, constant(4e6, 0.04)) as link:
        loop = asyncio.get_running_loop()
        began = loop.time()
        answer = await asyncio.wait_for(ask(link.port, data), 30)
        took = loop.time() - began
    assert answer == data
    # 200 kB at 4 Mbit/s take 0.4 s each way (overlapping), and at least one round trip after the handshake.
    assert took >= 0.4 + 0.04 + 0.04 - 0.01


async def test_a_small_message_pays_only_the_round_trip() -> None:
    async with server(echo) as port, Link("127.0.0.1", port, constant(50e6, 0.06)) as link:
        reader, writer = await asyncio.open_connection("127.0.0.1", link.port)
        writer.write(b"warm")
        await reader.readexactly(4)
        loop = asyncio.get_running_loop()
        took = []
        for _ in range(5):
            began = loop.time()
            writer.write(b"ping")
            await reader.readexactly(4)
            took.append(loop.time() - began)
        writer.close()
    assert all(t >= 0.059 for t in took)
    assert min(took) < 0.9  # 5 tries: below what a queue or a polling timer of a second would add, on any machine


async def test_a_full_queue_holds_the_sender_back() -> None:
    received = 0

    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal received
        while data := await reader.read(65536):
            received += len(data)
        writer.close()

    async with server(swallow) as port, Link("127.0.0.1", port, constant(1e6, 0.02), queue_bytes=32 * 1024) as link:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16 * 1024)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", link.port))
        reader, writer = await asyncio.open_connection(sock=sock)
        writer.transport.set_write_buffer_limits(high=4096)

        async def send() -> None:
            for _ in range(1000):
                writer.write(bytes(4096))
                await writer.drain()

        with pytest.raises(TimeoutError):
            await asyncio.wait_for(send(), 0.5)  # 4 MB at 1 Mbit/s would take 32 s
        assert link.stats()["up_waiting_bytes"] <= 32 * 1024 + 2 * 64 * 1024
        writer.close()
        del reader


async def test_connections_share_the_capacity() -> None:
    data = bytes(50_000)
    async with server(echo) as port, Link("127.0.0.1", port, constant(8e6, 0.0)) as link:
        loop = asyncio.get_running_loop()
        began = loop.time()
        await asyncio.wait_for(asyncio.gather(*(ask(link.port, data) for _ in range(4))), 30)
        took = loop.time() - began
        assert link.stats()["up_bytes"] == link.stats()["down_bytes"] == 200_000
    assert took >= 0.2 - 0.01  # 4 × 50 kB at 8 Mbit/s


async def test_a_cut_moves_nothing_and_closes_nothing_and_a_heal_delivers_all() -> None:
    async with server(echo) as port, Link("127.0.0.1", port, constant(20e6, 0.01)) as link:
        reader, writer = await asyncio.open_connection("127.0.0.1", link.port)
        writer.write(b"before")
        assert await reader.readexactly(6) == b"before"
        link.cut()
        writer.write(b"during")
        late = asyncio.create_task(ask(link.port, b"new one"))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), 0.15)
        assert not late.done()
        link.heal()
        assert await asyncio.wait_for(reader.readexactly(6), 5) == b"during"
        assert await asyncio.wait_for(late, 5) == b"new one"
        writer.close()


async def test_a_cut_holds_up_what_is_in_the_air_on_its_way_down() -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        await reader.read()
        writer.close()

    async with server(greet) as port, Link("127.0.0.1", port, constant(20e6, 0.6)) as link:
        reader, writer = await asyncio.open_connection("127.0.0.1", link.port)
        while not link._down._lumps:  # the greeting is on its way, for 300 ms more
            await asyncio.sleep(0.01)
        link.cut()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), 0.5)
        link.heal()
        assert await asyncio.wait_for(reader.readexactly(5), 10) == b"hello"
        writer.close()


async def test_a_cut_in_the_middle_of_a_transfer_loses_nothing() -> None:
    data = random.Random(2).randbytes(120_000)
    async with server(echo) as port, Link("127.0.0.1", port, constant(4e6, 0.02)) as link:
        transfer = asyncio.create_task(ask(link.port, data))
        for _ in range(3):
            await asyncio.sleep(0.07)
            link.cut()
            link.cut()
            await asyncio.sleep(0.02)
            link.heal()
        assert await asyncio.wait_for(transfer, 30) == data


async def test_a_reset_breaks_every_connection_and_new_ones_work() -> None:
    async with server(echo) as port, Link("127.0.0.1", port, constant(20e6, 0.001)) as link:
        reader, writer = await asyncio.open_connection("127.0.0.1", link.port)
        writer.write(b"hello")
        await reader.readexactly(5)
        link.reset()
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(1), 5)
        writer.close()
        assert await asyncio.wait_for(ask(link.port, b"again"), 5) == b"again"
        assert link.stats()["connections"] <= 1


async def test_both_ways_of_closing_travel() -> None:
    heard = asyncio.Event()

    async def answer_at_the_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        everything = await reader.read(-1)  # until the far side's half-close
        writer.write(everything.upper())
        writer.close()
        heard.set()

    async with server(answer_at_the_end) as port, Link("127.0.0.1", port, constant(20e6, 0.01)) as link:
        reader, writer = await asyncio.open_connection("127.0.0.1", link.port)
        writer.write(b"question")
        writer.write_eof()
        assert await asyncio.wait_for(reader.read(-1), 5) == b"QUESTION"
        await asyncio.wait_for(heard.wait(), 5)
        writer.close()
        while link.stats()["connections"]:
            await asyncio.sleep(0.01)


async def test_nobody_at_the_target_breaks_the_connection() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        async with Link("127.0.0.1", free.getsockname()[1], constant(20e6, 0.001)) as link:
            reader, writer = await asyncio.open_connection("127.0.0.1", link.port)
            with pytest.raises(ConnectionResetError):
                await asyncio.wait_for(reader.read(1), 5)
            writer.close()


async def test_a_taken_port_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(Conflict, match=str(port)):
            await Link("127.0.0.1", 1, constant(1e6, 0.01), listen=port).start()


async def test_the_process_form_obeys_and_names_its_faults() -> None:
    async with server(echo) as port:
        link = await asyncio.to_thread(LinkProcess, f"127.0.0.1:{port}", "20 Mbit/s 5 ms")
        with link:
            assert await asyncio.wait_for(ask(link.port, b"hello"), 10) == b"hello"
            await asyncio.to_thread(link.cut)
            late = asyncio.create_task(ask(link.port, b"late"))
            assert (await asyncio.to_thread(link.stats))["cut"] is True
            assert not late.done()
            await asyncio.to_thread(link.heal)
            assert await asyncio.wait_for(late, 10) == b"late"
        with pytest.raises(NotReady):
            link.cut()
    with pytest.raises(Permanent, match="no trace"):
        await asyncio.to_thread(LinkProcess, "127.0.0.1:1", "5g")


async def test_the_process_form_takes_another_delay_and_down_link_and_knows_where_in_its_trace_it_is() -> None:
    async with server(echo) as port:
        target = f"127.0.0.1:{port}"
        link = await asyncio.to_thread(LinkProcess, target, "20 Mbit/s 5 ms", rtt_s=0.03, down_bit_s=1e6)
        with link:
            begun_s = time.monotonic()
            first, at_s = await asyncio.to_thread(link.stats), time.monotonic()
            assert (first["up_bit_s"], first["down_bit_s"], first["rtt_s"]) == (20e6, 1e6, 0.03)
            before_s = time.monotonic()
            later = await asyncio.to_thread(link.stats)
            assert before_s - at_s <= later["age_s"] - first["age_s"] <= time.monotonic() - begun_s


def test_the_process_ends_with_its_parent() -> None:
    code = (
        "import sys, time; from marram.lab.link import LinkProcess;"
        "link = LinkProcess('127.0.0.1:1', '3g'); print(link.process.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    # Its end of a pipe tells when the child is gone, without polling: a pidfd becomes readable.
    watch = os.pidfd_open(child)
    try:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        assert select.select([watch], [], [], 10)[0], "the link outlived its parent"
    finally:
        os.close(watch)
        parent.stdout.close()
