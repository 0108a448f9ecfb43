"""Rollouts and the devices they reached: every change is one transaction that only the newest revision may make.

A decision is read from one revision and written under it (compare and set): of two who decide at once one wins, the
other reads again. Whoever dies between reading and writing has changed nothing.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import Connection, Select, insert, select, update

from marram.schema.errors import Missing
from marram.schema.ids import covers
from marram.schema.rollout import DeviceOutcome, Plan, RolloutDevice, RolloutState, Verdict
from marram.store.audit import noted, unchanged
from marram.store.database import Database
from marram.store.deployments import DeploymentRow
from marram.store.documents import dump, load
from marram.store.tables import deployments, rollout_devices, rollouts
from marram.store.upsert import upsert

# In these a rollout is still going somewhere.
OPEN = frozenset({RolloutState.RUNNING, RolloutState.PAUSED, RolloutState.HALTED})


@dataclass(frozen=True, slots=True)
class RolloutRow:
    """One rollout; `id`, `app`, `version` and `selector` are its deployment's. `verdict`: what the gates said last."""

    id: int
    app: str
    version: int
    selector: dict[str, str]
    created_s: float
    state: RolloutState = RolloutState.RUNNING
    stage: int = 1
    stage_s: float = 0.0
    plan: Plan = field(default_factory=Plan)
    verdict: Verdict = field(default_factory=Verdict)
    reason: str = ""
    revision: int = 1
    ended_s: float | None = None

    @property
    def open(self) -> bool:
        return self.state in OPEN


@dataclass(frozen=True, slots=True)
class Standing:
    """A deployment and how far it has come. Without a rollout (`state` None) it holds for all that match at once."""

    deployment: DeploymentRow
    state: RolloutState | None = None
    reached: frozenset[str] = frozenset()

    @property
    def complete(self) -> bool:
        """Whether it holds for every device that matches, those that join later included."""
        return self.state in (None, RolloutState.COMPLETED)

    def holds_for(self, device: str) -> bool:
        """Whether it has come as far as `device` (which matches its selector)."""
        return self.complete or device in self.reached


