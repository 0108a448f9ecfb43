"""A broker inside one process: many real agents and a real cloud, on links that can be cut at any moment.

For rehearsals of hundreds of devices and of hours of bad links, in virtual time (`virtual.run`). What stands above is
the real `Bus`, with its supervisor, its back-off and its handlers; only the session to a nats-server is replaced. Each
message takes `delay_s`; what is on its way when a link is cut is lost, question or answer, as it would be. It carries
and never stores, and refuses whoever speaks as another device, as the real one does.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from marram.bus.client import Bus
from marram.bus.session import ERROR_HEADER, Login, Session, Timing
from marram.bus.subjects import device_permissions
from marram.schema.errors import KINDS, NotReady, Refused, Retryable

Deliver = Callable[[Any], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Wire:
    """A message as a handler's `Bus` expects one."""

    subject: str
    data: bytes
    reply: str = ""
    headers: dict[str, str] | None = None


@dataclass(eq=False, slots=True)
class _Listener:
    session: HubSession
    subject: str
    queue: str
    deliver: Deliver


@dataclass
class Link:
    """One client's way to the hub. `delay_s`: one way, seconds."""

    delay_s: float = 0.001
    up: bool = True
    sessions: set[HubSession] = field(default_factory=set)
    back: asyncio.Event = field(default_factory=asyncio.Event)

    def cut(self) -> None:
        """From now on nothing passes; what is on its way is lost."""
        self.up = False
        self.back.clear()
        for session in list(self.sessions):
            session.lose("the link was cut")

    def mend(self) -> None:
        """It carries again; clients come back by themselves."""
        self.up = True
        self.back.set()


class Hub:
    """`connect` gives a `Bus`. One event loop."""

    def __init__(self) -> None:
        self._listeners: list[_Listener] = []
        self._inboxes: dict[str, HubSession] = {}
        self._turn = itertools.count()
        self.carried = 0  # messages

    async def connect(self, user: str, link: Link | None = None, *, device: bool = False) -> Bus:
        """A client; with `device` it may say and hear only what the broker lets a device say and hear."""
        return HubBus.to(self, user, link or Link(), device=device)

    def join(self, session: HubSession) -> None:
        self._inboxes[session.inbox] = session

    def leave(self, session: HubSession) -> None:
        self._inboxes.pop(session.inbox, None)
        self._listeners = [each for each in self._listeners if each.session is not session]

    def listen(self, listener: _Listener) -> None:
        self._listeners.append(listener)

    def deafen(self, listener: _Listener) -> None:
        self._listeners.remove(listener)

    def to(self, message: Wire) -> list[_Listener]:
        """Who gets it: everybody who listens, of a queue group one."""
        found = [each for each in self._listeners if covers(each.subject, message.subject)]
        groups: dict[str, list[_Listener]] = {}
        for each in found:
            groups.setdefault(each.queue or f"\0{id(each)}", []).append(each)
        turn = next(self._turn)
        return [group[turn % len(group)] for group in groups.values()]

    async def carry(self, message: Wire) -> bool:
        """Deliver; whether anybody was there."""
        self.carried += 1
        if message.subject.startswith("_INBOX"):
            asker = self._inboxes.get(message.subject.rpartition(".")[0])
            if asker is not None:
                asyncio.get_running_loop().call_later(asker.link.delay_s, asker.answered, message)
            return asker is not None
        listeners = self.to(message)
        for each in listeners:
            await asyncio.sleep(each.session.link.delay_s)
            if not each.session.lost.is_set():
                await each.deliver(message)
        return bool(listeners)


class HubBus(Bus):
    """A `Bus` whose sessions end at a hub. `Hub.connect` makes it."""

    @classmethod
    def to(cls, hub: Hub, user: str, link: Link, *, device: bool) -> HubBus:
        timing = Timing()
        bus = cls(["hub://"], Login(user, "", user, f"_INBOX_{user}"), timing)
        bus._hub, bus._link, bus._device = hub, link, device
        bus._supervisor = asyncio.create_task(bus._supervise(), name=f"hub-{user}")
        return bus

    _hub: Hub
    _link: Link
    _device: bool

    def _make_session(self) -> Session:
        return HubSession(self._hub, self._link, self._login, self._timing, device=self._device)


