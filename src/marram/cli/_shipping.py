"""What an app needs in the cloud before it can be deployed: its models, its files. Found here, sent there.

A model reference is looked up in the cloud first, then in this machine's library, whose bundle is pushed. A path to a
bundle folder means nothing on a device, so the deployed text names the version the folder's content got instead.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from marram.bus.http import CloudApi, Progress
from marram.cli._appfile import AppFile, build_detector
from marram.pipeline.check import is_path, missing_files, note_source_left_behind, rules, travelling_files
from marram.pipeline.findings import at
from marram.runtime import library
from marram.runtime.admit import left_behind
from marram.runtime.bundle import Bundle
from marram.runtime.codecs import unmeasured
from marram.schema.api import ModelView
from marram.schema.app import App, InferStep, ModelUse, asks_peers, model_uses
from marram.schema.errors import Invalid, MarramError, Missing, Retryable
from marram.schema.ids import ModelReference, parse_model_reference
from marram.schema.model import Manifest, ModelCard
from marram.schema.page import Place
from marram.schema.references import with_references
from marram.schema.words import did_you_mean


def files_of(file: AppFile) -> list[str]:
    """The files that travel with it. Raises Missing, Invalid naming line and field."""
    for fault in missing_files(file.app, file.folder):
        raise file.page.locate(fault)
    return sorted({name for _, name in travelling_files(file.app)})


def send_models(api: CloudApi, file: AppFile, told: Callable[[str], None], progress: Progress | None = None) -> str:
    """Make sure the cloud has every model of the app; returns the app's text as it is deployed.

    `told` hears what is pushed. Raises Missing (no such model anywhere, with the nearest name), Invalid, Conflict.
    """
    there = api.models()
    build_detector(file.app, {model.name for model in there})
    given: dict[Place, str] = {}
    asked_elsewhere: dict[str, ModelCard] = {}
    for use in model_uses(file.app):
        if is_path(use.reference):
            try:
                with at(use.place):
                    bundle = Bundle.open(file.folder / use.reference)
            except MarramError as error:
                raise file.page.locate(error) from error
            model = _push(api, bundle, None, told, progress)
            given[use.place] = f"{model.name}@{model.version}"
            _note_asked(file.app, use, model, asked_elsewhere)
            continue
        where = file.page.where(use.place)
        try:
            asked = parse_model_reference(use.reference)
        except ValueError as error:
            raise Invalid(f'"{use.reference}" names no model: {error}', where=where) from error
        if asked.channel is not None:
            pinned = _pointed(asked, there, where)
            given[use.place] = f"{pinned.name}@{pinned.version}"
            told(f"{use.reference} is {pinned.name}@{pinned.version} now, until the app is deployed again")
            _note_asked(file.app, use, pinned, asked_elsewhere)
            continue
        name, version = asked.name, asked.version
        newest = max((m.version for m in there if m.name == name), default=0)
        in_cloud = any(m.name == name and version in (None, m.version) for m in there)
        here = [v for v in library.versions(name) if version in (None, v)]
        if here and (not in_cloud or (version is None and here[-1] > newest)):
            model = _push(api, library.get(name, here[-1]), here[-1], told, progress)
            there.append(model)
        elif not in_cloud:
            raise unknown(use.reference, name, there, where)
        fitting = [m for m in there if m.name == name and version in (None, m.version)]
        _note_asked(file.app, use, max(fitting, key=lambda each: each.version), asked_elsewhere)
    for note in filter(None, map(unmeasured, asked_elsewhere.values())):
        told(note)
    return with_references(file.page, file.text, file.app, given)


def _note_asked(app: App, use: ModelUse, model: ModelView, asked: dict[str, ModelCard]) -> None:
    """Into `asked`, by reference, where another machine may answer for this step: what is sent to it counts."""
    answers = use.cloud or (isinstance(use.step, InferStep) and asks_peers(app, use.step))
    if answers and app.raw != "never":
        asked[f"{model.name}@{model.version}"] = model.card


class CloudModels:
    """The models of a cloud as `look_ahead` asks for them: it is spoken to once, and only where somebody asks."""

    def __init__(self, connect: Callable[[], CloudApi]) -> None:
        self._connect = connect
        self._there: list[ModelView] | MarramError | None = None

    def __call__(self, reference: str) -> Bundle:
        """What its card says; the files are not here. Raises Missing, Invalid (the reference), Retryable."""
        try:
            asked = parse_model_reference(reference)
        except ValueError as error:
            raise Invalid(f'"{reference}" names no model: {error}') from error
        if self._there is None:
            try:
                with self._connect() as api:
                    self._there = api.models()
            except MarramError as error:
                self._there = error
        if isinstance(self._there, MarramError):
            raise Retryable(str(self._there)) from self._there
        if asked.channel is not None:
            found = [_pointed(asked, self._there, None)]
        else:
            found = [m for m in self._there if m.name == asked.name and asked.version in (None, m.version)]
        if not found:
            raise unknown(reference, asked.name, self._there, None)
        newest = max(found, key=lambda model: model.version)
        return Bundle(Path(newest.card.reference), newest.card, ())


def check(file: AppFile) -> list[str]:
    """Raises what no device could run; returns what is allowed and seldom meant, said before it puzzles anybody."""
    found = rules(file.app)
    for fault in found.faults:
        raise file.page.locate(fault)
    note_source_left_behind(file.app, found)
    return [str(file.page.locate(note)) for note in found.notes]


def unset(app: App, connect: Callable[[], CloudApi]) -> list[Invalid]:
    """A note for each secret of `app` that the cloud does not have; what it is for whom, only devices tell."""
    try:
        with connect() as api:
            there = {secret.name for secret in api.secrets()}
    except MarramError as error:
        return [Invalid(f"whether they are set is not known: {error.what}", where="secrets")]
    return [
        Invalid(f"{name} is not set in the cloud (yet)", where="secrets", hint=f"marram secret set {name}")
        for name in app.secrets
        if name not in there
    ]


def send_files(api: CloudApi, file: AppFile, progress: Progress | None = None) -> Manifest:
    """Upload what travels with the app (the text itself is sent with the deployment)."""
    return api.put_folder(file.folder, files_of(file), progress)


def _push(
    api: CloudApi, bundle: Bundle, version: int | None, told: Callable[[str], None], progress: Progress | None
) -> ModelView:
    strays = left_behind(bundle)
    model = api.push_model(bundle.card, bundle.folder, bundle.files(), version=version, progress=progress)
    told(f"model {model.name} {model.version} is in the cloud")
    if strays:
        told(stayed(strays))
    return model


def stayed(strays: list[str]) -> str:
    """One line for the files of a bundle's folder that nothing names."""
    more = f" and {len(strays) - 3} more" if len(strays) > 3 else ""
    them = "it" if len(strays) == 1 else "them"
    return f"left behind, as model.yaml does not name {them}: {', '.join(strays[:3])}{more}"


