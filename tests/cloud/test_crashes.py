"""An engine's fault ends a replica: who asked is told at once, the other models are back, the guilty one waits."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.spinning import spinning

from marram.bus import subjects
from marram.bus.client import Bus
from marram.bus.inferences import InferReply, InferRequest
from marram.cloud.carried import request_of
from marram.cloud.keeper import ReplicaState, Served
from marram.cloud.server import Cloud
from marram.cloud.settings import Settings
from marram.cloud.underway import Asked, UnderWay
from marram.runtime.image import encode_jpeg
from marram.schema.errors import NotReady, Retryable
from marram.schema.payload import Payload
from marram.serving.contract import Question

# No test waits so long: who is not told at once fails it.
PATIENCE_S = 600.0


async def test_the_others_are_back_and_the_model_that_crashed_twice_is_put_aside(
    tmp_path: Path, colours: Path, device: Any, until: Any, picture: Callable[[str], Any]
) -> None:
    spins = tmp_path / "spins"
    spins.mkdir()
    async with Cloud(Settings(folder=tmp_path / "cloud", port=0)).running() as cloud:
        for folder in (colours, spinning(spins)):
            await asyncio.to_thread(cloud.state.registry.add_folder, folder)
    settings = Settings(folder=tmp_path / "cloud", port=0, serve=("colours", "spins"))
    async with Cloud(settings).running() as cloud:
        replicas = cloud.replicas
        assert replicas is not None

        def served(name: str) -> Served:
            return next(each for each in replicas.status() if each.name == name)

        await until(lambda: [each.state for each in replicas.status()] == [ReplicaState.READY] * 2, 60)
        bus = await device(cloud, "pi")
        high = np.full((1, 3, 4, 4), 1e3, np.float32)
        for number in (1, 2):
            pid = served("colours").pid
            assert pid is not None
            asked = asyncio.create_task(
                bus.request(
                    subjects.infer("spins", 1), request_of(Question("spins", tensors={"x": high})).pack(), PATIENCE_S
                )
            )
            await at_work(bus, "spins")
            os.kill(pid, signal.SIGSEGV)
            with pytest.raises(Retryable, match="ended over it"):
                await asked
            await until(lambda pid=pid: served("colours").state is ReplicaState.READY and served("colours").pid != pid)
            payload = Payload("image/jpeg", encode_jpeg(picture("green"), 95), (), (4, 4))
            answer = await bus.request(subjects.infer("colours", 1), InferRequest(payload).pack(), 20)
            assert (InferReply.unpack(answer).result or {})["label"] == "green"
            if number == 1:  # once may be chance
                await until(lambda: served("spins").state is ReplicaState.READY)
        assert served("spins").state is ReplicaState.WAITING
        assert "while it was asked (SIGSEGV): put aside for 60 s" in served("spins").reason
        with pytest.raises(NotReady):
            await bus.request(subjects.infer("spins", 1), b"", 20)


async def at_work(bus: Bus, model: str) -> None:
    while True:
        if InferReply.unpack(await bus.request(subjects.probe(model, 1), b"", 20)).waiting:
            return
        await asyncio.sleep(0.01)


def test_what_is_under_way_can_be_read_by_who_made_the_memory() -> None:
    keeper = UnderWay.make()
    child = UnderWay.attach(os.dup(keeper.descriptor))
    try:
        slots = [child.begin(("colours", number), f"_INBOX_pi.{number}") for number in range(3)]
        assert child.begin(("colours", 1), "_INBOX_pi." + "x" * 300) is None  # nobody has such an inbox
        child.begin(("colours", 1), "d.pi.desired")  # no inbox: who made this up is not believed
        child.end(slots[1])
        child.end(None)
        assert set(keeper.left()) == {Asked(("colours", number), f"_INBOX_pi.{number}") for number in (0, 2)}
        again = [child.begin(("m", 1), "_INBOX_x.1") for _ in range(2000)]
        assert None in again and len(keeper.left()) == 1023
    finally:
        for each in (child, keeper):
            each.close()
