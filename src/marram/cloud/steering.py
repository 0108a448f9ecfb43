"""Rollouts as people steer them: shown, paused, promoted, aborted, tried again; and why a device runs what it runs.

Every act is audited, takes effect in one transaction, and is followed by the desired states it means; whoever dies in
between leaves that to the fleet role's next look.
"""

from __future__ import annotations

import builtins
import time
from collections import Counter
from collections.abc import Callable

from marram.cloud.explaining import explain
from marram.rollout import Look, Rollout
from marram.rollout.controller import goals
from marram.rollout.observation import Observation
from marram.schema.device import AppState
from marram.schema.rollout import DeviceOutcome, RolloutDevice, RolloutState
from marram.schema.rollout_view import RolloutDeviceView, RolloutView, StageView
from marram.schema.why import Why
from marram.store import RolloutRow, Store, actor, auditing

# A fleet of ten thousand is counted, not listed.
_MOST_DEVICES = 500
# Ended rollouts are news for so long, and so many of them; looked for among so many.
_FRESH_S = 86400.0
_MOST_ENDED = 2
_LOOKED_AT = 50
# Each is a look at the whole fleet.
_MOST_COUNTED = 5
_ORDER = (
    DeviceOutcome.FAILED,
    DeviceOutcome.SILENT,
    DeviceOutcome.REACHED,
    DeviceOutcome.COMMITTED,
    DeviceOutcome.WAITING,
)


class Steering:
    """See the module's words. Methods block and are safe from any thread."""

    def __init__(self, store: Store, rollout: Rollout, changed: Callable[[list[str]], None]) -> None:
        """`changed(devices)` is called where acts changed what runs, with the devices whose desired state is new."""
        self._store = store
        self._rollout = rollout
        self._changed = changed

    def list(self, app: str | None = None, limit: int = 50) -> list[RolloutView]:
        """The newest rollouts, newest first, without their devices.

        Of those that went to all at once nobody decides anything and says why: of the last few that hold, how many
        devices came to which end.
        """
        rows = self._store.rollouts.all(app, limit)
        holds = {row.app: row.id for row in reversed(rows)}
        at_once = [row.id for row in rows if row.plan.immediate and holds[row.app] == row.id][:_MOST_COUNTED]
        return [
            _view(self._rollout.rollouts.look(row.id)).model_copy(update={"devices": []})
            if row.id in at_once
            else _bare(row)
            for row in rows
        ]

    def recent(self) -> builtins.list[RolloutView]:
        """What a page shows: all that are under way with their devices, and the last few that ended within a day."""
        now_s = time.time()
        rows = [row for row in self._store.rollouts.all(limit=_LOOKED_AT) if row.open or _fresh(row, now_s)]
        under_way = {row.id: row for row in self._store.rollouts.open()}
        ended = [row.id for row in rows if not row.open][:_MOST_ENDED]
        return [_view(self._rollout.rollouts.look(id, now_s)) for id in sorted([*under_way, *ended], reverse=True)]

    def show(self, rollout: int) -> RolloutView:
        """One rollout and how its devices stand now. Raises Missing."""
        return _view(self._rollout.rollouts.look(rollout))

    def pause(self, rollout: int) -> RolloutView:
        return self._act(rollout, "pause", self._rollout.rollouts.pause)

    def resume(self, rollout: int) -> RolloutView:
        return self._act(rollout, "resume", self._rollout.rollouts.resume)

    def promote(self, rollout: int) -> RolloutView:
        return self._act(rollout, "promote", self._rollout.rollouts.promote)

    def abort(self, rollout: int) -> RolloutView:
        return self._act(rollout, "abort", self._rollout.rollouts.abort)

    def retry(self, rollout: int, device: str) -> RolloutView:
        """Let `device` try again what it gave up. Raises Missing, Conflict."""
        with auditing(actor(), "rollout.retry", str(rollout), device=device):
            self._rollout.rollouts.retry(rollout, device)
        self._changed(self._rollout.refresh())
        return self.show(rollout)

    def why(self, device: str) -> Why:
        """Why `device` runs what it runs. Raises Missing."""
        return explain(self._store, self._rollout, device)

    def _act(self, rollout: int, name: str, act: Callable[[int], object]) -> RolloutView:
        """Raises Missing; Conflict where it is not in a state for that."""
        with auditing(actor(), f"rollout.{name}", str(rollout)):
            act(rollout)
        if self._rollout.rollouts.get(rollout).state is RolloutState.RUNNING:
            self._rollout.rollouts.advance(rollout, time.time())
        self._changed(self._rollout.refresh())
        return self.show(rollout)


def _fresh(row: RolloutRow, now_s: float) -> bool:
    """Whether it ended lately enough to be news; the first of an app, at once and without gates, is none."""
    return row.ended_s is not None and now_s - row.ended_s < _FRESH_S and not row.plan.immediate


def _bare(row: RolloutRow) -> RolloutView:
    return RolloutView(
        id=row.id,
        app=row.app,
        version=row.version,
        selector=row.selector,
        state=row.state,
        stage=row.stage,
        stages=[StageView(stage=stage, goal=0) for stage in row.plan.stages],
        plan=row.plan,
        gates=row.verdict.gates,
        last=row.verdict,
        reason=row.reason,
        created_s=row.created_s,
        stage_s=row.stage_s,
        ended_s=row.ended_s,
    )


def _view(look: Look) -> RolloutView:
    row = look.rollout
    devices = [_device(row, look.devices.get(each.device), each) for each in look.seen]
    devices.sort(key=lambda each: (_ORDER.index(each.outcome), -(each.reached_s or 0.0), each.device))
    running = row.state is RolloutState.RUNNING
    before = {device.evidence.get("before", {}).get("version") for device in look.devices.values()}
    if row.open:
        before |= {each.running or each.version for each in look.seen}
    return _bare(row).model_copy(
        update={
            "before": sorted(version for version in before if version not in (None, row.version)),
            "stages": [
                StageView(stage=stage, goal=goal)
                for stage, goal in zip(row.plan.stages, goals(row.plan, len(look.seen)), strict=True)
            ],
            "gates": look.step.verdict.gates,
            "waits": look.step.verdict.waits if running else "",
            "matching": len(look.seen),
            "counts": dict(Counter(each.outcome for each in devices)),
            "devices": devices[:_MOST_DEVICES],
        }
    )


def _device(row: RolloutRow, known: RolloutDevice | None, seen: Observation) -> RolloutDeviceView:
    known = known or RolloutDevice(device=seen.device, stage=0)
    view = RolloutDeviceView(
        **known.model_dump(include={"device", "stage", "outcome", "reached_s", "ended_s", "attempt", "reason"}),
        version=seen.version,
        state=seen.state,
        running=seen.running,
        online=seen.online,
        hardware=seen.hardware,
    )
    if row.state is not RolloutState.COMPLETED or known.outcome in (DeviceOutcome.COMMITTED, DeviceOutcome.SILENT):
        return view
    # It holds for all, and nobody judges any more: the device says how it stands.
    told = seen.version == row.version and seen.attempt >= known.attempt
    outcome = DeviceOutcome.REACHED
    if told and seen.state is AppState.COMMITTED:
        outcome = DeviceOutcome.COMMITTED
    elif told and seen.state is AppState.ROLLED_BACK:
        outcome = DeviceOutcome.FAILED
    return view.model_copy(update={"outcome": outcome, "reason": seen.reason if told else known.reason})
