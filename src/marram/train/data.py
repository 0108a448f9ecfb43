"""Examples to train on and to hold out: a data set, a folder of pictures, samples devices kept and people labelled.

An example is held out or trained on by the hash of its content, so a picture seen in one training is never held out in
the next, however the set grows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from marram.bus.http import CloudApi
from marram.runtime import image as pictures
from marram.runtime.image import Image
from marram.schema.errors import Invalid, Missing, NotReady
from marram.train.recipe import Data, Recipe, Samples

_PAGE = 500
_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif"}


@dataclass(frozen=True, slots=True)
class Example:
    """One labelled picture: uint8 [H, W, 3], RGB; `label` is the index in the recipe's labels; `slice` its origin."""

    image: Image
    label: int
    slice: str

    def held_out(self, share: float) -> bool:
        """Whether it is kept for judging: decided by content alone, for about `share` of all pictures."""
        return int.from_bytes(self.digest()[:8], "big") < share * 2**64

    def digest(self) -> bytes:
        """What tells its picture from every other."""
        return hashlib.sha256(np.ascontiguousarray(self.image).tobytes()).digest()


@dataclass(frozen=True, slots=True)
class Examples:
    """What a training starts from: examples to fit, examples held out, and what could not be used."""

    train: list[Example]
    held_out: list[Example]
    skipped: int

    def slices(self) -> list[str]:
        """Origins in the order they came: the base data first."""
        return list(dict.fromkeys(e.slice for e in [*self.train, *self.held_out]))


def gather(
    recipe: Recipe, folder: Path, api: CloudApi | None, progress: Callable[[int, int], None] | None = None
) -> Examples:
    """The recipe's data (paths relative to `folder`), and the labelled samples of its app where a cloud is given.

    Raises Missing, Invalid naming what is wrong with the data; a sample that cannot be read or whose label the recipe
    does not know is skipped and counted.
    """
    examples = list(_base(recipe.data, recipe.labels, folder))
    skipped = 0
    if api is not None and recipe.samples is not None:
        found, skipped = _samples(recipe.samples, recipe.labels, api, progress)
        examples += found
    # A device that sees one thing for long keeps it again and again: the same picture is one example.
    examples = list({(e.slice, e.digest()): e for e in examples}.values())
    held = [e for e in examples if e.held_out(recipe.hold_out)]
    train = [e for e in examples if not e.held_out(recipe.hold_out)]
    for what, part in (("trained on", train), ("held out", held)):
        if not any(e.slice == recipe.data.name for e in part):
            raise Invalid(
                f'nothing of "{recipe.data.name}" is {what} ({len(examples)} examples in all)',
                hint="Give it more examples, or change hold_out.",
            )
    return Examples(train, held, skipped)


def digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """scikit-learn's digits: uint8 [1797, 32, 32] (8×8 scans, 0–16, each pixel four wide), and the digit of each.

    Raises NotReady where scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise NotReady("the digits come with scikit-learn", hint="pip install 'marram[torch]'") from error
    data = load_digits()
    scans = np.clip(np.rint(data.images * (255 / 16)), 0, 255).astype(np.uint8)
    return scans.repeat(4, axis=1).repeat(4, axis=2), data.target.astype(np.int64)


def _base(data: Data, labels: list[str], folder: Path) -> Iterable[Example]:
    if data.dataset == "digits":
        if labels != [str(n) for n in range(10)]:
            raise Invalid("the digits have the labels 0 to 9", where="labels")
        for scan, label in list(zip(*digits(), strict=True))[: data.first]:
            yield Example(np.repeat(scan[:, :, None], 3, axis=2), int(label), data.name)
        return
    root = folder / str(data.images)
    if not root.is_dir():
        raise Missing(f"no such folder {root}", where="data.images")
    for index, label in enumerate(labels):
        files = sorted(p for p in (root / label).glob("*") if p.suffix.lower() in _SUFFIXES)
        if not files:
            raise Missing(
                f'no pictures in "{root / label}"', where="data.images", hint="One sub-folder for each label."
            )
        for file in files:
            yield Example(pictures.decode(file.read_bytes(), str(file)), index, data.name)


def _samples(
    wanted: Samples, labels: list[str], api: CloudApi, progress: Callable[[int, int], None] | None
) -> tuple[list[Example], int]:
    sites = {device.id: device.labels.get(wanted.by, device.id) for device in api.devices()}
    views = []
    after = 0
    while page := api.samples(app=wanted.app, labelled=True, after=after, limit=_PAGE):
        views += page
        after = page[-1].id
    examples: list[Example] = []
    skipped = 0
    for done, view in enumerate(views, 1):
        try:
            index = labels.index(view.label or "")
            image = pictures.decode(api.sample_body(view.id), f"sample {view.id}")
            examples.append(Example(image, index, sites.get(view.device, view.device)))
        except (ValueError, Invalid):
            skipped += 1
        if progress:
            progress(done, len(views))
    return examples, skipped
