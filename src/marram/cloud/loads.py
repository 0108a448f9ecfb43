"""What the replicas of a model tell each other of their load, so that any answer can tell it of all of them.

A device hears from one replica at a time, and of the others only what it remembers; replicas stand close together and
tell each other at every change. Said rarely enough that hearing it costs a replica nothing to speak of, however many
there are. Nothing is kept: who has not been heard for a moment is gone. By the same news a replica hands on what
another one would answer clearly sooner.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from marram.bus import subjects
from marram.bus.client import Bus, Message
from marram.bus.inferences import MAX_LOADS, pack_load, unpack_load
from marram.placement.handing import MOST_HOPS, Handing, Pace
from marram.schema.errors import MarramError
from marram.schema.load import Load

log = logging.getLogger(__name__)

# Without any change it is said so often; see `placement.handing.GONE_S`.
_ALIVE_S = 1.0
# Another one that was clearly sooner and takes so much longer than it would have taken here has ended over it.
_HANDED_S, _HANDED_TIMES = 1.0, 8

Key = tuple[str, int]


@dataclass(slots=True)
class _Model:
    """One model that is served here: its own load, what the others said, and whether ours changed."""

    own: Callable[[], Load]
    others: Handing = field(default_factory=Handing)
    pace: Pace = field(default_factory=Pace)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None


class Loads:
    """One for each replica process. All methods on one event loop."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._models: dict[Key, _Model] = {}
        self._subscribed: set[Key] = set()

    async def serve(self, key: Key, own: Callable[[], Load]) -> None:
        """From now on the load of this model here is told; `own` gives it, at any time."""
        served = self._models[key] = _Model(own)
        if key not in self._subscribed:
            self._subscribed.add(key)

            async def hear(message: Message) -> None:
                self._hear(key, message.payload)

            await self._bus.subscribe(subjects.load(*key), hear)
        served.task = asyncio.create_task(self._tell(key, served), name=f"load of {key[0]}@{key[1]}")

    def changed(self, key: Key) -> None:
        """More or fewer wait here now."""
        if key in self._models:
            self._models[key].changed.set()

    def known(self, key: Key) -> tuple[Load, ...]:
        """Of those that serve this model: our own first, then the least loaded."""
        served = self._models.get(key)
        if served is None:
            return ()
        return served.own(), *served.others.known(time.monotonic())[: MAX_LOADS - 1]

    async def hand_on(self, key: Key, message: Message) -> bytes | None:
        """The answer of another replica that gives it clearly sooner; None where none would, or the one that should is
        gone, or ended over it: then it is answered here.

        `message`: an inference as it came.
        """
        served, hop = self._models.get(key), subjects.hop_of(message.subject) + 1
        if served is None or hop > MOST_HOPS:
            return None
        own = served.own()
        to = served.others.to(time.monotonic(), own)
        if to is None:
            return None
        patience_s = _HANDED_S + _HANDED_TIMES * (own.queue_s + own.service_s)
        try:
            return await self._bus.request(subjects.hand(hop, *key, to), message.payload, patience_s)
        except MarramError as error:
            log.debug("handed to %s: %s", to, error)
            served.others.missed(to)
            return None

    async def leave(self, key: Key) -> None:
        """This model is no longer served here: the others hear no more of it from us."""
        served = self._models.pop(key, None)
        if served is not None and served.task is not None:
            served.task.cancel()
            await asyncio.gather(served.task, return_exceptions=True)

    async def close(self) -> None:
        """Tell nothing any more."""
        for key in list(self._models):
            await self.leave(key)

    def _hear(self, key: Key, message: bytes) -> None:
        served = self._models.get(key)
        if served is None:
            return
        try:
            load = unpack_load(message)
        except MarramError as error:
            log.warning("on %s: %s", subjects.load(*key), error)
            return
        if load.replica != served.own().replica:
            served.others.heard(time.monotonic(), load)

    async def _tell(self, key: Key, served: _Model) -> None:
        while True:
            served.changed.clear()
            served.pace.said()
            with contextlib.suppress(MarramError):  # the broker is away: told once it is back
                await self._bus.publish(subjects.load(*key), pack_load(served.own()))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_ALIVE_S):
                    await served.changed.wait()
            while (pause_s := served.pace.pause_s(time.monotonic(), len(served.others))) > 0:
                await asyncio.sleep(pause_s)
