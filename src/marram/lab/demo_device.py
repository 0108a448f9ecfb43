"""One device of the demo: its folder, its shaped link before the broker, its agent process. Real ones, all three."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from marram.edge import status as agent_status
from marram.edge.state import Folder
from marram.lab.children import Child, marram
from marram.lab.ledger import Mark, read_mark
from marram.lab.link import LinkProcess
from marram.schema.errors import MarramError


@dataclass(frozen=True, slots=True)
class Spec:
    """A device as the demo casts it: `slowdown` times slower than this machine, behind a link like `trace`."""

    name: str
    trace: str
    slowdown: float


@dataclass(slots=True)
class Reading:
    """What a device says of itself, and what its link is, at one moment."""

    name: str
    link: dict[str, Any]
    stats: dict[str, Any]
    state: str = ""
    reason: str = ""
    waiting: int = 0


class DemoDevice:
    """Made by `join`, started by `run`, ended by `close`."""

    def __init__(self, spec: Spec, folder: Path, broker: str, environment: Mapping[str, str]) -> None:
        self.spec = spec
        self.folder = folder
        self.outbox = Folder(folder).outbox
        self._environment = dict(environment) | {"MARRAM_SLOWDOWN": f"{spec.slowdown:g}"}
        self._log = folder.parent / f"{spec.name}.log"
        self.link = LinkProcess(broker.removeprefix("nats://"), spec.trace)
        self.agent: Child | None = None

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def broker(self) -> str:
        """The broker as this device reaches it: through its link."""
        return f"nats://127.0.0.1:{self.link.port}"

    def join(self, line: str) -> Child:
        """Begin to join with the `line` that the cloud shows (`marram edge join …`); `wait` for the process."""
        options = ["--name", self.name, "--label", f"link={self.spec.trace.partition(':')[0]}"]
        place = ["--folder", str(self.folder), "--broker", self.broker]
        command = marram(*line.split()[1:], *options, *place)
        return Child(f"{self.name}: join", command, self._log, self._environment)

    def run(self) -> None:
        """Start its agent."""
        command = marram("edge", "run", "--folder", str(self.folder), "--broker", self.broker, "--report-every", "1")
        self.agent = Child(self.name, command, self._log, self._environment)

    def read(self) -> Reading:
        """Ask the agent and the link. What does not answer is left empty: a rehearsal goes on."""
        reading = Reading(self.name, {}, {})
        with contextlib.suppress(MarramError):
            reading.link = self.link.stats()
        answer = agent_status.ask(self.folder, timeout_s=1)
        reported = (answer or {}).get("reported", {})
        with contextlib.suppress(MarramError):
            reading.waiting = self.mark().waiting
        for app in reported.get("apps", []):
            reading.stats, reading.state, reading.reason = app["stats"], app["state"], app["reason"]
        return reading

    def mark(self) -> Mark:
        """How far its outbox has come."""
        return read_mark(self.outbox)

    def close(self) -> None:
        """End the link; the agent is stopped with the other children."""
        self.link.close()
