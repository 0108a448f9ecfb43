"""Cuts from the broker who should not be there: revoked and removed devices, superseded certificates, doubles.

Level-triggered: whoever is connected is compared with the store again and again, so that a revocation reaches a live
connection also where it was made while nobody here ran; being told (`cut`) only makes it immediate. One identity is one
process: of two that live at once one has a copy. The one that was there first stays, since nobody can say which is the
right one and a thief comes later as a rule; the other is barred for a while, and the operator is told.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from marram.bus import subjects
from marram.bus.accounts import ACCOUNTS
from marram.bus.callout import Caller
from marram.bus.client import Bus, Message
from marram.bus.connections import Connection, Connections
from marram.cloud.loops import for_ever
from marram.schema.errors import Invalid, MarramError
from marram.store import Store
from marram.store.audit import CLOUD

log = logging.getLogger(__name__)

QUEUE = "fleet"
_UNKNOWN = "who is connected to the broker is not known now"


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds. `look_s`: between looks at a device let in lately, until it is there once; more than it is ever silent.

    `sweep_s`: between looks at everybody. `bar_s`: how long a double is kept out.
    """

    look_s: float = 6.0
    sweep_s: float = 30.0
    bar_s: float = 600.0


PACE = Pace()

# From so many devices on, everybody is looked at with one question.
_FEW = 8

Bar = Callable[[str, str, float], None]


class Evictions:
    """On a connection of the user SYSTEM (`connections`) and the control connection (`bus`)."""

    def __init__(self, bus: Bus, connections: Connections, store: Store, bar: Bar, pace: Pace | None = None) -> None:
        """`bar(device, process, seconds)` keeps a double out from now on."""
        self._bus = bus
        self._connections = connections
        self._store = store
        self._bar = bar
        self._pace = pace or PACE
        self._admitted: set[str] = set()  # since the last look began
        self._looking: dict[str, dict[tuple[str, int], int]] = {}  # looked at again: what each of its ends had sent
        self._supersede: set[asyncio.Task[None]] = set()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """From now on the broker is kept true."""
        await self._bus.subscribe(subjects.CUT, self._on_cut, QUEUE, parallel=4)
        self._tasks = [
            asyncio.create_task(for_ever(_UNKNOWN, self.sweep, self._pace.sweep_s), name="evictions"),
            asyncio.create_task(for_ever(_UNKNOWN, self.look, self._pace.look_s), name="doubles"),
        ]

    async def stop(self) -> None:
        """The subscription ends with the bus."""
        for task in (*self._tasks, *self._supersede):
            task.cancel()
        await asyncio.gather(*self._tasks, *self._supersede, return_exceptions=True)

    async def cut(self, device: str) -> int:
        """End every connection of `device` now; how many there were. Raises Retryable."""
        return await self._connections.cut(await self._connections.of(device))

    def admitted(self, caller: Caller, first: bool) -> None:
        """A device is being let in; `first`: with a certificate that supersedes those of its other connections."""
        self._admitted.add(caller.user)
        if first:
            task = asyncio.create_task(self._superseded(caller))
            self._supersede.add(task)
            task.add_done_callback(self._supersede.discard)

    async def sweep(self) -> None:
        """Cut whoever the store does not have. Raises Retryable."""
        present = await self._connections.all()
        known = await asyncio.to_thread(self._store.devices.admissible)
        gone = [each for each in present if each.user not in known and each.user not in ACCOUNTS]
        if gone:
            await self._connections.cut(gone)
            log.warning("cut from the broker: %s", ", ".join(sorted({each.user for each in gone})))

    async def look(self) -> None:
        """At devices that were let in lately: is each there once? Raises Retryable."""
        admitted, self._admitted = self._admitted, set()
        # Who is let in just now may not be among the connections yet: looked at next time too.
        looking, self._looking = self._looking, {device: {} for device in admitted}
        devices = admitted | looking.keys()
        by_device: dict[str, list[Connection]] = defaultdict(list)
        try:
            for each in await self._connections.all() if len(devices) > _FEW else await self._of(devices):
                by_device[each.user].append(each)
            for device, found in by_device.items():
                if len(found) > 1 and device in devices:
                    present = sorted(found, key=lambda each: each.since)
                    self._looking[device] = await self._settle(device, present, looking.get(device, {}))
        except MarramError:
            self._admitted |= devices
            raise

    # ------------------------------------------------------------

    async def _on_cut(self, message: Message) -> bytes | None:
        try:
            device = message.payload.decode()
        except UnicodeDecodeError as error:
            raise Invalid("no name of a device") from error
        return str(await self.cut(device)).encode()

    async def _superseded(self, caller: Caller) -> None:
        try:
            others = [
                each
                for each in await self._connections.of(caller.user)
                if (each.server, each.id) != (caller.server, caller.connection)
            ]
            await self._connections.cut(others)
        except MarramError as error:
            log.warning("%s: connections with its older certificate are not cut yet: %s", caller.user, error)

    async def _of(self, devices: Iterable[str]) -> list[Connection]:
        return [each for device in devices for each in await self._connections.of(device)]

    async def _settle(
        self, device: str, present: list[Connection], before: dict[tuple[str, int], int]
    ) -> dict[tuple[str, int], int]:
        """Leave one of several, oldest first in `present`; what was heard from each so far."""
        newest = {each.name: each for each in present}  # of one process the last: it has given up the others itself
        stale = [each for each in present if newest[each.name] is not each]
        living = list(newest.values())
        heard = {(each.server, each.id): each.received for each in living}
        if len(living) > 1 and all(key in before for key in heard):
            speaking = [each for each in living if each.received > before[each.server, each.id]]
            if speaking:
                first, *doubles = speaking
                stale += [each for each in living if each is not first]
                for double in doubles:
                    self._bar(device, double.name, self._pace.bar_s)
                    await asyncio.to_thread(
                        self._store.audit.add, CLOUD, "device.cloned", device, stays=first.address, cut=double.address
                    )
                    log.error(
                        "%s: cloned identity: two use it at once, from %s (stays) and %s (cut and kept out). "
                        "Find the copy; then remove the device and join it again: marram device remove %s",
                        *(device, first.address, double.address, device),
                    )
        await self._connections.cut(stale)
        return heard
