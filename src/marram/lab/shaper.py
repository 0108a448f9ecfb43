"""A shaped link: a TCP proxy that carries bytes no faster, no sooner and no surer than a trace says.

All connections of a link share its capacity, first come first served, separately up and down; each byte arrives half a
round-trip time after it left. The queue before the link is bounded: when it is full the proxy stops reading, and with
the small socket buffers it asks for the sender's own TCP feels it. `cut` blackholes (nothing moves, nothing closes, as
when a radio loses its cell), `heal` ends that, `reset` breaks every connection with RST.

It never drops, reorders or alters a byte: what TCP would repair by retransmission only arrives later.

As a process: `python -m marram.lab.shaper --target HOST:PORT --trace lte:7` prints `{"port": N}`, then takes one JSON
command a line on stdin (`{"do": "cut"}`, `heal`, `reset`, `stats`); it ends with its parent (end of stdin).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import socket
import struct
import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

from marram.lab.traces import Direction, Trace, parse_trace
from marram.schema.errors import Conflict, MarramError

_BUFFER_BYTES = 32 * 1024
# Bytes arrive in lumps of so long a time: fine enough for latencies, coarse enough to cost next to nothing.
_LUMP_S = 0.005
_MIN_LUMP_BYTES = 1500


@dataclass(slots=True)
class _Lump:
    """Bytes under way to `end` (None: the sender closed). `left_s`: when the last of them has left the queue."""

    end: _End
    data: bytes | None
    left_s: float
    arrives_s: float


class Lane:
    """One direction of a link: a bounded queue, a server of varying rate, a delay line. Times are the loop's."""

    def __init__(self, link: Link, capacity: Direction, queue_bytes: int) -> None:
        self.carried_bytes = 0
        self._link = link
        self._capacity = capacity
        self._limit = queue_bytes
        self._lumps: deque[_Lump] = deque()
        self._free_s = 0.0
        self._senders: set[_End] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._resume: asyncio.TimerHandle | None = None

    def put(self, end: _End, data: bytes | None) -> None:
        """Queue bytes (or the close) for `end`."""
        now = self._link.now()
        for piece in self._pieces(data, now):
            lump = _Lump(end, piece, 0.0, 0.0)
            if not self._link.is_cut:
                self._serve(lump, now)
            self._lumps.append(lump)
        self._arm()

    def _pieces(self, data: bytes | None, now: float) -> Iterator[bytes | None]:
        if data is None:
            yield None
            return
        rate = self._capacity.at(self._link.age(now))
        size = max(_MIN_LUMP_BYTES, int(rate * _LUMP_S / 8))
        for start in range(0, len(data), size):
            yield data[start : start + size]

    def _serve(self, lump: _Lump, now: float) -> None:
        begin = max(now, self._free_s)
        age = self._link.age(begin)
        lump.left_s = begin + self._capacity.finish(age, len(lump.data or b"")) - age
        self._free_s = lump.left_s
        one_way_s = self._link.trace.rtt_at(self._link.age(lump.left_s)) / 2
        # Never before what left earlier: a shorter delay later on must not reorder a byte stream.
        before = self._lumps[-1].arrives_s if self._lumps else 0.0
        lump.arrives_s = max(lump.left_s + one_way_s, before)

    @property
    def waiting_bytes(self) -> int:
        """Bytes that have not left yet."""
        now, frozen = self._link.now(), self._link.is_cut
        return sum(len(p.data or b"") for p in self._lumps if frozen or p.left_s > now)

    def full(self, sender: _End) -> bool:
        """Whether `sender` has to stop reading; it is then told to go on when half the queue has gone."""
        if self.waiting_bytes < self._limit:
            return False
        self._senders.add(sender)
        self._arm_resume()
        return True

    def freeze(self) -> None:
        for timer in (self._timer, self._resume):
            if timer is not None:
                timer.cancel()
        self._timer = self._resume = None

    def thaw(self, cut_s: float) -> None:
        """Go on after a cut at `cut_s`: what was in the air is sent again, what waited leaves now."""
        now = self._link.now()
        lumps, self._lumps = self._lumps, deque()
        self._free_s = now
        for lump in lumps:
            if 0 < lump.left_s <= cut_s:
                before = self._lumps[-1].arrives_s if self._lumps else 0.0
                lump.arrives_s = max(now + self._link.trace.rtt_at(self._link.age(now)) / 2, before)
            else:
                self._serve(lump, now)
            self._lumps.append(lump)
        self._arm()
        if self._senders:
            self._arm_resume()

    def forget(self, end: _End) -> None:
        """`end` is gone: nothing more for it, and it waits for nothing."""
        self._senders.discard(end)
        self._lumps = deque(p for p in self._lumps if p.end is not end)

    def _arm(self) -> None:
        if self._timer is None and self._lumps and not self._link.is_cut:
            self._timer = self._link.loop.call_at(self._lumps[0].arrives_s, self._arrive)

    def _arrive(self) -> None:
        self._timer = None
        now = self._link.now() + 0.0005
        while self._lumps and self._lumps[0].arrives_s <= now:
            lump = self._lumps.popleft()
            self.carried_bytes += len(lump.data or b"")
            lump.end.deliver(lump.data)
        self._arm()

    def _arm_resume(self) -> None:
        if self._resume is not None or self._link.is_cut:
            return
        left, when = self.waiting_bytes, self._link.now()
        for lump in self._lumps:
            if left <= self._limit // 2:
                break
            if lump.left_s > when:
                left -= len(lump.data or b"")
                when = lump.left_s
        self._resume = self._link.loop.call_at(when, self._go_on)

    def _go_on(self) -> None:
        self._resume = None
        senders, self._senders = self._senders, set()
        for sender in senders:
            sender.go_on()


