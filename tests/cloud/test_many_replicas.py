"""Three replica processes of one cloud, killed and started while a device asks them: it has no error of it."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from marram.cloud import keeper as module
from marram.cloud.keeper import ReplicaState
from marram.cloud.server import Cloud
from marram.cloud.settings import Settings
from marram.edge.remote import ChannelRemote
from marram.pipeline.contract import CloudInput, Reply
from marram.placement.balance import Balancer
from marram.placement.contract import CloudOutcome, CloudSent
from marram.runtime.image import encode_jpeg
from marram.schema.api import DeployAsk
from marram.schema.errors import MarramError, Retryable
from marram.schema.payload import Payload

APP = "app: gate\nsource: {images: photos}\nsteps:\n  - classify: colours\n    cloud: colours\n"
KEY = "colours@1"
TIMEOUT_S = 3.0


class Asker:
    """A device's worker that asks without end, by the balancer's choice, over the agent's relay."""

    def __init__(self, remote: ChannelRemote, payload: Payload) -> None:
        self.balancer = Balancer(random.Random(5).random)
        self.answered: Counter[str | None] = Counter()
        self.lost: list[str] = []  # asked when its replica was killed: the edge answers
        self.errors: list[MarramError] = []
        self._remote, self._payload = remote, payload
        self._number = 0

    async def run(self) -> None:
        while True:
            choice = self.balancer.choose(time.monotonic())
            if choice is None:
                await asyncio.sleep(0.01)
                continue
            await self._ask(choice.replica)

    async def _ask(self, replica: str | None) -> None:
        self._number += 1
        number, begin_s = self._number, time.monotonic()
        self.balancer.sent(begin_s, CloudSent(begin_s, number, KEY, len(self._payload.body), replica))
        future = self._remote.infer(CloudInput("colours", 1, self._payload, replica), TIMEOUT_S)
        try:
            reply: Reply = await asyncio.wrap_future(future)
        except MarramError as error:
            timed_out = time.monotonic() - begin_s > 0.9 * TIMEOUT_S
            self.balancer.failed(
                time.monotonic(), CloudOutcome(time.monotonic(), number, False, timed_out=timed_out, replica=replica)
            )
            if isinstance(error, Retryable) and (timed_out or "ended over it" in str(error)):
                self.lost.append(replica or "")
            else:
                self.errors.append(error)
            return
        assert reply.result is not None
        self.answered[reply.replica] += 1
        self.balancer.heard(
            time.monotonic(),
            CloudOutcome(
                time.monotonic(),
                number,
                True,
                reply.queue_s,
                reply.service_s,
                replica=reply.replica,
                waiting=reply.waiting,
                loads=reply.loads,
                gone=reply.gone,
            ),
        )


async def test_replicas_are_killed_and_come_back_without_an_error_at_the_device(
    tmp_path: Path,
    colours: Path,
    picture: Callable[[str], Any],
    device: Any,
    worker_side: Any,
    until: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_FIRST_PAUSE_S", 0.05)
    async with Cloud(Settings(folder=tmp_path / "cloud", port=0, replicas=3)).running() as cloud:
        await asyncio.to_thread(cloud.state.registry.add_folder, colours)
        await asyncio.to_thread(cloud.state.deploy, DeployAsk(app_yaml=APP))
        replicas = cloud.replicas
        assert replicas is not None

        def pids() -> list[int]:
            return [one.pid for one in replicas.status() if one.state is ReplicaState.READY and one.pid is not None]

        await until(lambda: len(pids()) == 3, 60)
        remote = await worker_side(await device(cloud, "pi"))
        asker = Asker(remote, Payload("image/jpeg", encode_jpeg(picture("red"), 95), (), (4, 4)))
        tasks = [asyncio.create_task(asker.run()) for _ in range(3)]
        try:
            await until(lambda: len(asker.answered) == 3)
            for _ in range(2):
                before, known = set(pids()), set(asker.answered)
                os.kill(pids()[0], signal.SIGKILL)
                await until(lambda before=before: len(pids()) == 3 and set(pids()) != before, 60)
                # The new one has a name of its own, and work.
                await until(lambda known=known: set(asker.answered) - known)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        assert asker.errors == []
        assert len(asker.lost) <= 2 * 3, "what was under way at the killed ones, and nothing else"
