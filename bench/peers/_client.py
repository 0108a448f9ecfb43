"""The one client that loads every server: HTTP/1.1, kept alive, a fixed number of requests in flight, one thread.

It shares the machine with what it measures, so it does little: request bytes made beforehand, sockets without a
library, answers kept as they come and judged after the window. A connection has one request in flight: as many
connections as requests.
"""

from __future__ import annotations

import selectors
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

_END = b"\r\n\r\n"
_RECEIVE_BYTES = 65536
# So long without any answer, and a server counts as stuck.
_STUCK_S = 20.0


class Broken(Exception):
    """The server did not answer as HTTP has it, or not at all."""


@dataclass(slots=True)
class Window:
    """What came back in one window: `bodies` (which request, its answer), each one's latency, and the client's CPU.

    `total`: answers in all, with those of settling before it and of what was still under way after it.
    """

    elapsed_s: float
    cpu_s: float = 0.0
    total: int = 0
    latencies_s: list[float] = field(default_factory=list)
    bodies: list[tuple[int, bytes]] = field(default_factory=list)

    @property
    def per_s(self) -> float:
        return len(self.latencies_s) / self.elapsed_s


def request(path: str, body: bytes, content_type: str, headers: Sequence[tuple[str, str]] = ()) -> bytes:
    """The bytes of one POST."""
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Type: {content_type}"]
    lines += [f"{name}: {value}" for name, value in headers]
    lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode() + _END + body


class Connection:
    """One kept-alive connection, and the answer that it is reading."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=5)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.asked = -1
        self.sent_s = 0.0
        self._unsent = memoryview(b"")
        self._got = bytearray()

    def ask(self, number: int, asked: bytes) -> bool:
        """Send request `number`; whether all of it went out at once (else `push` when the socket takes more)."""
        self.asked, self.sent_s = number, time.perf_counter()
        self._unsent = memoryview(asked)
        return self.push()

    def push(self) -> bool:
        """Send what is left; whether that was all."""
        try:
            self._unsent = self._unsent[self.socket.send(self._unsent) :]
        except BlockingIOError:
            return False
        return not self._unsent

    def read(self) -> bytes | None:
        """What came; the body once the answer is whole. Raises Broken."""
        try:
            came = self.socket.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            return None
        if not came:
            raise Broken("the server closed the connection")
        self._got += came
        whole = answer(self._got)
        if whole is not None:
            self._got.clear()
        return whole


def answer(got: bytearray) -> bytes | None:
    """The body of the one answer in `got`, None while some of it is missing. Raises Broken where it is no 200."""
    end = got.find(_END)
    if end < 0:
        return None
    head = bytes(got[:end]).lower()
    at = head.find(b"\r\ncontent-length:")
    if at >= 0:
        length = int(head[at + 17 :].split(b"\r\n", 1)[0])
        body = bytes(got[end + 4 : end + 4 + length]) if len(got) >= end + 4 + length else None
    elif b"\r\ntransfer-encoding: chunked" in head:
        body = _unchunked(got, end + 4)
    else:
        raise Broken(f"an answer without a length: {head[:200]!r}")
    if body is not None and not head.startswith(b"http/1.1 200"):
        raise Broken(f"{head.split(bytes([13]), 1)[0].decode()}: {body[:300]!r}")
    return body


def _unchunked(got: bytearray, at: int) -> bytes | None:
    body = bytearray()
    while True:
        line = got.find(b"\r\n", at)
        if line < 0:
            return None
        length = int(got[at:line].split(b";")[0], 16)
        at = line + 2
        if len(got) < at + length + 2:
            return None
        if length == 0:
            return bytes(body)
        body += got[at : at + length]
        at += length + 2


class Load:
    """Keeps `in_flight` requests under way to the server on `port`, going round `requests`."""

    def __init__(self, port: int, requests: Sequence[bytes], in_flight: int) -> None:
        self._requests = requests
        self._next = 0
        self._total = 0
        self._selector = selectors.DefaultSelector()
        self._connections = [Connection(port) for _ in range(in_flight)]
        for connection in self._connections:
            self._selector.register(connection.socket, selectors.EVENT_READ, connection)

    def window(self, settle_s: float, seconds: float) -> Window:
        """Load for `settle_s` first, then count what comes for `seconds`; then let all under way come back.

        Raises Broken.
        """
        before = self._total
        for connection in self._connections:
            self._ask(connection)
        self._pass(settle_s, None)
        begun_s, cpu_s = time.perf_counter(), time.thread_time()
        counted = Window(0.0)
        self._pass(seconds, counted)
        counted.elapsed_s = time.perf_counter() - begun_s
        counted.cpu_s = time.thread_time() - cpu_s
        self._drain(None)
        counted.total = self._total - before
        return counted

    def once(self) -> bytes:
        """One answer to the next request, with the first connection. Raises Broken."""
        counted = Window(0.0)
        self._ask(self._connections[0])
        self._drain(counted)
        return counted.bodies[0][1]

    def close(self) -> None:
        self._selector.close()
        for connection in self._connections:
            connection.socket.close()

    def _pass(self, seconds: float, counted: Window | None) -> None:
        """Answer by answer until `seconds` are over."""
        now_s = time.perf_counter()
        ends_s = now_s + seconds
        while now_s < ends_s:
            self._step(ends_s - now_s, counted, again=True)
            now_s = time.perf_counter()

    def _drain(self, counted: Window | None) -> None:
        ends_s = time.perf_counter() + _STUCK_S
        while any(connection.asked >= 0 for connection in self._connections):
            if time.perf_counter() > ends_s:
                raise Broken(f"no answer within {_STUCK_S:.0f} s")
            self._step(1.0, counted, again=False)

    def _step(self, wait_s: float, counted: Window | None, *, again: bool) -> None:
        for key, event in self._selector.select(wait_s):
            connection: Connection = key.data
            if event & selectors.EVENT_WRITE and connection.push():
                self._selector.modify(connection.socket, selectors.EVENT_READ, connection)
            body = connection.read() if event & selectors.EVENT_READ else None
            if body is None:
                continue
            self._total += 1
            if counted is not None:
                counted.latencies_s.append(time.perf_counter() - connection.sent_s)
                counted.bodies.append((connection.asked, body))
            connection.asked = -1
            if again:
                self._ask(connection)

    def _ask(self, connection: Connection) -> None:
        number = self._next
        self._next = (number + 1) % len(self._requests)
        if not connection.ask(number, self._requests[number]):
            self._selector.modify(connection.socket, selectors.EVENT_READ | selectors.EVENT_WRITE, connection)
