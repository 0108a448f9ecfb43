"""`marram demo`: the whole of Marram at work in a minute, with nothing simulated but the distance.

A real cloud process, three real devices (agent and worker processes, folders, outboxes), real models on real photos;
between them, TCP links shaped like Wi-Fi, LTE and 3G, which are cut for ten seconds midway. Every figure it prints is
measured, and "nothing lost" is counted at both ends (see `marram.lab.ledger`).

`MARRAM_SLOWDOWN=k` in a device's environment makes its worker stretch each inference to `k` times the CPU time that it
took, by sleeping: a device of the field on a developer's machine. It is read by `pipeline`'s edge pool.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from marram.bus.http import CloudApi
from marram.lab.children import Child, marram, stop_all
from marram.lab.demo_device import DemoDevice, Reading, Spec
from marram.lab.demo_ground import (
    check_installed,
    command,
    ended_by_signals,
    free_port,
    healthy,
    held,
    lines_of,
    until,
    write_json,
)
from marram.lab.demo_report import account, verdict
from marram.lab.demo_view import View, summary
from marram.lab.faults import Faults, parse_script
from marram.lab.ledger import Mark, delivered, read_ledger
from marram.lab.photos import write_photos
from marram.runtime import library
from marram.runtime.build.recipes import build
from marram.runtime.bundle import Bundle
from marram.schema.api import Deployment
from marram.schema.device import AppState
from marram.schema.errors import Invalid, MarramError, Missing, NotReady, Permanent
from marram.schema.units import format_duration, format_size

EDGE_MODEL, CLOUD_MODEL = "efficientnet-lite0", "efficientnet-lite2"
# In both, int8 comes first: devices fetch that alone, and this machine has to be a cloud and three devices at once.
MODELS = (EDGE_MODEL, CLOUD_MODEL)
# How much slower than this machine each device is: about a Raspberry Pi of the third generation.
DEVICES = (Spec("gate-wifi", "wifi:1", 20.0), Spec("gate-lte", "lte:1", 26.0), Spec("gate-3g", "3g:1", 16.0))
APP = f"""\
app: gate-camera
source: {{images: @PHOTOS@, every: 100 ms, repeat: true}}
steps:
  - classify: {EDGE_MODEL}
    cloud: {CLOUD_MODEL}
    place: soonest
    audit: 20 %
send: results
raw: allowed
"""
_OUTAGE_S = 10.0
_READY_S, _JOIN_S, _DEPLOY_S, _DRAIN_S = 60.0, 60.0, 180.0, 60.0
_LOOK_S = 0.25


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line may change. `duration_s`: of the part after the set-up; `port` None: 8080, else any."""

    duration_s: float = 40.0
    json_file: Path | None = None
    keep: bool = False
    no_color: bool = False
    folder: Path = Path("demo")
    port: int | None = None
    devices: Sequence[Spec] = DEVICES


@dataclass(slots=True)
class Times:
    """When what happened. `*_unix_s` are Unix time, as events carry it; the rest lengths in seconds."""

    setup_s: float = 0.0
    outage_s: float = 0.0
    drain_s: float = 0.0
    cut_unix_s: float = 0.0
    heal_unix_s: float = 0.0
    waiting_at_heal: int = 0


@dataclass(slots=True)
class _Started:
    """Everything that has to be ended, however this ends."""

    children: list[Child] = field(default_factory=list)
    devices: list[DemoDevice] = field(default_factory=list)

    def end(self) -> None:
        for device in self.devices:
            # A frozen or cut link must not keep an agent from ending.
            with contextlib.suppress(MarramError):
                device.link.heal()
        agents = [device.agent for device in self.devices if device.agent is not None]
        stop_all(agents, 5.0)
        stop_all(self.children, 8.0)
        for device in self.devices:
            device.close()


