"""Rollouts by the fleet role of a real cloud: devices that speak over the broker are taken through the stages."""

from __future__ import annotations

import asyncio
from typing import Any

from marram.bus import subjects
from marram.bus.client import Bus, Message
from marram.bus.codec import pack_report, unpack_desired
from marram.cloud.server import Cloud
from marram.schema.api import DeployAsk
from marram.schema.device import AppState, Reported, ReportedApp
from marram.schema.rollout import Plan, RolloutState
from marram.store import AuditFilter

SOON = Plan(stages=["1", "all"], soak_s=0.0)


def app(version: int) -> str:
    return f"app: gate\nsource: {{images: photos}}\nsteps:\n  - filter: 'true'\n# {version}\n"


class Speaker:
    """A device as the broker sees it: reports when it is nudged, and at once has what it is told."""

    def __init__(self, bus: Bus, name: str) -> None:
        self.bus, self.name = bus, name
        self.version: int | None = None
        self.bad: set[int] = set()
        self.desired = 0

    async def start(self) -> None:
        await self.bus.subscribe(subjects.desired(self.name), self._nudged)
        await self.report()

    async def _nudged(self, _: Message) -> None:
        await self.report()

    async def report(self) -> None:
        """Until the cloud has nothing new to tell."""
        while True:
            answer = await self.bus.request(subjects.report(self.name), pack_report(self._said()), 10)
            desired = unpack_desired(answer)
            if desired is None:
                return
            self.desired = desired.version
            self.version = next((each.version for each in desired.apps), None)

    def _said(self) -> Reported:
        apps = []
        if self.version is not None:
            state = AppState.ROLLED_BACK if self.version in self.bad else AppState.COMMITTED
            apps = [ReportedApp(name="gate", version=self.version, state=state, running=1, reason="it crashed")]
        return Reported(desired_version=self.desired, apps=apps)


async def until(cloud: Cloud, rollout: int, state: RolloutState, speakers: list[Speaker]) -> None:
    async with asyncio.timeout(30):
        while (await asyncio.to_thread(cloud.state.store.rollouts.get, rollout)).state is not state:
            for speaker in speakers:
                await speaker.report()
            await asyncio.sleep(0.05)


async def test_the_fleet_role_takes_a_rollout_on_and_back(cloud: Cloud, device: Any) -> None:
    speakers = [Speaker(await device(cloud, name, site="x"), name) for name in ("a", "b", "c")]
    for speaker in speakers:
        await speaker.start()
    await asyncio.to_thread(cloud.state.deploy, DeployAsk(app_yaml=app(1)))
    good = await asyncio.to_thread(cloud.state.deploy, DeployAsk(app_yaml=app(2), plan=SOON))
    assert good.rollout == 2 and len(good.devices) == 1
    await until(cloud, 2, RolloutState.COMPLETED, speakers)
    assert {speaker.version for speaker in speakers} == {2}

    for speaker in speakers:
        speaker.bad = {3}
    await asyncio.to_thread(cloud.state.deploy, DeployAsk(app_yaml=app(3), plan=SOON))
    await until(cloud, 3, RolloutState.ROLLED_BACK, speakers)
    async with asyncio.timeout(10):  # whoever was told to run it is told otherwise, by a nudge
        while {speaker.version for speaker in speakers} != {2}:
            await asyncio.sleep(0.02)
    acts = cloud.state.store.audit.list(AuditFilter(actor="rollout:3"))
    told = [act for row in acts for act in row.detail["acts"]]
    assert told[0].startswith("stage 1 reaches ") and told[-1].startswith("rolled back in stage 1: failed 1 of 1")


async def test_two_who_drive_the_same_rollouts_decide_everything_once(cloud: Cloud, device: Any) -> None:
    """Two fleet processes: each step is one transaction, which one of them makes."""
    speakers = [Speaker(await device(cloud, f"pi-{n}"), f"pi-{n}") for n in range(4)]
    for speaker in speakers:
        await speaker.start()
    await asyncio.to_thread(cloud.state.deploy, DeployAsk(app_yaml=app(1)))
    plan = Plan(stages=["1", "2", "3", "all"], soak_s=0.0)
    await asyncio.to_thread(cloud.state.deploy, DeployAsk(app_yaml=app(2), plan=plan))

    async def drive() -> None:
        while True:
            if await asyncio.to_thread(cloud.state.rollout.rollouts.advance_all):
                await asyncio.to_thread(cloud.state.rollout.refresh)
            await asyncio.sleep(0.01)

    others = [asyncio.create_task(drive()) for _ in range(3)]
    try:
        await until(cloud, 2, RolloutState.COMPLETED, speakers)
    finally:
        for other in others:
            other.cancel()
        await asyncio.gather(*others, return_exceptions=True)
    acts = [act for row in cloud.state.store.audit.list(AuditFilter(actor="rollout:2")) for act in row.detail["acts"]]
    assert len(acts) == len(set(acts)) == 8, acts
    assert [act for act in acts if "passed" in act] == ["stage 1 passed", "stage 2 passed", "stage 3 passed"]
