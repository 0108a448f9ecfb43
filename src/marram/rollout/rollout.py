"""Deployments over the store: deploy an app to a selector, remove it, and keep every device's desired state true.

What a person decides becomes a rollout; `Rollouts` (beside this) takes it further, a step at a time. Whatever was
decided, `refresh` brings desired states after it, from all there is: it may be killed or run twice anywhere.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass, field

from marram.registry import Registry
from marram.rollout import window
from marram.rollout.controller import told
from marram.rollout.desire import desired_apps, holding, living
from marram.rollout.observation import Observation
from marram.rollout.release import Releases, Resolve, Sign, no_wheels, unsigned
from marram.rollout.rollouts import Rollouts
from marram.schema.device import Desired, DesiredApp
from marram.schema.errors import Missing
from marram.schema.ids import disjoint, matches
from marram.schema.model import Manifest
from marram.schema.rollout import Plan, RolloutState, at_once
from marram.schema.words import did_you_mean
from marram.store import OPEN, AppRow, DeploymentRow, Objects, RolloutRow, Standing, Store


@dataclass(frozen=True, slots=True)
class Rolled:
    """What a decision led to: the deployment, and the devices whose desired state it changed (nudge them).

    `new`: False where the very same was decided before and still stands.
    """

    deployment: DeploymentRow
    changed: list[str] = field(default_factory=list)
    rollout: RolloutRow | None = None
    new: bool = True


class Rollout:
    """Deployments over the store. Blocking; safe from any thread."""

    def __init__(
        self,
        store: Store,
        registry: Registry,
        objects: Objects,
        sign: Sign = unsigned,
        resolve: Resolve = no_wheels,
    ) -> None:
        """`sign`: called with each app version before any device is told of it; `resolve`: see `Releases`."""
        self._store = store
        self._releases = Releases(store, registry, objects, sign, resolve)
        self.rollouts = Rollouts(store)

    def deploy(
        self,
        app_yaml: str,
        files: Manifest,
        selector: dict[str, str],
        plan: Plan | None = None,
        now_s: float | None = None,
    ) -> Rolled:
        """Bring an app to every device that matches `selector` ({}: all), those that join later included.

        `files`: what travels with the app (functions, data), uploaded already. Model references (`name`, `name@3`)
        are pinned to a version now, so what "newest" means does not shift under a running device. Where no matching
        device has another version of the app, all get it at once, but for what `plan` says itself.
        Raises Invalid (app, files, window), Missing (a model or file is not in the cloud).
        """
        now_s = time.time() if now_s is None else now_s
        if plan is not None and plan.window is not None:
            window.check(plan.window)
        made = self._releases.make(app_yaml, files, selector)
        standings = living(self._store.rollouts.standings())
        matching = [each for each in self._store.states.sightings(now_s=now_s) if matches(selector, each.labels)]
        held = [holding(each.device, each.labels, standings).get(made.name) for each in matching]
        first = all(row is None or row.version in (None, made.version) for row in held)
        plan = _chosen(plan, first=first)
        same = self._same(made, selector, plan, standings)
        if same is not None:
            return same
        state = RolloutState.COMPLETED if plan.immediate else RolloutState.RUNNING
        rollout = self._store.rollouts.start(made.name, made.version, selector, plan, state=state, now_s=now_s)
        if plan.immediate:
            self._ask_again(rollout, self.rollouts.observed(rollout, matching), now_s)
        else:
            self.rollouts.advance(rollout.id, now_s)
        row = DeploymentRow(rollout.id, made.name, made.version, selector, rollout.created_s)
        return Rolled(row, self.refresh(), self._store.rollouts.get(rollout.id))

    def remove(self, app: str, selector: dict[str, str] | None = None) -> Rolled:
        """Take an app off every device that matches `selector`. Raises Missing where it was never deployed."""
        if not self._store.deployments.list(app):
            raise self.unknown(app)
        deployment = self._store.deployments.add(app, None, selector or {})
        self._store.rollouts.supersede(deployment)
        return Rolled(deployment, self.refresh())

    def unknown(self, app: str) -> Missing:
        """What is said of an app that is not deployed."""
        meant = did_you_mean(app, {row.app for row in self.current()})
        return Missing(f'no app "{app}" is deployed{meant}', hint="`marram deploy --list` shows what is.")

    def refresh(self, devices: str | Collection[str] | None = None) -> list[str]:
        """Bring desired states (of these devices, or all) up to date; returns the devices whose state changed.

        Cheap where little changes: devices for which the same holds share one document, which is compared as text.
        """
        labels = self._store.devices.labels()
        if devices is not None:
            wanted = {devices} if isinstance(devices, str) else set(devices)
            labels = {device: its for device, its in labels.items() if device in wanted}
        standings = living(self._store.rollouts.standings())
        attempts, known = self._store.rollouts.attempts(), self._store.states.desired_texts()
        versions: dict[tuple[str, int], DesiredApp | None] = {}

        def app(name: str, version: int) -> DesiredApp | None:
            if (name, version) not in versions:
                row = self._store.apps.get(name, version)
                versions[name, version] = row.app if row else None
            return versions[name, version]

        made: dict[object, tuple[list[DesiredApp], dict[str, int], str]] = {}
        differs: dict[str, tuple[list[DesiredApp], dict[str, int]]] = {}
        for device, its in labels.items():
            held = holding(device, its, standings)
            asked = attempts.get(device, {})
            key = (tuple((name, row.version) for name, row in held.items()), tuple(asked.items()))
            if key not in made:
                apps = desired_apps(held, app)
                again = {name: asked[name] for name in sorted(asked) if any(each.name == name for each in apps)}
                made[key] = (apps, again, _text(0, apps, again).partition(",")[2])
            apps, again, tail = made[key]
            text = known.get(device, "")
            if text.partition(",")[2] != tail and (text or apps):
                differs[device] = (apps, again)
        return self._store.states.desire_many(differs)

    def standings(self) -> list[Standing]:
        """The deployments that can still hold for some device, newest first."""
        return living(self._store.rollouts.standings())

    def current(self) -> list[DeploymentRow]:
        """The deployments that hold, newest first: of an app several, where they are for others or not through yet."""
        return [each.deployment for each in self.standings() if each.deployment.version is not None]

    def targets(self, app: str) -> dict[str, DeploymentRow]:
        """The devices that should run `app`, each with the deployment that says so."""
        standings = [each for each in self.standings() if each.deployment.app == app]
        found: dict[str, DeploymentRow] = {}
        for device, labels in self._store.devices.labels().items():
            row = holding(device, labels, standings).get(app)
            if row is not None and row.version is not None:
                found[device] = row
        return found

    def served(self) -> set[tuple[str, int]]:
        """The (model, version) pairs that replicas must serve: every `cloud:` of what holds for somebody."""
        pairs: set[tuple[str, int]] = set()
        for row in self.current():
            app = self._store.apps.get(row.app, row.version)
            pairs |= {(model.name, model.version) for model in app.app.cloud} if app else set()
        return pairs

    # ------------------------------------------------------------ deciding

    def _same(self, made: AppRow, selector: dict[str, str], plan: Plan, standings: list[Standing]) -> Rolled | None:
        """What was decided before, where this is the very same and nothing newer stands against it."""
        for standing in standings:
            row = standing.deployment
            if row.app != made.name:
                continue
            if row.selector == selector and row.version == made.version:
                if standing.state not in (None, RolloutState.COMPLETED, *OPEN):
                    return None
                rollout = self._store.rollouts.get(row.id) if standing.state else None
                if rollout is not None and rollout.open and plan.immediate:
                    return None  # it is under way by stages, and now all at once is wanted
                return Rolled(row, self.refresh(), rollout, new=False)
            if not disjoint(row.selector, selector):
                return None
        return None

    def _ask_again(self, rollout: RolloutRow, seen: list[Observation], now_s: float) -> None:
        """Devices that gave this version up before try again: somebody deployed it again."""
        asked = [device for each in seen if (device := told(rollout, None, each, now_s)).attempt]
        if asked:
            self._store.rollouts.save(rollout, rollout, asked)


def _chosen(plan: Plan | None, *, first: bool) -> Plan:
    """The plan: what was said of it, over what is usual."""
    usual = at_once() if first else Plan()
    if plan is None:
        return usual
    return usual.model_copy(update={name: getattr(plan, name) for name in plan.model_fields_set})


def _text(version: int, apps: list[DesiredApp], attempts: dict[str, int]) -> str:
    return Desired(version=version, apps=apps, attempts=attempts).model_dump_json()
