"""The TCP connection under one NATS client, made to fail soon and to be watched.

nats-py's own transport waits for minutes on a dead path, and its client takes a PING for the end of the handshake; both
are mended here, at its seam for transports. A link must never swallow or reorder bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import socket
import ssl
import struct
import sys
import termios
from asyncio import sslproto
from collections.abc import Callable
from typing import cast
from urllib.parse import ParseResult

from marram.bus.library import Transport

_CLOSE_S = 0.5

# asyncio's TLS keeps a buffer of 256 kB for each connection, touched or not: too much for an agent that is to be small,
# and for hundreds of them in one process. A record has 16 kB.
sslproto.SSLProtocol.max_size = 64 * 1024


class Link(Transport):
    """Counts what comes and goes; tells `on_end` first of all when the peer ends it; `abort` ends it at once."""

    def __init__(self, user_timeout_s: float, on_end: Callable[[str], None]) -> None:
        self.heard_bytes = 0
        self.written_bytes = 0
        # How long the last line of the handshake may take: whether the broker lets us in. It may have to ask somebody
        # who is not there yet, and tells nobody so: asking again soon is better than waiting for what never comes.
        # `unheard`: it took longer.
        self.verdict_s = float("inf")
        self.unheard = False
        self._lines = 0
        self._user_timeout_s = user_timeout_s
        self._on_end = on_end
        self._ended = False
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._socket: socket.socket | None = None
        self._below: asyncio.Transport | None = None  # under TLS: what carries its records

    def __bool__(self) -> bool:
        # The client makes a transport of its own where ours is false.
        return True

    async def connect(self, uri: ParseResult, buffer_size: int, connect_timeout: float) -> None:
        """Raises OSError, TimeoutError."""
        async with asyncio.timeout(connect_timeout):
            self._reader, self._writer = await asyncio.open_connection(uri.hostname, uri.port, limit=buffer_size)
        self._socket = self._writer.get_extra_info("socket")
        if self._socket is not None:
            set_user_timeout(self._socket, self._user_timeout_s)

    async def connect_tls(
        self, uri: str | ParseResult, ssl_context: ssl.SSLContext, buffer_size: int, connect_timeout: float
    ) -> None:
        """Raises OSError (ssl.SSLError among them), TimeoutError."""
        writer = self._open()
        name = uri if isinstance(uri, str) else uri.hostname
        self._below = cast(asyncio.Transport, writer.transport)
        async with asyncio.timeout(connect_timeout):
            await writer.start_tls(ssl_context, server_hostname=name)

    async def read(self, buffer_size: int) -> bytes:
        """After the end it waits until it is cancelled: the client must not deal with it.

        It would trip over errors of its own, tell nobody, and leave a traceback; its owner was told by `on_end`.
        """
        assert self._reader is not None
        try:
            data = b"" if self._ended else await self._reader.read(buffer_size)
            why = "closed by the broker"
        except OSError as error:
            data, why = b"", _why(error)
        if not data:
            self._ended = True
            self._on_end(why)
            await asyncio.Event().wait()
        self.heard_bytes += len(data)
        return data

    async def readline(self) -> bytes:
        """Only the handshake reads lines. Where auth is slow the server's PING comes before its PONG: answered here."""
        assert self._reader is not None
        self._lines += 1
        try:
            async with asyncio.timeout(self.verdict_s if self._lines > 1 else None):
                while True:
                    line = await self._reader.readline()
                    self.heard_bytes += len(line)
                    if not line.startswith(b"PING"):
                        return line
                    self.write(b"PONG\r\n")
        except TimeoutError:
            self.unheard = True
            raise

    def write(self, payload: bytes) -> None:
        """After the end nothing."""
        if self._ended:
            return
        self.written_bytes += len(payload)
        self._open().write(payload)

    def writelines(self, payload: list[bytes]) -> None:
        self.write(b"".join(payload))

    async def drain(self) -> None:
        """Raises OSError, once `on_end` was told: over it the client ends `read`, and itself tells nobody."""
        if self._ended:
            return
        try:
            await self._open().drain()
        except OSError as error:
            self._ended = True
            self._on_end(_why(error))
            raise

    def at_eof(self) -> bool:
        return False  # `read` sees to it

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    async def wait_closed(self) -> None:
        """Bounded: what a dead path still holds is given up."""
        if self._writer is None:
            return
        try:
            async with asyncio.timeout(_CLOSE_S):
                await self._writer.wait_closed()
        except TimeoutError:
            self.abort()
        except (OSError, EOFError):
            pass  # it is closed, which is all we asked

    def abort(self) -> None:
        """Close now, without sending what is buffered."""
        self._ended = True
        for transport in (self._below, self._writer.transport if self._writer is not None else None):
            if transport is not None:
                transport.abort()

    def unsent_bytes(self) -> int:
        """Written here and not yet taken by the peer's kernel, as far as this system tells."""
        if self._writer is None or self._socket is None:
            return 0
        above = self._writer.transport.get_write_buffer_size()
        below = self._below.get_write_buffer_size() if self._below is not None else 0
        return above + below + _kernel_unsent_bytes(self._socket)

    def sent_bytes(self) -> int:
        """Written here and taken by the peer."""
        return self.written_bytes - self.unsent_bytes()

    def _open(self) -> asyncio.StreamWriter:
        if self._writer is None:
            raise ConnectionError("not connected")
        return self._writer


def set_user_timeout(connection: socket.socket, seconds: float) -> None:
    """Let the kernel end the connection when sent bytes stay unacknowledged so long, where it can."""
    with contextlib.suppress(OSError):
        if sys.platform == "linux":
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(seconds * 1000))
        elif sys.platform == "darwin":
            connection.setsockopt(socket.IPPROTO_TCP, 0x80, max(1, int(seconds)))  # TCP_RXT_CONNDROPTIME


def _kernel_unsent_bytes(connection: socket.socket) -> int:
    try:
        if sys.platform == "darwin":
            return connection.getsockopt(socket.SOL_SOCKET, 0x1024)  # SO_NWRITE
        return int(struct.unpack("i", fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, b"\0\0\0\0"))[0])
    except (OSError, ValueError):
        return 0  # closed, or a system that does not tell


def _why(error: OSError) -> str:
    return getattr(error, "reason", None) or error.strerror or str(error)
