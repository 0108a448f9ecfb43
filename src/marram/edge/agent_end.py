"""The agent's end of the channel to a worker, on the agent's event loop; what is said over it is in `channel`."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from marram.bus.packing import unpack_dict
from marram.edge.channel import BACKLOG_BYTES, HEADER, MAX_FRAME_BYTES, encode
from marram.schema.errors import Invalid


class AgentEnd:
    """The agent's end, on its event loop."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, end: socket.socket) -> AgentEnd:
        """Take over one end of the pair."""
        return cls(*await asyncio.open_unix_connection(sock=end, limit=1 << 18))

    async def receive(self) -> dict[str, Any] | None:
        """The next message; None when the worker is gone. Raises Invalid where it speaks nonsense."""
        try:
            (length,) = HEADER.unpack(await self._reader.readexactly(HEADER.size))
            if length > MAX_FRAME_BYTES:
                raise Invalid(f"announced a message of {length} bytes")
            return unpack_dict(await self._reader.readexactly(length))
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

    def send(self, message: dict[str, Any]) -> None:
        """Send without waiting; to a worker that does not read, replies are dropped once its backlog is full."""
        if self._writer.is_closing() or self._writer.transport.get_write_buffer_size() > BACKLOG_BYTES:
            return
        self._writer.write(encode(message))

    def close(self) -> None:
        """Hang up."""
        self._writer.close()
