"""Which files of a model this device needs: its card, its labels, and of its variants those it will run, no other.

Of a model that is parted between device and cloud it needs the fronts that its app may use, and never a back.

A model in four variants is four times the bytes; over a narrow link that is minutes. So the card comes first, and what
it says decides: of several variants that would do (an engine for it is installed here and not found broken, it keeps
the card's accuracy floor) the best that was measured here (`choices.py`), else the card's first. A version that was
proven here keeps the one it has, so that a newly installed engine never makes a device wait for its link.
No engine is imported here, and nothing is read whose digest was not checked.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from marram.edge.bundles import Bundles
from marram.edge.choices import Choices, keeps_floor
from marram.runtime.bundle import CARD, parse_card
from marram.runtime.installed import PACKAGES, installed
from marram.schema.device import Chosen, DesiredApp, ModelRef
from marram.schema.errors import MarramError, Missing
from marram.schema.model import Cut, Engine, File, Manifest, ModelCard, Variant
from marram.schema.units import parse_size

# Engines that are installed here and do not load, and why: a line for people.
Broken = Mapping[Engine, str]
NONE: Broken = {}
APP_FILE = "app.yaml"
_HINT = "`marram runtime` shows what this machine has."


@dataclass(frozen=True, slots=True)
class Taste:
    """What a device prefers by: engines that are broken, what it measured (None: nothing), the app's memory limit."""

    broken: Broken = field(default_factory=dict)
    choices: Choices | None = None
    limit_bytes: int | None = None


def taste_of(app: DesiredApp, bundles: Bundles, broken: Broken, choices: Choices | None) -> Taste:
    """With the limit that the app's file says, where that is here already. Blocking."""
    return Taste(broken, choices, memory_limit(_page(app, bundles)))


def app_file(app: DesiredApp) -> Manifest:
    """The app's own page: it says how much memory a model may take."""
    return Manifest(files=[file for file in app.files.files if file.path == APP_FILE])


def memory_limit(page: dict[str, Any]) -> int | None:
    """`limits.memory` of an app's page, in bytes; None where it has none that can be read."""
    try:
        return parse_size(page["limits"]["memory"])
    except (ValueError, TypeError, KeyError):
        return None


