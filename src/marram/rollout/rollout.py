"""Rollouts, thin: deploy an app to a selector, remove it, and bring every device's desired state up to date."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

from marram.registry import Registry, bundle_digest
from marram.rollout.desire import desired_apps, holding
from marram.runtime.library import parse_reference
from marram.schema.app import App, model_uses, parse_app
from marram.schema.device import CloudModel, DesiredApp, ModelRef
from marram.schema.errors import Invalid, Missing
from marram.schema.model import File, Manifest
from marram.store import DeploymentRow, ModelRow, Objects, Store

APP_FILE = "app.yaml"


@dataclass(frozen=True, slots=True)
class Rolled:
    """What a decision led to: the deployment, and the devices whose desired state it changed (nudge them)."""

    deployment: DeploymentRow
    changed: list[str]


class Rollout:
    """Deployments over the store. Blocking; safe from any thread."""

    def __init__(self, store: Store, registry: Registry, objects: Objects) -> None:
        self._store = store
        self._registry = registry
        self._objects = objects

    def deploy(self, app_yaml: str, files: Manifest, selector: dict[str, str]) -> Rolled:
        """Put an app on every device that matches `selector` ({}: all), those that join later included.

        `files`: what travels with the app (functions, data), uploaded already. Model references (`name`, `name@3`)
        are pinned to a version now, so what "newest" means does not shift under a running device.
        Raises Invalid (app, files), Missing (a model or file is not in the cloud).
        """
        app = parse_app(app_yaml)
        manifest = self._files(app, app_yaml, files)
        wanted = DesiredApp(
            name=app.app,
            version=0,
            files=manifest,
            models=self._edge_models(app),
            cloud=[
                CloudModel(name=row.name, version=row.version, card=row.card)
                for row in self._resolve([use.reference for use in model_uses(app) if use.cloud])
            ],
        )
        version = self._store.apps.add(wanted, _digest(wanted)).version
        deployment = self._store.deployments.add(app.app, version, selector)
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

    # ------------------------------------------------------------ what an app version is made of

    def _files(self, app: App, app_yaml: str, files: Manifest) -> Manifest:
        """The app's text and everything it names, each proven to be in the object store."""
        text = self._objects.put(app_yaml.encode())
        listed = {file.path: file for file in files.files}
        if len(listed) != len(files.files):
            raise Invalid("a file is listed twice", where=app.app)
        given = listed.get(APP_FILE)
        if given is not None and given.sha256 != text.sha256:
            raise Invalid(f"the files hold another {APP_FILE} than the app's own", where=app.app)
        listed[APP_FILE] = File(path=APP_FILE, sha256=text.sha256, size_bytes=text.size_bytes)
        for file in listed.values():
            if not self._objects.has(file.sha256):
                raise Missing(f"{file.path} was not uploaded ({file.sha256[:12]}…)", where=app.app)
            if self._objects.size(file.sha256) != file.size_bytes:
                raise Invalid(f"{file.path} is not {file.size_bytes} bytes long", where=app.app)
        for name in [*(step.file for step in app.functions), *app.files]:
            if name not in listed:
                raise Invalid(f'the app names "{name}", which was not sent along', where=app.app)
        return Manifest(files=[listed[path] for path in sorted(listed)])

    def _edge_models(self, app: App) -> list[ModelRef]:
        """What the device itself runs, each model once, with the variants that its steps name."""
        rows: dict[tuple[str, int], ModelRow] = {}
        variants: dict[tuple[str, int], set[str | None]] = {}
        for use in model_uses(app):
            if use.cloud:
                continue
            row = self._model(use.reference)
            known = [variant.name for variant in row.card.variants]
            if use.variant is not None and use.variant not in known:
                raise Invalid(
                    f'{row.card.reference} has no variant "{use.variant}"; it has {", ".join(known)}', where=app.app
                )
            rows[row.name, row.version] = row
            variants.setdefault((row.name, row.version), set()).add(use.variant)
        return [
            ModelRef(
                name=row.name,
                version=row.version,
                manifest=row.manifest,
                variants=sorted(variants[key], key=lambda name: (name is not None, name or "")),
            )
            for key, row in sorted(rows.items())
        ]

    def _resolve(self, references: list[str]) -> list[ModelRow]:
        """Each model once, in name order."""
        rows = {(row.name, row.version): row for row in map(self._model, references)}
        return [rows[key] for key in sorted(rows)]

    def _model(self, reference: str) -> ModelRow:
        try:
            return self._registry.get(*parse_reference(reference))
        except Invalid as error:
            error.hint = error.hint or "A folder means nothing here: push it, then write name or name@version."
            raise


def _digest(app: DesiredApp) -> str:
    """An app version is its files and the model versions it means: a newer model makes a newer app version."""
    parts = {
        "files": bundle_digest(app.files),
        "models": [[m.name, m.version, bundle_digest(m.manifest)] for m in app.models],
        "cloud": [[m.name, m.version] for m in app.cloud],
    }
    return hashlib.sha256(json.dumps(parts, separators=(",", ":"), sort_keys=True).encode()).hexdigest()