class Demo:
    """One run. `run` returns the figures (what `--json` writes)."""

    def __init__(self, options: Options, view: View) -> None:
        if not 5 <= options.duration_s <= 3600:
            raise Invalid(f"{options.duration_s:g} s is not between 5 s and 1 h", where="--duration")
        self._options = options
        self._view = view
        self._folder = options.folder.absolute()
        self._started = _Started()
        self._environment = dict(os.environ) | {"MARRAM_HOME": str(self._folder / "home"), "PYTHONUNBUFFERED": "1"}
        for name in ("MARRAM_URL", "MARRAM_TOKEN", "MARRAM_SLOWDOWN"):
            self._environment.pop(name, None)
        self._times = Times()

    def run(self) -> dict[str, Any]:
        """Set up, rehearse, count, end everything that was started.

        Raises NotReady (something not installed), Conflict (port taken, a demo runs in the folder), Permanent.
        """
        check_installed()
        if self._options.json_file is not None:
            write_json(self._options.json_file, {})  # told now, not after the rehearsal
        begun_s = time.monotonic()
        with ended_by_signals(), held(self._folder):
            try:
                bundles = self._models()
                photos = write_photos(self._folder / "photos")
                self._view.step("photos", f"{photos} from scikit-image and scikit-learn, 640 × 480, every 100 ms")
                with self._cloud() as api:
                    self._join(api)
                    self._deploy(api, bundles)
                    self._times.setup_s = time.monotonic() - begun_s
                    return self._rehearse(api)
            finally:
                self._view.done()
                self._started.end()

    # ------------------------------------------------ setting up

    def _models(self) -> list[Bundle]:
        bundles, begun_s, built = [], time.monotonic(), False
        for name in MODELS:
            try:
                bundles.append(library.get(name))
            except Missing:
                built = True
                bundles.append(build(name, report=partial(self._building, name)))
        what = " · ".join(
            f"{bundle.card.model} {bundle.card.variants[0].precision} {format_size(_weight(bundle))}"
            for bundle in bundles
        )
        how = f"built, {format_duration(time.monotonic() - begun_s)}; kept for next time" if built else "built earlier"
        self._view.done()
        self._view.step("models", f"{what}   ({how})")
        return bundles

    def _building(self, name: str, what: str, done: int, of: int) -> None:
        share = f" {done / of:.0%}" if of > 1 else ""
        self._view.wait("models", f"building {name} from its published weights, once: {what}{share}")

    @contextlib.contextmanager
    def _cloud(self) -> Iterator[CloudApi]:
        port = free_port(self._options.port)
        url = f"http://127.0.0.1:{port}"
        self._view.wait("cloud", "starting")
        line = marram("cloud", "--folder", str(self._folder / "cloud"), "--port", str(port), "--tls-port", "0")
        cloud = Child("cloud", line, self._folder / "cloud.log", self._environment)
        self._started.children.append(cloud)
        until(lambda: healthy(url) and bool(self._token()), _READY_S, "the cloud does not get ready", cloud.check)
        with CloudApi(url, self._token()) as api:
            self._view.done()
            self._view.step("cloud", f"console {url} · store {self._options.folder / 'cloud'}")
            yield api

    def _token(self) -> str:
        """The API token, which `marram cloud` leaves where the commands of this machine look for it."""
        try:
            document: Any = yaml.safe_load((self._folder / "home" / "context.yaml").read_text(encoding="utf-8"))
            return str(document["token"])
        except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
            # Written a moment after the cloud first answers.
            raise NotReady("the cloud left no token for this machine", where=str(self._folder / "home")) from error

    def _join(self, api: CloudApi) -> None:
        brokers = api.status().brokers
        if not brokers:
            raise NotReady("the cloud names no broker")
        self._view.wait("devices", "joining")
        joining = []
        for spec in self._options.devices:
            device = DemoDevice(spec, self._folder / spec.name, brokers[0], self._environment)
            self._started.devices.append(device)
            joining.append(device.join(api.create_token().join))
            self._started.children.append(joining[-1])
        for child in joining:
            child.wait(_JOIN_S)
        for device in self._started.devices:
            device.run()
        self._view.done()
        self._view.step("devices", " · ".join(d.name for d in self._started.devices) + "  joined")

    def _deploy(self, api: CloudApi, bundles: Sequence[Bundle]) -> None:
        for bundle in bundles:
            api.push_model(bundle.card, bundle.folder, bundle.files(), version=bundle.card.version)
        text = APP.replace("@PHOTOS@", json.dumps(str(self._folder / "photos")))
        made = api.deploy(text)

        def settled() -> bool:
            nonlocal made
            made = api.deployment(made.app)
            self._view.wait("app", f"{made.app} {made.version} going out over the links: {_progress(made)}")
            return all(d.version == made.version and d.state is AppState.COMMITTED for d in made.devices)

        def check() -> None:
            self._check()
            for device in made.devices:
                if device.state is AppState.ROLLED_BACK:
                    raise Permanent(f"the app was rolled back: {device.reason}", where=device.device)

        until(settled, _DEPLOY_S, "the app does not get to every device", check)
        self._view.done()
        names = " · ".join(f"{spec.name} {spec.slowdown:g} ×" for spec in self._options.devices)
        self._view.step("app", f"{made.app} {made.version} runs on all   (slower than this machine: {names})")

    # ------------------------------------------------ the rehearsal

    def _rehearse(self, api: CloudApi) -> dict[str, Any]:
        devices, times, duration_s = self._started.devices, self._times, self._options.duration_s
        outage_s = min(_OUTAGE_S, duration_s / 3)
        cut_at_s = 0.45 * duration_s
        script = parse_script(f"at {cut_at_s:.3f} s cut all for {outage_s:.3f} s")
        faults = Faults(script, {device.name: device.link for device in devices})
        began_s, cut_s, note = time.monotonic(), 0.0, ""
        draining: dict[DemoDevice, Mark] = {}
        readings: list[Reading] = []
        while (elapsed_s := time.monotonic() - began_s) < duration_s or draining or faults.next_s is not None:
            self._check()
            for fault in faults.advance(elapsed_s):
                if fault.action == "cut":
                    times.cut_unix_s, cut_s = time.time(), time.monotonic()
                    note = f"✂ links cut for {outage_s:g} s: the devices go on by themselves"
                    self._say(note)
                else:
                    times.heal_unix_s, times.outage_s = time.time(), time.monotonic() - cut_s
                    draining = {device: device.mark() for device in devices}
                    times.waiting_at_heal = sum(mark.waiting for mark in draining.values())
                    note = f"✓ links back: {times.waiting_at_heal:,} events wait on the devices"
                    self._say(note)
            if draining and all(delivered(device.outbox, mark) for device, mark in draining.items()):
                times.drain_s = time.time() - times.heal_unix_s
                note = f"✓ {times.waiting_at_heal:,} events delivered {times.drain_s:.1f} s after the links were back"
                self._say(note)
                draining = {}
            if draining and time.time() - times.heal_unix_s > _DRAIN_S:
                raise Permanent(f"the outboxes did not drain within {_DRAIN_S:g} s of the links' return")
            readings = [device.read() for device in devices]
            self._view.table(readings, note)
            due_s = (faults.next_s or duration_s) - (time.monotonic() - began_s)
            time.sleep(0.05 if draining else min(_LOOK_S, max(0.0, due_s)))
        return self._count(api, readings)

    def _say(self, note: str) -> None:
        self._view.done()
        self._view.say(note, "red" if note.startswith("✂") else "green")

    def _count(self, api: CloudApi, readings: Sequence[Reading]) -> dict[str, Any]:
        devices = self._started.devices
        marks = {device.name: device.mark() for device in devices}
        self._view.wait("count", "waiting for the last events")
        until(
            lambda: all(delivered(device.outbox, marks[device.name]) for device in devices),
            _DRAIN_S,
            "the last events do not arrive",
            self._check,
        )
        figures = account(read_ledger(api, marks), readings, self._times)
        self._view.done()
        self._view.final(summary(figures["devices"]))
        for line, style in verdict(figures):
            self._view.say(line, style)
        if self._options.json_file is not None:
            write_json(self._options.json_file, figures)
        self._where(api)
        return figures

    def _where(self, api: CloudApi) -> None:
        """Where the results are, and with `--keep`, wait there until Ctrl-C."""
        folder = self._options.folder
        if not self._options.keep:
            self._view.step(
                "results", f"{folder / 'cloud'}   look at them: {command()} cloud --folder {folder / 'cloud'}"
            )
            return
        for line in lines_of(self._folder / "cloud.log"):
            if line.startswith("console"):
                self._view.say(line)
        self._view.step("results", f"MARRAM_HOME={folder / 'home'} {command()} results tail --follow")
        self._view.say("It goes on until Ctrl-C.")
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                self._check()
                self._view.table([device.read() for device in self._started.devices])
                time.sleep(_LOOK_S)

    def _check(self) -> None:
        """Raises NotReady where the cloud or an agent has ended by itself."""
        self._started.children[0].check()
        for device in self._started.devices:
            if device.agent is not None:
                device.agent.check()


def _progress(made: Deployment) -> str:
    return " · ".join(f"{d.device} {d.state.value if d.version == made.version else 'pending'}" for d in made.devices)


def _weight(bundle: Bundle) -> int:
    return (bundle.folder / bundle.card.variants[0].file).stat().st_size
