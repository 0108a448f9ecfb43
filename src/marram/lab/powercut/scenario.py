"""What a device's disk goes through in half a minute: fetch, install, commit, roll back; and its outbox.

`python -m marram.lab.powercut.scenario DEVICE CLOUD`: a real agent on the folder DEVICE, its cloud beside it in CLOUD,
which is another machine as far as the power cut goes. The first version of an app is committed, then a second; a third
fails its trial and is rolled back. Marks in the recording say what the device had promised by then.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from marram.bus.codec import unpack_ack
from marram.edge.supervisor import WorkerSpec
from marram.lab import virtual
from marram.lab.hub import Hub, Wire
from marram.lab.imitation import Manner
from marram.lab.powercut.recording import mark
from marram.lab.world import World
from marram.schema.device import AppState
from marram.schema.errors import MarramError, Retryable
from marram.schema.rollout import at_once

APP, DEVICE = "pump", "pi-1"
# By version, what its bundle holds; the third is the one that fails.
CONTENTS = {1: b"one" * 700, 2: b"two" * 700, 3: b"bad" * 700}
BAD = 3
_LONG_S = 120.0


def manner(spec: WorkerSpec) -> Manner:
    """Every version works but the bad one, which falls before it has shown anything."""
    return Manner(loads_s=0.1, every_s=1.0, falls_s=1.0 if spec.version == BAD else None)


class Tapped(Hub):
    """A hub that marks what the cloud acknowledges: from then on the device may forget it."""

    async def carry(self, message: Wire) -> bool:
        if message.subject.startswith(f"_INBOX_{DEVICE}"):
            try:
                high = unpack_ack(message.data).high
            except MarramError:
                pass  # the answer to something else
            else:
                mark(f"stored/{high}")
        return await super().carry(message)


async def until(world: World, version: int, state: AppState) -> None:
    """Until the cloud hears that the version stands so. Raises Retryable."""
    try:
        async with asyncio.timeout(_LONG_S):
            while True:
                device = await asyncio.to_thread(world.state.store.devices.get, DEVICE)
                apps = device.reported.apps if device.reported else []
                if any(
                    app.version == version and app.state is state and app.running for app in apps if app.name == APP
                ):
                    return
                await asyncio.sleep(0.2)
    except TimeoutError as error:
        raise Retryable(f"it never came so far; last report: {device.reported}") from error


async def go_through(world: World) -> None:
    """All of it, from a device that has just joined."""
    plan = at_once()
    for version in (1, 2):
        mark(f"wanted/{version}")
        await world.deploy(APP, CONTENTS[version], plan=plan)
        await until(world, version, AppState.COMMITTED)
        mark(f"committed/{version}")
        await asyncio.sleep(3)
    mark(f"wanted/{BAD}")
    await world.deploy(APP, CONTENTS[BAD], plan=plan)
    await until(world, BAD, AppState.ROLLED_BACK)
    mark("rolled back")
    await asyncio.sleep(3)


async def _main(device: Path, cloud: Path) -> None:
    world = World(cloud, report_every_s=1.0)
    world.hub = Tapped()
    async with world.open():
        await world.add_device(DEVICE, manner, place=device)
        await go_through(world)


if __name__ == "__main__":
    virtual.run(lambda: _main(Path(sys.argv[1]), Path(sys.argv[2])))
