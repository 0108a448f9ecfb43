"""A second machine adds its replicas: a process in a folder of its own, with a copy of the keys and three addresses."""

from __future__ import annotations

import asyncio
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from marram.bus import subjects
from marram.bus.client import Bus
from marram.bus.inferences import InferReply, InferRequest
from marram.cloud.server import Cloud
from marram.cloud.settings import Role, Settings
from marram.runtime.image import encode_jpeg
from marram.schema.api import DeployAsk
from marram.schema.errors import MarramError, NotReady
from marram.schema.payload import Payload

APP = "app: gate\nsource: {images: photos}\nsteps:\n  - classify: colours\n    cloud: colours\n"


async def test_replicas_on_a_second_machine_serve_what_devices_ask(
    start: Callable[..., Any],
    tmp_path: Path,
    postgres_url: str,
    colours: Path,
    device: Any,
    picture: Callable[[str], Any],
    until: Any,
) -> None:
    shared = {"database": postgres_url, "objects": str(tmp_path / "store")}
    keys = tmp_path / "cloud" / "keys"
    first = Settings(folder=tmp_path / "cloud", port=0, roles=frozenset(Role) - {Role.REPLICA}, keys=keys, **shared)
    made = start("cloud", "init", "--keys", str(keys))
    assert await asyncio.to_thread(made.process.wait, 60) == 0
    async with Cloud(first).running() as cloud:
        bus = await device(cloud, "pi")
        await asyncio.to_thread(cloud.state.registry.add_folder, colours)
        await asyncio.to_thread(cloud.state.deploy, DeployAsk(app_yaml=APP))
        assert isinstance(await asked(bus, picture("red")), NotReady)
        there = tmp_path / "second"
        shutil.copytree(keys, there / "keys", ignore=shutil.ignore_patterns("offline"))
        assert cloud.broker is not None
        second = start(
            *("cloud", "--role", "replica", "--nats", cloud.broker.url, "--keys", str(there / "keys")),
            *("--database", postgres_url, "--objects", str(tmp_path / "store")),
            home="second",
        )
        await asyncio.to_thread(second.wait_for, "running  replica")
        await answered(bus, picture("green"), "green")
        await asyncio.to_thread(second.process.send_signal, signal.SIGTERM)
        assert await asyncio.to_thread(second.process.wait, 60) == 0
        assert isinstance(await asked(bus, picture("red")), NotReady)
        assert "Traceback" not in second.output and "WARNING" not in second.output


async def answered(bus: Bus, image: Any, label: str) -> None:
    async with asyncio.timeout(60):
        while isinstance(reply := await asked(bus, image), MarramError):
            await asyncio.sleep(0.05)
    assert (reply.result or {})["label"] == label


async def asked(bus: Bus, image: Any) -> InferReply | MarramError:
    payload = InferRequest(Payload("image/jpeg", encode_jpeg(image, 95), (), (4, 4))).pack()
    try:
        return InferReply.unpack(await bus.request(subjects.infer("colours", 1), payload, 20))
    except MarramError as error:
        return error
