"""A pipeline, its device's relay, a real broker and a real replica process, which is stopped and killed under way."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Pillow

from marram.cloud import keeper as module
from marram.cloud.keeper import ReplicaState, Served
from marram.cloud.server import Cloud
from marram.cloud.settings import Settings
from marram.edge.remote import ChannelRemote
from marram.pipeline.build import Around, Pipeline
from marram.runtime.bundle import Bundle
from marram.schema.api import DeployAsk
from marram.schema.app import parse_app

# The cloud always, so that nothing but its failing brings an answer from the edge; no frame is worth more than this.
APP = """
app: gate
source: {{images: {photos}, every: 5 ms, repeat: true}}
raw: allowed
steps:
  - classify: {model}
    cloud: colours
    place: cloud
    deadline: 200 ms
"""


@pytest.fixture
async def cloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Cloud]:
    monkeypatch.setattr(module, "_FIRST_PAUSE_S", 0.05)
    async with Cloud(Settings(folder=tmp_path / "cloud", port=0)).running() as running:
        yield running


@pytest.fixture
async def remote(cloud: Cloud, device: Any, worker_side: Any) -> ChannelRemote:
    return await worker_side(await device(cloud, "pi"))


def served(cloud: Cloud) -> Served | None:
    assert cloud.replicas is not None
    return next((one for one in cloud.replicas.status() if one.state is ReplicaState.READY and one.pid), None)


async def test_a_replica_that_hangs_is_killed_and_comes_back_costs_no_frame_its_answer(
    cloud: Cloud, remote: ChannelRemote, until: Any, colours: Path, picture: Callable[[str], Any], tmp_path: Path
) -> None:
    await asyncio.to_thread(cloud.state.registry.add_folder, colours)
    deployed = "app: gate\nsource: {images: photos}\nsteps:\n  - classify: colours\n    cloud: colours\n"
    await asyncio.to_thread(cloud.state.deploy, DeployAsk(app_yaml=deployed))
    first = (await until(lambda: served(cloud), 60)).pid
    photos = tmp_path / "photos"
    photos.mkdir()
    for number, colour in enumerate(("red", "green", "blue")):
        Pillow.fromarray(picture(colour)).save(photos / f"{number}.png")
    app = parse_app(APP.format(photos=photos, model=colours))
    around = Around(remote=remote, cloud_cards={"colours": Bundle.open(colours).card})
    pipeline = await asyncio.to_thread(Pipeline.build, app, tmp_path, around)
    running = threading.Thread(target=pipeline.run, daemon=True)
    running.start()

    async def more(place: str, by: int = 5) -> None:
        before = pipeline.stats()[place]
        await until(lambda: pipeline.stats()[place] >= before + by, 60)

    try:
        await more("cloud")
        os.kill(first, signal.SIGSTOP)  # its connection stands, and nothing comes: as on a link that swallows all
        await more("edge")
        os.kill(first, signal.SIGKILL)  # with what it was asked unanswered
        await more("edge")
        await until(lambda: (one := served(cloud)) and one.pid != first, 60)
        await more("cloud")
    finally:
        pipeline.stop()
        await asyncio.to_thread(running.join, 30)
    assert not running.is_alive()
    stats = pipeline.stats()
    assert (stats["errors"], stats["late"], stats["unusable"]) == (0, 0, 0)
    # A probe may notice the silence before a frame is asked: then not one of them waits in vain.
    assert stats["frames"] == stats["edge"] + stats["cloud"]
