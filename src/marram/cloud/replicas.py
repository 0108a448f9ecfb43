"""The replica role: processes that serve the model versions somebody needs, restarted when they end.

Level-triggered: it compares what deployments ask for with what is served, now and then and when woken, so nothing has
to be remembered. Each process serves all of it: one model more costs a tenth of what a process more costs, and while
one process is away the others answer. A model that cannot be loaded is tried again with growing pauses, and says why in
`status`; one that takes its process down is the last to be loaded again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from pathlib import Path

from marram.bus.client import Bus
from marram.cloud.keeper import Keeper, Key, Served, Start
from marram.registry import Registry
from marram.schema.errors import MarramError

log = logging.getLogger(__name__)

__all__ = ["Key", "Replicas", "Start"]

_LOOK_S = 5.0


class Replicas:
    """The supervisor. All methods on one event loop."""

    def __init__(
        self,
        registry: Registry,
        wanted: Callable[[], set[Key]],
        start: Start,
        processes: int,
        bus: Bus,
    ) -> None:
        """`wanted` says which model versions somebody needs (blocking; raises MarramError)."""
        self._wanted = wanted

        def fetch(name: str, version: int) -> Path:
            return registry.materialise(name, version, start.folder / "serving")

        self._keepers = [Keeper(number, start, fetch, bus) for number in range(processes)]
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """From now on processes follow what is wanted."""
        self._tasks = [asyncio.create_task(self._follow(), name="replicas")]
        self._tasks += [asyncio.create_task(each.keep(), name=f"replica {each.number}") for each in self._keepers]

    def wake(self) -> None:
        """Something may have changed: look now."""
        self._wake.set()

    async def stop(self) -> None:
        """End every process and wait for that."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def status(self) -> list[Served]:
        """What is served, by name and version, in each process."""
        return sorted(
            (served for keeper in self._keepers for served in keeper.served.values()),
            key=lambda served: (served.name, served.version, served.replica),
        )

    async def _follow(self) -> None:
        while True:
            self._wake.clear()
            try:
                wanted = await asyncio.to_thread(self._wanted)
            except MarramError as error:
                log.warning("what to serve is not known now: %s", error)
            except Exception:
                log.exception("what to serve is not known now")
            else:
                for keeper in self._keepers:
                    keeper.want(wanted)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_S):
                    await self._wake.wait()
