"""Every power cut of `scenario`, and what a device makes of it: `rehearse` counts bricks and what was lost.

For each disk that a cut may have left, a real agent starts on it, with no link to its cloud at first, as after a power
cut in the field. It must run the version it had, or the new one, whole; what it had promised to keep must be there; and
once the link is back it must come to what its cloud wants.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from os import environ
from pathlib import Path

from marram.bus.outbox import Outbox
from marram.edge.agent import Agent, Around, Settings
from marram.edge.state import Credentials, Folder
from marram.edge.supervisor import WorkerSpec
from marram.lab import virtual
from marram.lab.hub import Hub, Link
from marram.lab.imitation import Manner, imitating
from marram.lab.powercut.disk import Cut, cuts
from marram.lab.powercut.recording import Operation, record
from marram.lab.powercut.scenario import APP, BAD, CONTENTS, DEVICE, manner
from marram.lab.scratch import quiet, scratch
from marram.lab.world import World
from marram.schema.device import AppState, DesiredApp
from marram.schema.errors import NotReady

# Without a link: longer than a failing version takes to be given up.
_ALONE_S = 40.0
_STEADY_S = 3
_BACK_S = 60.0


@dataclass
class Findings:
    """`points`: disks looked at. `bricks`, `lost`, `stuck`: what went wrong, in words; empty where nothing did."""

    points: int = 0
    operations: int = 0
    bricks: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    stuck: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Promised:
    """What the device had promised when the power went: versions, and its events."""

    committed: int  # the version proven last; 0: none
    wanted: int
    recorded: frozenset[int]
    stored: int  # the cloud has all up to this one
    stream: str
    trusted: int  # the newest timestamp that it has verified

    @classmethod
    def before(cls, operations: Sequence[Operation]) -> Promised:
        """By the marks in what was done before the cut."""
        committed = wanted = stored = trusted = 0
        recorded, stream = set[int](), ""
        for operation in operations:
            what, _, rest = operation.mark.partition("/")
            match what:
                case "committed":
                    committed = int(rest)
                case "wanted":
                    wanted = int(rest)
                case "stored":
                    stored = max(stored, int(rest))
                case "trusted":
                    trusted = int(rest)
                case "recorded":
                    stream, _, sequence = rest.partition("/")
                    recorded.add(int(sequence))
        return cls(committed, wanted, frozenset(recorded), stored, stream, trusted)


def rehearse(every: int = 1, orders: int = 2, back_every: int = 25) -> Findings:
    """Record the scenario, look at the cuts of every `every`th moment; every `back_every`th also with the link back.

    Raises Missing where strace is not installed.
    """
    with quiet(), scratch() as place:
        device, cloud = place / "device", place / "cloud"
        device.mkdir()
        command = [sys.executable, "-m", "marram.lab.powercut.scenario", str(device), str(cloud)]
        operations = record(command, device, environ)
        findings = Findings(operations=len(operations))
        for cut in cuts(operations, orders, every=every):
            findings.points += 1
            disk = place / "cut"
            disk.mkdir()
            cut.write(disk)
            promised = Promised.before(operations[: cut.at])
            _look(findings, cut, disk, promised)
            if findings.points % back_every == 0:
                _back(findings, cut, disk, cloud)
            shutil.rmtree(disk)
        return findings


def _look(findings: Findings, cut: Cut, place: Path, promised: Promised) -> None:
    where = f"cut {cut.at}, {cut.how}"
    if fault := bricked(place, promised.committed, {promised.committed, promised.wanted}):
        findings.bricks.append(f"{where}: {fault}")
    if promised.trusted and _trusted(place) < promised.trusted:
        findings.lost.append(f"{where}: it would take what is signed of {_trusted(place)}, after {promised.trusted}")
    outbox = Outbox(Folder(place).outbox)
    try:
        waiting = {record.sequence for record in outbox.read(1_000_000, 1 << 30)}
        lost = {n for n in promised.recorded if n > promised.stored} - waiting
        if promised.recorded and outbox.stream != promised.stream:
            findings.lost.append(f"{where}: the outbox is another one")
        elif lost:
            findings.lost.append(f"{where}: events {sorted(lost)} are gone")
    finally:
        outbox.close()


def bricked(place: Path, committed: int, might: Collection[int]) -> str:
    """What is wrong with what runs on this disk without a link; "" where nothing is.

    `committed`: the version proven last (0: none yet); `might`: those that may run, but for the bad one.
    """
    allowed = set(might) - {0, BAD}
    try:
        ran = virtual.run(lambda: _alone(place, allowed))
    except Exception as error:  # noqa: BLE001 - supervisor: an agent that falls over its own disk is what is sought
        return f"the agent falls: {type(error).__name__}: {error}"
    if committed and not ran:
        return f"nothing runs; {committed} was committed"
    if ran and ran[-1] not in allowed:
        return f"{ran[-1]} runs; {sorted(allowed)} might"
    return ""


def _trusted(place: Path) -> int:
    """The timestamp that it goes on from; 0 where there is none, or none that it can read: then it takes any."""
    try:
        return int(json.loads((place / "trust" / "timestamp.json").read_bytes())["signed"]["version"])
    except (FileNotFoundError, ValueError):
        return 0


async def _alone(place: Path, allowed: Collection[int]) -> list[int]:
    """The versions that ran on this disk without a link, in turn, each with a whole bundle; -1: one without.

    Until one that is allowed has run for a while, or the time is over.
    """
    ran: list[int] = []

    def seen(spec: WorkerSpec) -> Manner:
        content = spec.folder / "content"
        whole = content.is_file() and content.read_bytes() == CONTENTS.get(spec.version)
        ran.append(spec.version if whole else -1)
        return manner(spec)

    agent, running = await _start(place, Hub(), Link(up=False), seen)
    steady = 0
    while steady < _STEADY_S and time.monotonic() < _ALONE_S:
        await asyncio.sleep(1)
        steady = steady + 1 if ran and ran[-1] in allowed else 0
    agent.stop()
    await running
    return ran


def _back(findings: Findings, cut: Cut, place: Path, cloud: Path) -> None:
    """With the link back it comes to what its cloud wants, which by then is all of the scenario."""

    async def work() -> str:
        world = World(cloud)
        async with world.open():
            await world.attach_device(DEVICE, manner, place)
            await asyncio.sleep(_BACK_S)
            device = await asyncio.to_thread(world.state.store.devices.get, DEVICE)
            apps = [app for app in (device.reported.apps if device.reported else []) if app.name == APP]
            if len(apps) != 1 or apps[0].version != BAD or apps[0].state is not AppState.ROLLED_BACK:
                return f"it reports {apps}"
            # It may have lost the version to go back to only if it never had one.
            return ""

    fault = virtual.run(work)
    if fault:
        findings.stuck.append(f"cut {cut.at}, {cut.how}: {fault}")


async def _nobody_to_ask(app: DesiredApp) -> None:
    raise NotReady("no connection to the broker")


async def _start(
    place: Path, hub: Hub, link: Link, seen: Callable[[WorkerSpec], Manner]
) -> tuple[Agent, asyncio.Task[None]]:
    folder = Folder(place)
    folder.make()
    around = Around(
        connect=lambda _, credentials: hub.connect(credentials.device, link, device=True),
        start=imitating(seen, link.cut, lambda stream, sequence: None),
        verify=_nobody_to_ask,
    )
    agent = Agent(folder, Credentials(device=DEVICE, brokers=["hub://"]), Settings(drain_s=0), around)
    return agent, asyncio.create_task(agent.run())
