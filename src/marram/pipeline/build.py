"""An app becomes a running pipeline: `Pipeline.build(app, base, around)`, `run()`, `stop()`, `stats()`.

What a pipeline needs of the world around it (the way out for events, the way to the cloud, where models lie) comes as
`Around`, so that the same app runs in a worker, in a rehearsal, in a test and under `marram run` without knowing which.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from marram.pipeline.contract import Outlet, Remote, Sink
from marram.placement.contract import Policy
from marram.schema.app import App
from marram.schema.event import Event
from marram.schema.model import ModelCard


class NoOutlet:
    """Events go nowhere."""

    def emit(self, event: Event) -> None:
        pass


@dataclass(frozen=True, slots=True)
class Around:
    """The world around a pipeline.

    `cloud_cards`: for each model reference that the app names under `cloud:`, the version replicas serve and its card.
    `policy`: decides each inference; needed only with `remote` (default: `placement`'s own). `resolve`: finds a model's
    bundle folder from its reference (default: the local library, paths beside the app file). `sinks`: further sinks
    besides the app's own.
    """

    outlet: Outlet = field(default_factory=NoOutlet)
    remote: Remote | None = None
    cloud_cards: Mapping[str, tuple[int, ModelCard]] = field(default_factory=dict)
    policy: Policy | None = None
    resolve: Callable[[str], Path] | None = None
    sinks: tuple[Sink, ...] = ()
    device: str = "here"


class Pipeline:
    """One app, built and ready to run once."""

    @classmethod
    def build(cls, app: App, base: Path, around: Around | None = None) -> Pipeline:
        """Open the app's source, models, steps and sinks; `base` is the folder of the app file.

        Raises Missing, Invalid, NotReady, Conflict where any of them is wrong, naming it and the next step.
        """
        raise NotImplementedError

    def run(self) -> None:
        """Run until the source ends or `stop`; blocks. Call once.

        Errors before the first frame are raised (MarramError); after it they are counted, see `stats`.
        """
        raise NotImplementedError

    def stop(self) -> None:
        """End soon: frames in work are finished or given up. Safe from any thread and from a signal handler."""
        raise NotImplementedError

    def stats(self) -> dict[str, Any]:
        """What was measured so far, plain JSON types; the keys are in `pipeline/stats.py`. Safe from any thread."""
        raise NotImplementedError
