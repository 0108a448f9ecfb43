"""A fleet on a virtual clock over a real store: devices that fetch, commit, fail, fall silent or lie still, and a
controller that dies where it is told to."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from marram.registry import Registry
from marram.rollout import Rollout
from marram.schema.device import AppState, Desired, DeviceInfo, Reported, ReportedApp
from marram.schema.model import Manifest
from marram.schema.rollout import Plan, RolloutState
from marram.store import Objects, RolloutRow, Store, open_store
from marram.store.tables import reported
from marram.store.upsert import upsert

NOTHING = Manifest(files=[])
APP = "gate"
START_S = 1_800_000_000.0
TICK_S = 3.0


class Death(BaseException):
    """The controller's process is killed."""


def text(version: int) -> str:
    """The app file whose content is version `version`, where they are deployed in order."""
    return f"app: {APP}\nsource: {{images: photos}}\nsteps:\n  - filter: 'true'\n# {version}\n"


def version_of(desired: Desired) -> int | None:
    return next((app.version for app in desired.apps if app.name == APP), None)


@dataclass
class SimDevice:
    """One device. `fate`: what becomes of a version here: good, crash (rolls back), silent, late_crash, slow, hot,
    full (waits for room)."""

    name: str
    labels: dict[str, str] = field(default_factory=dict)
    cores: int = 4
    online: bool = True
    fate: dict[int, str] = field(default_factory=dict)
    held: str | None = None
    takes: int = 2  # reports until a version is committed

    runs: int | None = None
    target: int | None = None
    state: AppState | None = None
    reason: str = ""
    refused: list[int] = field(default_factory=list)
    attempt: int = 0
    restarts: int = 0
    age: int = 0
    frames: int = 0
    gone: bool = False

    def live(self, wanted: int | None, attempt: int) -> None:
        """One report interval of its life."""
        if wanted is None:
            self.runs = self.target = self.state = None
            return
        if self.held is None and (wanted != self.target or attempt > self.attempt):
            again = attempt > self.attempt
            self.attempt = max(attempt, self.attempt)
            if again and wanted in self.refused:
                self.refused.remove(wanted)
            elif wanted == self.target and self.state is not AppState.ROLLED_BACK:
                return
            self.target, self.age = wanted, 0
            if wanted == self.runs:
                self.state, self.reason = AppState.COMMITTED, ""
            elif wanted in self.refused:
                self.state, self.reason = AppState.ROLLED_BACK, "given up before"
            else:
                self.state, self.reason = AppState.PENDING, ""
        self.age += 1
        if self.state is AppState.PENDING and self._fate() == "full":
            self.reason = "the disk is too full: 20 MB to fetch, 5 MB free"
        elif self.state is AppState.PENDING and self.held is None and self.age >= self.takes:
            self._end()
        elif self.state is AppState.COMMITTED and self._fate() == "late_crash" and self.age == self.takes + 2:
            self.restarts += 1
        if self._fate() == "silent" and self.target == wanted:
            self.gone = True
        self.frames += 100

    def _fate(self) -> str:
        return self.fate.get(self.target or 0, "good")

    def _end(self) -> None:
        assert self.target is not None
        if self._fate() == "crash":
            self.state, self.reason = AppState.ROLLED_BACK, "it crashed"
            self.refused.append(self.target)
        else:
            self.state, self.runs, self.frames = AppState.COMMITTED, self.target, 0

    def report(self, desired_version: int, now_s: float) -> Reported:
        slow = self.fate.get(self.runs or 0) == "slow"
        stats: dict[str, Any] = {
            "frames": self.frames, "delays": self.frames, "errors": 0, "p95_ms": 300.0 if slow else 100.0,
            "confidence_mean": 0.8, "confidence_frames": self.frames,
        }  # fmt: skip
        apps = []
        if self.state is not None and self.target is not None:
            apps = [
                ReportedApp(
                    name=APP, version=self.target, state=self.state, reason=self.reason, running=self.runs,
                    refused=self.refused, attempt=self.attempt, restarts=self.restarts,
                    stats=stats if self.runs else {},
                )
            ]  # fmt: skip
        hot = self.fate.get(self.runs or 0) == "hot"
        return Reported(
            desired_version=desired_version, apps=apps, held=self.held, time_s=now_s, throttled=hot, temperature_c=50.0
        )


