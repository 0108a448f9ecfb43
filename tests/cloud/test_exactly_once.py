"""The promise of the whole: what a device recorded is in the database once, whoever is killed in between.

A real outbox is drained by a real uplink into `marram cloud` processes that get SIGKILL in the middle of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from marram.bus.client import Bus, Timing
from marram.bus.http import CloudApi
from marram.bus.outbox import Outbox
from marram.bus.tls import TlsFiles
from marram.bus.uplink import Uplink
from marram.cloud.provision import provision
from marram.edge.join import join as join_cloud
from marram.edge.state import Credentials, Folder
from marram.lab.gatehouse import Gatehouse
from marram.schema.event import Event, EventKind
from marram.store import Store, open_store

QUICK = Timing(connect_s=2.0, ping_s=0.1, dead_after_s=1.0, retry_min_s=0.01, retry_max_s=0.1, refused_max_s=0.2)


def events(count: int) -> list[Event]:
    return [Event(EventKind.RESULT, "gate", float(n), {"n": n, "fill": "x" * 200}) for n in range(count)]


@contextlib.asynccontextmanager
async def draining(bus: Bus, outbox: Outbox, device: str) -> AsyncIterator[Uplink]:
    uplink = Uplink(bus, outbox, device)
    task = asyncio.create_task(uplink.run())
    try:
        yield uplink
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def assert_exactly_once(store: Store, recorded: int) -> None:
    counts = store.events.counts()
    assert (counts.stored, counts.distinct) == (recorded, recorded)
    told = [event.data["n"] for event in store.events.after(0, limit=recorded + 10)]
    assert sorted(told) == list(range(recorded))


async def test_a_cloud_that_is_killed_again_and_again_loses_and_doubles_nothing(
    start: Callable[..., Any], tmp_path: Path, until: Any
) -> None:
    recorded = 5000
    folder = tmp_path / "home" / "cloud"
    port = _free_port()
    arguments = ("cloud", "--port", str(port), "--folder", str(folder))
    cloud = start(*arguments)
    await asyncio.to_thread(cloud.wait_for, "console")
    bus = await _join(cloud, "pi")
    outbox = Outbox(tmp_path / "outbox.db")
    for chunk in range(0, recorded, 1000):
        outbox.append(events(recorded)[chunk : chunk + 1000])
    async with draining(bus, outbox, "pi"):
        for left in (3500, 1200):
            await until(lambda left=left: outbox.depth() <= left, 60)
            await asyncio.to_thread(cloud.kill)
            cloud = start(*arguments)
            await asyncio.to_thread(cloud.wait_for, "console")
        await until(lambda: outbox.depth() == 0, 60)
    await bus.close()
    outbox.close()
    assert await asyncio.to_thread(cloud.end) == 0
    store = open_store(folder / "marram.db")
    assert_exactly_once(store, recorded)
    store.close()


async def test_two_ingest_processes_share_the_work_and_one_may_be_killed(
    start: Callable[..., Any], tmp_path: Path, postgres_url: str, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A batch whose process was killed is given up after this; most of the test would be that wait.
    monkeypatch.setattr("marram.bus.uplink.ANSWER_S", 2.0)
    recorded = 4000
    with Gatehouse(tmp_path / "gatehouse", ["pi"]) as broker:
        provision(broker.keys, time.time())
        address = ("--nats", f"tls://127.0.0.1:{broker.port}", "--keys", str(broker.keys.folder))
        shared = (*address, "--database", postgres_url, "--objects", str(tmp_path / "objects"))

        def ingest(home: str) -> Any:
            return start("cloud", "--role", "ingest", *shared, home=home)

        first, second = ingest("one"), ingest("two")
        for process in (first, second):
            await asyncio.to_thread(process.wait_for, "running")
        store = await asyncio.to_thread(open_store, postgres_url)
        outbox = Outbox(tmp_path / "outbox.db")
        outbox.append(events(recorded))
        bus = await broker.connect("pi", timing=QUICK)
        async with draining(bus, outbox, "pi"):
            await until(lambda: outbox.depth() <= 3000, 60)
            await asyncio.to_thread(first.kill)
            await until(lambda: outbox.depth() <= 1500, 60)
            third = ingest("one")
            await asyncio.to_thread(third.wait_for, "running")
            await asyncio.to_thread(second.kill)
            await until(lambda: outbox.depth() == 0, 60)
        await bus.close()
        outbox.close()
        await asyncio.to_thread(assert_exactly_once, store, recorded)
        assert await asyncio.to_thread(third.end) == 0
        store.close()


async def test_a_database_that_went_away_is_waited_for(
    start: Callable[..., Any], tmp_path: Path, postgres_url: str, until: Any
) -> None:
    """The way to PostgreSQL is cut and mended: nothing is acknowledged meanwhile, nothing is lost."""
    recorded = 1000
    with Gatehouse(tmp_path / "gatehouse", ["pi"]) as broker:
        provision(broker.keys, time.time())
        address = ("--nats", f"tls://127.0.0.1:{broker.port}", "--keys", str(broker.keys.folder))
        host, _, database = postgres_url.partition("@")[2].partition("/")
        async with _Relay(int(host.rpartition(":")[2])) as relay:
            through = f"postgresql://postgres@127.0.0.1:{relay.port}/{database}"
            process = start(
                "cloud", "--role", "ingest", *address, "--database", through, "--objects", str(tmp_path / "o")
            )
            await asyncio.to_thread(process.wait_for, "running")
            outbox = Outbox(tmp_path / "outbox.db")
            bus = await broker.connect("pi", timing=QUICK)
            async with draining(bus, outbox, "pi") as uplink:
                await relay.cut()
                outbox.append(events(recorded))
                await until(lambda: uplink.status().error, 60)
                assert outbox.depth() == recorded
                await relay.mend()
                await until(lambda: outbox.depth() == 0, 60)
            await bus.close()
            outbox.close()
            store = await asyncio.to_thread(open_store, postgres_url)
            await asyncio.to_thread(assert_exactly_once, store, recorded)
            store.close()
            assert process.process.poll() is None, process.output


class _Relay:
    """A way to a TCP server that can be cut and mended."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._server: asyncio.Server | None = None
        self._writers: list[asyncio.StreamWriter] = []
        self.port = 0

    async def __aenter__(self) -> _Relay:
        await self.mend()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.cut()

    async def mend(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def cut(self) -> None:
        assert self._server is not None
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, to = await asyncio.open_connection("127.0.0.1", self._to)
        self._writers += [writer, to]
        await asyncio.gather(_pump(reader, to), _pump(there, writer))


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.transport.abort()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def _join(cloud: Any, name: str) -> Bus:
    context = cloud.context()

    folder = Folder(cloud.home / name)

    def join() -> Credentials:
        with CloudApi(context["url"], context["token"]) as api:
            made = api.create_token()
        return join_cloud(folder, made.join.split()[3], made.token, name=name)

    joined = await asyncio.to_thread(join)
    tls = TlsFiles(folder.identity.own, folder.identity.authority)
    bus = await Bus.connect(joined.brokers, name, tls=tls, timing=QUICK)
    await bus.wait_connected(20)
    return bus
