"""Carries a worker's questions to the cloud and the answers back: the worker itself knows no network and no secret.

What it may ask is what its app names; everything in flight is bounded; with the link down the answer "not now" comes
at once, so that the edge answers without waiting. A replica asked by name that is gone is asked again as "whichever
takes it", at once: replicas come and go without the worker noticing.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Protocol

from marram.bus import subjects
from marram.bus.codec import MAX_MESSAGE_BYTES
from marram.bus.subjects import PeerQuestion
from marram.edge.agent_end import AgentEnd
from marram.schema.errors import Invalid, MarramError, NotReady, Refused, Retryable

_MOST_ASKED = 64
_MOST_BYTES = 4 * MAX_MESSAGE_BYTES
_LONGEST_S = 60.0


class Requester(Protocol):
    """The part of `bus.client.Bus` that is used here."""

    @property
    def connected(self) -> bool: ...

    async def request(self, subject: str, payload: bytes, timeout_s: float) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Among:
    """Among whom a worker may ask: the devices that run its app with these models (name, version), as this one does."""

    device: str = ""
    app: str = ""
    models: Collection[tuple[str, int]] = ()


class Relay:
    """One worker's way to the cloud, and to other devices. `allowed`: the (model, version) pairs its app names."""

    def __init__(
        self, bus: Requester, channel: AgentEnd, allowed: Collection[tuple[str, int]], among: Among | None = None
    ) -> None:
        self._bus, self._channel, self._allowed = bus, channel, allowed
        self._among = among or Among()
        self._asked: set[asyncio.Task[None]] = set()
        self._bytes = 0
        self._spared = False  # the cloud itself was, at the last probe

    def ask(self, message: dict[str, Any]) -> None:
        """Take one `infer` or `probe`; its answer goes back over the channel, in any order. Raises Invalid."""
        number = message.get("id")
        if type(number) is not int:  # it is kept until the answer comes, and goes back with it
            raise Invalid("a question to the cloud without a number")
        try:
            to, payload, timeout_s = self._request(message)
            if not self._bus.connected:
                raise NotReady("the link to the cloud is down")
            if len(self._asked) >= _MOST_ASKED or self._bytes + len(payload) > _MOST_BYTES:
                raise Retryable("too many questions to the cloud are under way")
        except MarramError as error:
            self._fail(number, error)
            return
        self._bytes += len(payload)
        task = asyncio.create_task(self._carry(number, to, payload, timeout_s))
        self._asked.add(task)
        task.add_done_callback(self._asked.discard)

    def link(self, up: bool) -> None:
        """Tell the worker that the link came or went."""
        self._channel.send({"t": "link", "up": up})

    def close(self) -> None:
        """Give up what is under way: the worker is gone."""
        for task in self._asked:
            task.cancel()

    def _request(self, message: dict[str, Any]) -> tuple[tuple[str, ...], bytes, float]:
        """Whom to ask, one after another while nobody is there; what, and how long it may take."""
        timeout_s = message.get("timeout_s")
        if not isinstance(timeout_s, (int, float)) or not 0 < timeout_s <= _LONGEST_S:
            timeout_s = _LONGEST_S
        model, version = message.get("model"), message.get("version")
        if message["t"] == "probe":
            size = message.get("size")
            padding = bytes(min(size, MAX_MESSAGE_BYTES) if isinstance(size, int) and size > 0 else 0)
            replicas: tuple[str, ...] = (subjects.PROBE,)
            if model is not None:
                replicas = subjects.probe(*self._named(model, version)), *replicas
            if not self._among.models:
                return replicas, padding, timeout_s
            # Where devices ask each other, the cloud answers probes itself: it may have no replica, or one that hangs,
            # and the link is there all the same. In turns, for nobody knows beforehand who is silent.
            cloud, self._spared = subjects.peer_probe(self._among.device), not self._spared
            return (*replicas, cloud) if self._spared else (cloud, *replicas), padding, timeout_s
        payload, replica = message.get("payload"), message.get("replica")
        if not isinstance(payload, bytes) or (replica is not None and not subjects.is_replica(replica)):
            raise Invalid(f"no question for the cloud (to the replica {replica!r:.80})")
        if message.get("peers") is True:
            among = self._among
            model, version = _among(among.models, model, version, "other devices")
            # The cloud finds out whether that one can; else it asks another.
            return (subjects.peer(among.device, PeerQuestion(among.app, model, version, replica)),), payload, timeout_s
        model, version = self._named(model, version)
        group = subjects.infer(model, version)
        return (group,) if replica is None else (subjects.infer(model, version, replica), group), payload, timeout_s

    def _named(self, model: object, version: object) -> tuple[str, int]:
        """Raises Refused where the app does not name it for the cloud."""
        return _among(self._allowed, model, version, "the cloud")

    async def _carry(self, number: Any, to: tuple[str, ...], payload: bytes, timeout_s: float) -> None:
        try:
            answer, gone = await self._answer(to, payload, timeout_s)
            self._channel.send({"t": "reply", "id": number, "payload": answer, "gone": gone})
        except MarramError as error:
            self._fail(number, error)
        finally:
            self._bytes -= len(payload)

    async def _answer(self, to: tuple[str, ...], payload: bytes, timeout_s: float) -> tuple[bytes, bool]:
        """Of the first subject where anybody listens, and whether that was not the first.

        That nobody does is known at once, so the time is not shared.
        """
        for subject in to[:-1]:
            with contextlib.suppress(NotReady):
                return await self._bus.request(subject, payload, timeout_s), False
        return await self._bus.request(to[-1], payload, timeout_s), len(to) > 1

    def _fail(self, number: Any, error: MarramError) -> None:
        self._channel.send({"t": "reply", "id": number, "error": str(error)[:500], "kind": error.kind})


def _among(allowed: Collection[tuple[str, int]], model: object, version: object, whom: str) -> tuple[str, int]:
    """Raises Refused where it is not allowed."""
    # What is of another type cannot even be looked up.
    if not isinstance(model, str) or type(version) is not int or (model, version) not in allowed:
        raise Refused(f"this app does not name {model!r:.80} version {version!r:.20} for {whom}")
    return model, version
