"""The replica role: processes follow what deployments ask for, come back when they die, say why they fail."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from marram.bus import subjects
from marram.bus.client import Bus
from marram.bus.inferences import InferReply, InferRequest
from marram.bus.tls import TlsFiles
from marram.cloud import keeper as module
from marram.cloud.keeper import Keeper, ReplicaState, Served, Start
from marram.cloud.replicas import Replicas
from marram.cloud.server import Cloud
from marram.cloud.settings import BrokerAddress, Settings
from marram.registry import Registry
from marram.runtime.image import encode_jpeg
from marram.schema.api import DeployAsk
from marram.schema.errors import Invalid, Missing, NotReady
from marram.schema.payload import Payload

APP = "app: gate\nsource: {images: photos}\nsteps:\n  - classify: colours\n    cloud: colours\n"


@pytest.fixture
async def cloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Cloud]:
    monkeypatch.setattr(module, "_FIRST_PAUSE_S", 0.05)
    async with Cloud(Settings(folder=tmp_path / "cloud", port=0)).running() as running:
        yield running


def replicas_of(cloud: Cloud) -> Replicas:
    assert cloud.replicas is not None
    return cloud.replicas


def served(cloud: Cloud) -> Served | None:
    found = replicas_of(cloud).status()
    return found[0] if found else None


async def ready(cloud: Cloud, until: Any, pid_not: int | None = None) -> Served:
    def condition() -> Served | None:
        one = served(cloud)
        return one if one and one.state is ReplicaState.READY and one.pid != pid_not else None

    found = await until(condition, 60)
    assert isinstance(found, Served)
    return found


async def infer(bus: Bus, image: Any) -> InferReply:
    payload = InferRequest(Payload("image/jpeg", encode_jpeg(image, 95), (), (4, 4))).pack()
    return InferReply.unpack(await bus.request(subjects.infer("colours", 1), payload, 20))


async def test_a_deployed_cloud_model_is_served_restarted_and_ended(
    cloud: Cloud, device: Any, until: Any, colours: Path, picture: Callable[[str], Any]
) -> None:
    bus = await device(cloud, "pi")
    with pytest.raises(NotReady):
        await infer(bus, picture("red"))
    await asyncio.to_thread(cloud.state.registry.add_folder, colours)
    await asyncio.to_thread(cloud.state.deploy, DeployAsk(app_yaml=APP))
    first = await ready(cloud, until)
    reply = await infer(bus, picture("green"))
    assert reply.result is not None and reply.result["label"] == "green"
    await bus.request(subjects.PROBE, b"x" * 1000, 10)
    assert first.pid is not None
    # What the process was told is visible to every user of the machine: the broker's password is not in it.
    command = " ".join(psutil.Process(first.pid).cmdline())
    assert "marram.cloud.replica" in command
    assert cloud.broker is not None and cloud.broker.password not in command

    os.kill(first.pid, signal.SIGKILL)
    second = await ready(cloud, until, pid_not=first.pid)
    assert second.restarts == 1
    reply = await infer(bus, picture("blue"))
    assert reply.result is not None and reply.result["label"] == "blue"

    pid = second.pid
    await asyncio.to_thread(cloud.state.undeploy, "gate", {})
    assert pid is not None
    await until(lambda: served(cloud) is None and not psutil.pid_exists(pid))


async def test_a_model_that_cannot_be_loaded_says_why_and_harms_nobody(cloud: Cloud, until: Any, colours: Path) -> None:
    (colours / "net.onnx").write_bytes(b"this is no model")
    # As where the cloud that took it in had no engine to open it with.
    unopened = Registry(cloud.state.store.models, cloud.state.objects, admits=lambda folder: ["it was not opened"])
    await asyncio.to_thread(unopened.add_folder, colours)
    await asyncio.to_thread(cloud.state.deploy, DeployAsk(app_yaml=APP))
    await until(lambda: (one := served(cloud)) and one.restarts >= 2)
    one = served(cloud)
    assert one is not None and "net.onnx" in one.reason
    assert all(check.ok for check in await asyncio.to_thread(cloud.state.checks))


async def test_what_is_asked_to_be_served_is_served_without_a_deployment(
    tmp_path: Path, colours: Path, until: Any
) -> None:
    settings = Settings(folder=tmp_path / "cloud", port=0)
    async with Cloud(settings).running() as cloud:
        cloud.state.registry.add_folder(colours)
    async with Cloud(Settings(folder=tmp_path / "cloud", port=0, serve=("colours",))).running() as cloud:
        assert (await ready(cloud, until)).name == "colours"
    for serve, error in ((("colors",), Missing), (("colours@9",), Missing), (("Not a name",), Invalid)):
        with pytest.raises(error):
            await Cloud(Settings(folder=tmp_path / "cloud", port=0, serve=serve)).start()


async def test_a_look_that_fails_of_anything_is_taken_again(cloud: Cloud, until: Any) -> None:
    replicas, looks = replicas_of(cloud), 0

    def wanted() -> set[tuple[str, int]]:
        nonlocal looks
        looks += 1
        raise ValueError("nobody foresaw it")

    replicas._wanted = wanted
    for number in (1, 2):
        replicas.wake()
        await until(lambda number=number: looks >= number)


async def test_one_process_serves_all_models_and_several_serve_each_all_of_them(
    tmp_path: Path, colours: Path, device: Any, until: Any, picture: Callable[[str], Any]
) -> None:
    tints = tmp_path / "tints"
    shutil.copytree(colours, tints)
    (tints / "model.yaml").write_text((colours / "model.yaml").read_text().replace("model: colours", "model: tints"))
    async with Cloud(Settings(folder=tmp_path / "cloud", port=0)).running() as cloud:
        for folder in (colours, tints):
            await asyncio.to_thread(cloud.state.registry.add_folder, folder)
    settings = Settings(folder=tmp_path / "cloud", port=0, serve=("colours", "tints"), replicas=2)
    async with Cloud(settings).running() as cloud:
        replicas = replicas_of(cloud)
        await until(lambda: [each.state for each in replicas.status()] == [ReplicaState.READY] * 4, 60)
        assert [(each.name, each.replica) for each in replicas.status()] == [
            *(("colours", 0), ("colours", 1), ("tints", 0), ("tints", 1))
        ]
        assert len({each.pid for each in replicas.status()}) == 2
        bus = await device(cloud, "pi")
        request = InferRequest(Payload("image/jpeg", encode_jpeg(picture("red"), 95), (), (4, 4))).pack()
        for name in ("colours", "tints"):
            reply = InferReply.unpack(await bus.request(subjects.infer(name, 1), request, 20))
            assert reply.result is not None and reply.result["model"] == f"{name}@1"


_CHILD = """
import json, os, sys
print(json.dumps({"error": ""}), flush=True)
for line in sys.stdin:
    folder = json.loads(line)["folder"]
    if folder == "crashes-1":
        print("terribly wrong", file=sys.stderr, flush=True)
        os.kill(os.getpid(), 9)
    print(json.dumps({"error": "it is broken" if folder == "broken-1" else ""}), flush=True)
