"""Devices, what they should run (desired) and what they say they run (reported)."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from pydantic import Field

from marram.schema.ids import Name
from marram.schema.model import Manifest, ModelCard, Strict

# A device reports this often, and on each change; three intervals without a word and it counts as offline.
REPORT_INTERVAL_S = 3.0


class DeviceInfo(Strict):
    """What a device says of itself when it joins."""

    machine: str = ""  # x86_64, aarch64 …
    system: str = ""
    cores: int = 0
    memory_bytes: int = 0
    marram: str = ""


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
    fetches no other.
    """

    name: Name
    version: int
    manifest: Manifest
    variants: list[Name | None] = [None]


class CloudModel(Strict):
    """A model that replicas serve and an app may ask; the card tells the device what to send."""

    name: Name
    version: int
    card: ModelCard


class DesiredApp(Strict):
    """One app version a device should run. `files` hold `app.yaml` and what it ships (functions, data)."""

    name: Name
    version: int
    files: Manifest
    models: list[ModelRef] = []
    cloud: list[CloudModel] = []


class Desired(Strict):
    """All that a device should run. `version` rises with every change; the device keeps the last one it received."""

    version: int = 0
    apps: list[DesiredApp] = []


class ReportedApp(Strict):
    """What a device says of one app."""

    name: Name
    version: int
    state: AppState
    reason: str = ""
    # Whatever the worker measured since its start, see `pipeline/stats.py`: frames, shares, delays, skips.
    stats: dict[str, Any] = {}
    restarts: int = 0


class Reported(Strict):
    """What a device says it runs; sent every few seconds and on each change."""

    desired_version: int = 0
    apps: list[ReportedApp] = []
    outbox_depth: int = 0
    outbox_bytes: int = 0
    dropped: int = 0
    memory_bytes: int = 0
    uptime_s: float = Field(default=0, ge=0)
    time_s: float = 0


class Device(Strict):
    """A device as the cloud knows it."""

    id: Name
    labels: dict[str, str] = {}
    info: DeviceInfo = DeviceInfo()
    state: DeviceState = DeviceState.NEW
    joined_s: float = 0
    seen_s: float | None = None
    desired: Desired = Desired()
    reported: Reported | None = None