def _page(app: DesiredApp, bundles: Bundles) -> dict[str, Any]:
    try:
        document = yaml.safe_load(bundles.content(app_file(app).files[0]))
    except (MarramError, IndexError, ValueError, yaml.YAMLError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def card_alone(model: ModelRef) -> Manifest:
    """The part of the bundle that comes first; all of it where it lists no card (who opens it says so)."""
    cards = [file for file in model.manifest.files if file.path == CARD]
    return Manifest(files=cards) if cards else model.manifest


def needed(model: ModelRef, bundles: Bundles, taste: Taste | Broken = NONE, *, proven: bool) -> Manifest:
    """The part of the bundle that this device needs, once its card is here. Blocking.

    Raises Retryable where the card is not here, Invalid where it is none, Missing where it has no such variant or none
    for an engine that works here.
    """
    if card_alone(model) == model.manifest:
        return model.manifest
    card, given = _card(model, bundles), _taste(taste)
    fronts = [c for c in card.cuts if c.name in model.fronts and installed(c.engine) and c.engine not in given.broken]
    return _with(model, card, [each for each, _ in _chosen(model, card, bundles, given, proven=proven)], fronts)


def candidates(model: ModelRef, bundles: Bundles, taste: Taste) -> list[Variant]:
    """Of what a step leaves to this device, all that would do, in the card's order: unmeasured, it takes the first.

    Empty where there is nothing to choose. Blocking. Raises as `needed`.
    """
    if None not in model.variants or card_alone(model) == model.manifest:
        return []
    return _able(_card(model, bundles), taste.broken, reference_of(model))


def part(model: ModelRef, bundles: Bundles, variants: Iterable[Variant]) -> Manifest:
    """The bundle with these variants alone. Blocking."""
    return _with(model, _card(model, bundles), variants)


def card_of(model: ModelRef, bundles: Bundles) -> ModelCard:
    """The model's card, which is here. Blocking. Raises Retryable, Invalid."""
    return _card(model, bundles)


def reference_of(model: ModelRef) -> str:
    """`name@version`, by the number that the registry gave it."""
    return f"{model.name}@{model.version}"


def parts(model: ModelRef, card: ModelCard) -> dict[str, list[File]]:
    """The files of each of the card's variants, by its name."""
    files = {file.path: file for file in model.manifest.files}
    return {variant.name: _files(variant, files) for variant in card.variants}


def chosen(model: ModelRef, bundles: Bundles, taste: Taste, *, proven: bool) -> list[Chosen]:
    """What `needed` takes, and why, for the report; nothing where the card cannot be read. Blocking."""
    found: list[Chosen] = []
    with contextlib.suppress(MarramError):
        card = _card(model, bundles)
        choices = taste.choices
        for variant, why in _chosen(model, card, bundles, taste, proven=proven):
            if choices is None:
                found.append(Chosen(model=reference_of(model), variant=variant.name, why=why))
            else:
                made = choices.chosen(card, variant, parts(model, card), why)
                found.append(made.model_copy(update={"model": reference_of(model)}))
    return found


def _with(model: ModelRef, card: ModelCard, variants: Iterable[Variant], fronts: Iterable[Cut] = ()) -> Manifest:
    wanted = {*(variant.file for variant in variants), *(cut.front for cut in fronts)}
    others = {f"{path}{beside}" for path in set(card.files) - wanted for beside in ("", ".data")}
    return Manifest(files=[file for file in model.manifest.files if file.path not in others])


def _taste(given: Taste | Broken) -> Taste:
    return given if isinstance(given, Taste) else Taste(given)


def engines(model: ModelRef, bundles: Bundles, taste: Taste | Broken = NONE, *, proven: bool) -> set[Engine]:
    """Those of the variants that this device takes, and those it passes over since they are broken. Blocking."""
    if card_alone(model) == model.manifest:
        return set()
    found: set[Engine] = set()
    with contextlib.suppress(MarramError):
        card, given = _card(model, bundles), _taste(taste)
        found |= {variant.engine for variant in card.variants if variant.engine in given.broken}
        found |= {variant.engine for variant, _ in _chosen(model, card, bundles, given, proven=proven)}
    return found


def kept(
    apps: Iterable[DesiredApp], bundles: Bundles, broken: Broken = NONE, choices: Choices | None = None
) -> list[Manifest]:
    """What must stay on this device for `apps` to run, now and after a restart without a link. Blocking."""
    manifests: list[Manifest] = []
    for app in apps:
        manifests.append(app.files)
        taste = taste_of(app, bundles, broken, choices)
        for model in app.models:
            try:
                manifests += [needed(model, bundles, taste, proven=proven) for proven in (True, False)]
            except MarramError:
                manifests.append(model.manifest)
    return manifests


def _card(model: ModelRef, bundles: Bundles) -> ModelCard:
    text = bundles.content(card_alone(model).files[0]).decode("utf-8", errors="replace")
    return parse_card(text, f"{model.name}@{model.version}/{CARD}")


def _chosen(
    model: ModelRef, card: ModelCard, bundles: Bundles, taste: Taste, *, proven: bool
) -> list[tuple[Variant, str]]:
    """For each of `model.variants` what it names, or what this device prefers; and why. Raises Missing."""
    where = reference_of(model)
    by_name = parts(model, card)

    def here(variant: Variant) -> bool:
        return proven and not any(bundles.lacks(file) for file in by_name[variant.name])

    found: list[tuple[Variant, str]] = []
    for name in model.variants:
        if name:
            found.append((_named(card, name, taste.broken, where), "the app names it"))
            continue
        able, why = _able(card, taste.broken, where), "first on the card that this device can run"
        if taste.choices is not None:
            able, why = taste.choices.ranked(card, able, by_name, taste.limit_bytes, where)
        taken = next((variant for variant in able if here(variant)), able[0])
        found.append((taken, why if taken is able[0] else f"it is here and proven ({why})"))
    return found


def _files(variant: Variant, files: dict[str, File]) -> list[File]:
    """The variant's file, and the weights that ONNX keeps beside it."""
    return [files[path] for path in (variant.file, f"{variant.file}.data") if path in files]


def _named(card: ModelCard, name: str, broken: Broken, where: str) -> Variant:
    for variant in card.variants:
        if variant.name == name:
            if variant.engine in broken:
                raise Missing(f'variant "{name}": {broken[variant.engine]}', where=where, hint=_HINT)
            return variant
    raise Missing(f'no variant "{name}"; it has {", ".join(v.name for v in card.variants)}', where=where)


def _able(card: ModelCard, broken: Broken, where: str) -> list[Variant]:
    """Those that would do here, in the card's order, one at least. Raises Missing, saying why none would."""
    present = [variant for variant in card.variants if installed(variant.engine)]
    runnable = [variant for variant in present if variant.engine not in broken]
    if not present:
        packages = sorted({PACKAGES[variant.engine] for variant in card.variants})
        what = f"no engine for it is installed here (it takes {' or '.join(packages)})"
        raise Missing(what, where=where, hint=_HINT)
    if not runnable:
        raise Missing("; ".join(sorted({broken[variant.engine] for variant in present})), where=where, hint=_HINT)
    floor = keeps_floor(card)
    able = [variant for variant in runnable if variant in floor]
    if not able:
        had = ", ".join(f"{v.name} {'unmeasured' if v.accuracy is None else f'{v.accuracy:g}'}" for v in runnable)
        raise Missing(
            f"no variant that runs here keeps the card's accuracy floor of {card.accuracy_floor:g} ({had})",
            where=where,
            hint=f"{_HINT} Or name a variant in the app: `variant: …`.",
        )
    return able
