"""The supervised client: one way to the broker that is rebuilt until it is closed.

Everybody who speaks on the bus holds one `Bus`. It never gives up, never blocks its user on a broker that is away, and
never buffers silently: what cannot be sent now fails now, and whatever must not be lost waits in the outbox.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import random
import re
import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from marram.bus.library import Msg
from marram.bus.session import ERROR_HEADER, Login, Session, Timing
from marram.bus.subjects import device_of
from marram.bus.tls import TlsFiles
from marram.schema.errors import Invalid, MarramError, Missing, NotReady, Permanent, Refused, Retryable, Untrusted

log = logging.getLogger(__name__)

__all__ = ["Bus", "BusState", "Handler", "Message", "Timing"]

_SUBJECT = re.compile(r"[^\s.]+(\.[^\s.]+)*")
# Where answers are heard. The broker checks what a device publishes, not where it wants the answer: one sent elsewhere
# would be a device speaking on another's subjects, or into another's inbox, with our rights.
_INBOX = "_INBOX"
CLOSE_S = 2.0  # how long `close` waits for handlers at work


class BusState(StrEnum):
    """Where the connection stands; `TRANSITIONS` says what may follow what."""

    CONNECTING = "connecting"  # not there (yet, or again): tried again and again
    CONNECTED = "connected"
    REFUSED = "refused"  # the broker does not let us in (see `Bus.refused`): tried again, slowly
    CLOSED = "closed"  # by us, for good


TRANSITIONS: dict[BusState, frozenset[BusState]] = {
    BusState.CONNECTING: frozenset({BusState.CONNECTED, BusState.REFUSED, BusState.CLOSED}),
    BusState.CONNECTED: frozenset({BusState.CONNECTING, BusState.CLOSED}),
    BusState.REFUSED: frozenset({BusState.CONNECTING, BusState.CONNECTED, BusState.CLOSED}),
    BusState.CLOSED: frozenset(),
}


@dataclass(frozen=True, slots=True)
class Message:
    """What a handler gets. The bytes it returns are the reply, where one is `wanted`, and go to `answer_to`."""

    subject: str
    payload: bytes
    wanted: bool
    answer_to: str = ""


Handler = Callable[[Message], Awaitable[bytes | None]]


@dataclass(slots=True)
class _Subscription:
    subject: str
    handler: Handler
    queue: str
    turns: asyncio.Semaphore
    working: set[asyncio.Task[None]] = field(default_factory=set)
    end: Callable[[], Awaitable[None]] | None = None  # in the present session


class Bus:
    """One supervised connection. All its methods belong to one event loop.

    A handler that raises a MarramError makes the asker's `request` raise the same (kind and text); any other exception
    is logged here and is Retryable there.
    """

    def __init__(self, urls: Sequence[str], login: Login, timing: Timing) -> None:
        """Use `connect`."""
        self.refused: str | None = None
        # The broker tried last, and in a few words why it did not work; "" while connected, and before it is known.
        self.url, self.why = "", ""
        self.reconnects = 0
        self._urls = itertools.cycle(urls)
        self._login = login
        self._timing = timing
        self._state = BusState.CONNECTING
        self._on_state: list[Callable[[BusState], None]] = []
        self._session: Session | None = None
        self._subscriptions: list[_Subscription] = []
        self._changed = asyncio.Event()  # set and replaced at each change of state
        self._supervisor: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()
        self._anew = asyncio.Event()  # the next attempt need not wait

    @classmethod
    async def connect(
        cls,
        urls: str | Sequence[str],
        user: str,
        password: str = "",
        *,
        tls: TlsFiles | None = None,
        name: str = "",
        inbox_prefix: str | None = None,
        timing: Timing | None = None,
    ) -> Bus:
        """Start connecting and return at once: the broker need not be there yet.

        `urls`: `nats://host:port`, one or several to take in turns. `tls`: a device's identity, which is all it needs;
        the cloud's processes have user and password as well. `inbox_prefix`: default `_INBOX_<user>`, the only one
        that a device is permitted. Raises Invalid on a malformed URL.
        """
        chosen = [urls] if isinstance(urls, str) else list(urls)
        for url in chosen:
            scheme, _, rest = url.partition("://")
            if scheme not in ("nats", "tls") or not rest:
                raise Invalid(f'"{url}" is not the address of a broker', hint="Write nats://HOST:PORT.")
        if not chosen:
            raise Invalid("no broker to connect to", hint="Give at least one nats://HOST:PORT.")
        instance = f"{name or user} {secrets.token_hex(8)}"
        login = Login(user, password, instance, inbox_prefix or f"_INBOX_{user}", tls)
        bus = cls(chosen, login, timing or Timing())
        bus._supervisor = asyncio.create_task(bus._supervise(), name=f"bus-{user}")
        return bus

    async def __aenter__(self) -> Bus:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def state(self) -> BusState:
        return self._state

    @property
    def connected(self) -> bool:
        return self._state is BusState.CONNECTED

    @property
    def rtt_s(self) -> float | None:
        """The last measured round trip to the broker, None while not connected."""
        return self._session.rtt_s if self._session is not None else None

    def on_state(self, callback: Callable[[BusState], None]) -> None:
        """Call `callback(state)` at each change from now on, on the event loop; it must not block."""
        self._on_state.append(callback)

    async def changed(self) -> BusState:
        """Wait for the next change of state; returns the new one."""
        await self._changed.wait()
        return self._state

    async def wait_connected(self, timeout_s: float | None = None) -> None:
        """Raises Permanent (closed); after `timeout_s` Refused (with the broker's reason) or NotReady."""
        try:
            async with asyncio.timeout(timeout_s):
                while self._state is not BusState.CONNECTED:
                    if self._state is BusState.CLOSED:
                        raise Permanent("this connection to the broker was closed")
                    await self._changed.wait()
        except TimeoutError as error:
            if self.refused:
                raise Refused(self.refused) from error
            raise NotReady("the broker does not answer") from error

    # ------------------------------------------------------------ speaking and hearing

    async def request(self, subject: str, payload: bytes, timeout_s: float) -> bytes:
        """Ask whoever handles `subject`; the reply's payload.

        Raises NotReady (not connected, nobody answers there; at once), Retryable (no answer in time, connection lost
        meanwhile, link choked), Untrusted (NOT_YOURS: not permitted), Invalid (too big), or what the handler raised.
        """
        return await self._up().request(subject, payload, timeout_s)

    async def gather(self, subject: str, payload: bytes, timeout_s: float, quiet_s: float) -> list[bytes]:
        """Ask everybody who handles `subject`; what came within `timeout_s`, or until nothing came for `quiet_s`.

        Raises NotReady (not connected), Retryable (no answer at all, link choked), Refused, Invalid.
        """
        return await self._up().gather(subject, payload, timeout_s, quiet_s)

    async def publish(self, subject: str, payload: bytes) -> None:
        """Say it to whoever listens now. Raises NotReady (not connected), Retryable (link choked), Invalid (too big).

        Arrival is not promised.
        """
        await self._up().publish(subject, payload)

    async def fail(self, answer_to: str, error: MarramError) -> None:
        """Raise `error` at whoever waits for an answer there (`Message.answer_to`): who should give it cannot any more.

        Raises as `publish`.
        """
        await self._up().publish(answer_to, str(error).encode(), headers={ERROR_HEADER: error.kind})

    async def subscribe(self, subject: str, handler: Handler, queue: str | None = None, *, parallel: int = 1) -> None:
        """Handle what is sent to `subject` (in a queue group: a share of it), from now on and over every reconnect.

        While connected it returns once the broker has taken it. Up to `parallel` messages are handled side by side;
        with 1 their order is kept. Raises Invalid (malformed subject or queue), Untrusted (NOT_YOURS: not permitted).
        """
        if not _SUBJECT.fullmatch(subject) or any(character.isspace() for character in queue or ""):
            raise Invalid(f"{subject!r} (queue {queue!r}) is not a subject to listen to")
        wanted = _Subscription(subject, handler, queue or "", asyncio.Semaphore(parallel))
        self._subscriptions.append(wanted)  # first: should the session be lost meanwhile, the next one finds it
        session = self._session
        if session is None or not self.connected:
            return
        try:
            await self._listen(session, wanted)
            await session.settle()
            session.check_permitted(subject)
        except Retryable:
            log.debug("lost while subscribing to %s", subject)
        except Untrusted:
            self._subscriptions.remove(wanted)
            raise

    async def unsubscribe(self, subject: str) -> None:
        """Hear no more of `subject`. What came already is handled; returns once that has begun. Not heard: nothing."""
        ending = [each for each in self._subscriptions if each.subject == subject]
        self._subscriptions = [each for each in self._subscriptions if each.subject != subject]
        for each in ending:
            if each.end is not None and self.connected:
                await each.end()

    def reconnect(self) -> None:
        """Leave the present connection, or the pause before the next attempt, and connect anew: the identity changed.

        What is under way is lost as with any lost connection.
        """
        self._anew.set()
        if self._session is not None and self.connected:
            self._session.drop("connecting anew")

    async def close(self) -> None:
        """For good; any number of times. Handlers at work get `CLOSE_S` to finish and reply."""
        working = [task for subscription in self._subscriptions for task in subscription.working]
        if self._state is not BusState.CLOSED and working:
            await asyncio.wait(working, timeout=CLOSE_S)
        for task in working:
            task.cancel()
        self._closing.set()
        while self._supervisor is not None and not self._supervisor.done():
            # The client swallows cancellation here and there (so does Python's `wait_for` before 3.12): `_closing`
            # ends what goes on all the same, and another cancellation what does not.
            self._supervisor.cancel()
            await asyncio.wait([self._supervisor], timeout=2 * CLOSE_S)
        self._become(BusState.CLOSED)

    def _up(self) -> Session:
        session = self._session
        if session is None or not self.connected or session.lost.is_set():
            raise NotReady(self.refused or "no connection to the broker")
        return session

    async def _listen(self, session: Session, subscription: _Subscription) -> None:
        async def deliver(message: Msg) -> None:
            # In a task of its own: when the session ends, the client cancels its tasks, and that must not
            # interrupt a handler in the middle of a transaction.
            await subscription.turns.acquire()
            task = asyncio.create_task(self._handle(session, subscription, message))
            subscription.working.add(task)
            task.add_done_callback(subscription.working.discard)
            task.add_done_callback(lambda _: subscription.turns.release())

        subscription.end = await session.subscribe(subscription.subject, subscription.queue, deliver)

    async def _handle(self, session: Session, subscription: _Subscription, message: Msg) -> None:
        """Run the handler on one message; whatever it does, the subscription lives on."""
        headers: dict[str, str] | None = None
        answer_to = message.reply if message.reply.startswith(_inboxes(message.subject)) else ""
        try:
            reply = await subscription.handler(Message(message.subject, message.data, bool(answer_to), answer_to))
        except MarramError as error:
            headers, reply = {ERROR_HEADER: error.kind}, str(error).encode()
            if not answer_to:
                log.warning("%s: %s", message.subject, error)
        except Exception as error:
            log.exception("the handler of %s failed", message.subject)
            headers, reply = {ERROR_HEADER: Retryable.kind}, f"the service failed: {type(error).__name__}".encode()
        if not answer_to or reply is None:
            return
        try:
            try:
                await session.publish(answer_to, reply, headers=headers)
            except Invalid as error:
                log.error("the reply on %s cannot be sent: %s", message.subject, error)
                await session.publish(answer_to, str(error).encode(), headers={ERROR_HEADER: Invalid.kind})
        except MarramError as error:
            log.debug("a reply on %s was lost: %s", message.subject, error)  # the asker asks again

    # ------------------------------------------------------------ the supervisor

    def _make_session(self) -> Session:
        """The next connection; a rehearsal's leads elsewhere (`lab/hub.py`)."""
        return Session(self._login, self._timing)

    async def _supervise(self) -> None:
        loop = asyncio.get_running_loop()
        failures, down_since_s, verdict_s = 0, loop.time(), self._timing.verdict_s
        while not self._closing.is_set():
            session = self._session = self._make_session()
            try:
                self.url, session.verdict_s = next(self._urls), verdict_s
                await session.open(self.url)
                for subscription in self._subscriptions:
                    await self._listen(session, subscription)
                await session.settle()  # connected means that everything is heard, too
                if self._closing.is_set():
                    return
                self.refused, self.why = None, ""
                self._become(BusState.CONNECTED)
                failures, verdict_s = 0, self._timing.verdict_s
                await session.lost.wait()
                self.reconnects += 1
                down_since_s = loop.time()
                log.info("the connection to the broker was lost: %s", session.why)
                self._become(BusState.CONNECTING)
            except Refused as error:
                if self.refused != str(error):
                    log.warning("%s", error)
                self.refused, self.why = str(error), session.why
                failures += 1
                self._become(BusState.REFUSED)
            except MarramError as error:
                log.debug("%s", error)
                failures += 1
                # A fault of our own files is said whole: which one, and what to do.
                ours = isinstance(error, Missing | Invalid | Permanent)
                self.refused, self.why = None, session.why or (str(error) if ours else error.what)
                if self._state is BusState.REFUSED:
                    self._become(BusState.CONNECTING)
            finally:
                if session.unheard:
                    verdict_s = min(2 * verdict_s, self._timing.connect_s)
                self._session = None
                await session.close()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._wait_s(failures, loop.time() - down_since_s)):
                    await self._anew.wait()
            self._anew.clear()

    def _wait_s(self, failures: int, down_s: float) -> float:
        """Doubling and jittered, so that a fleet does not come back in one instant."""
        timing = self._timing
        if self._state is BusState.REFUSED:
            longest_s = timing.refused_max_s
            wait_s = 10 * timing.retry_min_s * 2.0 ** min(failures, 20)
        else:
            longest_s = timing.retry_max_s * (5 if down_s > 60 else 1)
            wait_s = timing.retry_min_s * 2.0 ** min(failures, 20)
        return min(wait_s, longest_s) * random.uniform(0.5, 1.0)

    def _become(self, state: BusState) -> None:
        if state is self._state:
            return
        assert state in TRANSITIONS[self._state], f"{self._state} -> {state}"
        self._state = state
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
        for callback in self._on_state:
            try:
                callback(state)
            except Exception:
                log.exception("a listener to the state of the bus failed")


def _inboxes(subject: str) -> tuple[str, ...]:
    """Where the answer to a question on `subject` may go: the subject of a device proves whose inbox that is."""
    if subject.startswith("$SYS."):
        return ("$SYS.",)  # the broker's own, on which nobody else can speak
    if subject.startswith("d."):
        return f"{_INBOX}_{device_of(subject)}.", f"{_INBOX}_CONTROL."
    return (_INBOX,)
