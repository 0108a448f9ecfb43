"""What the page shows, gathered once for all who look: devices, totals, the tail of results, five minutes of history.

It asks the cloud's state each second while somebody looks, every few seconds otherwise, so that the history is there
when the page is opened. A database that is away becomes a line on the page, never an end of the watching.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from dataclasses import dataclass, field, replace
from typing import Any

from marram.cloud.api.contract import EventQuery, State
from marram.schema.api import EventView, Status
from marram.schema.device import Device, ReportedApp
from marram.schema.errors import MarramError
from marram.schema.event import EventKind
from marram.schema.figures import figure
from marram.schema.rollout_view import RolloutView

HISTORY_S = 300.0
TAIL = 40
_LOOKED_AT_S = 1.0
_ALONE_S = 5.0
_ROLLOUTS_S = 2.0
# So many devices get a history and a card; a larger fleet is narrowed by the page's filter.
MOST_DEVICES = 500
_SHOWN = (EventKind.RESULT, EventKind.ALERT, EventKind.SAMPLE, EventKind.MESSAGE, EventKind.DROPPED)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Point:
    """One report's worth of one app: inferences placed since the report before, and the delay then."""

    time_s: float
    edge: int
    cloud: int
    p50_ms: float | None


@dataclass(slots=True)
class History:
    """The last five minutes of one app on one device."""

    points: deque[Point] = field(default_factory=lambda: deque(maxlen=600))
    _last: tuple[float, int, int] | None = None

    def take(self, time_s: float, stats: dict[str, Any]) -> None:
        """Add a report made at `time_s` (any clock: only its change matters). A restarted worker begins anew."""
        edge, cloud = _whole(stats.get("edge")), _whole(stats.get("cloud"))
        before = self._last
        if before is not None and before[0] == time_s:
            return
        self._last = (time_s, edge, cloud)
        if before is None:
            return
        new_edge, new_cloud = edge - before[1], cloud - before[2]
        if new_edge < 0 or new_cloud < 0:
            new_edge, new_cloud = edge, cloud
        if not (new_edge or new_cloud):
            return  # a device reports more often than its worker counts; a true silence is a gap by itself
        now_s = time.monotonic()
        self.points.append(Point(now_s, new_edge, new_cloud, figure(stats.get("recent_p50_ms"))))
        while self.points and now_s - self.points[0].time_s > HISTORY_S:
            self.points.popleft()


@dataclass(frozen=True, slots=True)
class Picture:
    """All that the page needs for one look. `fault`: why it is not fresh, or ""."""

    devices: list[Device] = field(default_factory=list)
    status: Status | None = None
    tail: list[EventView] = field(default_factory=list)
    rollouts: list[RolloutView] = field(default_factory=list)
    fault: str = ""


class Watcher:
    """Runs in the server's event loop; pages read `picture` and `history`."""

    def __init__(self, state: State) -> None:
        self._state = state
        self.picture = Picture()
        self.viewers = 0
        self._histories: dict[tuple[str, str], History] = {}
        self._tail: deque[EventView] = deque(maxlen=TAIL)
        self._last_id: int | None = None
        self._rollouts_s = float("-inf")
        self._task: asyncio.Task[None] | None = None

    def history(self, device: str, app: ReportedApp) -> list[Point]:
        """The last five minutes of this app there, oldest first."""
        found = self._histories.get((device, app.name))
        return list(found.points) if found else []

    def start(self) -> None:
        """Begin watching; called in the event loop."""
        self._task = asyncio.create_task(self._run(), name="console-watcher")

    async def stop(self) -> None:
        """End watching."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def look(self) -> None:
        """Gather one picture."""
        try:
            devices, status, events = await asyncio.to_thread(self._gather)
            rollouts = await asyncio.to_thread(self._look_at_rollouts)
        except MarramError as error:
            self.picture = replace(self.picture, fault=str(error))
            return
        self._tail.extend(events)
        if events:
            self._last_id = events[-1].id
        self._remember(devices)
        self.picture = Picture(devices, status, list(reversed(self._tail)), rollouts)

    async def _run(self) -> None:
        while True:
            try:
                await self.look()
            except Exception:  # noqa: BLE001 - the supervisor of the page's data: it logs, and the next look may do
                _log.exception("the console could not gather its picture")
            waited_s = 0.0
            while waited_s < (_LOOKED_AT_S if self.viewers else _ALONE_S):
                await asyncio.sleep(0.25)
                waited_s += 0.25

    def _gather(self) -> tuple[list[Device], Status, list[EventView]]:
        query = EventQuery(kinds=_SHOWN, after=self._last_id, limit=TAIL if self._last_id is None else 1000)
        events = self._state.events(query)
        if len(events) == query.limit and self._last_id is not None:
            # Behind by more than a page: what matters is the newest.
            events = self._state.events(EventQuery(kinds=_SHOWN, limit=TAIL))
        return self._state.devices(), self._state.status(), events

    def _look_at_rollouts(self) -> list[RolloutView]:
        """Those under way, and those that ended lately; not each second: each is a look over all its devices."""
        now_s = time.monotonic()
        if now_s - self._rollouts_s < (_ROLLOUTS_S if self.viewers else _ALONE_S):
            return self.picture.rollouts
        self._rollouts_s = now_s
        return self._state.steering.recent()

    def _remember(self, devices: list[Device]) -> None:
        alive: set[tuple[str, str]] = set()
        for device in devices[:MOST_DEVICES]:
            for app in device.reported.apps if device.reported else []:
                assert device.reported is not None
                alive.add((device.id, app.name))
                history = self._histories.setdefault((device.id, app.name), History())
                history.take(device.reported.time_s, app.stats)
        for gone in self._histories.keys() - alive:
            del self._histories[gone]


def _whole(value: Any) -> int:
    return int(figure(value) or 0)