class _End(asyncio.Protocol):
    """One socket of a pair: what it reads goes into `out`, for `peer` to write."""

    def __init__(self, link: Link, out: Lane) -> None:
        self._link = link
        self._out = out
        self.transport: asyncio.Transport | None = None
        self.peer: _End | None = None
        self._gone = False
        self._ended_in = self._ended_out = False
        # Two reasons to stop reading: the link's queue is full, or whoever reads at the far end does not.
        self._queue_full = False
        self._peer_full = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.set_write_buffer_limits(high=_BUFFER_BYTES)
        sock: socket.socket = transport.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.peer is None:
            # Nothing is taken from the sender before the far side stands: a handshake takes its round trip.
            self._peer_full = True
            self._flow()
            self._link.accepted(self)
        elif self.peer._gone:
            self.abort()
        else:
            self.resume_writing()

    def data_received(self, data: bytes) -> None:
        assert self.peer is not None
        self._out.put(self.peer, data)
        if self._out.full(self):
            self._queue_full = True
            self._flow()

    def eof_received(self) -> bool:
        assert self.peer is not None
        self._out.put(self.peer, None)
        self._ended_in = True
        return not self._ended_out  # the other way may still have something to say

    def connection_lost(self, exc: Exception | None) -> None:
        self._gone = True
        if self.peer is not None and not self.peer._gone:
            self._out.put(self.peer, None)
        self._link.closed(self)

    def pause_writing(self) -> None:
        if self.peer is not None:
            self.peer._peer_full = True
            self.peer._flow()

    def resume_writing(self) -> None:
        if self.peer is not None:
            self.peer._peer_full = False
            self.peer._flow()

    def go_on(self) -> None:
        self._queue_full = False
        self._flow()

    def _flow(self) -> None:
        if self.transport is None or self.transport.is_closing():
            return
        if self._queue_full or self._peer_full:
            self.transport.pause_reading()
        else:
            self.transport.resume_reading()

    def deliver(self, data: bytes | None) -> None:
        """Write what arrived; None: the other side closed its way."""
        if self._gone or self.transport is None:
            return
        if data is not None:
            if not self.transport.is_closing():
                self.transport.write(data)
        elif self._ended_in or self.peer is None or self.peer._gone:
            self.transport.close()
        elif self.transport.can_write_eof() and not self.transport.is_closing():
            self._ended_out = True
            with contextlib.suppress(OSError):
                self.transport.write_eof()

    def abort(self) -> None:
        """Close with RST."""
        if self.transport is not None:
            sock: socket.socket = self.transport.get_extra_info("socket")
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.transport.abort()
        self._gone = True


