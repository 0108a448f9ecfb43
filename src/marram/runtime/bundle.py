"""A model on disk: a folder with `model.yaml` and the files it names, checked before anything is loaded.

It must import neither NumPy nor an engine: the device's agent and the command line read bundles too.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from marram.schema.errors import Invalid, Missing, Threat, Untrusted
from marram.schema.model import (
    MAX_CUT_BYTES,
    TRAVERSAL,
    Codec,
    Cut,
    Input,
    ModelCard,
    Output,
    Strict,
    Task,
    Variant,
)
from marram.schema.page import Page
from marram.schema.words import did_you_mean, field_fault, file_fault

CARD = "model.yaml"

# Which forms of output make sense for a task: a card that mixes them would answer nonsense.
_FORMS = {
    Task.CLASSIFICATION: {"softmax", "logits"},
    Task.DETECTION: {"ssd", "fastestdet", "yunet", "blazeface"},
    Task.REGRESSION: {"value"},
    Task.ANOMALY: {"reconstruction", "score"},
}
# The parts of a card that have fields of their own.
_PARTS: dict[str, type[Strict]] = {
    "input": Input,
    "output": Output,
    "variants": Variant,
    "codecs": Codec,
    "cuts": Cut,
}


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle folder whose card is valid and whose files are all there. `labels[0]` is line 0 of the labels file."""

    folder: Path
    card: ModelCard
    labels: tuple[str, ...]

    @classmethod
    def open(cls, folder: Path, *, partial: bool = False) -> Bundle:
        """Read and check `folder`. Raises Missing where it or a file of it is absent, Invalid naming file and field.

        `partial`: a folder that a device installed for itself, with some of the variants or the fronts of cuts alone.
        The bundle's card then has only those whose file is here, one at least. Anywhere else an absent file is a fault.
        """
        path = folder / CARD
        if not folder.is_dir():
            raise Missing("no such folder", where=str(folder), hint="A model is a folder with a model.yaml in it.")
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError as error:
            raise Missing(f"has no {CARD}", where=str(folder), hint="A model is a folder with a card in it.") from error
        except (OSError, UnicodeDecodeError) as error:
            raise Invalid(f"cannot be read ({file_fault(error)})", where=str(path)) from error
        page = Page.read(text, str(path))
        card = _card_on(page)
        if partial:
            here = [variant for variant in card.variants if (folder / variant.file).is_file()]
            cuts = [cut for cut in card.cuts if (folder / cut.front).is_file()]
            # Of a model that only the cloud answers with, a device has fronts and no variant.
            card = card.model_copy(update={"variants": here if here or cuts else card.variants, "cuts": cuts})
        for index, variant in enumerate(card.variants):
            if not (folder / variant.file).is_file():
                raise Missing(f'no such file "{variant.file}"', where=page.where(("variants", index, "file")))
        for index, cut in enumerate(card.cuts):
            for part, file in (("front", cut.front), ("back", cut.back)):
                if not partial and not (folder / file).is_file():
                    raise Missing(f'no such file "{file}"', where=page.where(("cuts", index, part)))
        return cls(folder, card, _labels(page, folder, card))

    @property
    def reference(self) -> str:
        """`name@version`."""
        return self.card.reference

    def file(self, variant: Variant) -> Path:
        """Where the variant's file lies."""
        return self.folder / variant.file

    def cut(self, name: str) -> Cut:
        """The cut called `name`. Raises Missing, saying which there are."""
        for cut in self.card.cuts:
            if cut.name == name:
                return cut
        has = f"it has {', '.join(cut.name for cut in self.card.cuts)}" if self.card.cuts else "it has none"
        raise Missing(f'no cut "{name}"; {has}', where=str(self.folder / CARD))

    def files(self) -> list[str]:
        """Every file that makes the bundle, relative to its folder, card first: what is published and installed."""
        named = self.card.files
        # ONNX keeps weights past 2 GB in files beside the model; they belong to it though the card cannot know them.
        beside = [f"{file}.data" for file in named if (self.folder / f"{file}.data").is_file()]
        if isinstance(self.card.labels, str):
            named.append(self.card.labels)
        return [CARD, *sorted({*named, *beside})]

    def size_bytes(self, variant: Variant) -> int:
        """Size of the variant's file."""
        return self.file(variant).stat().st_size

    def variant(self, name: str) -> Variant:
        """The variant called `name`. Raises Missing, saying which there are."""
        for variant in self.card.variants:
            if variant.name == name:
                return variant
        names = [v.name for v in self.card.variants]
        which = did_you_mean(name, names) or f"; it has {', '.join(names)}"
        raise Missing(f'no variant "{name}"{which}', where=str(self.folder / CARD))


