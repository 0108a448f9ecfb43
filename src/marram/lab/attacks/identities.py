"""Attacks on who is who, all on one real cloud: its listeners, its broker, its database, devices that joined it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from marram.lab.attacks import asking, enrolling, speaking
from marram.lab.attacks.outcome import Outcome
from marram.lab.attacks.scene import Scene

SUITES = {"enrolling": enrolling.SUITE, "speaking": speaking.SUITE, "asking": asking.SUITE}


def mount_all(folder: Path) -> Iterator[Outcome]:
    """All of them, one after the other."""
    with Scene(folder) as scene:
        for suite in SUITES.values():
            yield from suite.mount(scene)
