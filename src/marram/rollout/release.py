"""What an app version is made of: its text, the files and model versions it names, each proven to be in the cloud.

A reference without a number means the newest version, or what a channel points to, at the moment of the decision: it
is pinned here, so what runs never changes by itself.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence

from marram.registry import Registry, bundle_digest
from marram.schema.app import App, InferStep, Step, app_on, model_uses, parse_app
from marram.schema.device import CloudModel, DesiredApp, ModelRef
from marram.schema.errors import Invalid, Missing
from marram.schema.ids import by_channel
from marram.schema.model import File, Manifest, ModelCard
from marram.schema.page import Page
from marram.schema.references import with_references
from marram.store import AppRow, ModelRow, Objects, Store

APP_FILE = "app.yaml"


# Signs an app version, and the model versions it names, for devices to trust. Raises MarramError.
Sign = Callable[[DesiredApp], None]


# The wheels that these requirements of functions take on the devices of a selector, by platform. Raises MarramError.
Resolve = Callable[[Sequence[str], dict[str, str]], dict[str, Manifest]]


def no_wheels(requires: Sequence[str], selector: dict[str, str]) -> dict[str, Manifest]:
    """For where no device is."""
    return {}


def unsigned(app: DesiredApp) -> None:
    """For where no device is: nobody signs it."""


class Releases:
    """Makes app versions. Blocking; safe from any thread."""

    def __init__(
        self,
        store: Store,
        registry: Registry,
        objects: Objects,
        sign: Sign = unsigned,
        resolve: Resolve = no_wheels,
    ) -> None:
        self._store = store
        self._registry = registry
        self._objects = objects
        self._sign = sign
        self._wheels = resolve

    def make(self, app_yaml: str, files: Manifest, selector: dict[str, str]) -> AppRow:
        """The version that is this text with these files; the one there is already where it is the same.

        `selector`: for whose platforms wheels are resolved. Raises Invalid (app, files, requirements), Missing (a model
        or file is not in the cloud), Retryable (the package index).
        """
        app_yaml, app = self._pinned(app_yaml)
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
            wheels=self._wheels([each for step in app.functions for each in step.requires], selector),
            secrets=app.secrets,
            peers=app.peers,
        )
        made = self._store.apps.add(wanted, _digest(wanted))
        self._sign(made.app)
        return made

    def _pinned(self, app_yaml: str) -> tuple[str, App]:
        """The app with the version in place of each channel (`net@stable` -> `net@3`): devices know of no channels."""
        page = Page.read(app_yaml, "app.yaml")
        app = app_on(page)
        given = {
            use.place: f"{row.name}@{row.version}"
            for use in model_uses(app)
            if by_channel(use.reference) and (row := self._model(use.reference))
        }
        if not given:
            return app_yaml, app
        text = with_references(page, app_yaml, app, given)
        return text, parse_app(text)

    def _files(self, app: App, app_yaml: str, files: Manifest) -> Manifest:
        """The app's text and everything it names, each proven to be in the object store."""
        text = self._objects.put(app_yaml.encode())
        listed = {file.path: file for file in files.files}
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
        return Manifest.of((path, listed[path].sha256, listed[path].size_bytes) for path in sorted(listed))

    def _edge_models(self, app: App) -> list[ModelRef]:
        """What the device itself runs, each model once, with the variants that its steps name; and of the cloud's
        models the fronts, where a step may part them.
        """
        rows: dict[tuple[str, int], ModelRow] = {}
        variants: dict[tuple[str, int], set[str | None]] = {}
        fronts: dict[tuple[str, int], set[str]] = {}
        for use in model_uses(app):
            row = self._model(use.reference)
            if use.cloud:
                if names := _fronts(app, use.step, row.card):
                    rows[row.name, row.version] = row
                    fronts.setdefault((row.name, row.version), set()).update(names)
                continue
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
                variants=sorted(variants.get(key, ()), key=lambda name: (name is not None, name or "")),
                fronts=sorted(fronts.get(key, ())),
            )
            for key, row in sorted(rows.items())
        ]

    def _resolve(self, references: list[str]) -> list[ModelRow]:
        """Each model once, in name order."""
        rows = {(row.name, row.version): row for row in map(self._model, references)}
        return [rows[key] for key in sorted(rows)]

    def _model(self, reference: str) -> ModelRow:
        try:
            return self._registry.resolve(reference)
        except Invalid as error:
            error.hint = error.hint or "A folder means nothing here: push it, then write name or name@version."
            raise


def _fronts(app: App, step: Step, card: ModelCard) -> list[str]:
    """The cuts at which `step` may part the cloud's model: of those that never leave the device, none."""
    if app.raw == "never" or not isinstance(step, InferStep) or not step.split or step.place == "edge":
        return []
    return [cut.name for cut in card.cuts_within(step.encoding_loss)]


def _digest(app: DesiredApp) -> str:
    """An app version is its files and the model versions it means: a newer model makes a newer app version."""
    parts = {
        "files": bundle_digest(app.files),
        "models": [[m.name, m.version, bundle_digest(m.manifest)] for m in app.models],
        "cloud": [[m.name, m.version] for m in app.cloud],
        "wheels": {platform: bundle_digest(wheels) for platform, wheels in app.wheels.items()},
    }
    return hashlib.sha256(json.dumps(parts, separators=(",", ":"), sort_keys=True).encode()).hexdigest()
