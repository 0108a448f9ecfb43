"""What Marram weighs on a device, on real processes with a real cloud. `python -m bench.footprint`

- The idle agent's resident memory, joined and connected.
- Agent and one worker with MobileNetV2 int8 over pictures, both running.
- How long `marram --help` takes, from the shell's point of view.
- From `desired` set (the cloud is told to deploy) to the first result in the cloud's database: bundle fetched, checked,
  model loaded, worker running, event delivered.

Resident memory counts shared pages in each process, so sums are upper bounds. `ratio` is the worst of goal ÷ measured.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from bench._verdict import at_least, conclude, skip
from bench.pipeline import CARD
from marram.bus.http import CloudApi
from marram.edge import status
from marram.edge.process import resident_bytes
from marram.lab.children import Child, marram, stop_all
from marram.runtime.bundle import Bundle
from marram.schema.errors import MarramError

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
GOALS = {"idle_mb": 45.0, "with_worker_mb": 130.0, "help_s": 0.35, "first_result_s": 3.0}
ROUNDS = 3
_READY_S = 60.0
_SETTLE_S = 5.0


def help_s() -> float:
    """The median time of `marram --help`, seconds."""
    spans = []
    for _ in range(7):
        begun_s = time.perf_counter()
        subprocess.run(marram("--help"), check=True, stdout=subprocess.DEVNULL)
        spans.append(time.perf_counter() - begun_s)
    return statistics.median(spans)


def until(condition: Callable[[], Any], what: str, pause_s: float = 0.01) -> Any:
    """The first answer of `condition` that is something."""
    deadline_s = time.monotonic() + _READY_S
    while time.monotonic() < deadline_s:
        try:
            if answer := condition():
                return answer
        except (MarramError, OSError):
            pass
        time.sleep(pause_s)
    raise TimeoutError(f"{what}: not within {_READY_S:.0f} s")


class World:
    """A cloud and one joined device, each in processes of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.edge = folder / "edge"
        self._environment = {**os.environ, "MARRAM_HOME": str(folder / "home")}
        self._children: list[Child] = []
        command = marram("cloud", "--folder", str(folder / "cloud"), "--port", "0")
        self._start("cloud", command)
        context = folder / "home" / "context.yaml"
        known = until(lambda: yaml.safe_load(context.read_text(encoding="utf-8")), "the cloud")
        self.api = CloudApi(known["url"], known["token"])
        until(lambda: self.api.health().ok, "the cloud")
        line = self.api.create_token().join.split()[1:]
        self._start("join", marram(*line, "--folder", str(self.edge))).wait(_READY_S)
        self.agent = self._start("agent", marram("edge", "run", "--folder", str(self.edge)))
        until(lambda: (status.ask(self.edge) or {}).get("link") == "connected", "the agent")

    def _start(self, name: str, command: list[str]) -> Child:
        child = Child(name, command, self.folder / f"{name}.log", self._environment)
        self._children.append(child)
        return child

    def close(self) -> None:
        self.api.close()
        stop_all(self._children)

    def push(self, bundle: Bundle) -> None:
        self.api.push_model(bundle.card, bundle.folder, bundle.files(), version=bundle.card.version)

    def first_result_s(self, app: str) -> float:
        """Seconds from the deployment of `app` to its first stored result."""
        text = (
            f"app: {app}\nsource: {{images: {SHARED / 'images'}, every: 100 ms, repeat: true}}\n"
            "steps: [{classify: mobilenet-v2}]\n"
        )
        begun_s = time.monotonic()
        self.api.deploy(text)
        until(lambda: self.api.events(app=app, kinds=["result"], limit=1), f"the first result of {app}")
        return time.monotonic() - begun_s

    def undeploy(self, app: str) -> None:
        self.api.undeploy(app)
        until(lambda: not (status.ask(self.edge) or {"reported": {"apps": [app]}})["reported"]["apps"], "the removal")

    def agent_bytes(self) -> int:
        """Resident memory of the agent alone."""
        return resident_bytes(self.agent.pid, children=False)

    def device_bytes(self) -> int:
        """Resident memory of the agent and its workers."""
        return resident_bytes(self.agent.pid)


def main() -> None:
    model = SHARED / "models/tf2_mobilenet_v2_1.0_224_ptq.tflite"
    if not model.is_file():
        skip("footprint", 1.0, f"it needs the data folder {SHARED}, which is absent here")
        return
    measured = {"help_s": help_s()}
    print(f"marram --help            {measured['help_s']:.2f} s")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        bundle = folder / "bundle"
        bundle.mkdir()
        (bundle / "model.tflite").write_bytes(model.read_bytes())
        (bundle / "labels.txt").write_bytes((SHARED / "models/imagenet_labels.txt").read_bytes())
        (bundle / "model.yaml").write_text(CARD)
        world = World(folder)
        try:
            time.sleep(_SETTLE_S)
            measured["idle_mb"] = world.device_bytes() / 1e6
            print(f"agent, idle              {measured['idle_mb']:.1f} MB")
            spans = []
            for number in range(ROUNDS):
                if number:
                    world.undeploy(f"first-{number - 1}")
                else:
                    world.push(Bundle.open(bundle))
                spans.append(world.first_result_s(f"first-{number}"))
                print(f"desired to first result  {spans[-1]:.2f} s" + ("" if number else "   (bundle fetched)"))
            # The first has to fetch the bundle: that one counts.
            measured["first_result_s"] = spans[0]
            time.sleep(_SETTLE_S)
            measured["with_worker_mb"] = world.device_bytes() / 1e6
            agent_mb = world.agent_bytes() / 1e6
            print(f"agent and one worker     {measured['with_worker_mb']:.1f} MB (agent {agent_mb:.1f} MB)")
        finally:
            world.close()
    ratio = at_least(**{name: (measured[name], goal) for name, goal in GOALS.items()})
    figures = {name: round(value, 3) for name, value in measured.items()}
    conclude("footprint", ratio, 1.0, figures | {f"goal_{name}": goal for name, goal in GOALS.items()})


if __name__ == "__main__":
    main()
