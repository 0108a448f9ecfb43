"""Which files of a model this device needs: its card, its labels, and of its variants those it will run, no other.

A model in four variants is four times the bytes; over a narrow link that is minutes. So the card comes first, and what
it says decides. Of several variants that would do, the card's first whose engine is installed here is taken; a version
that was proven here keeps the one it has, so that a newly installed engine never makes a device wait for its link.
No engine is imported here, and nothing is read whose digest was not checked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from marram.edge.bundles import Bundles
from marram.runtime.bundle import CARD, parse_card
from marram.runtime.installed import PACKAGES, installed
from marram.schema.device import DesiredApp, ModelRef
from marram.schema.errors import MarramError, Missing
from marram.schema.model import File, Manifest, ModelCard, Variant


def card_alone(model: ModelRef) -> Manifest:
    """The part of the bundle that comes first; all of it where it lists no card (who opens it says so)."""
    cards = [file for file in model.manifest.files if file.path == CARD]
    return Manifest(files=cards) if cards else model.manifest


def needed(model: ModelRef, bundles: Bundles, *, proven: bool) -> Manifest:
    """The part of the bundle that this device needs, once its card is here. Blocking.

    Raises Retryable where the card is not here, Invalid where it is none, Missing where it has no such variant or none
    for an engine that is installed here.
    """
    first = card_alone(model)
    if first == model.manifest:
        return first
    reference = f"{model.name}@{model.version}"
    text = bundles.content(first.files[0]).decode("utf-8", errors="replace")
    card = parse_card(text, f"{reference}/{CARD}")
    files = {file.path: file for file in model.manifest.files}

    def here(variant: Variant) -> bool:
        return proven and not any(bundles.lacks(file) for file in _files(variant, files))

    chosen = [_named(card, name, reference) if name else _first(card, here, reference) for name in model.variants]
    wanted = {file.path for variant in chosen for file in _files(variant, files)}
    others = {file.path for variant in card.variants for file in _files(variant, files)} - wanted
    return Manifest(files=[file for file in model.manifest.files if file.path not in others])


def kept(apps: Iterable[DesiredApp], bundles: Bundles) -> list[Manifest]:
    """What must stay on this device for `apps` to run, now and after a restart without a link. Blocking."""
    manifests: list[Manifest] = []
    for app in apps:
        manifests.append(app.files)
        for model in app.models:
            try:
                manifests += [needed(model, bundles, proven=proven) for proven in (True, False)]
            except MarramError:
                manifests.append(model.manifest)
    return manifests


def _files(variant: Variant, files: dict[str, File]) -> list[File]:
    """The variant's file, and the weights that ONNX keeps beside it."""
    return [files[path] for path in (variant.file, f"{variant.file}.data") if path in files]


def _named(card: ModelCard, name: str, reference: str) -> Variant:
    for variant in card.variants:
        if variant.name == name:
            return variant
    raise Missing(f'no variant "{name}"; it has {", ".join(v.name for v in card.variants)}', where=reference)


def _first(card: ModelCard, here: Callable[[Variant], bool], reference: str) -> Variant:
    runnable = [variant for variant in card.variants if installed(variant.engine)]
    if not runnable:
        packages = sorted({PACKAGES[variant.engine] for variant in card.variants})
        raise Missing(
            f"no engine for it is installed here (it takes {' or '.join(packages)})",
            where=reference,
            hint="`marram runtime` shows what this machine has.",
        )
    return next((variant for variant in runnable if here(variant)), runnable[0])
