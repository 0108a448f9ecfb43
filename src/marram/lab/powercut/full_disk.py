"""The scenario again on disks that become full at one write after another: nothing may break, nothing be forgotten.

The device's folder lies on a file system in memory that is just so large; the larger it is, the later a write finds no
room. What looks at the free space beforehand is told that there is plenty, as if somebody else filled the disk between
the look and the write. Then the disk grows, and all must come to its end by itself. Runs in a mount namespace of its
own (`unshare`), so that nothing of it outlives its process.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from marram.lab import virtual
from marram.lab.powercut.scenario import APP, BAD, CONTENTS, DEVICE, manner
from marram.lab.world import World
from marram.schema.device import AppState
from marram.schema.errors import Missing, Permanent
from marram.schema.rollout import at_once

# From where the agent cannot even open its outbox to where all of it fits.
SIZES_BYTES = range(40_960, 1_064_960, 8_192)
_LARGE = "64m"
# How long a full disk is borne before it grows, and how long after that all may take.
_FULL_S, _LONG_S = 15.0, 180.0


def rehearse(sizes_bytes: Iterable[int] = SIZES_BYTES) -> tuple[int, list[str]]:
    """On each of these disks; how many there were, and what went wrong, in words.

    Raises Missing where file systems cannot be mounted here (no `unshare`, or not allowed).
    """
    wanted = [str(size) for size in sizes_bytes]
    separate = ["unshare", "--mount", "--propagation", "private"]
    if os.geteuid() != 0:
        separate[1:1] = ["--user", "--map-root-user"]
    command = [*separate, sys.executable, "-m", "marram.lab.powercut.full_disk", *wanted]
    try:
        subprocess.run([*separate, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise Missing(
            "no file system can be mounted here", hint="It takes Linux, unshare, and the right to."
        ) from error
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Permanent(f"exit status {done.returncode}: {done.stderr[-2000:]}")
    faults = json.loads(done.stdout.splitlines()[-1])
    return len(wanted), faults


def _one(scratch: Path, size_bytes: int) -> str:
    device = scratch / "device"
    device.mkdir()
    _mount(device, str(size_bytes))
    try:
        return virtual.run(lambda: _go_through(World(scratch / "cloud", report_every_s=1.0), device))
    finally:
        subprocess.run(["umount", "--lazy", str(device)], check=True)
        shutil.rmtree(device)
        shutil.rmtree(scratch / "cloud")


def _mount(place: Path, size: str, *more: str) -> None:
    options = ",".join([*more, f"size={size}"])
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], check=True)


async def _go_through(world: World, device: Path) -> str:
    async with world.open():
        site = await world.add_device(DEVICE, manner, place=device, starts=False)
        running = asyncio.create_task(_kept_running(world))
        grown = asyncio.create_task(_grow(device))
        for version in CONTENTS:
            await world.deploy(APP, CONTENTS[version], plan=at_once())
            if not await _within(_LONG_S, lambda v=version: _stands(world, v)):
                return f"version {version} never came to its end; {_said(world)}"
        await grown
        world.rests = True
        stored = await _within(_LONG_S, lambda: _stored(world, site.recorded))
        running.cancel()
        return "" if stored else "events that were durable are not in the database"


async def _kept_running(world: World) -> None:
    """As a system does that starts an agent again whenever it ends."""
    while True:
        world.start_device(DEVICE)
        task = world.sites[DEVICE].running
        assert task is not None
        await asyncio.wait([task])
        await asyncio.sleep(2)


async def _grow(device: Path) -> None:
    await asyncio.sleep(_FULL_S)
    _mount(device, _LARGE, "remount")


def _stands(world: World, version: int) -> bool:
    reported = world.state.store.states.reported(DEVICE)
    apps = reported.apps if reported else []
    wanted = AppState.ROLLED_BACK if version == BAD else AppState.COMMITTED
    return any(app.version == version and app.state is wanted and app.running for app in apps)


def _stored(world: World, recorded: set[tuple[str, int]]) -> bool:
    there = {(event.stream, event.sequence) for event in world.state.store.events.after(0, limit=100_000)}
    return recorded <= there


def _said(world: World) -> str:
    return f"last report: {world.state.store.states.reported(DEVICE)}"


async def _within(seconds: float, ready: object) -> bool:
    assert callable(ready)
    for _ in range(int(seconds)):
        if await asyncio.to_thread(ready):
            return True
        await asyncio.sleep(1)
    return False


def main() -> None:
    """The sizes as arguments; prints what went wrong as JSON."""
    logging.getLogger("marram").setLevel(logging.CRITICAL + 1)
    plenty = shutil.disk_usage("/")._replace(free=1 << 40)
    shutil.disk_usage = lambda path: plenty
    faults = []
    with tempfile.TemporaryDirectory(prefix="marram-") as name:
        _mount(Path(name), _LARGE)
        for size in map(int, sys.argv[1:]):
            if fault := _one(Path(name), size):
                faults.append(f"{size} bytes: {fault}")
        subprocess.run(["umount", "--lazy", name], check=True)
    print(json.dumps(faults))


if __name__ == "__main__":
    main()