def _pointed(asked: ModelReference, there: list[ModelView], where: str | None) -> ModelView:
    """The version that the channel points to. Raises Missing."""
    versions = [model for model in there if model.name == asked.name]
    for model in versions:
        if asked.channel in model.channels:
            return model
    if not versions:
        raise unknown(str(asked), asked.name, there, where)
    known = sorted({channel for model in versions for channel in model.channels})
    has = f"; it has {', '.join(known)}" if known else ""
    meant = did_you_mean(str(asked.channel), known) or has
    hint = f"`marram model tag {asked.name}@VERSION {asked.channel}` makes it."
    raise Missing(f'model "{asked.name}" has no channel "{asked.channel}" in the cloud{meant}', where=where, hint=hint)


def unknown(text: str, name: str, there: list[ModelView], where: str | None) -> Missing:
    """Nobody has it: said with the nearest name somebody has, or how to make it."""
    versions = sorted({m.version for m in there if m.name == name} | set(library.versions(name)))
    if versions:
        numbers = ", ".join(map(str, versions))
        return Missing(f'no model "{text}"; there is {numbers}', where=where, hint="`marram model list`")
    try:
        library.get(name)
    except Missing as error:
        meant = did_you_mean(name, {m.name for m in there})
        if meant and "did you mean" not in error.what and "not on this machine" not in error.what:
            return Missing(f'no model "{name}"{meant}', where=where, hint="`marram model list`")
        return Missing(error.what, where=where, hint=error.hint)
    return Missing(f'no model "{text}"', where=where, hint="`marram model list` shows all.")
