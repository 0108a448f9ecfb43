"""Rollouts over the store: takes each open one a step further, and does what a person says of one.

The decisions are `controller`'s; this reads what they are made of, and writes them by compare and set: where somebody
else was quicker, it reads again. Nothing is kept in memory between two calls, so it may be killed between any two
writes, and several may run.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection
from dataclasses import dataclass, replace

from marram.rollout import controller
from marram.rollout.controller import Step
from marram.rollout.desire import concerns, living
from marram.rollout.observation import Observation, observe
from marram.schema.device import AppState
from marram.schema.errors import Conflict, MarramError, Missing
from marram.schema.ids import matches
from marram.schema.rollout import DeviceOutcome, RolloutDevice, RolloutState
from marram.store import OPEN, RolloutRow, Sighting, Standing, Store, auditing

log = logging.getLogger(__name__)

# How often somebody else may be quicker before it is told.
_TRIES = 20
# Steps taken at one look: through stages in which there is nothing to wait for.
_STEPS = 25


@dataclass(frozen=True, slots=True)
class Look:
    """One rollout as it stands: what is kept of it, what is seen of all its devices, and what a step would say."""

    rollout: RolloutRow
    devices: dict[str, RolloutDevice]
    seen: list[Observation]
    step: Step


class Rollouts:
    """See the module's words. Blocking; safe from any thread and in several processes."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def advance_all(self, now_s: float | None = None) -> bool:
        """Take every open rollout as far as it goes now; whether it changes what runs where (then `refresh`)."""
        rows = [row for row in self._store.rollouts.open() if row.state is RolloutState.RUNNING]
        if not rows:
            return False
        now_s = time.time() if now_s is None else now_s
        sightings = self._store.states.sightings(now_s=now_s)
        decided = False
        for row in rows:
            try:
                decided |= self.advance(row.id, now_s, sightings)
            except MarramError:
                raise
            except Exception:
                # The supervisor of rollouts: what only one of them meets must not keep the others from going on.
                log.exception("rollout %d of %s cannot be taken on; the others are", row.id, row.app)
        return decided

    def advance(self, rollout: int, now_s: float, sightings: list[Sighting] | None = None) -> bool:
        """Take one rollout as far as it goes now; whether that changes what runs where. Raises Missing."""
        sightings = self._store.states.sightings(now_s=now_s) if sightings is None else sightings
        decided = False
        for _ in range(_STEPS):
            row = self._store.rollouts.get(rollout)
            devices, seen = self._store.rollouts.devices(rollout), self._seen(row, sightings)
            step = controller.step(row, devices, seen, now_s)
            if not step.changed:
                return decided
            if self._save(row, step):
                decided |= bool(step.acts) or any(d.outcome is DeviceOutcome.WAITING for d in step.devices)
        return decided

    def get(self, rollout: int) -> RolloutRow:
        """What is kept of a rollout. Raises Missing."""
        return self._store.rollouts.get(rollout)

    def look(self, rollout: int, now_s: float | None = None) -> Look:
        """How a rollout stands, or stood when it ended: then with all it was for, whoever decides over them since.

        Raises Missing.
        """
        now_s = time.time() if now_s is None else now_s
        row = self._store.rollouts.get(rollout)
        devices = self._store.rollouts.devices(rollout)
        sightings = self._store.states.sightings(now_s=now_s)
        seen = self._seen(row, sightings)
        if not row.open:
            mine = {each.device for each in seen}
            mine |= {
                each.device for each in sightings if row.state is not RolloutState.COMPLETED or each.device in devices
            }
            seen = [observe(e, row.app) for e in sightings if e.device in mine and matches(row.selector, e.labels)]
        return Look(row, devices, seen, controller.step(row, devices, seen, now_s))

    # ------------------------------------------------------------ what a person says

    def pause(self, rollout: int) -> RolloutRow:
        """It reaches no further device and judges none. Raises Missing, Conflict."""
        return self._move(rollout, RolloutState.PAUSED, "paused by a person", (RolloutState.RUNNING,))

    def resume(self, rollout: int) -> RolloutRow:
        """On from where it stood; its stage soaks anew. Raises Missing, Conflict."""
        stopped = (RolloutState.PAUSED, RolloutState.HALTED)
        return self._move(rollout, RolloutState.RUNNING, "", stopped)

    def abort(self, rollout: int) -> RolloutRow:
        """Every device back to what it had. Raises Missing, Conflict."""
        return self._move(rollout, RolloutState.ABORTED, "aborted by a person", OPEN)

    def promote(self, rollout: int, now_s: float | None = None) -> RolloutRow:
        """Into the next stage without waiting; past the gates that halted it. Raises Missing, Conflict."""
        now_s = time.time() if now_s is None else now_s
        for _ in range(_TRIES):
            row = self._store.rollouts.get(rollout)
            if row.state not in (RolloutState.RUNNING, RolloutState.HALTED):
                raise _not_now(row, "promoted")
            devices = self._store.rollouts.devices(rollout)
            seen = self._seen(row, self._store.states.sightings(now_s=now_s))
            if self._store.rollouts.save(
                row, (step := controller.promote(row, devices, seen, now_s)).rollout, step.devices
            ):
                self.advance(rollout, now_s)
                return self._store.rollouts.get(rollout)
        raise _busy(rollout)

    def retry(self, rollout: int, device: str, now_s: float | None = None) -> RolloutDevice:
        """Let one device try again what it gave up. Raises Missing, Conflict (the rollout no longer holds)."""
        now_s = time.time() if now_s is None else now_s
        for _ in range(_TRIES):
            row = self._store.rollouts.get(rollout)
            found = self._store.states.sightings(device, now_s)
            if not found:
                raise Missing(f'no device "{device}"', hint="`marram device list` shows all.")
            known = self._store.rollouts.devices(rollout).get(device)
            if not (row.open or row.state is RolloutState.COMPLETED):
                raise _not_now(row, f"tried again on {device}")
            if not matches(row.selector, found[0].labels):
                raise Conflict(f"rollout {rollout} is not for {device}: its labels do not match")
            if row.open and (known is None or known.outcome is DeviceOutcome.WAITING):
                raise Conflict(f"rollout {rollout} has not reached {device} yet", hint="Nothing was given up there.")
            seen = observe(found[0], row.app)
            if seen.version == row.version and seen.state is AppState.COMMITTED:
                raise Conflict(f"{device} has {row.app} {row.version} committed: there is nothing to try again")
            asked = max(self._store.rollouts.attempts().get(device, {}).get(row.app, 0), seen.attempt) + 1
            told = controller.told(row, known, seen, now_s).model_copy(update={"attempt": asked})
            if known is not None:
                told = told.model_copy(update={"stage": known.stage or row.stage, "evidence": known.evidence})
            if self._store.rollouts.save(row, row, [told]):
                return told
        raise _busy(rollout)

    def _move(self, rollout: int, state: RolloutState, reason: str, allowed: Collection[RolloutState]) -> RolloutRow:
        for _ in range(_TRIES):
            row = self._store.rollouts.get(rollout)
            if row.state is state:
                return row
            if row.state not in allowed:
                raise _not_now(row, {"running": "resumed"}.get(state.value, state.value))
            now_s = time.time()
            after = replace(row, state=state, reason=reason)
            if state is RolloutState.RUNNING:
                after = replace(after, stage_s=now_s)
            if not after.open:
                after = replace(after, ended_s=now_s)
            if self._store.rollouts.save(row, after):
                return self._store.rollouts.get(rollout)
        raise _busy(rollout)

    # ------------------------------------------------------------ small things

    def _seen(self, row: RolloutRow, sightings: list[Sighting]) -> list[Observation]:
        """All that `row` decides over: matching devices that no newer deployment of the app is for."""
        newer = [each for each in self._newer(row) if each.deployment.id > row.id]
        return self.observed(
            row,
            [
                each
                for each in sightings
                if each.revoked_s is None
                and matches(row.selector, each.labels)
                and concerns(row.id, row.app, each.labels, newer)
            ],
        )

    def observed(self, row: RolloutRow, sightings: list[Sighting]) -> list[Observation]:
        """What `sightings` say of its app; where its version is not new, with how often each was asked to try again."""
        before = [each for each in self._store.deployments.list(row.app) if each.id < row.id]
        if all(each.version != row.version for each in before):
            return [observe(each, row.app) for each in sightings]
        asked = self._store.rollouts.attempts()
        return [observe(each, row.app, asked.get(each.device, {}).get(row.app, 0)) for each in sightings]

    def _newer(self, row: RolloutRow) -> list[Standing]:
        return [each for each in living(self._store.rollouts.standings()) if each.deployment.app == row.app]

    def _save(self, row: RolloutRow, step: Step) -> bool:
        if not step.acts:  # outcomes of devices: not a decision, and the devices say so themselves
            return self._store.rollouts.save(row, step.rollout, step.devices)
        with auditing(f"rollout:{row.id}", "rollout.advance", f"{row.app} {row.version}", acts=step.acts):
            saved = self._store.rollouts.save(row, step.rollout, step.devices)
        if saved:
            log.info("rollout %d: %s %d: %s", row.id, row.app, row.version, "; ".join(step.acts))
        return saved


def _not_now(row: RolloutRow, what: str) -> Conflict:
    state = row.state.value.replace("_", " ")
    hint = f"marram rollout show {row.id}" if row.open else "Deploy it again: marram deploy"
    if row.state is RolloutState.HALTED:
        hint = f"marram rollout promote {row.id} goes on all the same, abort {row.id} brings everybody back."
    return Conflict(f"rollout {row.id} is {state} and cannot be {what}", hint=hint)


def _busy(rollout: int) -> Conflict:
    return Conflict(f"rollout {rollout} changes all the time", hint="Try again.")
