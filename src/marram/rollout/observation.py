"""What the cloud knows of a device at one moment, as far as a rollout of one app cares: pure, from its last report."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from marram.schema.device import AppState, DeviceState
from marram.schema.figures import figure
from marram.store import Sighting


@dataclass(frozen=True, slots=True)
class Observation:
    """One device and one app there. `version` is what it was last told to run, whose `state` this is (None: nothing).

    `hardware`: its class; devices of one class are alike enough to be compared. Times are the cloud's.
    `asked`: the highest attempt the cloud ever asked of the app here, where the rollout's version was deployed before;
    None where it is new, so that nobody can have given it up.
    """

    device: str
    online: bool = False
    seen_s: float | None = None
    hardware: str = ""
    version: int | None = None
    state: AppState | None = None
    reason: str = ""
    running: int | None = None
    refused: tuple[int, ...] = ()
    attempt: int = 0
    asked: int | None = None
    restarts: int = 0
    stats: dict[str, Any] = field(default_factory=dict)
    held: str | None = None
    temperature_c: float | None = None
    throttled: bool | None = None

    @property
    def ready(self) -> bool:
        """Whether a rollout may reach it: it is there, and nobody holds it."""
        return self.online and self.held is None

    def figure(self, key: str) -> float | None:
        """One of the app's stats (`pipeline/stats.py`)."""
        return figure(self.stats.get(key))

    def heard_after(self, then_s: float | None) -> bool:
        return then_s is None or (self.seen_s is not None and self.seen_s > then_s)


def observe(sighting: Sighting, app: str, asked: int | None = None) -> Observation:
    """What `sighting` says of `app`; `asked`: see `Observation`."""
    said = sighting.said or {}
    spoken: dict[str, Any] = next((each for each in said.get("apps", []) if each["name"] == app), {})
    info = sighting.info
    machine, cores = info.get("machine", ""), info.get("cores", 0)
    return Observation(
        device=sighting.device,
        online=sighting.state is DeviceState.ONLINE,
        seen_s=sighting.seen_s,
        hardware=", ".join(part for part in (machine, f"{cores} cores" if cores else "") if part),
        version=spoken.get("version"),
        state=AppState(spoken["state"]) if spoken else None,
        reason=spoken.get("reason", ""),
        running=spoken.get("running"),
        refused=tuple(spoken.get("refused", ())),
        attempt=spoken.get("attempt", 0),
        asked=asked,
        restarts=spoken.get("restarts", 0),
        stats=spoken.get("stats", {}),
        held=said.get("held"),
        temperature_c=figure(said.get("temperature_c")),
        throttled=said.get("throttled"),
    )