class HubSession(Session):
    """One connection to the hub."""

    def __init__(self, hub: Hub, link: Link, login: Login, timing: Timing, *, device: bool) -> None:
        super().__init__(login, timing)
        self._hub, self.link = hub, link
        self.inbox = self._inbox
        self._user = login.user
        rights = device_permissions(login.user) if device else {"publish": [">"], "subscribe": [">"]}
        self._may_say, self._may_hear = rights["publish"], rights["subscribe"]

    async def open(self, url: str) -> None:
        if not self.link.up:
            self.why = "the link is down"
            # Where nothing can change before the link is back, asking again and again would only cost time.
            await self.link.back.wait()
        await asyncio.sleep(2 * self.link.delay_s)
        if not self.link.up:
            raise Retryable("the link is down")
        self.link.sessions.add(self)
        self._hub.join(self)
        self.rtt_s = 2 * self.link.delay_s

    async def close(self) -> None:
        self.link.sessions.discard(self)
        self._hub.leave(self)
        self.lose("closed")

    def lose(self, why: str) -> None:
        """End it; whoever waits for an answer is told."""
        self._lose(why)

    async def subscribe(self, subject: str, queue: str, deliver: Deliver) -> Callable[[], Awaitable[None]]:
        if not any(covers(allowed, subject) for allowed in self._may_hear):
            raise Retryable(f"{self._user} may not listen to {subject}")
        listener = _Listener(self, subject, queue, deliver)
        self._hub.listen(listener)

        async def end() -> None:
            self._hub.deafen(listener)

        return end

    async def settle(self) -> None:
        await asyncio.sleep(2 * self.link.delay_s)
        if self.lost.is_set():
            raise Retryable(f"no connection to the broker: {self.why}")

    async def request(self, subject: str, payload: bytes, timeout_s: float) -> bytes:
        self._asked += 1
        token = str(self._asked)
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[token] = (subject, answer)
        try:
            if not await self._send(Wire(subject, payload, f"{self.inbox}.{token}")):
                raise NotReady(f"nobody answers on {subject}")
            async with asyncio.timeout(timeout_s):
                message = await answer
        except TimeoutError as error:
            raise Retryable(f"no answer on {subject} within {timeout_s:g} s") from error
        finally:
            del self._waiting[token]
            answer.cancel()
        if message.headers and (kind := message.headers.get(ERROR_HEADER)):
            raise KINDS.get(kind, Retryable)(message.data.decode(errors="replace"))
        return bytes(message.data)

    async def publish(
        self, subject: str, payload: bytes, reply: str = "", headers: dict[str, str] | None = None
    ) -> None:
        await self._send(Wire(subject, payload, reply, headers))

    def answered(self, message: Wire) -> None:
        """An answer came as far as this end of the link."""
        _, answer = self._waiting.get(message.subject.rpartition(".")[2], ("", None))
        if answer is not None and not answer.done() and not self.lost.is_set():
            answer.set_result(message)  # type: ignore[arg-type]  # what `Bus` reads of a message

    async def _send(self, message: Wire) -> bool:
        if self.lost.is_set():
            raise NotReady(f"no connection to the broker: {self.why}")
        if not message.subject.startswith("_INBOX") and not any(
            covers(each, message.subject) for each in self._may_say
        ):
            raise Refused(f"the broker does not permit {self._user} to send on {message.subject}")
        await asyncio.sleep(self.link.delay_s)
        if self.lost.is_set():
            raise Retryable(f"the connection was lost: {self.why}")
        return await self._hub.carry(message)


def covers(pattern: str, subject: str) -> bool:
    """Whether a subject (or a narrower pattern) falls under a pattern with `*` and `>`, as NATS has them."""
    wanted, given = pattern.split("."), subject.split(".")
    for index, part in enumerate(wanted):
        if part == ">":
            return len(given) > index
        if index >= len(given) or (part != "*" and part != given[index]):
            return False
    return len(wanted) == len(given)
