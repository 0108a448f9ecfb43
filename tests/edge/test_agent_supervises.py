"""A bug in a part of the agent is that part's own: it starts again, and nothing else notices."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from tests.edge.world import Cloud, Device, ticking

from marram.bus.uplink import Uplink
from marram.edge import agent as module
from marram.edge.agent import Agent, Settings
from marram.edge.keeper import Keeper
from marram.schema.device import AppState


def failing_first(method: Any, times: int, only: str | None = None) -> Any:
    """`method` of a class, which raises the first times it is called (for the app `only`)."""
    left = times

    async def instead(self: Any) -> Any:
        nonlocal left
        if left and (only is None or self.name == only):
            left -= 1
            raise ZeroDivisionError("a bug of ours")
        return await method(self)

    return instead


async def test_each_part_that_fails_is_started_again_and_the_other_app_never_notices(
    cloud: Cloud, device: Device, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "_AGAIN_S", 0.01)
    monkeypatch.setattr(Keeper, "run", failing_first(Keeper.run, 2, "ticking"))
    monkeypatch.setattr(Uplink, "run", failing_first(Uplink.run, 2))
    monkeypatch.setattr(Agent, "_report_for_ever", failing_first(Agent._report_for_ever, 2))
    caplog.set_level(logging.ERROR, "marram.edge")
    files = ticking()
    second = {**files, "app.yaml": files["app.yaml"].replace(b"app: ticking", b"app: second")}
    agent = Agent(device.folder, device.folder.credentials(), Settings(report_every_s=0.1))
    with device.folder.lock():
        running = asyncio.create_task(agent.run())
        await cloud.want(cloud.app("ticking", 1, files), cloud.app("second", 1, second))
        await cloud.until_state("ticking", AppState.COMMITTED)
        await cloud.until_state("second", AppState.COMMITTED)
        await cloud.until_stored(20)
        agent.stop()
        await running
    assert {app.name: app.restarts for app in cloud.reports[-1].apps} == {"ticking": 0, "second": 0}
    assert set(cloud.stored.values()) == {1}
    said = [record.getMessage() for record in caplog.records]
    for what in (
        "ticking: its keeper failed",
        "the uplink failed",
        "reporting failed",
    ):
        assert sum(message.startswith(what) for message in said) == 2, what
