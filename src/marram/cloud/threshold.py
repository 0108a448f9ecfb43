"""The HTTPS listener's first step: a TLS handshake in time, by not too many at once, before the door counts anybody.

asyncio would give a stranger a minute for a handshake and hold as many of them as there are files. Here a handshake has
seconds, and where too many stand at it, the one that stands longest makes room. It knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from marram.cloud.door import Door

HANDSHAKE_S = 10.0
MOST_HANDSHAKES = 64


def server_context(folder: Path, identity_pem: bytes) -> ssl.SSLContext:
    """TLS 1.3 as the server that `identity_pem` (key and certificate) says; `folder` is private, used in passing."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    replace_identity(context, folder, identity_pem)
    return context


def replace_identity(context: ssl.SSLContext, folder: Path, identity_pem: bytes) -> None:
    """From the next handshake on, another certificate."""
    # OpenSSL reads files only; this one is nobody else's, and gone at once.
    with tempfile.NamedTemporaryFile(dir=folder, prefix="identity-", suffix=".pem") as file:
        file.write(identity_pem)
        file.flush()
        context.load_cert_chain(file.name)


class Threshold(asyncio.Protocol):
    """One connection until its handshake is done; then its `Door` has it."""

    # Who stands at the handshake, oldest first; set by `threshold` for each listener.
    standing: dict[Threshold, None]
    context: ssl.SSLContext

    def __init__(self, make_door: Callable[[], Door]) -> None:
        self._make_door = make_door
        self._transport: asyncio.Transport | None = None
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.pause_reading()
        if len(self.standing) >= MOST_HANDSHAKES:
            next(iter(self.standing))._leave()
        self.standing[self] = None
        self._transport = transport
        self._task = asyncio.get_running_loop().create_task(self._greet(transport))

    async def _greet(self, transport: asyncio.Transport) -> None:
        early = _Early()
        try:
            # A stranger's bad handshake, or none, is not worth a log line: there are scanners everywhere.
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                secured = await asyncio.get_running_loop().start_tls(
                    transport,
                    early,
                    self.context,
                    server_side=True,
                    ssl_handshake_timeout=HANDSHAKE_S,
                    ssl_shutdown_timeout=HANDSHAKE_S,
                )
                if secured is not None:
                    early.hand_over(secured, self._make_door())
                    return
            transport.abort()
        finally:
            self.standing.pop(self, None)

    def _leave(self) -> None:
        self.standing.pop(self, None)
        assert self._transport is not None and self._task is not None
        self._task.cancel()
        self._transport.abort()


class _Early(asyncio.Protocol):
    """Keeps what arrives between the end of the handshake and the moment somebody listens."""

    def __init__(self) -> None:
        self._data = b""
        self._lost = False

    def data_received(self, data: bytes) -> None:
        self._data += data

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True

    def hand_over(self, transport: asyncio.Transport, door: Door) -> None:
        if self._lost:
            return
        door.connection_made(transport)
        transport.set_protocol(door)
        if self._data:
            door.data_received(self._data)


def threshold(context: ssl.SSLContext) -> Callable[..., Threshold]:
    """What uvicorn is given as the protocol of an HTTPS listener."""
    standing: dict[Threshold, None] = {}

    def make(**options: Any) -> Threshold:
        made = Threshold(lambda: Door(**options))
        made.standing, made.context = standing, context
        return made

    return make
