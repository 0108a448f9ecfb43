"""Devices, what they should run (desired) and what they say they run (reported)."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated, Any

from pydantic import Field, FiniteFloat

from marram.schema.ids import Name
from marram.schema.model import Manifest, ModelCard, Strict
from marram.schema.signed import PROJECT

# What a device says of itself is kept, compared and shown: its numbers are such as databases, JSON and people have.
_Count = Annotated[int, Field(ge=0, le=10**9)]
_Bytes = Annotated[int, Field(ge=0, le=2**60)]
_Words = Annotated[str, Field(max_length=500)]
# More than any of ours: a device says them in a few hundred characters.
_Reason = Annotated[str, Field(max_length=4000)]

# A device reports this often, and on each change; three intervals without a word and it counts as offline.
REPORT_INTERVAL_S = 3.0


def app_target(name: str, version: int) -> str:
    """The name under which an app version is signed."""
    return f"apps/{PROJECT}/{name}/{version}.json"


def model_target(name: str, version: int) -> str:
    """The name under which a model version is signed."""
    return f"models/{PROJECT}/{name}/{version}.json"


class DeviceInfo(Strict):
    """What a device says of itself when it joins."""

    machine: _Words = ""  # x86_64, aarch64 …
    system: _Words = ""
    cores: _Count = 0
    memory_bytes: _Bytes = 0
    marram: _Words = ""
    # For which wheels are made: "3.11", and "glibc 2.36", "musl 1.2", "macos 13.0".
    python: _Words = ""
    libc: _Words = ""
    # Its Python distributions, name (as PEP 503 writes it) to version: what it has needs no wheel.
    packages: dict[_Words, _Words] = Field(default={}, max_length=2000)


class DeviceState(StrEnum):
    """Whether the cloud hears a device: `online` within 3 report intervals, else `offline`; `new` never reported."""

    NEW = "new"
    ONLINE = "online"
    OFFLINE = "offline"


class AppState(StrEnum):
    """Where one app's version stands on one device; `TRANSITIONS` says what may follow what."""

    PENDING = "pending"  # told to run it
    FETCHED = "fetched"  # every file is here
    VERIFIED = "verified"  # every digest is right and every model loads in a worker
    PROVISIONAL = "provisional"  # running, not yet proven
    COMMITTED = "committed"  # first result came, it is the one to fall back to
    ROLLED_BACK = "rolled_back"  # failed (see `reason`); the last committed version runs, and this one is not retried
    REMOVED = "removed"


TRANSITIONS: dict[AppState, frozenset[AppState]] = {
    AppState.PENDING: frozenset({AppState.FETCHED, AppState.ROLLED_BACK, AppState.REMOVED}),
    AppState.FETCHED: frozenset({AppState.VERIFIED, AppState.ROLLED_BACK, AppState.REMOVED}),
    AppState.VERIFIED: frozenset({AppState.PROVISIONAL, AppState.ROLLED_BACK, AppState.REMOVED}),
    AppState.PROVISIONAL: frozenset({AppState.COMMITTED, AppState.ROLLED_BACK, AppState.REMOVED}),
    AppState.COMMITTED: frozenset({AppState.REMOVED, AppState.ROLLED_BACK}),
    AppState.ROLLED_BACK: frozenset({AppState.PENDING, AppState.REMOVED}),
    AppState.REMOVED: frozenset({AppState.PENDING}),
}


class ModelRef(Strict):
    """One model version an app needs on the device, and its files by content.

    `variants`: those that its steps name; None stands for a step that leaves the choice to the device. The device
    fetches no other. `fronts`: the cuts at which its steps may part it, the back being the cloud's; a model that the
    cloud alone answers with has these and no variant here.
    """

    name: Name
    version: int
    manifest: Manifest
    variants: list[Name | None] = [None]
    fronts: list[Name] = []

    @property
    def target(self) -> str:
        """The name under which it is signed."""
        return model_target(self.name, self.version)

    def signed(self) -> bytes:
        """What is signed of it; see `DesiredApp.signed`."""
        return _canonical(self.model_dump(mode="json", exclude_defaults=True, exclude={"variants", "fronts"}))


