"""The controller of one rollout, pure: where it stands and what is seen of its devices → where it stands next, and why.

One step at a time, each small enough to be written in one transaction: whoever runs this may die before or after any
of them, and two may run at once. Level-triggered: a step looks at all there is, never at what has just happened. It
must never reach more devices than the stage says, nor be held open by a device that says nothing.

A device counts as reached once it is told to run the version. An offline or held one is not told yet: it does not stop
anybody, and is reached when it comes. Nor is one that went away before it could hear of it: what a device should run is
the answer to its report, so of one that has not reported since, nothing is known against the version. Whoever heard of
it and then says nothing for `silence_s`, or does not come to an end with the version, has failed.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from marram.rollout import window
from marram.rollout.gates import ASKED, AT_ONCE, Sides, judge, overheated
from marram.rollout.observation import Observation
from marram.schema.device import AppState
from marram.schema.rollout import DeviceOutcome, GateVerdict, Plan, RolloutDevice, RolloutState, Verdict
from marram.schema.units import format_duration
from marram.store import RolloutRow

# Of the figures of the version before, those that gates compare with.
_BEFORE = (
    "frames",
    "errors",
    "delays",
    "p95_ms",
    "confidence_mean",
    "confidence_frames",
)


@dataclass(frozen=True, slots=True)
class Step:
    """What one look leads to. `devices`: those that changed. `acts`: what it decided, in words, for log and audit."""

    rollout: RolloutRow
    verdict: Verdict
    devices: list[RolloutDevice] = field(default_factory=list)
    acts: list[str] = field(default_factory=list)

    @property
    def changed(self) -> bool:
        return bool(self.devices or self.acts)


def goals(plan: Plan, size: int) -> list[int]:
    """How many of `size` matching devices each stage reaches, counted from the first device."""
    found: list[int] = []
    for stage in plan.stages:
        if stage == "all":
            goal = size
        elif stage.endswith("%"):
            goal = math.ceil(round(size * float(stage[:-1]) / 100, 9))
        else:
            goal = int(stage)
        found.append(min(size, max(goal, found[-1] + 1 if found else 1)))
    return found


def step(rollout: RolloutRow, devices: dict[str, RolloutDevice], seen: list[Observation], now_s: float) -> Step:
    """The next state of `rollout`. `devices`: what is kept of those it dealt with; `seen`: all it decides over now."""
    if rollout.state is not RolloutState.RUNNING:
        return Step(rollout, rollout.verdict)
    look = _Look(rollout, devices, {each.device: each for each in seen}, now_s)
    verdict = look.verdict()
    failed = [each for each in verdict.gates if each.passed is False and (look.soaked or each.gate in AT_ONCE)]
    if failed:
        return look.stopped(verdict, failed)
    chosen = look.chosen()
    if chosen and window.is_open(rollout.plan.window, now_s):
        return look.reach(verdict, chosen)
    waits = look.waits(verdict, window_shut=bool(chosen))
    if waits:
        return look.stay(verdict.model_copy(update={"waits": waits}))
    unjudged = [each for each in verdict.gates if _unjudged(each)] if seen else []
    return look.stopped(verdict, unjudged) if unjudged else look.promoted(verdict)


def promote(rollout: RolloutRow, devices: dict[str, RolloutDevice], seen: list[Observation], now_s: float) -> Step:
    """Into the next stage now, by a person: no soak, and what halted it is let pass. The last stage: completed."""
    look = _Look(rollout, devices, {each.device: each for each in seen}, now_s)
    verdict = look.verdict()
    gates = rollout.plan.gates
    if rollout.state is RolloutState.HALTED:
        # Whoever says "go on" has seen what these gates found; they would only find it again.
        found = [each.gate for each in verdict.gates if each.passed is False or _unjudged(each)]
        gates = gates.model_copy(update=dict.fromkeys(found))
    row = replace(rollout, state=RolloutState.RUNNING, reason="", plan=rollout.plan.model_copy(update={"gates": gates}))
    return _Look(row, devices, look.seen, now_s).promoted(verdict)


class _Look:
    """One look at one rollout: outcomes brought up to date first, then whatever is asked."""

    def __init__(
        self, rollout: RolloutRow, before: dict[str, RolloutDevice], seen: dict[str, Observation], now_s: float
    ) -> None:
        self.rollout, self.plan, self.seen, self.now_s = rollout, rollout.plan, seen, now_s
        self.changes: dict[str, RolloutDevice] = {}
        # Whoever left (removed, other labels, a newer deployment) is neither counted nor judged.
        self.known = {name: device for name, device in before.items() if name in seen}
        for name, device in self.known.items():
            after = self._outcome(device, seen[name])
            if after != device:
                self.changes[name] = after
        self.known |= self.changes
        self.reached = [d for d in self.known.values() if d.outcome is not DeviceOutcome.WAITING]
        # Reached so late in this stage that it need not wait for them: they are judged as far as they have come.
        late_s = rollout.stage_s + self.plan.silence_s
        self.awaited = [d for d in self.reached if (d.reached_s or 0.0) <= late_s]
        self.soak_end_s = self._soak_end_s()
        self.soaked = not self._coming() and now_s >= self.soak_end_s

    # ------------------------------------------------------------ one device

    def _outcome(self, device: RolloutDevice, seen: Observation) -> RolloutDevice:
        """Where the device stands now."""
        if device.outcome in (DeviceOutcome.WAITING, DeviceOutcome.FAILED):
            return device
        speaks = (
            seen.version == self.rollout.version
            and seen.heard_after(device.reached_s)
            and seen.attempt >= device.attempt
        )
        if speaks and seen.state is AppState.ROLLED_BACK:
            return self._ended(device, DeviceOutcome.FAILED, seen.reason or "rolled back by itself")
        if device.outcome is DeviceOutcome.COMMITTED:
            return self._committed(device, seen, speaks)
        if speaks and seen.state is AppState.COMMITTED:
            evidence = device.evidence | {"restarts": seen.restarts}
            committed = device.model_copy(update={"evidence": evidence})
            return self._ended(committed, DeviceOutcome.COMMITTED, "")
        if device.outcome is DeviceOutcome.SILENT:
            return device
        if seen.held is not None and seen.state in (None, AppState.COMMITTED, AppState.ROLLED_BACK, AppState.REMOVED):
            # A person at the device was quicker: it goes on as it was.
            return _not_reached(device, seen.held)
        if seen.held is None and self.now_s - (device.reached_s or 0.0) > self.plan.silence_s:
            if not seen.heard_after(device.reached_s):
                return _not_reached(device, "went away before it could hear of it")
            return self._ended(device, DeviceOutcome.SILENT, self._stuck(seen))
        return device

    def _committed(self, device: RolloutDevice, seen: Observation, speaks: bool) -> RolloutDevice:
        """Where a device stands that came to an end with the version, and should keep to it."""
        if not speaks:
            return self._if_silent(device, seen)
        restarts = device.evidence.get("restarts", 0)
        # The count begins at zero with each start of the agent.
        if seen.restarts > restarts or 0 < seen.restarts < restarts:
            evidence = device.evidence | {"restarts": seen.restarts}
            crashed = device.model_copy(update={"evidence": evidence})
            return self._ended(crashed, DeviceOutcome.FAILED, f"stopped by itself: {seen.reason or 'no reason given'}")
        heat = overheated(self.plan.gates, seen, device.evidence.get("before", {}).get("throttled"))
        if heat:
            return self._ended(device, DeviceOutcome.FAILED, heat)
        return self._if_silent(device, seen)

    def _if_silent(self, device: RolloutDevice, seen: Observation) -> RolloutDevice:
        quiet_s = self.now_s - max(seen.seen_s or 0.0, device.reached_s or 0.0)
        if quiet_s <= self.plan.silence_s:
            return device
        return self._ended(device, DeviceOutcome.SILENT, f"said nothing for {format_duration(self.plan.silence_s)}")

    def _ended(self, device: RolloutDevice, outcome: DeviceOutcome, reason: str) -> RolloutDevice:
        return device.model_copy(update={"outcome": outcome, "ended_s": self.now_s, "reason": reason})

    def _stuck(self, seen: Observation) -> str:
        limit = format_duration(self.plan.silence_s)
        known = ""
        if seen.version == self.rollout.version and seen.state is not None:
            state = "still on trial" if seen.state is AppState.PROVISIONAL else seen.state.value
            known = f": {state}{f', {seen.reason}' if seen.reason else ''}"
        if not seen.online:
            return f"heard of it, and said nothing more within {limit}{known}"
        return f"came to no end in {limit}{known}" if known else f"did not begin in {limit}"

    # ------------------------------------------------------------ all of them

    def verdict(self) -> Verdict:
        """What the gates say as things stand."""
        running = [
            self.seen[d.device]
            for d in self.reached
            if d.outcome is DeviceOutcome.COMMITTED and self.seen[d.device].version == self.rollout.version
        ]
        reached = {device.device for device in self.reached}
        rest = [
            each
            for each in self.seen.values()
            if each.device not in reached
            and each.version not in (None, self.rollout.version)
            and each.state is AppState.COMMITTED
        ]
        rest += [_as_before(d, self.seen[d.device]) for d in self.reached if d.evidence.get("before", {}).get("stats")]
        gates = judge(self.plan.gates, Sides(self.reached, running, rest))
        return Verdict(stage=self.rollout.stage, gates=gates)

    def chosen(self) -> list[Observation]:
        """Whom this stage has yet to reach, of those that can be reached now."""
        room = self._room()
        reached = {device.device for device in self.reached}
        ready = [each for each in self.seen.values() if each.ready and each.device not in reached]
        if room <= 0 or not ready:
            return []
        covered = {self.seen[name].hardware for name in reached}
        room -= len(self._expected(covered, room))
        return _spread(self.rollout.id, ready, covered, Counter(e.hardware for e in self.seen.values()))[: max(0, room)]

    def _room(self) -> int:
        """How many more devices this stage may reach."""
        stage = min(self.rollout.stage, len(self.plan.stages))
        return max(0, goals(self.plan, len(self.seen))[stage - 1] - len(self.reached))

    def _expected(self, covered: set[str], room: int) -> list[str]:
        """Hardware classes whose place among the next `room` is kept: heard of a while ago, only nobody is there now.

        After an outage of the cloud, say, when those that happen to report first are not the whole fleet. In the last
        stage it is all the same who comes first.
        """
        if self.rollout.stage >= len(self.plan.stages):
            return []
        sizes = Counter(e.hardware for e in self.seen.values())
        here = {e.hardware for e in self.seen.values() if e.ready}
        late = {
            e.hardware
            for e in self.seen.values()
            if not e.online and e.held is None and self.now_s - (e.seen_s or 0.0) <= self.plan.silence_s
        }
        order = sorted((here | late) - covered, key=lambda hardware: (-sizes[hardware], hardware))
        return [hardware for hardware in order[:room] if hardware not in here]

    def _coming(self) -> list[str]:
        """Those that are still on their way; one that is held at the device keeps nobody waiting."""
        return [
            d.device for d in self.awaited if d.outcome is DeviceOutcome.REACHED and self.seen[d.device].held is None
        ]

    def _soak_end_s(self) -> float:
        """When this stage has soaked; one that found nobody further to reach has, with the stage before it."""
        ends = [d.ended_s or 0.0 for d in self.awaited if d.outcome is DeviceOutcome.COMMITTED]
        if any(device.stage == self.rollout.stage for device in self.reached):
            ends.append(self.rollout.stage_s)
        return max(ends, default=self.rollout.stage_s) + self.plan.soak_s

    def waits(self, verdict: Verdict, *, window_shut: bool) -> str:
        """What keeps it in this stage; "": nothing any more."""
        if window_shut and self.plan.window is not None:
            return f"its window, {window.words(self.plan.window)}"
        if not self.seen:
            return ""
        if not self.reached:
            held = sum(each.online and each.held is not None for each in self.seen.values())
            return "a matching device that is not held" if held else "a matching device that is online"
        coming = self._coming()
        if coming:
            return f"{_names(coming)} to come to an end with it"
        expected = self._expected({self.seen[d.device].hardware for d in self.reached}, self._room())
        if expected:
            return f"a device with {expected[0] or 'unknown hardware'}, heard a moment ago"
        if self.now_s < self.soak_end_s:
            left_s = math.ceil(self.soak_end_s - self.now_s)
            return f"the end of its soak, {format_duration(left_s)}"
        quiet = [
            d.device
            for d in self.awaited
            if d.outcome is DeviceOutcome.COMMITTED and (self.seen[d.device].seen_s or 0.0) < self.soak_end_s
        ]
        if quiet:
            return f"a word of {_names(quiet)}"
        few = [each for each in verdict.gates if each.passed is None]
        asked = [each for each in few if _unjudged(each)]
        patience_s = max(self.plan.soak_s, self.plan.silence_s if asked else 0.0)
        if few and self.now_s < self.soak_end_s + patience_s:
            return f"more frames: {(asked or few)[0].words}"
        return ""

    # ------------------------------------------------------------ what follows

    def stay(self, verdict: Verdict) -> Step:
        return Step(self.rollout, verdict, list(self.changes.values()))

    def reach(self, verdict: Verdict, chosen: list[Observation]) -> Step:
        """Tell `chosen` to run the version."""
        stage = self.rollout.stage
        first = not any(device.stage == stage for device in self.reached)
        for each in chosen:
            self.changes[each.device] = told(self.rollout, self.known.get(each.device), each, self.now_s)
        row = replace(self.rollout, stage_s=self.now_s) if first else self.rollout
        names = _names([each.device for each in chosen])
        return Step(row, verdict, list(self.changes.values()), [f"stage {stage} reaches {names}"])

    def stopped(self, verdict: Verdict, failed: list[GateVerdict]) -> Step:
        """A gate failed: everybody back, or a person decides. Where one could only not judge, always a person does."""
        reason = "; ".join(each.words for each in failed)
        back = self.plan.on_failure == "roll_back" and any(each.passed is False for each in failed)
        state = RolloutState.ROLLED_BACK if back else RolloutState.HALTED
        row = replace(self.rollout, state=state, reason=reason, verdict=verdict, ended_s=self.now_s if back else None)
        act = "rolled back" if back else "halted"
        return Step(row, verdict, list(self.changes.values()), [f"{act} in stage {self.rollout.stage}: {reason}"])

    def promoted(self, verdict: Verdict) -> Step:
        """On to the next stage, or done."""
        stage = self.rollout.stage
        if stage >= len(self.plan.stages):
            row = replace(self.rollout, state=RolloutState.COMPLETED, verdict=verdict, ended_s=self.now_s)
            self._ask_again()
            return Step(row, verdict, list(self.changes.values()), ["completed"])
        row = replace(self.rollout, stage=stage + 1, stage_s=self.now_s, verdict=verdict)
        return Step(row, verdict, list(self.changes.values()), [f"stage {stage} passed"])

    def _ask_again(self) -> None:
        """It holds for all from now on: whoever could not be reached and gave it up before tries it again, too."""
        reached = {device.device for device in self.reached}
        for name, each in self.seen.items():
            known = self.known.get(name)
            later = told(self.rollout, known, each, self.now_s)
            if name not in reached and later.attempt > (known.attempt if known else 0):
                self.changes[name] = _not_reached(later, known.reason if known else "")


def told(rollout: RolloutRow, known: RolloutDevice | None, seen: Observation, now_s: float) -> RolloutDevice:
    """`seen`, told to run the version now. A version it gave up before is tried again: somebody deployed it again.

    A device that was told to remove the app says nothing of it any more, and keeps what it gave up all the same; there
    another attempt is asked for wherever the version is not new. It means nothing to a device that gave nothing up.
    """
    attempt = known.attempt if known else 0
    gave_up = rollout.version in seen.refused or (
        seen.version == rollout.version and seen.state is AppState.ROLLED_BACK
    )
    may_have = seen.asked is not None and seen.state in (None, AppState.REMOVED)
    if gave_up or may_have:
        attempt = max(attempt, seen.attempt + 1, (seen.asked or 0) + 1)
    before: dict[str, Any] = {"version": seen.running or seen.version, "throttled": seen.throttled}
    if seen.version not in (None, rollout.version) and seen.state is AppState.COMMITTED:
        before["stats"] = {key: seen.stats[key] for key in _BEFORE if key in seen.stats}
    return RolloutDevice(
        device=seen.device,
        stage=rollout.stage,
        outcome=DeviceOutcome.REACHED,
        reached_s=now_s,
        attempt=attempt,
        evidence={"before": before},
    )


def _not_reached(device: RolloutDevice, reason: str) -> RolloutDevice:
    """It goes on as it was, and is reached when it can be."""
    waiting = {"outcome": DeviceOutcome.WAITING, "stage": 0, "reached_s": None, "reason": reason}
    return device.model_copy(update=waiting)


def _unjudged(verdict: GateVerdict) -> bool:
    """Whether a gate that a person asked for has too few frames to judge by."""
    return verdict.passed is None and verdict.gate in ASKED


def _as_before(device: RolloutDevice, seen: Observation) -> Observation:
    """The device as it was when it was reached, for comparison."""
    return Observation(device=device.device, hardware=seen.hardware, stats=device.evidence["before"]["stats"])


def _spread(rollout: int, ready: Iterable[Observation], covered: set[str], sizes: Counter[str]) -> list[Observation]:
    """`ready` in the order in which they are reached: the same on every controller, and each time another.

    One of each hardware class that has none yet first, the commonest first, so that a slow class shows itself early.
    """
    by_chance = sorted(ready, key=lambda each: hashlib.sha256(f"{rollout}/{each.device}".encode()).digest())
    first: dict[str, Observation] = {}
    for each in by_chance:
        if each.hardware not in covered:
            first.setdefault(each.hardware, each)
    ahead = sorted(first.values(), key=lambda each: (-sizes[each.hardware], each.hardware))
    names = {each.device for each in ahead}
    return ahead + [each for each in by_chance if each.device not in names]


def _names(devices: list[str]) -> str:
    more = len(devices) - 3
    return ", ".join(devices[:3]) + (f" and {more} more" if more > 0 else "")
