"""What an app needs in the cloud before it can be deployed: its models, its files. Found here, sent there.

A model reference is looked up in the cloud first, then in this machine's library, whose bundle is pushed. A path to a
bundle folder means nothing on a device, so the deployed text names the version the folder's content got instead.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from marram.bus.http import CloudApi, Progress
from marram.runtime import library
from marram.runtime.bundle import Bundle
from marram.schema.api import ModelView
from marram.schema.app import App, FunctionStep, InferStep, RedactStep, parse_app
from marram.schema.errors import Invalid, Missing
from marram.schema.model import Manifest


@dataclass(frozen=True, slots=True)
class Reference:
    """A model as the app names it: `steps[0].classify: ./models/foo`."""

    step: int
    field: str
    text: str

    @property
    def is_path(self) -> bool:
        return "/" in self.text or self.text.startswith(".")


@dataclass(frozen=True, slots=True)
class AppFile:
    """An app file, read and checked. Raises Missing or Invalid from `read`."""

    path: Path
    text: str
    app: App

    @classmethod
    def read(cls, path: Path) -> AppFile:
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError as error:
            raise Missing(f"no such file {path}") from error
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
            raise Invalid(f"cannot be read: {why}", where=str(path)) from error
        return cls(path, text, parse_app(text, str(path)))

    def references(self) -> list[Reference]:
        """Every model the app needs, on the device and in the cloud."""
        found = []
        for index, step in enumerate(self.app.steps):
            if isinstance(step, InferStep):
                found.append(Reference(index, step.verb, step.model))
                if step.cloud is not None:
                    found.append(Reference(index, "cloud", step.cloud))
            elif isinstance(step, RedactStep) and step.redact == "faces":
                found.append(Reference(index, "model", step.model))
        return found

    def files(self) -> list[str]:
        """The files that travel with it. Raises Missing, Invalid naming the field."""
        named = [(f"steps[{i}].function", s.file) for i, s in _functions(self.app)]
        named += [(f"files[{i}]", name) for i, name in enumerate(self.app.files)]
        for field, name in named:
            if (self.path.parent / name).is_dir():
                raise Invalid(f'"{name}" is a folder', where=f"{self.path}  {field}", hint="Name its files.")
            if not (self.path.parent / name).is_file():
                raise Missing(f'no file "{name}" beside the app', where=f"{self.path}  {field}")
        return sorted({name for _, name in named})


def send_models(api: CloudApi, file: AppFile, told: Callable[[str], None], progress: Progress | None = None) -> str:
    """Make sure the cloud has every model of the app; returns the app's text as it is deployed.

    `told` hears what is pushed. Raises Missing (no such model anywhere, with the nearest name), Invalid, Conflict.
    """
    there = api.models()
    given: dict[Reference, str] = {}
    for reference in file.references():
        where = f"{file.path}  steps[{reference.step}].{reference.field}"
        if reference.is_path:
            bundle = Bundle.open(file.path.parent / reference.text)
            model = _push(api, bundle, None, told, progress)
            given[reference] = f"{model.name}@{model.version}"
            continue
        name, version = library.parse_reference(reference.text)
        newest = max((m.version for m in there if m.name == name), default=0)
        in_cloud = any(m.name == name and version in (None, m.version) for m in there)
        here = [v for v in library.versions(name) if version in (None, v)]
        if here and (not in_cloud or (version is None and here[-1] > newest)):
            model = _push(api, library.get(name, here[-1]), here[-1], told, progress)
            there.append(model)
        elif not in_cloud:
            raise _unknown(reference.text, name, there, where)
    return _rewritten(file, given)


def warnings(app: App) -> list[str]:
    """What is allowed but seldom meant, to be said before it puzzles anybody."""
    redacted = False
    for index, step in enumerate(app.steps):
        redacted = redacted or isinstance(step, RedactStep)
        barred = app.raw == "never" or (app.raw == "redacted" and not redacted)
        if barred and isinstance(step, InferStep) and step.cloud is not None:
            why = "raw: never" if app.raw == "never" else "raw: redacted, and no step before it redacts"
            return [
                f"steps[{index}].cloud is never asked: nothing of the input may leave the device ({why}). "
                "To let the cloud answer too, write raw: allowed"
            ]
    return []


def send_files(api: CloudApi, file: AppFile, progress: Progress | None = None) -> Manifest:
    """Upload what travels with the app (the text itself is sent with the deployment)."""
    return api.put_folder(file.path.parent, file.files(), progress)


def _push(
    api: CloudApi, bundle: Bundle, version: int | None, told: Callable[[str], None], progress: Progress | None
) -> ModelView:
    model = api.push_model(bundle.card, bundle.folder, bundle.files(), version=version, progress=progress)
    told(f"model {model.name} {model.version} is in the cloud")
    return model


def _unknown(text: str, name: str, there: list[ModelView], where: str) -> Missing:
    """Nobody has it: said with the nearest name somebody has, or how to make it."""
    versions = sorted({m.version for m in there if m.name == name} | set(library.versions(name)))
    if versions:
        numbers = ", ".join(map(str, versions))
        return Missing(f'no model "{text}"; there is {numbers}', where=where, hint="`marram model list`")
    try:
        library.get(name)
    except Missing as error:
        known = {m.name for m in there}
        near = difflib.get_close_matches(name, known, n=1)
        if near and "did you mean" not in error.what and "not on this machine" not in error.what:
            return Missing(f'no model "{name}"; did you mean "{near[0]}"?', where=where, hint="`marram model list`")
        return Missing(error.what, where=where, hint=error.hint)
    return Missing(f'no model "{text}"', where=where, hint="`marram model list` shows all.")


def _functions(app: App) -> Iterator[tuple[int, FunctionStep]]:
    yield from ((i, s) for i, s in enumerate(app.steps) if isinstance(s, FunctionStep))


def _rewritten(file: AppFile, given: dict[Reference, str]) -> str:
    """The text with each path reference replaced by what it was given, byte for byte the same otherwise."""
    if not given:
        return file.text
    root = yaml.compose(file.text, Loader=yaml.SafeLoader)
    steps = _value(root, "steps")
    spans: list[tuple[int, int, str]] = []
    for reference, name in given.items():
        node = _value(steps.value[reference.step], reference.field) if isinstance(steps, yaml.SequenceNode) else None
        if node is not None:
            spans.append((node.start_mark.index, node.end_mark.index, name))
    text = file.text
    for start, end, name in sorted(set(spans), reverse=True):
        text = text[:start] + name + text[end:]
    again = AppFile(file.path, text, parse_app(text, str(file.path)))
    if [r.text for r in again.references()] != [given.get(r, r.text) for r in file.references()]:
        raise Invalid(
            "a model given as a path cannot be put in place here (an anchor or alias?)",
            where=str(file.path),
            hint="Write each path out, or `marram model add` the folder and write its name.",
        )
    return text


def _value(node: yaml.Node | None, key: str) -> yaml.Node | None:
    if not isinstance(node, yaml.MappingNode):
        return None
    return next((value for name, value in node.value if name.value == key), None)
