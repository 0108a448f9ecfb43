"""A whole fleet through two rollouts, a bad version and a good one, while who steers them is killed again and again.

The bad version: 2 % of the devices crash with it, 2 % fall silent, one class of hardware is slow with it. It must stop
at a stage and go from every device it reached; the good one must come to all. At the end every event that a device
held durable is in the database, once.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from marram.edge.supervisor import WorkerSpec
from marram.lab.imitation import Manner
from marram.lab.world import World
from marram.schema.device import DeviceInfo
from marram.schema.errors import Retryable
from marram.schema.rollout import Plan, RolloutState

APP = "gate-camera"
GOOD, BAD, BETTER = 1, 2, 3
_PLAN = Plan(stages=["1", "10%", "all"], soak_s=20, silence_s=60)
_LONG_S = 1800.0
_ENDED = {RolloutState.COMPLETED, RolloutState.ROLLED_BACK, RolloutState.HALTED, RolloutState.ABORTED}


@dataclass
class FleetFindings:
    """How it went. `faults`: what should not have been, in words; empty where all was right."""

    devices: int
    bad_state: str = ""
    bad_stage: int = 0
    bad_reached: int = 0
    bad_why: str = ""
    good_state: str = ""
    kills: int = 0
    events: int = 0
    lost: int = 0
    twice: int = 0
    virtual_s: float = 0.0
    faults: list[str] = field(default_factory=list)


class Rehearsal:
    """One run. `await run()` inside `virtual.run`."""

    def __init__(self, folder: Path, devices: int, kills: int, seed: int = 1) -> None:
        self._world = World(folder, report_every_s=5.0)
        self._chance = random.Random(seed)
        self._names = [f"pi-{number:03d}" for number in range(devices)]
        ill = self._chance.sample(self._names, 2 * max(1, devices // 50))
        self._crash, self._silent = set(ill[::2]), set(ill[1::2])
        self._slow = {name for number, name in enumerate(self._names) if number % 10 == 3} - self._crash - self._silent
        self._kills = kills
        self.findings = FleetFindings(devices)

    async def run(self) -> FleetFindings:
        loop = asyncio.get_running_loop()
        async with self._world.open() as world:
            await world.stop_fleets()
            world.fleets.clear()
            steering = asyncio.create_task(self._steered(), name="killed again and again")
            for name in self._names:
                info = DeviceInfo(machine="aarch64" if name in self._slow else "x86_64", cores=4)
                await world.add_device(name, self._manner(name), info=info)
            await world.deploy(APP, b"good")
            await self._until("the first version runs everywhere", lambda: self._running() == {GOOD: len(self._names)})
            bad = await world.deploy(APP, b"bad", plan=_PLAN)
            view = await self._ended(bad)
            self.findings.bad_state, self.findings.bad_stage = view.state.value, view.stage
            self.findings.bad_why = view.reason
            self.findings.bad_reached = await asyncio.to_thread(self._reached, bad)
            for name in self._silent:
                world.sites[name].link.mend()
            await self._until("everybody is back on it", lambda: self._running() == {GOOD: len(self._names)})
            good = await world.deploy(APP, b"better", plan=_PLAN)
            view = await self._ended(good)
            self.findings.good_state = view.state.value
            await self._until("the better one runs everywhere", lambda: self._running() == {BETTER: len(self._names)})
            await steering
            self.findings.kills = self._kills
            world.rests = True
            await self._until("all events are stored", self._all_stored)
            self.findings.lost, self.findings.twice = await asyncio.to_thread(world.ledger)
            self._judge()
            self.findings.virtual_s = loop.time()
        return self.findings

    def _manner(self, name: str) -> Any:
        def manner(spec: WorkerSpec) -> Manner:
            bad = spec.version == BAD
            return Manner(
                every_s=5.0,
                frames=100,
                p95_ms=200.0 if bad and name in self._slow else 50.0,
                falls_s=1.0 if bad and name in self._crash else None,
                hushes_s=1.0 if bad and name in self._silent else None,
            )

        return manner

    async def _steered(self) -> None:
        """One fleet process after another, each killed somewhere; the last one lives."""
        for _ in range(self._kills):
            process = await self._world.start_fleet(self._chance.randint(3, 12 * len(self._names)))
            await process.dead.wait()
            await process.end()
            await asyncio.sleep(self._chance.uniform(0, 3))
        await self._world.start_fleet()

    # ------------------------------------------------------------ looking

    async def _until(self, what: str, ready: Any) -> None:
        try:
            async with asyncio.timeout(_LONG_S):
                while not await asyncio.to_thread(ready):
                    await asyncio.sleep(2)
        except TimeoutError as error:
            raise Retryable(f"{what}: not within {_LONG_S:g} s; {self._running()}") from error

    async def _ended(self, rollout: int) -> Any:
        views: list[Any] = []

        def look() -> bool:
            views[:] = [self._world.state.steering.show(rollout)]
            return views[0].state in _ENDED

        await self._until(f"rollout {rollout} comes to an end", look)
        return views[0]

    def _running(self) -> dict[int | None, int]:
        """How many devices say that they run each version."""
        found: Counter[int | None] = Counter()
        for device in self._world.state.store.devices.list():
            apps = [app for app in (device.reported.apps if device.reported else []) if app.name == APP]
            found[apps[0].running if apps else None] += 1
        return dict(found)

    def _reached(self, rollout: int) -> int:
        devices = self._world.state.store.rollouts.devices(rollout)
        return sum(device.reached_s is not None for device in devices.values())

    def _all_stored(self) -> bool:
        counts = self._world.state.store.events.counts(None)
        self.findings.events = sum(len(site.recorded) for site in self._world.sites.values())
        return counts.by_kind.get("result", 0) >= self.findings.events

    def _judge(self) -> None:
        found = self.findings
        if found.bad_state not in (RolloutState.ROLLED_BACK.value, RolloutState.HALTED.value):
            found.faults.append(f"the bad version came to its end as {found.bad_state}")
        if found.good_state != RolloutState.COMPLETED.value:
            found.faults.append(f"the good version came to its end as {found.good_state}")
        if found.bad_stage <= 2 and found.bad_reached > max(1, -(-len(self._names) // 10)):
            found.faults.append(f"the bad version reached {found.bad_reached} devices in stage {found.bad_stage}")
        if found.lost:
            found.faults.append(f"{found.lost} events are not in the database")
        if found.twice:
            found.faults.append(f"{found.twice} events were stored twice")
