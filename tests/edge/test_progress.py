"""A finite source goes on after the last frame whose records are durable, whatever was killed on the way."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.edge.world import LONG_S, Cloud, Device, gone

from marram.bus.outbox import Outbox
from marram.pipeline import opencv
from marram.schema.device import AppState
from marram.schema.event import EventKind

FRAMES = 150


def rows(folder: Path) -> str:
    (folder / "rows.csv").write_text("x\n" + "".join(f"{n}\n" for n in range(FRAMES)))
    return f"{{series: {folder}/rows.csv, every: 5 ms}}"


def pictures(folder: Path) -> str:
    for number in range(FRAMES):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{number:04}.png")
    return f"{{images: {folder}, every: 5 ms}}"


def film(folder: Path) -> str:
    cv2 = opencv.load("test")
    writer = cv2.VideoWriter(str(folder / "a.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 25, (64, 48))
    for number in range(FRAMES):
        writer.write(np.full((48, 64, 3), number, np.uint8))
    writer.release()
    return f"{{video: {folder}/a.avi, every: 5 ms}}"


def counting(source: str, more: str = "") -> dict[str, bytes]:
    """An app's files: a message and a result of each frame."""
    handler = (
        "import greengrasssdk\nclient = greengrasssdk.client('iot-data')\n"
        "def handle(event, context):\n    client.publish(topic='seen', payload='{}')\n    return {'value': 1.0}\n"
    )
    app = f"app: counting\nsource: {source}\nsteps: [{{function: 'handler.py:handle'}}]\nsend: results\n{more}"
    return {"app.yaml": app.encode(), "handler.py": handler.encode()}


async def until_finished(cloud: Cloud, version: int) -> None:
    await cloud.until(lambda r: any(a.version == version and "came to its end" in a.reason for a in r.apps))


async def each_frame_once(cloud: Cloud, times: int = 1) -> None:
    async with asyncio.timeout(LONG_S):
        while cloud.kinds[EventKind.RESULT] + cloud.kinds[EventKind.MESSAGE] < times * 2 * FRAMES:
            await asyncio.sleep(0.02)
    results = [event for event in cloud.events if event.kind is EventKind.RESULT]
    assert Counter(event.data["frame"] for event in results) == dict.fromkeys(range(FRAMES), times)
    assert cloud.kinds[EventKind.MESSAGE] == times * FRAMES


@pytest.mark.parametrize("source", [rows, pictures, film], ids=lambda source: source.__name__)
async def test_a_killed_worker_and_a_killed_agent_record_each_frame_once(
    cloud: Cloud, device: Device, tmp_path: Path, source: object
) -> None:
    assert callable(source)
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    await cloud.want(cloud.app("counting", 1, counting(source(inputs))))
    await device.start()
    await cloud.until_stored(60)
    (worker,) = device.workers()
    os.kill(worker, signal.SIGKILL)
    await cloud.until_stored(60)
    workers = device.workers()
    await device.stop(signal.SIGKILL)
    await gone(workers)
    await device.start()
    await until_finished(cloud, 1)
    await each_frame_once(cloud)
    # What is finished stays finished.
    await device.stop()
    started = device.words().count("version 1 started")
    await device.start()
    await until_finished(cloud, 1)
    assert device.words().count("version 1 started") == started == 3
    await device.stop()
    # Also where the device forgot everything else.
    (device.folder.path / "apps" / "counting.json").write_bytes(b"\0" * 100)
    await device.start()
    await until_finished(cloud, 1)
    assert device.words().count("version 1 started") == 4
    await device.stop()
    outbox = Outbox(device.folder.outbox)
    assert outbox.depth() == 0
    outbox.close()
    await each_frame_once(cloud)


async def test_a_clean_stop_goes_on_and_another_version_or_a_new_deployment_begins_anew(
    cloud: Cloud, device: Device, tmp_path: Path
) -> None:
    first = cloud.app("counting", 1, counting(rows(tmp_path)))
    await cloud.want(first)
    await device.start()
    await cloud.until_stored(60)
    assert await device.stop() == 0
    await device.start()
    await until_finished(cloud, 1)
    await each_frame_once(cloud)
    await cloud.want(cloud.app("counting", 2, counting(rows(tmp_path), "raw: never\n")))
    await until_finished(cloud, 2)
    await each_frame_once(cloud, 2)
    await cloud.want(first)
    await until_finished(cloud, 1)
    await each_frame_once(cloud, 3)
    await cloud.want()
    await cloud.until(lambda r: not r.apps)
    await cloud.want(first)
    await until_finished(cloud, 1)
    await each_frame_once(cloud, 4)
    await device.stop()


async def test_a_version_that_fails_its_trial_costs_the_proven_one_nothing(
    cloud: Cloud, device: Device, tmp_path: Path
) -> None:
    await cloud.want(cloud.app("counting", 1, counting(rows(tmp_path).replace("5 ms", "40 ms"))))
    await device.start()
    await cloud.until_state("counting", AppState.COMMITTED, 1)
    broken = counting(rows(tmp_path)) | {"handler.py": b"def handle(:\n"}
    await cloud.want(cloud.app("counting", 2, broken))
    await cloud.until_state("counting", AppState.ROLLED_BACK, 2)
    await each_frame_once(cloud)
    await device.stop()