"""


class _Scripted(Start):
    """A process that says what a replica says, without a broker or a model."""

    def command(self, number: int) -> list[str]:
        return [sys.executable, "-c", _CHILD]


async def test_a_model_that_takes_its_process_down_waits_while_the_others_are_served_again(
    monkeypatch: pytest.MonkeyPatch, until: Any
) -> None:
    start = _Scripted(BrokerAddress("nats://127.0.0.1:1", "", ""), TlsFiles(Path(), Path()), Path())
    keeper = Keeper(0, start, lambda name, version: Path(f"{name}-{version}"))
    keeping = asyncio.create_task(keeper.keep())
    monkeypatch.setattr(module, "_FIRST_PAUSE_S", 0.05)
    try:
        keeper.want({("well", 1), ("broken", 1), ("crashes", 1), ("zealous", 1)})
        await until(lambda: keeper.served["crashes", 1].restarts >= 3 and keeper.served["broken", 1].restarts >= 2)
        keeper.served["crashes", 1].again_s = keeper.served["broken", 1].again_s = float("inf")
        keeper.want(set(keeper.served))  # look again
        await until(lambda: {keeper.served[name, 1].state for name in ("well", "zealous")} == {ReplicaState.READY})
        assert keeper.served["crashes", 1].reason == "killed by signal 9; its last words: terribly wrong"
        assert keeper.served["broken", 1].reason == "it is broken"
        pid = keeper.served["well", 1].pid
        keeper.want(set())
        assert pid is not None
        await until(lambda: not psutil.pid_exists(pid))  # nothing to serve: no process
        keeper.want({("well", 1)})
        await until(lambda: keeper.served["well", 1].state is ReplicaState.READY)
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
