"""The version that a new one replaces, as a worker asks it about some of the same inputs: what is here already."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from marram.edge.bundles import Bundles
from marram.edge.choices import Choices
from marram.edge.variants import Broken, needed, taste_of
from marram.schema.device import DesiredApp
from marram.schema.errors import MarramError


@dataclass(frozen=True, slots=True)
class Earlier:
    """Folders of an app version and of its models (by `name@version`)."""

    folder: Path
    models: dict[str, Path]

    @property
    def folders(self) -> list[Path]:
        return [self.folder, *self.models.values()]

    def message(self) -> dict[str, Any]:
        """Its part of a worker's `start` message."""
        return {"folder": str(self.folder), "models": {name: str(folder) for name, folder in self.models.items()}}


def earlier(app: DesiredApp | None, bundles: Bundles, broken: Broken, choices: Choices) -> Earlier | None:
    """`app`, where all of it is here, its digests checked; None where there is nothing to compare with. Blocking.

    Nothing is fetched for it: a version that nobody can go back to is not missed.
    """
    if app is None or not app.models:
        return None
    with contextlib.suppress(MarramError):
        taste = taste_of(app, bundles, broken, choices)
        models = {f"{m.name}@{m.version}": bundles.install(needed(m, bundles, taste, proven=True)) for m in app.models}
        return Earlier(bundles.install(app.files), models)
    return None
