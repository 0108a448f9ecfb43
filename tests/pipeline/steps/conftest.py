"""What a step needs of the world around it, remembering what it was told."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from marram.pipeline import plugins
from marram.pipeline.contract import Step, StepContext
from marram.runtime.bundle import Bundle
from marram.schema.app import App, parse_app
from marram.schema.errors import Permanent
from marram.schema.event import Event


@dataclass
class Heard:
    """An outlet and counters that remember. `full`: the outlet refuses, as one on a full disk does."""

    events: list[Event] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    full: bool = False

    def __post_init__(self) -> None:
        self._changed = threading.Condition()

    def emit(self, event: Event) -> None:
        if self.full:
            raise Permanent("the disk is full")
        with self._changed:
            self.events.append(event)
            self._changed.notify_all()

    def count(self, name: str, by: int = 1) -> None:
        self.counts[name] = self.counts.get(name, 0) + by

    def error(self, message: str) -> None:
        with self._changed:
            self.errors.append(message)
            self._changed.notify_all()

    def until(self, holds: Callable[[], bool], timeout_s: float = 30) -> bool:
        """Wait for something that another thread tells."""
        with self._changed:
            return self._changed.wait_for(holds, timeout_s)


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def last_step(tmp_path: Path, heard: Heard) -> Callable[[str], Step]:
    """The last step of an app (its YAML without `app:`), made as an app is started."""

    def make(text: str) -> Step:
        app: App = parse_app("app: test\n" + text)
        context = StepContext(app, tmp_path, heard, "dev-1", heard, lambda name: Bundle.open(tmp_path / name))
        return plugins.make_step(app.steps[-1], context)

    return make
