"""A version on trial, watched until its gate has a verdict or it ends by itself. What follows is the keeper's."""

from __future__ import annotations

import asyncio
import time

from marram.edge import blame
from marram.edge.gate import Figures, Gate, Verdict
from marram.edge.supervisor import Exit, Life, WorkerSpec
from marram.edge.tasks import first
from marram.schema.health import Health

# Between looks at one that says nothing new, and at a disk that is full.
LOOK_S = 1.0
DISK_LOOK_S = 10.0


async def watch(worker: Life, health: Health) -> Verdict | Exit:
    """The verdict on a worker that was told to go, or why it ended before there was one."""
    if not await first(worker.running, worker.exited):
        return worker.exited.result()
    gate = Gate(health, time.monotonic())
    while True:
        ended = worker.exited.done()
        if ended and not worker.exited.result().finished:
            return worker.exited.result()
        fresh = worker.news.is_set()
        worker.news.clear()
        figures = Figures(worker.stats, worker.busy_s, worker.resident_bytes, fresh, ended)
        verdict = gate.look(figures, time.monotonic())
        if verdict is not None:
            return verdict
        await first(worker.news, worker.exited, LOOK_S)


async def until_room(spec: WorkerSpec) -> None:
    """Until a worker finds room on the disk."""
    while await asyncio.to_thread(blame.full, spec.outbox, spec.work):
        await asyncio.sleep(DISK_LOOK_S)


async def lasts(worker: Life, least_s: float) -> bool:
    """Whether it still runs so long after its start."""
    left_s = worker.started_s + least_s - time.monotonic()
    await asyncio.wait([worker.exited], timeout=max(0.0, left_s))
    return not worker.exited.done()
