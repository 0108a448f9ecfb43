"""Links that come and go, by a plan, with deployments and events in flight: what reaches the database in the end.

Each cell of the matrix is a fleet whose links are up for so long and down for so long, again and again, while versions
are deployed and every device records events all the time. Links are slow enough that every cut finds something on its
way: questions whose answer is lost, batches that the database took and the device does not know of. In the end, link
up, every device must run the last version, and the sequence numbers must add up: each one once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from marram.edge.supervisor import WorkerSpec
from marram.lab import virtual
from marram.lab.imitation import Manner
from marram.lab.world import World
from marram.schema.errors import Retryable
from marram.schema.rollout import at_once

APP = "pump"
OFFLINE_S = (5.0, 60.0, 300.0)
# Up for so long between two outages: hardly long enough to connect, for one batch, for all that waits.
ONLINE_S = (1.0, 7.0, 60.0)
# One way. A batch is on its way for as long as a slow mobile link takes.
_DELAY_S = 0.3
_DEVICES = 3
_OUTAGES = 4
_LONG_S = 900.0


@dataclass
class OfflineFindings:
    """`cells`: offline × online patterns. `faults`: in words; empty where all was right."""

    cells: int = 0
    events: int = 0
    lost: int = 0
    twice: int = 0
    redelivered: int = 0  # batches that came again, and were known
    faults: list[str] = field(default_factory=list)


def rehearse(folder: Path, which: Iterable[tuple[float, float]] | None = None) -> OfflineFindings:
    """These cells of the matrix, or all."""
    findings = OfflineFindings()
    for offline_s, online_s in which or cells():
        cell(folder / f"{offline_s:g}-{online_s:g}", offline_s, online_s, findings)
    return findings


def cells() -> Iterator[tuple[float, float]]:
    """(offline, online) seconds of each cell."""
    return ((offline_s, online_s) for offline_s in OFFLINE_S for online_s in ONLINE_S)


def cell(folder: Path, offline_s: float, online_s: float, findings: OfflineFindings) -> None:
    """One cell; adds to `findings`."""
    findings.cells += 1
    fault = virtual.run(lambda: _run(World(folder), offline_s, online_s, findings))
    if fault:
        findings.faults.append(f"{offline_s:g} s down, {online_s:g} s up: {fault}")


async def _run(world: World, offline_s: float, online_s: float, findings: OfflineFindings) -> str:
    async with world.open():
        for number in range(_DEVICES):
            site = await world.add_device(f"pi-{number}", _manner)
            site.link.delay_s = _DELAY_S
        version = await _deployed(world, 1)
        await _until(world, version)
        for outage in range(1, _OUTAGES + 1):
            # Not all at the same moment: each cut finds something else on its way.
            for number, site in enumerate(world.sites.values()):
                asyncio.get_running_loop().call_later(0.37 * number, site.link.cut)
            await asyncio.sleep(offline_s / 2)
            version = await _deployed(world, 1 + outage)
            await asyncio.sleep(offline_s / 2)
            for site in world.sites.values():
                site.link.mend()
            await asyncio.sleep(online_s)
        try:
            await _until(world, version)
        except Retryable as error:
            return str(error)
        world.rests = True
        await _drained(world)
        return await asyncio.to_thread(_reconciled, world, findings)


def _manner(spec: WorkerSpec) -> Manner:
    return Manner(loads_s=0.5, every_s=1.0)


async def _deployed(world: World, number: int) -> int:
    await world.deploy(APP, f"version {number}\n".encode() * 400, plan=at_once())
    return number


async def _until(world: World, version: int) -> None:
    """Until every device says that it runs the version."""
    running: list[int | None] = []
    try:
        async with asyncio.timeout(_LONG_S):
            while running != [version] * _DEVICES:
                await asyncio.sleep(1)
                devices = await asyncio.to_thread(world.state.store.devices.list)
                running = [app.running for d in devices if d.reported for app in d.reported.apps]
    except TimeoutError as error:
        raise Retryable(f"version {version} does not run everywhere within {_LONG_S:g} s: {running}") from error


async def _drained(world: World) -> None:
    """Until the devices say that nothing waits any more."""
    for _ in range(int(_LONG_S)):
        await asyncio.sleep(1)
        devices = await asyncio.to_thread(world.state.store.devices.list)
        if all(device.reported is not None and device.reported.outbox_depth == 0 for device in devices):
            await asyncio.sleep(10)  # what the report itself did not know of
            return


def _reconciled(world: World, findings: OfflineFindings) -> str:
    counts = world.state.store.events.counts(None)
    findings.events += counts.stored
    _, twice = world.ledger()
    findings.twice += twice
    findings.redelivered += counts.duplicates
    faults = []
    for stream in counts.streams:
        # An outbox numbers its events from 1, without a gap: whatever is missing is lost.
        missing = stream.last_sequence - stream.stored
        site = world.sites[stream.device]
        beyond = {sequence for _, sequence in site.recorded if sequence > stream.last_sequence}
        findings.lost += missing + len(beyond)
        if missing or beyond or stream.first_sequence != 1:
            faults.append(f"{stream.device}: {missing + len(beyond)} of its events are not in the database")
    if twice:
        faults.append(f"{twice} events are there twice")
    return "; ".join(faults)
