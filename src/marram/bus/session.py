"""One connection to the broker, from the handshake to its loss. It is never mended: `Bus` makes the next one.

nats-py's reconnecting is switched off: it hangs on dead paths, gives up for good on some errors, and buffers silently
while away. A session ends at the first sign that the broker is gone, and says so once (`lost`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import secrets
import socket
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from marram.bus.library import Client, Msg, nats_errors
from marram.bus.link import Link
from marram.bus.tls import TlsFiles, tls_fault
from marram.schema.errors import KINDS, Invalid, NotReady, Refused, Retryable, Threat, Untrusted

log = logging.getLogger(__name__)
# nats-py logs every lost connection with its traceback; whatever matters of it reaches `_on_error` too.
logging.getLogger("nats").setLevel(logging.CRITICAL)

# What may wait to be sent. A link that has more to carry than this is choked: the asker is told, nothing piles up.
UNSENT_LIMIT_BYTES = 8_000_000
# What may wait for a subscription's handler; beyond it messages are dropped and their senders time out.
PENDING_LIMIT_BYTES = 64_000_000
# How slowly a proxy on the way may carry what it has taken from us, and for how long that is believed.
SLOWEST_BYTES_S = 50_000
LONGEST_CARRIED_S = 60.0
ERROR_HEADER = "Marram-Error"

_DENIED = re.compile(r'Permissions Violation for (Publish|Subscription) to "([^"]+)"', re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Login:
    """Who we are to the broker: with `tls` by certificate, and what runs in the cloud by user and password too.

    `name`: told to the operator; unlike for each process, so that a copied identity shows.
    """

    user: str
    password: str
    name: str
    inbox_prefix: str
    tls: TlsFiles | None = None


@dataclass(frozen=True, slots=True)
class Timing:
    """How long things may take, seconds.

    `verdict_s`: for the broker to say whether it lets us in, doubled where that was too short, up to `connect_s`.
    `dead_after_s`: without a sign of life for so long a connection is given up (by the kernel after twice that).
    `retry_max_s`: between two attempts; after a minute without the broker, five times that. `refused_max_s`: the same
    where the broker refuses us.
    """

    connect_s: float = 5.0
    verdict_s: float = 1.0
    ping_s: float = 5.0
    dead_after_s: float = 10.0
    retry_min_s: float = 0.05
    retry_max_s: float = 2.0
    refused_max_s: float = 30.0


class Session:
    """`open` it, use it until `lost` is set, `close` it."""

    def __init__(self, login: Login, timing: Timing) -> None:
        self.lost = asyncio.Event()
        self.verdict_s = timing.connect_s  # see `Timing`
        self.why = ""  # it was lost, or did not open
        self.rtt_s: float | None = None
        self._login = login
        self._timing = timing
        # The kernel knows less than `_watch` does (a full proxy looks dead to it), so it comes second.
        self._link = Link(2 * timing.dead_after_s, self._lose)
        self._client = Client()
        # The client takes a transport that is there already.
        self._client._transport = self._link
        self._inbox = f"{login.inbox_prefix}.{secrets.token_hex(8)}"
        self._asked = 0
        self._waiting: dict[str, tuple[str, asyncio.Future[Msg]]] = {}
        self._gathering: dict[str, asyncio.Queue[bytes]] = {}
        self._denied: dict[str, Untrusted] = {}  # subjects in lower case
        self._tasks: list[asyncio.Task[None]] = []
        self._opening = True
        self._ping_mark: int | None = None  # bytes written when the outstanding PING was

    async def open(self, url: str) -> None:
        """Raises Refused (credentials; Untrusted with the threat's name), Retryable (link), or what `TlsFiles` does."""
        try:
            self._link.verdict_s = self.verdict_s
            tls = self._login.tls.context() if self._login.tls is not None else None
            async with asyncio.timeout(3 * self._timing.connect_s):
                await self._client.connect(
                    servers=[url],
                    error_cb=self._on_error,
                    closed_cb=self._on_closed,
                    name=self._login.name,
                    user=self._login.user,
                    password=self._login.password,
                    inbox_prefix=self._login.inbox_prefix,
                    allow_reconnect=False,
                    connect_timeout=self._timing.connect_s,  # type: ignore[arg-type]  # floats work
                    # Pinging is ours, see `_watch`. And nothing may ever wait inside the client: it swallows
                    # cancellation there, so that a time-out would not end it.
                    ping_interval=86_400,
                    pending_size=4 * UNSENT_LIMIT_BYTES,
                    tls=tls,
                    tls_handshake_first=tls is not None,
                )
                if not self._client.is_connected:
                    raise Retryable("the broker did not finish the handshake")
                await self._client.subscribe(f"{self._inbox}.*", cb=self._on_reply)
        except ssl.SSLError as error:
            fault = tls_fault(error, self._login.user)
            self.why = fault.what
            raise fault from error
        except (nats_errors.Error, OSError, TimeoutError, EOFError, ValueError, AttributeError) as error:
            # ValueError: a line too long, so not a NATS server. AttributeError: closed in mid-handshake.
            text = self.why = _plain(error)
            if "authorization" in text.lower() or "authentication" in text.lower():
                raise Refused(f"the broker refuses {self._login.user}: {text}", hint=self._hint()) from error
            raise Retryable(f"no connection to the broker: {text}") from error
        finally:
            self._opening = False
        self._tasks = [asyncio.create_task(self._ping()), asyncio.create_task(self._watch())]

    @property
    def unheard(self) -> bool:
        """Whether it did not open because the broker did not say in time that we are let in."""
        return self._link.unheard

    def _hint(self) -> str | None:
        # The broker keeps to itself why: whoever tries a stolen identity need not learn it.
        return "The cloud's log says why." if self._login.tls is not None else None

    async def close(self) -> None:
        """Never blocks for long, never raises. Where it was not lost, what is buffered is sent if the link takes it."""
        if self.lost.is_set():
            self._link.abort()
        self._lose("closed")
        for task in self._tasks:
            task.cancel()
        try:
            async with asyncio.timeout(1):
                await self._client.close()
        except Exception as error:  # noqa: BLE001 - the client is being thrown away; whatever ails it ends with it
            log.debug("closing: %r", error)
        finally:
            self._link.abort()

    # ------------------------------------------------------------ speaking

    async def request(self, subject: str, payload: bytes, timeout_s: float) -> bytes:
        """See `Bus.request`."""
        self._asked += 1
        token = str(self._asked)
        answer: asyncio.Future[Msg] = asyncio.get_running_loop().create_future()
        self._waiting[token] = (subject, answer)
        try:
            await self.publish(subject, payload, reply=f"{self._inbox}.{token}")
            async with asyncio.timeout(timeout_s):
                message = await answer
        except TimeoutError as error:
            self.check_permitted(f"{self._inbox}.*")  # else we could not hear it
            raise Retryable(f"no answer on {subject} within {timeout_s:g} s") from error
        finally:
            del self._waiting[token]
        if message.headers:
            if message.headers.get("Status") == "503":
                raise NotReady(f"nobody answers on {subject}")
            if kind := message.headers.get(ERROR_HEADER):
                raise KINDS.get(kind, Retryable)(message.data.decode(errors="replace"))
        return message.data

    async def gather(self, subject: str, payload: bytes, timeout_s: float, quiet_s: float) -> list[bytes]:
        """See `Bus.gather`."""
        self._asked += 1
        token = str(self._asked)
        answers = self._gathering[token] = asyncio.Queue[bytes]()
        found: list[bytes] = []
        try:
            await self.publish(subject, payload, reply=f"{self._inbox}.{token}")
            async with asyncio.timeout(timeout_s):
                found.append(await answers.get())
                while True:
                    async with asyncio.timeout(quiet_s):
                        found.append(await answers.get())
        except TimeoutError as error:
            if not found:
                raise Retryable(f"no answer on {subject} within {timeout_s:g} s") from error
        finally:
            del self._gathering[token]
        return found

    def drop(self, why: str) -> None:
        """End it from our side, as if it had been lost."""
        self._lose(why)

    async def publish(
        self, subject: str, payload: bytes, reply: str = "", headers: dict[str, str] | None = None
    ) -> None:
        """See `Bus.publish`. Never waits."""
        if self.lost.is_set():
            raise NotReady(f"no connection to the broker: {self.why}")
        if len(payload) > self._client.max_payload:
            raise Invalid(f"{len(payload)} bytes on {subject}: the broker takes {self._client.max_payload} at most")
        if self._client.pending_data_size + self._link.unsent_bytes() + len(payload) > UNSENT_LIMIT_BYTES:
            raise Retryable("the link is choked: what was sent before is still waiting")
        try:
            await self._client.publish(subject, payload, reply, headers)
        except nats_errors.BadSubjectError as error:
            raise Invalid(f"{subject!r} is not a subject") from error
        except (nats_errors.Error, OSError) as error:
            raise NotReady(f"no connection to the broker: {error}") from error

    async def subscribe(
        self, subject: str, queue: str, deliver: Callable[[Msg], Awaitable[None]]
    ) -> Callable[[], Awaitable[None]]:
        """Returns what ends it: nothing new comes then, what came already is delivered. Raises Retryable (lost)."""

        async def on_message(message: Msg) -> None:
            await deliver(message)

        try:
            heard = await self._client.subscribe(
                subject, queue, cb=on_message, pending_bytes_limit=PENDING_LIMIT_BYTES, pending_msgs_limit=100_000
            )
        except (nats_errors.Error, OSError) as error:
            raise Retryable(f"no connection to the broker: {error}") from error

        async def end() -> None:
            with contextlib.suppress(
                nats_errors.Error, OSError, TimeoutError
            ):  # a connection that is lost hears nothing anyway
                await heard.drain()  # type: ignore[no-untyped-call]

        return end

    def check_permitted(self, subject: str) -> None:
        """Once it is settled: that the broker lets us listen to `subject`. Raises Untrusted (NOT_YOURS)."""
        if fault := self._denied.get(subject.lower()):
            raise fault

    async def settle(self) -> None:
        """Wait until the broker has taken all that was said so far, subscriptions too. Raises Retryable (lost)."""
        pong = asyncio.create_task(self._client.rtt(86_400))
        lost = asyncio.create_task(self.lost.wait())
        try:
            await asyncio.wait([pong, lost], return_when=asyncio.FIRST_COMPLETED)
            if lost.done():
                raise Retryable(f"no connection to the broker: {self.why}")
            self.rtt_s = pong.result()
        except (nats_errors.Error, OSError) as error:
            raise Retryable(f"no connection to the broker: {error}") from error
        finally:
            # A PING given up breaks the client's read loop when its PONG comes; here that is lost anyway.
            pong.cancel()
            lost.cancel()

    # ------------------------------------------------------------ hearing

    async def _on_reply(self, message: Msg) -> None:
        token = message.subject.rpartition(".")[2]
        if token in self._gathering:
            self._gathering[token].put_nowait(message.data)
            return
        _, answer = self._waiting.get(token, ("", None))
        if answer is not None and not answer.done():
            answer.set_result(message)

    async def _on_error(self, error: Exception) -> None:
        """Everything the client has to say: while connecting it ends the attempt, afterwards it is noted."""
        if self._opening:
            raise error
        if denied := _DENIED.search(str(error)):
            self._on_denied(denied[1].lower(), denied[2])
        elif isinstance(error, nats_errors.SlowConsumerError):
            log.warning("messages on %s come faster than they are handled; some were dropped", error.subject)
        else:
            log.debug("client: %r", error)

    def _on_denied(self, what: str, subject: str) -> None:
        does = "send on" if what == "publish" else "listen to"
        fault = Untrusted(f"the broker does not permit {self._login.user} to {does} {subject}", threat=Threat.NOT_YOURS)
        log.error("%s", fault)
        if what == "subscription":
            self._denied[subject.lower()] = fault
            return
        for asked, answer in self._waiting.values():
            if asked.lower() == subject.lower() and not answer.done():  # the client puts it in lower case
                answer.set_exception(fault)

    async def _on_closed(self) -> None:
        self._lose(str(self._client.last_error or "closed by the broker").removeprefix("nats: "))

    def _lose(self, why: str) -> None:
        """The one way a session ends; everybody waiting for an answer is told at once."""
        if self.lost.is_set():
            return
        self.why = why
        self.lost.set()
        for _, answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(Retryable(f"the connection was lost while waiting for an answer: {why}"))

    # ------------------------------------------------------------ watching

    async def _ping(self) -> None:
        """Keeps something outstanding, so that a dead path shows; measures the round trip."""
        while True:
            await asyncio.sleep(self._timing.ping_s)
            self._ping_mark = self._link.written_bytes
            try:
                # No time-out here: a late PONG for a cancelled PING breaks the client's read loop.
                self.rtt_s = await self._client.rtt(86_400)
            except (nats_errors.Error, OSError):
                return  # it is being closed
            self._ping_mark = None

    async def _watch(self) -> None:
        """Ends a session that shows no life: nothing heard, and what we sent not taken or not answered.

        A slow link is not a dead one: while bytes still leave, the PONG behind them is given its time, and so is what
        some proxy on the way has taken from us and carries on slowly.
        """
        link, tick_s = self._link, self._timing.dead_after_s / 10
        heard, sent = link.heard_bytes, link.sent_bytes()
        sent_when_heard, silent_s = sent, 0.0
        while True:
            # Ticks are counted, not the clock: what we slept through ourselves (a busy machine, a suspended one) is
            # no silence of the broker's.
            await asyncio.sleep(tick_s)
            now_heard, now_sent, mark = link.heard_bytes, link.sent_bytes(), self._ping_mark
            idle = mark is None and link.unsent_bytes() == 0
            leaving = now_sent > sent and (mark is None or now_sent < mark)
            if now_heard != heard or idle:
                sent_when_heard = sent  # as of before: some of what left since may still be on its way
            silent_s = 0.0 if now_heard != heard or idle or leaving else silent_s + tick_s
            heard, sent = now_heard, now_sent
            carried_s = min((sent - sent_when_heard) / SLOWEST_BYTES_S, LONGEST_CARRIED_S)
            if silent_s >= self._timing.dead_after_s + carried_s:
                self._lose(f"no sign of life for {silent_s:.1f} s")
                return


def _plain(error: Exception) -> str:
    """In words what a connection met: `connection refused`, `no route to host`, `timed out` …"""
    if isinstance(error, socket.gaierror):
        return "no such host is known here"
    if isinstance(error, TimeoutError) and error.errno is None:
        return "timed out"
    # Of a host with several addresses asyncio joins what each said into one text, without a number of its own.
    told = re.search(r"\[Errno (\d+)\]", str(error)) if isinstance(error, OSError) else None
    if told:
        return os.strerror(int(told[1])).lower()
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno).lower()
    return str(error).removeprefix("nats: ").strip("'\" ") or type(error).__name__
