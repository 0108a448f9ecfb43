"""Rollouts: one app version brought to a selection of devices, a stage at a time, past gates that can stop it.

A rollout is a deployment with a plan. It reaches the devices of one stage after another; each device it has reached
should run the new version, every other one goes on with what held for it before. Between stages stand the gates, which
compare the devices it reached with the rest. A device that heard of it and says nothing for `silence_s` counts as
failed: a silent one must never hold a rollout open. All of it is kept in the store, so whoever runs the controller may
die at any point.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated, Any

from pydantic import AfterValidator, Field, field_validator

from marram.schema.ids import Name
from marram.schema.model import Strict


class RolloutState(StrEnum):
    """Where a rollout stands; `ROLLOUT_TRANSITIONS` says what may follow what."""

    RUNNING = "running"
    PAUSED = "paused"  # by a person: it reaches no further device, and judges none
    HALTED = "halted"  # a gate failed and the plan says to ask a person: as it stands until somebody decides
    ROLLED_BACK = "rolled_back"  # a gate failed: every device goes back to what it had
    ABORTED = "aborted"  # by a person: every device goes back to what it had
    COMPLETED = "completed"  # it holds for all that match, those that join later included
    SUPERSEDED = "superseded"  # a newer rollout of the app for these devices took its place


ROLLOUT_TRANSITIONS: dict[RolloutState, frozenset[RolloutState]] = {
    RolloutState.RUNNING: frozenset(
        {
            RolloutState.PAUSED,
            RolloutState.HALTED,
            RolloutState.ROLLED_BACK,
            RolloutState.ABORTED,
            RolloutState.COMPLETED,
            RolloutState.SUPERSEDED,
        }
    ),
    RolloutState.PAUSED: frozenset({RolloutState.RUNNING, RolloutState.ABORTED, RolloutState.SUPERSEDED}),
    RolloutState.HALTED: frozenset({RolloutState.RUNNING, RolloutState.ABORTED, RolloutState.SUPERSEDED}),
    RolloutState.ROLLED_BACK: frozenset(),
    RolloutState.ABORTED: frozenset(),
    RolloutState.COMPLETED: frozenset({RolloutState.SUPERSEDED}),
    RolloutState.SUPERSEDED: frozenset(),
}

_STAGE = re.compile(r"^(?:all|[1-9]\d{0,6}|(?:100|[1-9]?\d(?:\.\d+)?)\s*%)$")


def _stage(text: str) -> str:
    if not _STAGE.match(text):
        raise ValueError(f'"{text}" is no stage; write a number of devices (1), a share (10 %) or all')
    return text.replace(" ", "")


# How far a stage goes, counted from the first device: `1`, `10%`, `all`.
Stage = Annotated[str, AfterValidator(_stage)]

_Share = Annotated[float, Field(ge=0, le=1)]
_CLOCK = r"^([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d$"


class Window(Strict):
    """When a rollout may reach further devices: `hours` (22:00-05:00, over midnight too) of `zone`, on `days`."""

    hours: Annotated[str, Field(pattern=_CLOCK)] = "00:00-23:59"
    zone: str = "UTC"
    days: list[Annotated[str, Field(pattern=r"^(mon|tue|wed|thu|fri|sat|sun)$")]] = []


class Gates(Strict):
    """What the devices a rollout reached must keep to; None leaves a gate out.

    Shares are of devices or frames, 0 to 1. "The rest" are matching devices with the version before; where there are
    none, a gate that compares with them passes and says so.
    """

    # Devices whose new version crashed, hung, outgrew its memory or was rolled back by themselves.
    failures: _Share | None = 0.0
    # Devices that heard of it and said nothing for the plan's `silence_s`, or came to no end. Below a hundred devices
    # one is too many; of a thousand some are always switched off while they are at work.
    silent: _Share | None = 0.01
    # Frames that failed, over what the rest have.
    errors: _Share | None = 0.02
    # 95th percentile of the delay from capture to result: never above this …
    p95_ms: float | None = Field(default=None, gt=0)
    # … nor above so many times that of the rest; less than 10 ms more is no difference (`rollout/gates.py`).
    p95_ratio: float | None = Field(default=1.5, gt=0)
    # Difference of the mean confidence to that of the rest.
    confidence_shift: _Share | None = 0.1
    # Frames on which the version before answers something else (measured on the device, on the same inputs).
    disagreement: _Share | None = None
    # Hotter than this, or throttled where it was not before, counts as a failed device.
    temperature_c: float | None = Field(default=None, gt=0)
    throttling: bool = True


class Plan(Strict):
    """How a rollout goes. The defaults are those of `marram deploy`.

    A stage is a number of the matching devices, or a share of them rounded up, and at least one more than the stage
    before it.
    """

    stages: list[Stage] = Field(default=["1", "10%", "all"], min_length=1, max_length=20)
    # How long the devices of a stage must keep to the gates, from the moment the last of them committed.
    soak_s: float = Field(default=30.0, ge=0)
    # A device that does not report, or does not come to an end with the new version, for so long counts as failed.
    silence_s: float = Field(default=600.0, gt=0)
    gates: Gates = Gates()
    window: Window | None = None
    # What a failed gate does: bring everybody back, or stop and ask.
    on_failure: Annotated[str, Field(pattern=r"^(roll_back|halt)$")] = "roll_back"

    @field_validator("stages")
    @classmethod
    def _ends_with_all(cls, stages: list[str]) -> list[str]:
        if stages[-1] not in ("all", "100%"):
            raise ValueError('the last stage is "all"')
        return stages

    @property
    def immediate(self) -> bool:
        """Whether it leaves nothing to wait for or to judge: then it is complete as soon as it is decided."""
        # A limit of 0 is one: nobody may fail.
        limits = [getattr(self.gates, gate) for gate in Gates.model_fields]
        unset = all(limit is None or limit is False for limit in limits)
        return len(self.stages) == 1 and self.window is None and unset


def at_once() -> Plan:
    """To all that match, and nobody judges: what a first deployment does, since there is nothing to go back to."""
    gates = Gates(
        failures=None, silent=None, errors=None, p95_ratio=None, confidence_shift=None, throttling=False
    )  # fmt: skip
    return Plan(stages=["all"], soak_s=0, gates=gates)


class DeviceOutcome(StrEnum):
    """Where one device stands in one rollout."""

    WAITING = "waiting"  # not reached
    REACHED = "reached"  # told to run it
    COMMITTED = "committed"
    FAILED = "failed"  # it rolled back by itself, crashed, or broke a gate
    SILENT = "silent"


class RolloutDevice(Strict):
    """One device in one rollout. `stage` counts from 1; `evidence` holds the figures that decided."""

    device: Name
    stage: int = Field(ge=0)
    outcome: DeviceOutcome = DeviceOutcome.WAITING
    reached_s: float | None = None
    ended_s: float | None = None
    attempt: int = 0
    reason: str = ""
    evidence: dict[str, Any] = {}


class GateVerdict(Strict):
    """What one gate says. `passed` None: it had too little to judge, which stops nothing; `words` say so."""

    gate: str
    passed: bool | None
    words: str
    figures: dict[str, Any] = {}

    @property
    def judged(self) -> bool | None:
        """`passed`; None also where it passed for want of anything to compare, and so has no figures."""
        return None if self.passed and not self.figures else self.passed

    @property
    def said(self) -> str:
        """`words`, which in either case say that nothing was judged."""
        return self.words if self.judged is self.passed else f"{self.words}, not judged"


class Verdict(Strict):
    """What all gates said of `stage`, and what the rollout waits for ("": nothing)."""

    stage: int = 0
    gates: list[GateVerdict] = []
    waits: str = ""