class Link:
    """A shaped link in this event loop: `async with Link("127.0.0.1", 4222, trace) as link: … link.port`.

    `queue_bytes` bounds what waits before the link, each way. Not for several threads.
    """

    def __init__(self, host: str, port: int, trace: Trace, *, queue_bytes: int = 64 * 1024, listen: int = 0) -> None:
        self.trace = trace
        self.port = 0
        self._target = (host, port)
        self._listen = listen
        self._cut_s: float | None = None
        self._began_s = 0.0
        self._up = Lane(self, trace.up, queue_bytes)
        self._down = Lane(self, trace.down, queue_bytes)
        self._ends: set[_End] = set()
        self._healed = asyncio.Event()
        self._healed.set()
        self._openers: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen on `port` of 127.0.0.1. Raises Conflict where a given port is taken."""
        self.loop = asyncio.get_running_loop()
        self._began_s = self.now()
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Accepted sockets inherit it; it has to be set before they exist for the window to stay small.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
        listener.setblocking(False)
        try:
            listener.bind(("127.0.0.1", self._listen))
            self._server = await self.loop.create_server(lambda: _End(self, self._up), sock=listener)
        except OSError as error:
            listener.close()
            raise Conflict(f"port {self._listen} is taken", hint="Leave the port out for a free one.") from error
        self.port = listener.getsockname()[1]

    async def close(self) -> None:
        """Stop listening, break every connection."""
        if self._server is not None:
            self._server.close()
        for opener in list(self._openers):
            opener.cancel()
        self.reset()
        self._up.freeze()
        self._down.freeze()
        await asyncio.sleep(0)

    async def __aenter__(self) -> Link:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # ------------------------------------------------ what can go wrong with it

    @property
    def is_cut(self) -> bool:
        return self._cut_s is not None

    def cut(self) -> None:
        """Nothing moves from now on, nothing closes: new connections hang as well. Twice is once."""
        if self._cut_s is None:
            self._cut_s = self.now()
            self._healed.clear()
            self._up.freeze()
            self._down.freeze()

    def heal(self) -> None:
        """Everything moves again."""
        if self._cut_s is not None:
            cut_s, self._cut_s = self._cut_s, None
            self._healed.set()
            self._up.thaw(cut_s)
            self._down.thaw(cut_s)

    def reset(self) -> None:
        """Break every connection, both sides, with RST; what was under way is lost."""
        for end in list(self._ends):
            end.abort()
            self.closed(end)

    def stats(self) -> dict[str, Any]:
        """What the link is and did: how far into the trace it is (`age_s`), rates in bit/s, `rtt_s`, bytes carried and
        waiting each way, connections.
        """
        age = self.age(self.now())
        return {
            "trace": self.trace.name,
            "age_s": age,
            "up_bit_s": self.trace.up.at(age),
            "down_bit_s": self.trace.down.at(age),
            "rtt_s": self.trace.rtt_at(age),
            "cut": self.is_cut,
            "connections": len(self._ends) // 2,
            "up_bytes": self._up.carried_bytes,
            "down_bytes": self._down.carried_bytes,
            "up_waiting_bytes": self._up.waiting_bytes,
            "down_waiting_bytes": self._down.waiting_bytes,
        }

    # ------------------------------------------------ for its lanes and ends

    def now(self) -> float:
        return self.loop.time()

    def age(self, t_s: float) -> float:
        """Where in the trace the loop's time `t_s` is."""
        return t_s - self._began_s

    def accepted(self, near: _End) -> None:
        """A sender came: reach the target for it, one round trip later (the handshake), never during a cut."""
        far = _End(self, self._down)
        near.peer, far.peer = far, near
        self._ends |= {near, far}
        opener = self.loop.create_task(self._open(near, far))
        self._openers.add(opener)
        opener.add_done_callback(self._openers.discard)

    async def _open(self, near: _End, far: _End) -> None:
        await self._healed.wait()
        await asyncio.sleep(self.trace.rtt_at(self.age(self.now())))
        await self._healed.wait()
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
            sock.setblocking(False)
            await self.loop.sock_connect(sock, self._target)
            if near._gone:
                sock.close()
                return
            await self.loop.create_connection(lambda: far, sock=sock)
        except OSError:
            # Nobody listens at the target: the sender is refused, as it would be without us.
            sock.close()
            near.abort()

    def closed(self, end: _End) -> None:
        """`end` is gone: nothing more for it."""
        self._ends.discard(end)
        self._up.forget(end)
        self._down.forget(end)


def _spoken(link: Link, line: str) -> dict[str, Any]:
    """Carry out one command line of the process form."""
    try:
        command = json.loads(line)["do"]
    except (ValueError, KeyError, TypeError):
        return {"error": f"not a command: {line.strip()[:80]}"}
    if command == "cut":
        link.cut()
    elif command == "heal":
        link.heal()
    elif command == "reset":
        link.reset()
    elif command != "stats":
        return {"error": f'no command "{command}"; there are cut, heal, reset, stats'}
    return link.stats()


async def _serve(arguments: argparse.Namespace) -> None:
    host, _, port = arguments.target.rpartition(":")
    trace = parse_trace(arguments.trace)
    if arguments.rtt is not None:
        trace = replace(trace, starts_s=(0.0,), rtt_s=(arguments.rtt,))
    if arguments.down is not None:
        trace = replace(trace, down=Direction((0.0,), (arguments.down,), 1.0))
    link = Link(host, int(port), trace, queue_bytes=arguments.queue, listen=arguments.listen)
    async with link:
        print(json.dumps({"port": link.port}), flush=True)
        reader = asyncio.StreamReader()
        await link.loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while line := await reader.readline():
            print(json.dumps(_spoken(link, line.decode(errors="replace"))), flush=True)


def main() -> int:
    """The process form; see the module's words."""
    parser = argparse.ArgumentParser(prog="python -m marram.lab.shaper", description="A shaped TCP link.")
    parser.add_argument("--target", required=True, metavar="HOST:PORT")
    parser.add_argument("--trace", required=True, help="wifi, lte:7, 3g, '6 Mbit/s 48 ms', or a .up or .json file")
    parser.add_argument("--rtt", type=float, metavar="SECONDS", help="the round-trip time, in place of the trace's own")
    parser.add_argument("--down", type=float, metavar="BIT/S", help="the down link's rate, in place of the trace's own")
    parser.add_argument("--listen", type=int, default=0, metavar="PORT", help="0: a free one")
    parser.add_argument("--queue", type=int, default=64 * 1024, metavar="BYTES")
    try:
        asyncio.run(_serve(parser.parse_args()))
    except MarramError as error:
        print(json.dumps({"error": str(error)}), flush=True)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
