"""What all keepers of a device stand on: its folder, its files, its way to the cloud."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from marram.bus.client import Bus
from marram.edge.bundles import Bundles
from marram.edge.engines import Engines
from marram.edge.fetch import Fetcher
from marram.edge.state import Folder
from marram.edge.supervisor import Patience
from marram.edge.variants import kept
from marram.schema.device import DesiredApp


@dataclass
class Ground:
    """Shared by all keepers. `changed` is called when there is something new to report.

    `forget` has the outbox forget how far an app's source came; it blocks, and raises MarramError.
    """

    folder: Folder
    bundles: Bundles
    fetcher: Fetcher
    bus: Bus
    device: str
    engines: Engines = field(default_factory=Engines)
    patience: Patience = field(default_factory=Patience)
    changed: Callable[[], None] = lambda: None
    forget: Callable[[str], object] = lambda app: None

    def __post_init__(self) -> None:
        self._using = 0
        self._sweeping = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def files(self) -> AsyncIterator[None]:
        """While files are being brought and installed: nothing is swept away meanwhile."""
        async with self._sweeping:
            self._using += 1
        try:
            yield
        finally:
            self._using -= 1

    async def sweep(self, keep: Callable[[], list[DesiredApp]]) -> None:
        """Delete files that none of these apps needs, unless somebody is just bringing some."""
        async with self._sweeping:
            if not self._using:
                with contextlib.suppress(OSError):
                    await asyncio.to_thread(self._sweep, keep())

    def _sweep(self, apps: list[DesiredApp]) -> None:
        self.bundles.sweep(kept(apps, self.bundles, self.engines.broken))