class Fleet:
    """The store, its rollouts, and the devices; `tick` is one report interval of everything."""

    def __init__(self, folder: Path) -> None:
        self.store: Store = open_store(folder / "cloud.db")
        objects = Objects(folder / "objects")
        self.rollout = Rollout(self.store, Registry(self.store.models, objects), objects)
        self.devices: dict[str, SimDevice] = {}
        self.now_s = START_S
        self.reached_most: dict[tuple[int, int], int] = {}

    def add(self, device: SimDevice) -> SimDevice:
        self.devices[device.name] = device
        info = DeviceInfo(machine="aarch64", cores=device.cores)
        self.store.devices.add(device.name, device.labels, info, self.now_s)
        return device

    def deploy(
        self, version: int, selector: dict[str, str] | None = None, plan: dict[str, Any] | None = None
    ) -> RolloutRow:
        """Deploy version `version`; it must get that number."""
        given = None if plan is None else Plan.model_validate(plan)
        rolled = self.rollout.deploy(text(version), NOTHING, selector or {}, given, self.now_s)
        assert rolled.deployment.version == version and rolled.rollout is not None
        return rolled.rollout

    def live(self) -> None:
        """Every device that is there hears what it should run, lives on, and reports.

        The reports are one transaction, since a flush of the disk for each took most of these tests' time.
        """
        told = self.store.states.all_desired()
        with self.store.database.write() as connection:
            for device in self.devices.values():
                if not device.online or device.gone:
                    continue
                desired = told.get(device.name, Desired())
                before = device.report(desired.version, self.now_s)
                device.live(version_of(desired), desired.attempts.get(APP, 0))
                if device.gone:  # what it should run was the answer to a report, its last one
                    said = before.model_dump_json()
                    upsert(connection, reported, {"device": device.name, "seen_s": self.now_s, "document": said})
                    continue
                said = device.report(desired.version, self.now_s).model_dump_json()
                upsert(connection, reported, {"device": device.name, "seen_s": self.now_s, "document": said})

    def steer(self) -> None:
        """What the fleet role does each second, and every now and then."""
        if self.rollout.rollouts.advance_all(self.now_s):
            self.rollout.refresh()

    def tick(self, times: int = 1) -> None:
        for _ in range(times):
            self.now_s += TICK_S
            self.live()
            self.steer()

    def settle(self, rollout: int, most: int = 500) -> RolloutRow:
        """Tick until the rollout is no longer running."""
        for _ in range(most):
            self.tick()
            row = self.row(rollout)
            if row.state is not RolloutState.RUNNING:
                self.rollout.refresh()
                self.tick(4)
                return row
        raise AssertionError(f"it does not end: {self.rollout.rollouts.look(rollout, self.now_s).step.verdict}")

    def row(self, rollout: int) -> RolloutRow:
        return self.store.rollouts.get(rollout)

    def wanted(self) -> dict[str, int | None]:
        """The version that each device is told to run."""
        told = self.store.states.all_desired()
        return {name: version_of(told.get(name, Desired())) for name in self.devices}

    def runs(self) -> dict[str, int | None]:
        return {name: device.runs for name, device in self.devices.items()}

    @contextmanager
    def killed_after(self, writes: int) -> Iterator[None]:
        """Everything the block does on the store ends with the `writes`-th transaction, as a kill -9 would."""
        database = self.store.database
        real, left = database.write, writes

        @contextmanager
        def write() -> Iterator[Any]:
            nonlocal left
            if left <= 0:
                raise Death
            left -= 1
            with real() as connection:
                yield connection

        database.write = write  # type: ignore[method-assign]
        try:
            yield
        except Death:
            pass
        finally:
            database.write = real  # type: ignore[method-assign]


def chance(seed: int) -> random.Random:
    return random.Random(seed)