class CloudModel(Strict):
    """A model that replicas serve and an app may ask; the card tells the device what to send."""

    name: Name
    version: int
    card: ModelCard


class DesiredApp(Strict):
    """One app version a device should run. `files` hold `app.yaml` and what it ships (functions, data).

    `wheels`: for each platform (`edge/platform.py`) the packages that its functions require. `secrets`: names alone.
    """

    name: Name
    version: int
    files: Manifest
    models: list[ModelRef] = []
    cloud: list[CloudModel] = []
    wheels: dict[str, Manifest] = {}
    secrets: list[str] = []
    # Whether devices that run it answer each other's inferences.
    peers: bool = False

    @property
    def peer_models(self) -> frozenset[tuple[str, int]]:
        """The models (name, version) with which devices that run it answer each other."""
        return frozenset((each.name, each.version) for each in self.models if each.variants and self.peers)

    @property
    def target(self) -> str:
        """The name under which it is signed."""
        return app_target(self.name, self.version)

    def signed(self) -> bytes:
        """What is signed: the same bytes on every version of Marram that knows all its fields.

        Keys in order, defaults left out: a field that a newer Marram adds changes nothing where it is not used.
        """
        return _canonical(self.model_dump(mode="json", exclude_defaults=True))


class Desired(Strict):
    """All that a device should run. `version` rises with every change; the device keeps the last one it received.

    `attempts`: by app, how often a person asked to try again what the device gave up; a higher number than the one it
    knows makes it try once more.
    """

    version: int = 0
    apps: list[DesiredApp] = []
    attempts: dict[Name, int] = {}


class Measured(Strict):
    """One variant of a model, timed on the device. `fault`: why it cannot run there; the figures are then None."""

    variant: Name
    p50_ms: float | None = None
    p95_ms: float | None = None
    memory_bytes: _Bytes | None = None
    load_ms: float | None = None
    accuracy: float | None = None  # as the card says
    fault: _Reason = ""


class Chosen(Strict):
    """Which variant of a model the device runs, and why: its measurements, fastest first."""

    model: _Words  # name@version
    variant: Name
    why: _Reason = ""
    measured: list[Measured] = []
    measured_s: float | None = None


class ReportedApp(Strict):
    """What a device says of one app. `version` is the one it was last told to run, whose `state` this is.

    `running`: the version whose worker is there now (None: none); `back`: the version it would fall back to;
    `refused`: versions it gave up and will not try by itself.
    """

    name: Name
    version: _Count
    state: AppState
    reason: _Reason = ""
    running: _Count | None = None
    back: _Count | None = None
    refused: list[_Count] = []
    attempt: _Count = 0
    chosen: list[Chosen] = []
    # Whatever the worker measured since its start, see `pipeline/stats.py`: frames, shares, delays, skips.
    stats: dict[str, Any] = {}
    restarts: _Count = 0


class Reported(Strict):
    """What a device says it runs; sent every few seconds and on each change."""

    desired_version: _Count = 0
    apps: Annotated[list[ReportedApp], Field(max_length=1000)] = []
    outbox_depth: _Bytes = 0
    outbox_bytes: _Bytes = 0
    dropped: _Bytes = 0
    memory_bytes: _Bytes = 0
    uptime_s: FiniteFloat = Field(default=0, ge=0)
    time_s: FiniteFloat = 0
    # None where the machine does not tell.
    temperature_c: float | None = None
    throttled: bool | None = None
    # A person at the device told it to change nothing for now, and why.
    held: _Reason | None = None
    # How workers are kept from what is not theirs: "landlock 7: …", "none: …".
    isolation: _Reason = ""
    # What the device is now, sent where that may have changed (at its start, with a new connection).
    info: DeviceInfo | None = None
    certificate_expires_s: float | None = None


class Device(Strict):
    """A device as the cloud knows it."""

    id: Name
    labels: dict[str, str] = {}
    info: DeviceInfo = DeviceInfo()
    state: DeviceState = DeviceState.NEW
    joined_s: float = 0
    revoked_s: float | None = None
    seen_s: float | None = None
    desired: Desired = Desired()
    reported: Reported | None = None


def _canonical(document: dict[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
