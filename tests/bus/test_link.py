"""The connection under one NATS client, against a peer that resets it."""

from __future__ import annotations

import asyncio
import socket
import struct
from urllib.parse import urlparse

import pytest

from marram.bus.link import Link


async def test_who_writes_into_an_ended_connection_tells_it_though_nobody_reads() -> None:
    """The client's writer may be the first to notice; over it the client ends its reader, and tells nobody."""
    told: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        link = Link(5.0, told.append)
        await link.connect(urlparse(f"nats://127.0.0.1:{server.getsockname()[1]}"), 65536, 5.0)
        peer, _ = server.accept()
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()  # by a reset
    with pytest.raises(OSError):
        async with asyncio.timeout(30):
            while True:
                link.write(b"PUB answer 0\r\n\r\n")
                await link.drain()
    assert len(told) == 1 and told[0]
    link.abort()
