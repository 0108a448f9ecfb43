"""What all keepers of a device stand on: its folder, its files, its way to the cloud."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from marram.bus.client import Bus
from marram.edge.bundles import Bundles
from marram.edge.fetch import Fetcher
from marram.edge.state import Folder
from marram.edge.supervisor import Patience
from marram.schema.model import Manifest


@dataclass
class Ground:
    """Shared by all keepers. `changed` is called when there is something new to report."""

    folder: Folder
    bundles: Bundles
    fetcher: Fetcher
    bus: Bus
    device: str
    patience: Patience = field(default_factory=Patience)
    changed: Callable[[], None] = lambda: None

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

    async def sweep(self, keep: Callable[[], list[Manifest]]) -> None:
        """Delete files that nobody needs, unless somebody is just bringing some."""
        async with self._sweeping:
            if not self._using:
                with contextlib.suppress(OSError):
                    await asyncio.to_thread(self.bundles.sweep, keep())
