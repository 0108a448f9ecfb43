"""The scenario again on disks that become full at one write after another: nothing may break, nothing be forgotten.

The device's folder lies on a file system in memory that is just so large; the larger it is, the later a write finds no
room. What looks at the free space beforehand is told that there is plenty, as if somebody else filled the disk between
the look and the write. Then the disk grows, and all must come to its end by itself. As the full disk was, it must serve
a device that is started on it far from its cloud: what was committed there runs. Runs in a mount namespace of its own
(`unshare`), so that nothing of it outlives its process.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from marram.lab import virtual
from marram.lab.powercut.rehearsal import bricked
from marram.lab.powercut.scenario import APP, BAD, CONTENTS, DEVICE, manner
from marram.lab.world import World
from marram.schema.device import AppState
from marram.schema.errors import Missing, Permanent
from marram.schema.rollout import at_once

# From where the agent cannot even open its outbox to where all of it fits.
SIZES_BYTES = range(40_960, 1_064_960, 8_192)
_LARGE = "64m"
# How long a full disk is borne before it grows, and how long after that all may take.
_FULL_S, _LONG_S = 15, 180.0


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


@dataclass
class _Full:
    """The full disk: the device's folder `place`, and its `copy` as it was when it grew.

    `committed`: the version that was proven, by what was on the disk at any time until then (0: none); `wanted`: the
    one that was told last.
    """

    place: Path
    copy: Path
    committed: int = 0
    wanted: int = 0

    async def lasts(self) -> None:
        """For a while; then it grows."""
        for _ in range(_FULL_S):
            await asyncio.sleep(1)
            self.committed = max(self.committed, self._committed())
        # What is just being moved away is missing in the copy, as it may be after a cut.
        with contextlib.suppress(shutil.Error):
            shutil.copytree(self.place, self.copy, ignore=shutil.ignore_patterns("*.sock"))
        _mount(self.place, _LARGE, "remount")

    def _committed(self) -> int:
        try:
            # Not by `Folder`, which sets aside what is damaged: here nothing is touched.
            sealed = json.loads((self.place / "apps" / f"{APP}.json").read_bytes())
            return int(json.loads(sealed["body"])["committed"]["version"])
        except (OSError, ValueError, KeyError, TypeError):  # nothing proven yet, or what the defect sought leaves
            return 0


def _one(scratch: Path, size_bytes: int) -> str:
    full = _Full(scratch / "device", scratch / "copy")
    full.place.mkdir()
    _mount(full.place, str(size_bytes))
    try:
        fault = virtual.run(lambda: _go_through(World(scratch / "cloud", report_every_s=1.0), full))
        # What is wanted may not have come to the disk yet, nor what was proven since: both go on once there is room.
        might = range(full.committed, full.wanted + 1)
        if not fault and (forgot := bricked(full.copy, full.committed, might)):
            fault = f"started on the full disk, without a link: {forgot}"
        return fault
    finally:
        subprocess.run(["umount", "--lazy", str(full.place)], check=True)
        for place in (full.place, full.copy, scratch / "cloud"):
            shutil.rmtree(place, ignore_errors=True)


def _mount(place: Path, size: str, *more: str) -> None:
    options = ",".join([*more, f"size={size}"])
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], check=True)


async def _go_through(world: World, full: _Full) -> str:
    async with world.open():
        site = await world.add_device(DEVICE, manner, place=full.place, starts=False)
        running = asyncio.create_task(_kept_running(world))
        grown = asyncio.create_task(full.lasts())
        for version in CONTENTS:
            if not grown.done():
                full.wanted = version
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