class Rollouts:
    """The tables of rollouts and of their devices."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def start(
        self,
        app: str,
        version: int,
        selector: dict[str, str],
        plan: Plan,
        *,
        state: RolloutState = RolloutState.RUNNING,
        devices: Iterable[RolloutDevice] = (),
        now_s: float | None = None,
    ) -> RolloutRow:
        """A new deployment and its rollout, with what is known of its devices, in one transaction.

        Open rollouts of the app whose every device this one matches too are superseded by it.
        """
        now_s = time.time() if now_s is None else now_s
        with self._database.write() as connection:
            self._database.order_ids(connection)
            row = {"app": app, "version": version, "selector": dump(selector), "created_s": now_s}
            key = connection.execute(insert(deployments).values(**row)).inserted_primary_key
            assert key is not None
            made = RolloutRow(int(key[0]), app, version, selector, now_s, state, 1, now_s, plan)
            if not made.open:
                made = replace(made, ended_s=now_s)
            connection.execute(insert(rollouts), _columns(made))
            for device in devices:
                upsert(connection, rollout_devices, {"rollout": made.id, **_device_columns(device)})
            _supersede(connection, made.id, app, selector, now_s)
            noted(deployment=made.id, version=version, stages=plan.stages)
            return made

    def supersede(self, deployment: DeploymentRow, now_s: float | None = None) -> None:
        """A removal takes the place of open rollouts all of whose devices it matches."""
        with self._database.write() as connection:
            self._database.order_ids(connection)
            at_s = time.time() if now_s is None else now_s
            _supersede(connection, deployment.id, deployment.app, deployment.selector, at_s)

    def get(self, rollout: int) -> RolloutRow:
        """Raises Missing."""
        with self._database.read() as connection:
            row = connection.execute(_joined().where(rollouts.c.id == rollout)).first()
        if row is None:
            raise Missing(f"no rollout {rollout}", hint="`marram rollout list` shows all.")
        return _rollout(row)

    def all(self, app: str | None = None, limit: int | None = None) -> list[RolloutRow]:
        """Newest first."""
        query = _joined().order_by(rollouts.c.id.desc())
        query = query if app is None else query.where(rollouts.c.app == app)
        query = query if limit is None else query.limit(limit)
        with self._database.read() as connection:
            return [_rollout(row) for row in connection.execute(query)]

    def open(self) -> list[RolloutRow]:
        """Those that still go somewhere, newest first. Cheap: asked every second."""
        query = _joined().where(rollouts.c.state.in_([state.value for state in OPEN])).order_by(rollouts.c.id.desc())
        with self._database.read() as connection:
            return [_rollout(row) for row in connection.execute(query)]

    def devices(self, rollout: int) -> dict[str, RolloutDevice]:
        """What is known of each device it ever dealt with, by name."""
        query = select(rollout_devices).where(rollout_devices.c.rollout == rollout).order_by(rollout_devices.c.device)
        with self._database.read() as connection:
            return {row.device: _device(row) for row in connection.execute(query)}

    def save(self, before: RolloutRow, after: RolloutRow, devices: Iterable[RolloutDevice] = ()) -> bool:
        """Make `after` of `before`, with what changed of its devices; False where somebody else changed it meanwhile.

        All or nothing, on disk when it returns.
        """
        with self._database.write() as connection:
            values = {name: value for name, value in _columns(after).items() if name not in ("id", "revision")}
            changed = connection.execute(
                update(rollouts)
                .where(rollouts.c.id == before.id, rollouts.c.revision == before.revision)
                .values(**values, revision=before.revision + 1)
            )
            if changed.rowcount != 1:
                unchanged()  # of an audited act, too
                return False
            for device in devices:
                upsert(connection, rollout_devices, {"rollout": before.id, **_device_columns(device)})
            return True

    def history(self, device: str, app: str | None = None) -> list[tuple[RolloutRow, RolloutDevice]]:
        """Every rollout that dealt with `device`, oldest first, and how it went there."""
        rows = select(rollout_devices).where(rollout_devices.c.device == device)
        with self._database.read() as connection:
            outcomes = {row.rollout: _device(row) for row in connection.execute(rows)}
            query = _joined().where(rollouts.c.id.in_(list(outcomes))).order_by(rollouts.c.id)
            query = query if app is None else query.where(rollouts.c.app == app)
            return [(found, outcomes[found.id]) for found in map(_rollout, connection.execute(query))]

    def standings(self) -> list[Standing]:
        """Every deployment that may hold for somebody, newest first: rolled back and aborted ones hold for nobody."""
        dead = [RolloutState.ROLLED_BACK.value, RolloutState.ABORTED.value]
        partly = [*(state.value for state in OPEN), RolloutState.SUPERSEDED.value]
        query = (
            select(deployments, rollouts.c.state)
            .select_from(deployments.outerjoin(rollouts, rollouts.c.id == deployments.c.id))
            .where(rollouts.c.state.is_(None) | rollouts.c.state.not_in(dead))
            .order_by(deployments.c.id.desc())
        )
        reached_by = (
            select(rollout_devices.c.rollout, rollout_devices.c.device)
            .join(rollouts, rollouts.c.id == rollout_devices.c.rollout)
            .where(rollouts.c.state.in_(partly), rollout_devices.c.outcome != DeviceOutcome.WAITING.value)
        )
        reached: dict[int, set[str]] = defaultdict(set)
        with self._database.read() as connection:
            for row in connection.execute(reached_by):
                reached[row.rollout].add(row.device)
            return [
                Standing(
                    DeploymentRow(row.id, row.app, row.version, load(row.selector), row.created_s),
                    None if row.state is None else RolloutState(row.state),
                    frozenset(reached[row.id]),
                )
                for row in connection.execute(query)
            ]

    def attempts(self) -> dict[str, dict[str, int]]:
        """By device and app, how often a person asked to try again what the device gave up; only where ever asked."""
        query = (
            select(rollout_devices.c.device, rollout_devices.c.attempt, rollouts.c.app)
            .join(rollouts, rollouts.c.id == rollout_devices.c.rollout)
            .where(rollout_devices.c.attempt > 0)
        )
        found: dict[str, dict[str, int]] = defaultdict(dict)
        with self._database.read() as connection:
            for row in connection.execute(query):
                found[row.device][row.app] = max(row.attempt, found[row.device].get(row.app, 0))
        return dict(found)


def _supersede(connection: Connection, newer: int, app: str, selector: dict[str, str], now_s: float) -> None:
    """End the open rollouts of `app`, older than `newer`, all of whose devices match `selector` too."""
    query = _joined().where(
        rollouts.c.app == app, rollouts.c.id < newer, rollouts.c.state.in_([state.value for state in OPEN])
    )
    for older in map(_rollout, connection.execute(query).all()):
        if covers(selector, older.selector):
            connection.execute(
                update(rollouts)
                .where(rollouts.c.id == older.id)
                .values(
                    state=RolloutState.SUPERSEDED.value,
                    reason=f"deployment {newer} took its place",
                    revision=rollouts.c.revision + 1,
                    ended_s=now_s,
                )
            )


def _joined() -> Select[Any]:
    return select(rollouts, deployments.c.selector).join(deployments, deployments.c.id == rollouts.c.id)


def _rollout(row: Any) -> RolloutRow:
    return RolloutRow(
        row.id,
        row.app,
        row.version,
        load(row.selector),
        row.created_s,
        RolloutState(row.state),
        row.stage,
        row.stage_s,
        Plan.model_validate_json(row.plan),
        Verdict.model_validate_json(row.verdict),
        row.reason,
        row.revision,
        row.ended_s,
    )


def _columns(row: RolloutRow) -> dict[str, Any]:
    return {
        "id": row.id,
        "app": row.app,
        "version": row.version,
        "state": row.state.value,
        "stage": row.stage,
        "stage_s": row.stage_s,
        "plan": row.plan.model_dump_json(),
        "verdict": row.verdict.model_dump_json(),
        "reason": row.reason,
        "revision": row.revision,
        "created_s": row.created_s,
        "ended_s": row.ended_s,
    }


def _device(row: Any) -> RolloutDevice:
    return RolloutDevice(
        device=row.device,
        stage=row.stage,
        outcome=DeviceOutcome(row.outcome),
        reached_s=row.reached_s,
        ended_s=row.ended_s,
        attempt=row.attempt,
        reason=row.reason,
        evidence=load(row.evidence),
    )


def _device_columns(device: RolloutDevice) -> dict[str, Any]:
    return {
        "device": device.device,
        "stage": device.stage,
        "outcome": device.outcome.value,
        "reached_s": device.reached_s,
        "ended_s": device.ended_s,
        "attempt": device.attempt,
        "reason": device.reason,
        "evidence": dump(device.evidence),
    }
