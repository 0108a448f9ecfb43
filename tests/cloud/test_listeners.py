"""The HTTPS listener: TLS 1.3 by the cloud's own authority, strangers at the handshake keep nobody out."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from fastapi import FastAPI, Request

from marram.cloud import listeners as listeners_module
from marram.cloud import loops
from marram.cloud import threshold as thresholds
from marram.cloud.listeners import Listeners, names_of
from marram.cloud.threshold import replace_identity, server_context
from marram.schema.errors import Conflict
from marram.trust import identity
from marram.trust.authority import SERVER_LIFE_S, Authority
from marram.trust.keys import Keys


class World:
    """Both listeners over a small app."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = Authority.create(Keys(folder / "keys"), time.time())
        self.ended: list[asyncio.Task[None]] = []
        self.app = FastAPI()

        @self.app.get("/")
        def who(request: Request) -> dict[str, str]:
            return {"scheme": request.url.scheme, "client": request.client.host if request.client else ""}

        @self.app.post("/")
        async def length(request: Request) -> int:
            return len(await request.body())

    async def open(self) -> None:
        self.listeners = Listeners("127.0.0.1", 0, 0)
        self.port = self.listeners.tls.getsockname()[1]
        await self.listeners.start(self.app, self.authority, self.folder, self.ended.append)

    def context(self, **options: ssl.TLSVersion) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.load_verify_locations(cadata=self.authority.certificate_pem.decode())
        for name, value in options.items():
            setattr(context, name, value)
        return context

    async def ask(self) -> dict[str, str]:
        async with httpx.AsyncClient(verify=self.context(), trust_env=False) as client:
            return dict((await client.get(self.listeners.tls_url, headers={"X-Forwarded-For": "192.0.2.1"})).json())

    async def stand(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A stranger who connects and says nothing."""
        return await asyncio.open_connection("127.0.0.1", self.port)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path)
    await made.open()
    yield made
    await made.listeners.stop()


async def test_one_app_behind_both_and_no_header_says_who_asks(world: World) -> None:
    assert await world.ask() == {"scheme": "https", "client": "127.0.0.1"}
    async with httpx.AsyncClient(trust_env=False) as client:
        assert (await client.get(world.listeners.url)).json()["scheme"] == "http"


async def test_the_limit_of_connections_holds_for_both_together(world: World) -> None:
    plain, secured = world.listeners._servers
    assert plain.server_state is secured.server_state


async def test_bodies_arrive_whole_also_with_the_end_of_the_handshake(world: World) -> None:
    """A client may send its request with its last handshake message: nothing of it is lost."""
    body = b"x" * 300_000
    async with httpx.AsyncClient(verify=world.context(), trust_env=False) as client:
        for size in (0, 1, 70_000, 300_000):
            assert (await client.post(world.listeners.tls_url, content=body[:size])).json() == size
    for _ in range(20):
        reader, writer = await asyncio.open_connection("127.0.0.1", world.port, ssl=world.context())
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 3\r\n\r\nabc")
        assert (await reader.read()).endswith(b"3")
        writer.close()


async def test_only_tls_1_3(world: World) -> None:
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await asyncio.open_connection(
            "127.0.0.1", world.port, ssl=world.context(maximum_version=ssl.TLSVersion.TLSv1_2)
        )


async def test_whoever_speaks_plain_http_there_gets_no_answer(world: World) -> None:
    reader, writer = await world.stand()
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert b"HTTP" not in await reader.read()
    writer.close()
    assert await world.ask()


async def test_strangers_at_the_handshake_keep_nobody_out(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thresholds, "HANDSHAKE_S", 3600.0)
    strangers = [await world.stand() for _ in range(thresholds.MOST_HANDSHAKES + 10)]
    # Who came first made room.
    async with asyncio.timeout(60):
        for reader, _ in strangers[:5]:
            assert await reader.read() == b""
    assert await world.ask()
    for _, writer in strangers:
        writer.close()


async def test_a_handshake_that_does_not_come_is_waited_for_a_little(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(thresholds, "HANDSHAKE_S", 0.05)
    world = World(tmp_path)
    await world.open()
    try:
        reader, writer = await world.stand()
        assert await reader.read() == b""
        writer.close()
        assert not world.ended
    finally:
        await world.listeners.stop()


async def test_a_device_cannot_serve(world: World) -> None:
    key = identity.new_key()
    issued = world.authority.device_certificate(identity.request(key), "pi", time.time())
    own = identity.accept(issued.pem, key, world.authority.certificate_pem)
    server = await asyncio.start_server(
        lambda reader, writer: None, "127.0.0.1", 0, ssl=server_context(world.folder, own)
    )
    async with server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(ssl.SSLCertVerificationError, match="unsuitable certificate purpose"):
            await asyncio.open_connection("127.0.0.1", port, ssl=world.context())


async def test_a_renewed_server_certificate_is_shown_from_the_next_handshake_on(world: World) -> None:
    context = server_context(world.folder, world.authority.server_certificate(["one"], time.time()))
    server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0, ssl=context)

    async def shown() -> bytes:
        _, writer = await asyncio.open_connection(*server.sockets[0].getsockname(), ssl=world.context())
        secured: ssl.SSLObject = writer.get_extra_info("ssl_object")
        writer.close()
        return secured.getpeercert(True) or b""

    async with server:
        before = await shown()
        assert await shown() == before
        replace_identity(context, world.folder, world.authority.server_certificate(["two"], time.time()))
        assert await shown() != before
    assert not list(world.folder.glob("identity-*")), "its key is on the disk in passing only"


async def test_the_listeners_certificate_is_renewed_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listeners_module, "DUE_LOOK_S", 0.01)
    world = World(tmp_path)
    await world.open()

    async def shown() -> bytes:
        _, writer = await asyncio.open_connection("127.0.0.1", world.port, ssl=world.context())
        secured: ssl.SSLObject = writer.get_extra_info("ssl_object")
        writer.close()
        return secured.getpeercert(True) or b""

    try:
        before = await shown()
        later = SimpleNamespace(time=lambda: time.time() + 0.6 * SERVER_LIFE_S, monotonic=time.monotonic)
        monkeypatch.setattr(loops, "time", later)
        async with asyncio.timeout(60):
            while await shown() == before:
                await asyncio.sleep(0.02)
    finally:
        monkeypatch.undo()
        await world.listeners.stop()


async def test_as_the_app_starts_every_server_has_it(tmp_path: Path) -> None:
    """NiceGUI then looks at each server's, in an order that nobody knows, and falls over one that has none."""
    found: list[bool] = []

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        servers = [each for each in gc.get_objects() if type(each) is listeners_module._Server]
        found.extend(hasattr(each.config, "loaded_app") for each in servers)
        yield

    world = World(tmp_path)
    world.app = FastAPI(lifespan=lifespan)
    await world.open()
    await world.listeners.stop()
    assert len(found) >= 2 and all(found)


async def test_a_taken_port_names_its_option(world: World) -> None:
    for ports, option in (
        ((world.listeners.plain.getsockname()[1], 0), "--port"),
        ((0, world.port), "--tls-port"),
    ):
        with pytest.raises(Conflict, match=option):
            Listeners("127.0.0.1", *ports)


def test_plain_http_is_for_this_machine_alone() -> None:
    listeners = Listeners("0.0.0.0", 0, 0)
    try:
        assert listeners.plain.getsockname()[0] == "127.0.0.1"
        assert listeners.tls.getsockname()[0] == "0.0.0.0"
        assert listeners.url.startswith("http://127.0.0.1:") and listeners.tls_url.startswith("https://")
    finally:
        listeners.plain.close()
        listeners.tls.close()
    assert "127.0.0.1" in names_of("0.0.0.0") and names_of("cloud.local")[0] == "cloud.local"
