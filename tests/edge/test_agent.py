from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys
import time

import pytest
from tests.edge.world import DEVICE, LONG_S, SECRET, Cloud, Device, gone, ticking

from marram.edge import agent as module
from marram.edge.agent import Agent, Settings
from marram.edge.status import ask
from marram.last_resort import OneLine
from marram.schema.device import AppState
from marram.schema.event import EventKind


async def test_from_desired_to_results_and_back_to_nothing(cloud: Cloud, device: Device) -> None:
    await device.start()
    await cloud.until(lambda r: r.desired_version == 0)
    app = cloud.app("ticking", 1, ticking())
    await cloud.want(app)
    await cloud.until_state("ticking", AppState.COMMITTED)
    await cloud.until_stored(20)
    assert cloud.kinds[EventKind.ALERT] >= 20
    await cloud.want()
    await cloud.until(lambda r: r.desired_version == 2 and not r.apps)
    assert device.workers() == []
    assert await device.stop() == 0
    assert "Traceback" not in device.words()


async def test_a_new_version_takes_over(cloud: Cloud, device: Device) -> None:
    await cloud.want(cloud.app("ticking", 1, ticking()))
    await device.start()
    await cloud.until_state("ticking", AppState.COMMITTED, 1)
    old = device.workers()
    await cloud.want(cloud.app("ticking", 2, ticking(every="10 ms")))
    await cloud.until_state("ticking", AppState.COMMITTED, 2)
    await gone(old)
    assert len(device.workers()) == 1
    # Version 1 is kept for one step back; then what it alone needed is swept away, what all need stayed.
    kept = {file.sha256 for file in cloud.desired.apps[0].files.files}
    await cloud.want(cloud.app("ticking", 3, ticking(every="15 ms")))
    await cloud.until_state("ticking", AppState.COMMITTED, 3)
    kept |= {file.sha256 for file in cloud.desired.apps[0].files.files}
    async with asyncio.timeout(LONG_S):
        while {p.name for p in (device.folder.path / "blobs").iterdir()} != kept:
            await asyncio.sleep(0.05)
    assert cloud.asked and sum(ask.sha256 == cloud.put(ticking()["rows.csv"]) for ask in cloud.asked) == 1


async def test_a_finite_source_finishes_once(cloud: Cloud, device: Device) -> None:
    files = ticking(every="1 ms")
    files["app.yaml"] = files["app.yaml"].replace(b", repeat: true", b"")
    await cloud.want(cloud.app("ticking", 1, files))
    await device.start()
    report = await cloud.until(lambda r: any("came to its end" in a.reason for a in r.apps))
    assert report.apps[0].state is AppState.COMMITTED
    await cloud.until(lambda r: r.outbox_depth == 0)
    assert cloud.kinds[EventKind.ALERT] == 49
    await device.stop()
    await device.start()
    report = await cloud.until(lambda r: r.uptime_s > 1)
    assert report.apps[0].restarts == 0 and "came to its end" in report.apps[0].reason
    assert device.workers() == [] and cloud.kinds[EventKind.ALERT] == 49
    # A next version that fails leads back to it; its source is not read a second time.
    await cloud.want(cloud.app("ticking", 2, {"app.yaml": b"app: ticking"}))
    await cloud.until_state("ticking", AppState.ROLLED_BACK, 2)
    await cloud.until(lambda r: r.outbox_depth == 0)
    assert device.workers() == [] and cloud.kinds[EventKind.ALERT] == 49


async def test_it_answers_when_asked_how_it_is(cloud: Cloud, device: Device) -> None:
    await cloud.want(cloud.app("ticking", 1, ticking()))
    await device.start()
    await cloud.until_state("ticking", AppState.COMMITTED)
    answer = await asyncio.to_thread(ask, device.folder.path)
    assert answer is not None and answer["link"] == "connected" and answer["device"] == DEVICE
    assert answer["reported"]["apps"][0]["state"] == "committed"
    assert SECRET not in str(answer)
    status = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "marram", "edge", "status", "--folder", str(device.folder.path), stdout=subprocess.PIPE
    )
    words, _ = await status.communicate()
    assert status.returncode == 0
    for expected in (DEVICE, "connected", "ticking", "committed"):
        assert expected in words.decode()
    assert SECRET not in words.decode() and SECRET not in device.words()
    await device.stop()
    assert await asyncio.to_thread(ask, device.folder.path) is None


async def test_a_clock_that_jumps_back_disturbs_nothing(
    cloud: Cloud, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    days = itertools.count()
    true_time = time.time
    monkeypatch.setattr(time, "time", lambda: true_time() - 86_400 * next(days))
    agent = Agent(device.folder, device.folder.credentials(), Settings(report_every_s=0.1))
    with device.folder.lock():
        running = asyncio.create_task(agent.run())
        await cloud.want(cloud.app("ticking", 1, ticking()))
        await cloud.until_state("ticking", AppState.COMMITTED)
        await cloud.until_stored(20)
        first = cloud.reports[-1].time_s
        last = await cloud.until(lambda r: r.time_s < first - 86_400)
        assert last.uptime_s > 0
        agent.stop()
        await running
    assert set(cloud.stored.values()) == {1}


async def test_a_part_that_fails_says_where_and_starts_again(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_AGAIN_S", 0.0)
    tries = 0

    async def work() -> None:
        nonlocal tries
        tries += 1
        if tries == 3:
            raise asyncio.CancelledError
        raise ZeroDivisionError("by nobody")

    with pytest.raises(asyncio.CancelledError):
        await module._for_ever("the uplink", work)
    lines = [OneLine("%(message)s").format(record) for record in caplog.records]
    assert len(lines) == 2
    assert lines[0].startswith("the uplink failed; it starts again: ZeroDivisionError: by nobody (test_agent.py:")