def parse_card(text: str, name: str = CARD) -> ModelCard:
    """The card that `text` (YAML) describes; `name` is the file's name, for messages.

    Raises Invalid with every fault found, one a line: `name:line  field: fault`; Untrusted where it names a file
    outside of the folder.
    """
    return _card_on(Page.read(text, name))


def _card_on(page: Page) -> ModelCard:
    if not isinstance(page.document, dict):
        raise Invalid("a card is a mapping with model, task, input, output and variants", where=page.name)
    try:
        card = ModelCard.model_validate(page.document)
    except ValidationError as error:
        faults = error.errors()
        out = next((fault for fault in faults if fault["type"] == TRAVERSAL), None)
        if out is not None:
            raise Untrusted(_fault(page, out), threat=Threat.TRAVERSAL) from error
        raise Invalid("\n".join(_fault(page, e) for e in faults)) from error
    _check(card, page)
    return card


def dump_card(card: ModelCard) -> str:
    """The card as YAML, without what is default; the inverse of `parse_card`."""
    text: str = yaml.safe_dump(
        card.model_dump(mode="json", exclude_defaults=True) | {"version": card.version},
        sort_keys=False,
        allow_unicode=True,
        width=120,
    )
    return text


def _check(card: ModelCard, page: Page) -> None:
    """What the schema alone cannot say."""
    forms = _FORMS[card.task]
    if card.output.form not in forms:
        raise Invalid(
            f'"{card.output.form}" does not answer {card.task.value}; use one of {", ".join(sorted(forms))}',
            where=page.where(("output", "form")),
        )
    entry = card.input
    if any(length < 1 for length in entry.size):
        raise Invalid("lengths are 1 or more", where=page.where(("input", "size")))
    if entry.kind == "image" and len(entry.size) != 2:
        raise Invalid("an image has two: height, width", where=page.where(("input", "size")))
    channels = entry.size[-1] if entry.kind == "tensor" else 1 if entry.colour == "gray" else 3
    for field, values in (("mean", entry.mean), ("std", entry.std)):
        if len(values) not in (1, channels):
            what = f"one number, or one for each of {channels} channels"
            raise Invalid(what, where=page.where(("input", field)))
    if any(value == 0 for value in entry.std):
        raise Invalid("0 would divide by zero", where=page.where(("input", "std")))
    names = [v.name for v in card.variants]
    if len(set(names)) != len(names):
        raise Invalid("two variants have one name", where=page.where(("variants",)))
    _check_sending(card, page)


def _check_sending(card: ModelCard, page: Page) -> None:
    """Codecs and cuts: what is sent, and what answers it."""
    for field, given in (("codecs", [c.name for c in card.codecs]), ("cuts", [c.name for c in card.cuts])):
        if len(set(given)) != len(given):
            raise Invalid(f"two {field} have one name", where=page.where((field,)))
    if card.codecs and card.input.kind != "image":
        raise Invalid("readings are sent as they are: only pictures have codecs", where=page.where(("codecs",)))
    if card.cuts and card.output.form == "reconstruction":
        what = '"reconstruction" compares with what went in, which a back never sees'
        raise Invalid(what, where=page.where(("cuts",)))
    names = [variant.name for variant in card.variants]
    whole = {variant.file for variant in card.variants}
    fronts, backs = {cut.front for cut in card.cuts}, {cut.back for cut in card.cuts}
    for index, cut in enumerate(card.cuts):
        if cut.variant not in names:
            which = did_you_mean(cut.variant, names) or f"; it has {', '.join(names)}"
            raise Invalid(f'no variant "{cut.variant}"{which}', where=page.where(("cuts", index, "variant")))
        if cut.size > MAX_CUT_BYTES:
            raise Invalid(f"{cut.size:,} numbers are too many to send", where=page.where(("cuts", index, "shape")))
        if cut.front in whole | backs or cut.back in whole | fronts:
            what = f"{cut.front} and {cut.back} are not a front and a back of their own"
            raise Invalid(what, where=page.where(("cuts", index)))


def _labels(page: Page, folder: Path, card: ModelCard) -> tuple[str, ...]:
    if card.labels is None:
        return ()
    if not isinstance(card.labels, str):
        return tuple(card.labels)
    path = folder / card.labels
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise Missing(f'no such file "{card.labels}"', where=page.where(("labels",))) from error
    except (OSError, UnicodeDecodeError) as error:
        raise Invalid(f"cannot be read ({file_fault(error)})", where=str(path)) from error
    while lines and not lines[-1].strip():
        lines.pop()
    return tuple(line.strip() for line in lines)


def _fault(page: Page, error: Any) -> str:
    location = error["loc"]
    message = field_fault(error)
    if error["type"] == "extra_forbidden":
        inside = _PARTS.get(str(location[0]), ModelCard) if len(location) > 1 else ModelCard
        message += did_you_mean(str(location[-1]), inside.model_fields)
    return f"{page.where(location)}: {message}"
