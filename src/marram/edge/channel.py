"""What agent and worker say to each other over a socket pair: length-prefixed msgpack mappings.

| message | way | fields |
|---|---|---|
| `start` | agent → worker | what to run, see `supervisor.WorkerSpec` |
| `go` | agent → worker | the app may run now |
| `reply` | agent → worker | id, and `payload` (gone: another than the one asked took it) or `error`, `kind` |
| `link` | agent → worker | up |
| `asked` | agent → worker | id, model, payload: another device's question; model is name and version |
| `verified`, `running`, `finished` | worker → agent | how far it came |
| `beat` | worker → agent | busy_s: for how long the app has been in one step |
| `stats` | worker → agent | stats |
| `infer` | worker → agent | id, model, version, payload, timeout_s; replica: whom to ask first; peers: among devices |
| `answer` | worker → agent | id, payload: to what was `asked` |
| `probe` | worker → agent | id, size, timeout_s; model, version: whose replicas' load is asked |
| `fatal` | worker → agent | message, again: another start may help, engine: if one fails, disk: no room for us |

A worker runs other people's code: the agent believes nothing it says without checking, and never waits for it
(`agent_end`). The worker's end, here, never waits for the agent either: what does not fit into a bounded backlog fails
at once. It must not import asyncio, which costs a worker 4 MB.
"""

from __future__ import annotations

import collections
import contextlib
import socket
import struct
import threading
from typing import Any

from marram.bus.packing import MAX_MESSAGE_BYTES, pack, unpack_dict
from marram.schema.errors import Invalid

MAX_FRAME_BYTES = MAX_MESSAGE_BYTES + 4096
BACKLOG_BYTES = 2 * MAX_FRAME_BYTES
HEADER = struct.Struct(">I")


def encode(message: dict[str, Any]) -> bytes:
    """One message as it travels. Raises Invalid where it is larger than a frame may be."""
    body = pack(message)
    if len(body) > MAX_FRAME_BYTES:
        raise Invalid(f"a message of {len(body)} bytes; {MAX_FRAME_BYTES} is the most")
    return HEADER.pack(len(body)) + body


class WorkerEnd:
    """The worker's end: `send` from any thread, `receive` from one."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._socket.setblocking(True)
        self._received = b""
        self._lock = threading.Lock()
        self._backlog: collections.deque[memoryview] = collections.deque()
        self._backlog_bytes = 0
        self._more = threading.Condition(self._lock)
        self._closed = False
        threading.Thread(target=self._flush, name="channel", daemon=True).start()

    def send(self, message: dict[str, Any]) -> bool:
        """Send without blocking. False where the agent is gone or so far behind that the backlog is full."""
        data = memoryview(encode(message))
        with self._lock:
            if self._closed or self._backlog_bytes + len(data) > BACKLOG_BYTES:
                return False
            if not self._backlog:
                # The usual case: the agent keeps up, and no other thread has to wake for this message.
                with contextlib.suppress(BlockingIOError, InterruptedError):
                    try:
                        data = data[self._socket.send(data, socket.MSG_DONTWAIT) :]
                    except (BrokenPipeError, ConnectionError):
                        self._closed = True
                        return False
            if data:
                self._backlog.append(data)
                self._backlog_bytes += len(data)
                self._more.notify()
        return True

    def receive(self) -> dict[str, Any] | None:
        """The next message; None when the agent is gone. Blocks. Raises Invalid on nonsense."""
        header = self._exactly(HEADER.size)
        if header is None:
            return None
        (length,) = HEADER.unpack(header)
        if length > MAX_FRAME_BYTES:
            raise Invalid(f"announced a message of {length} bytes")
        body = self._exactly(length)
        return None if body is None else unpack_dict(body)

    def close(self) -> None:
        """Hang up; a blocked `receive` then gives None."""
        with self._lock:
            self._closed = True
            self._more.notify()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def drain(self, timeout_s: float) -> None:
        """Wait until what was sent has left, at most so long: before the process ends."""
        with self._more:
            self._more.wait_for(lambda: self._closed or not self._backlog, timeout_s)

    def _exactly(self, length: int) -> bytes | None:
        parts = bytearray()
        while len(parts) < length:
            try:
                part = self._socket.recv(min(length - len(parts), 1 << 18))
            except ConnectionError:
                return None
            if not part:
                return None
            parts += part
        return bytes(parts)

    def _flush(self) -> None:
        while True:
            with self._more:
                self._more.wait_for(lambda: self._closed or bool(self._backlog))
                if self._closed:
                    return
                data = self._backlog[0]
            # Only this thread takes from the backlog, and `send` goes past it only while it is empty: order holds.
            try:
                self._socket.sendall(data)
            except OSError:
                with self._more:
                    self._closed = True
                    self._more.notify_all()
                return
            with self._more:
                self._backlog.popleft()
                self._backlog_bytes -= len(data)
                self._more.notify_all()
