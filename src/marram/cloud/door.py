"""The API's door: how many connections stand open at once, and how long one may stand there asking nothing.

uvicorn waits for ever for a request to be whole and holds as much of its head as comes; and where a process has no file
left for one more connection, asyncio says so thousands of times a second. None of it may take the cloud from those who
have a token, nor fill its memory, or its disk with log lines. The door knows nothing of tokens or paths: it counts and
waits.
"""

from __future__ import annotations

import asyncio
import resource
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

# How long a connection may stand without a whole request head, or with no more coming of a body.
PATIENCE_S = 30.0
# Accepted at once, before any of them is counted. Below the reserve, so that a burst takes no file from the rest.
BACKLOG = 64
# The parser keeps all of a request's head, and of what follows a body, until it ends.
MOST_HEAD_BYTES = 64 * 1024
# Files left for the database, the objects, the broker, replicas.
_RESERVED_FILES = 128
_LEAST, _MOST = 32, 10_000


def most_connections() -> int:
    """How many may stand open at once in this process."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return _MOST if files == resource.RLIM_INFINITY else max(_LEAST, min(_MOST, files - _RESERVED_FILES))


class Door(HttpToolsProtocol):
    """uvicorn's protocol for one connection, with a limit on their number, on its silence and on a request's head."""

    _heard_s: float = 0.0
    _head_bytes: int = 0  # that came since the last end of a head or piece of a body
    _looking: asyncio.TimerHandle | None = None
    _looked_s: float = 0.0
    _seen: Any = None  # the request that was the latest at the last look

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        super().connection_made(transport)
        self._heard_s = self._looked_s = self.loop.time()
        if len(self.connections) > most_connections():
            # The one that is silent longest makes room: nobody is kept out by those who only stand there.
            others = [each for each in self.connections if isinstance(each, Door) and each is not self]
            waiting = [each for each in others if each._headless or each._bodyless]
            leaves = min(waiting, key=lambda each: each._heard_s, default=self)
            self.connections.discard(leaves)
            leaves.transport.abort()
        self._looking = self.loop.call_later(PATIENCE_S, self._look)

    def data_received(self, data: bytes) -> None:
        self._heard_s = self.loop.time()
        self._head_bytes += len(data)
        super().data_received(data)
        if self._head_bytes > MOST_HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response("The head of the request is too large.")

    def on_headers_complete(self) -> None:
        self._head_bytes = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._head_bytes = 0
        super().on_body(body)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._looking is not None:
            self._looking.cancel()
        super().connection_lost(exc)

    @property
    def _headless(self) -> bool:
        """Every request whose head came whole is answered."""
        return self.cycle is None or bool(self.cycle.response_complete)

    @property
    def _bodyless(self) -> bool:
        """The body of the latest request is not here whole."""
        return self.cycle is not None and bool(self.cycle.more_body)

    def _look(self) -> None:
        """Close it where no new request came since the last look, or nothing more of one that is not whole."""
        if self.transport.get_protocol() is not self:
            return  # it is a WebSocket now, which has its own pings
        silent = self._heard_s <= self._looked_s
        if (self._headless and self.cycle is self._seen) or (self._bodyless and silent):
            self.transport.close()
            return
        self._seen, self._looked_s = self.cycle, self.loop.time()
        self._looking = self.loop.call_later(PATIENCE_S, self._look)
