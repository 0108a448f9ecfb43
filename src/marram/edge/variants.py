"""Which files of a model this device needs: its card, its labels, and of its variants those it will run, no other.

A model in four variants is four times the bytes; over a narrow link that is minutes. So the card comes first, and what
it says decides. Of several variants that would do, the card's first whose engine is installed here is taken, less those
found not to load (`engines.py`); a version that was proven here keeps the one it has, so that a newly installed engine
never makes a device wait for its link.
No engine is imported here, and nothing is read whose digest was not checked.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping

from marram.edge.bundles import Bundles
from marram.runtime.bundle import CARD, parse_card
from marram.runtime.installed import PACKAGES, installed
from marram.schema.device import DesiredApp, ModelRef
from marram.schema.errors import MarramError, Missing
from marram.schema.model import Engine, File, Manifest, ModelCard, Variant

# Engines that are installed here and do not load, and why: a line for people.
Broken = Mapping[Engine, str]
NONE: Broken = {}
_HINT = "`marram runtime` shows what this machine has."


def card_alone(model: ModelRef) -> Manifest:
    """The part of the bundle that comes first; all of it where it lists no card (who opens it says so)."""
    cards = [file for file in model.manifest.files if file.path == CARD]
    return Manifest(files=cards) if cards else model.manifest


def needed(model: ModelRef, bundles: Bundles, broken: Broken = NONE, *, proven: bool) -> Manifest:
    """The part of the bundle that this device needs, once its card is here. Blocking.

    Raises Retryable where the card is not here, Invalid where it is none, Missing where it has no such variant or none
    for an engine that works here.
    """
    if card_alone(model) == model.manifest:
        return model.manifest
    card, files = _card(model, bundles), {file.path: file for file in model.manifest.files}
    chosen = _chosen(model, card, bundles, broken, proven=proven)
    wanted = {file.path for variant in chosen for file in _files(variant, files)}
    others = {file.path for variant in card.variants for file in _files(variant, files)} - wanted
    return Manifest(files=[file for file in model.manifest.files if file.path not in others])


def engines(model: ModelRef, bundles: Bundles, broken: Broken = NONE, *, proven: bool) -> set[Engine]:
    """Those of the variants that this device takes, and those it passes over since they are broken. Blocking."""
    if card_alone(model) == model.manifest:
        return set()
    found: set[Engine] = set()
    with contextlib.suppress(MarramError):
        card = _card(model, bundles)
        found |= {variant.engine for variant in card.variants if variant.engine in broken}
        found |= {variant.engine for variant in _chosen(model, card, bundles, broken, proven=proven)}
    return found


def kept(apps: Iterable[DesiredApp], bundles: Bundles, broken: Broken = NONE) -> list[Manifest]:
    """What must stay on this device for `apps` to run, now and after a restart without a link. Blocking."""
    manifests: list[Manifest] = []
    for app in apps:
        manifests.append(app.files)
        for model in app.models:
            try:
                manifests += [needed(model, bundles, broken, proven=proven) for proven in (True, False)]
            except MarramError:
                manifests.append(model.manifest)
    return manifests


def _card(model: ModelRef, bundles: Bundles) -> ModelCard:
    text = bundles.content(card_alone(model).files[0]).decode("utf-8", errors="replace")
    return parse_card(text, f"{model.name}@{model.version}/{CARD}")


def _chosen(model: ModelRef, card: ModelCard, bundles: Bundles, broken: Broken, *, proven: bool) -> list[Variant]:
    """For each of `model.variants` what it names, or what this device prefers. Raises Missing."""
    files = {file.path: file for file in model.manifest.files}

    def here(variant: Variant) -> bool:
        return proven and not any(bundles.lacks(file) for file in _files(variant, files))

    where = f"{model.name}@{model.version}"
    return [_named(card, name, broken, where) if name else _first(card, here, broken, where) for name in model.variants]


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


def _first(card: ModelCard, here: Callable[[Variant], bool], broken: Broken, where: str) -> Variant:
    present = [variant for variant in card.variants if installed(variant.engine)]
    runnable = [variant for variant in present if variant.engine not in broken]
    if not present:
        packages = sorted({PACKAGES[variant.engine] for variant in card.variants})
        what = f"no engine for it is installed here (it takes {' or '.join(packages)})"
        raise Missing(what, where=where, hint=_HINT)
    if not runnable:
        raise Missing("; ".join(sorted({broken[variant.engine] for variant in present})), where=where, hint=_HINT)
    return next((variant for variant in runnable if here(variant)), runnable[0])
