"""A rollout as the API tells of it: what is kept of it, and how its devices stand at this moment."""

from __future__ import annotations

from marram.schema.api import Reply
from marram.schema.device import AppState
from marram.schema.ids import Name
from marram.schema.rollout import DeviceOutcome, GateVerdict, Plan, RolloutState, Verdict


class StageView(Reply):
    """One stage: as it was written (`1`, `10%`, `all`), and how many devices that is, counted from the first."""

    stage: str
    goal: int


class RolloutDeviceView(Reply):
    """One device in a rollout. `version` and `state`: what it says of the app now; None: nothing yet."""

    device: Name
    stage: int = 0
    outcome: DeviceOutcome = DeviceOutcome.WAITING
    reached_s: float | None = None
    ended_s: float | None = None
    attempt: int = 0
    reason: str = ""
    version: int | None = None
    state: AppState | None = None
    running: int | None = None
    online: bool = False
    hardware: str = ""


class RolloutView(Reply):
    """One rollout. `before`: the other versions among its devices; `counts`: how many have come to each outcome.

    `gates` are as of now where it runs; `last` is what they said when a stage was left or the rollout ended.
    `devices`: the first ones only, those that failed first; `matching` counts all.
    """

    id: int
    app: Name
    version: int
    before: list[int] = []
    selector: dict[str, str] = {}
    state: RolloutState
    stage: int
    stages: list[StageView] = []
    plan: Plan
    gates: list[GateVerdict] = []
    last: Verdict = Verdict()
    waits: str = ""
    reason: str = ""
    created_s: float
    stage_s: float = 0
    ended_s: float | None = None
    matching: int = 0
    counts: dict[DeviceOutcome, int] = {}
    devices: list[RolloutDeviceView] = []
