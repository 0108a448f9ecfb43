"""What all keepers of a device stand on: its folder, its files, its way to the cloud, how workers are started."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field

from marram.bus.client import Bus
from marram.edge.bundles import Bundles
from marram.edge.cgroups import Groups
from marram.edge.choices import Choices
from marram.edge.engines import Engines
from marram.edge.envs import Envs
from marram.edge.fetch import Fetcher
from marram.edge.hold import Holding
from marram.edge.state import Folder
from marram.edge.supervisor import Patience, StartLife, start_worker
from marram.edge.variants import kept
from marram.schema.device import DesiredApp
from marram.schema.errors import NotReady


async def _anything(app: DesiredApp) -> None:
    """Whatever comes over the bus is taken."""


async def _no_secrets(names: Sequence[str]) -> dict[str, str]:
    """For where there is nobody to ask."""
    if names:
        raise NotReady(f"waits for the secret {', '.join(names)}")
    return {}


@dataclass
class Ground:
    """Shared by all keepers. `changed` is called when there is something new to report, `lines` for the journal.

    `start` starts a worker. `verify` says that an app is signed, before anything of it is fetched; it raises Untrusted,
    or Retryable where it cannot say. `secrets` gives the values of these names, for a worker's start; it raises
    NotReady. `forget` has the outbox forget how far an app's source came; it blocks, and raises
    MarramError.
    """

    folder: Folder
    bundles: Bundles
    fetcher: Fetcher
    bus: Bus
    device: str
    engines: Engines = field(default_factory=Engines)
    patience: Patience = field(default_factory=Patience)
    changed: Callable[[], None] = lambda: None
    lines: Callable[[], None] = lambda: None
    forget: Callable[[str], object] = lambda app: None
    needed: Callable[[], Iterable[DesiredApp]] | None = None
    start: StartLife = start_worker
    verify: Callable[[DesiredApp], Awaitable[None]] = _anything
    secrets: Callable[[Sequence[str]], Awaitable[dict[str, str]]] = _no_secrets
    groups: Groups | None = None

    def __post_init__(self) -> None:
        self.holding = Holding(self.folder)
        self.envs = Envs(self.folder.path)
        self.choices = Choices(self.folder.path)
        self._bringing: list[DesiredApp] = []
        self._sweeping = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def files(self, app: DesiredApp) -> AsyncIterator[None]:
        """While files of `app` are being brought and installed: none of them is swept away."""
        async with self._sweeping:
            self._bringing.append(app)
        try:
            yield
        finally:
            self._bringing.remove(app)

    async def sweep(self) -> None:
        """Delete files that no app needs: not those of what runs, of what it would go back to, of what is on its way.

        Who begins to bring files meanwhile waits until it is done, so that it never counts on one that goes.
        """
        if self.needed is None:
            return
        async with self._sweeping:
            apps = [*self.needed(), *self._bringing]
            with contextlib.suppress(OSError):
                await asyncio.to_thread(self._sweep, apps)

    def _sweep(self, apps: list[DesiredApp]) -> None:
        wheels = self.envs.kept(apps)
        self.bundles.sweep([*kept(apps, self.bundles, self.engines.broken, self.choices), *wheels])
        self.envs.sweep(wheels)
