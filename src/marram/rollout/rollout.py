"""Rollouts, thin: deploy an app to a selector, remove it, and bring every device's desired state up to date."""

from __future__ import annotations

import json
from dataclasses import dataclass

from marram.registry import Registry
from marram.rollout.desire import desired_apps, holding
from marram.rollout.release import Releases
from marram.schema.device import DesiredApp
from marram.schema.errors import Missing
from marram.schema.model import Manifest
from marram.store import DeploymentRow, Objects, Store


@dataclass(frozen=True, slots=True)
class Rolled:
    """What a decision led to: the deployment, and the devices whose desired state it changed (nudge them)."""

    deployment: DeploymentRow
    changed: list[str]


class Rollout:
    """Deployments over the store. Blocking; safe from any thread."""

    def __init__(self, store: Store, registry: Registry, objects: Objects) -> None:
        self._store = store
        self._releases = Releases(store, registry, objects)

    def deploy(self, app_yaml: str, files: Manifest, selector: dict[str, str]) -> Rolled:
        """Put an app on every device that matches `selector` ({}: all), those that join later included.

        `files`: what travels with the app (functions, data), uploaded already. Model references (`name`, `name@3`)
        are pinned to a version now, so what "newest" means does not shift under a running device.
        Raises Invalid (app, files), Missing (a model or file is not in the cloud).
        """
        made = self._releases.make(app_yaml, files)
        deployment = self._store.deployments.add(made.name, made.version, selector)
        return Rolled(deployment, self.refresh())

    def remove(self, app: str, selector: dict[str, str] | None = None) -> Rolled:
        """Take an app off every device that matches `selector`. Raises Missing where it was never deployed."""
        if not self._store.deployments.list(app):
            raise Missing(f'no app "{app}" is deployed')
        deployment = self._store.deployments.add(app, None, selector or {})
        return Rolled(deployment, self.refresh())

    def refresh(self, device: str | None = None) -> list[str]:
        """Bring desired states (of one device, or all) up to date; returns the devices whose state changed."""
        labels = self._store.devices.labels()
        if device is not None:
            labels = {device: labels[device]} if device in labels else {}
        deployments = self._store.deployments.list()
        known: dict[tuple[str, int], DesiredApp | None] = {}

        def app(name: str, version: int) -> DesiredApp | None:
            if (name, version) not in known:
                row = self._store.apps.get(name, version)
                known[name, version] = row.app if row else None
            return known[name, version]

        current = self._store.states.all_desired()
        changed = []
        for each, its_labels in labels.items():
            wanted = desired_apps(its_labels, deployments, app)
            if (current[each].apps if each in current else []) == wanted:
                continue  # cheap for a fleet where little changes; `desire` decides for good
            if self._store.states.desire(each, wanted) is not None:
                changed.append(each)
        return changed

    def current(self) -> list[DeploymentRow]:
        """The deployments that hold: for each app and selector the newest, where that is not a removal."""
        newest: dict[tuple[str, str], DeploymentRow] = {}
        superseded: set[str] = set()  # apps for which everything older lost to a deployment for all devices
        for row in self._store.deployments.list():
            key = (row.app, json.dumps(row.selector, sort_keys=True))
            if row.app in superseded or key in newest:
                continue
            newest[key] = row
            if not row.selector:
                superseded.add(row.app)
        return [row for row in newest.values() if row.version is not None]

    def targets(self, app: str) -> dict[str, DeploymentRow]:
        """The devices that should run `app`, each with the deployment that says so."""
        deployments = self._store.deployments.list(app)
        found: dict[str, DeploymentRow] = {}
        for device, labels in self._store.devices.labels().items():
            row = holding(labels, deployments).get(app)
            if row is not None and row.version is not None:
                found[device] = row
        return found

    def served(self) -> set[tuple[str, int]]:
        """The (model, version) pairs that replicas must serve: every `cloud:` of a deployment that holds."""
        pairs: set[tuple[str, int]] = set()
        for row in self.current():
            app = self._store.apps.get(row.app, row.version)
            pairs |= {(model.name, model.version) for model in app.app.cloud} if app else set()
        # A device may still run what an older deployment gave it.
        for desired in self._store.states.all_desired().values():
            pairs |= {(model.name, model.version) for each in desired.apps for model in each.cloud}
        return pairs
