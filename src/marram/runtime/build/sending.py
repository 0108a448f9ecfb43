"""What sending a model's input costs, measured: bytes, encoding time, and the accuracy that each codec gives up.

An answer to what was sent is compared with the answer to the input as it is (`schema/agreement.py`), so no labels are
needed; the loss is the codec's own, not the model's.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from marram.runtime import image as pictures
from marram.runtime.build import photos
from marram.runtime.build.cut import EVERY_CLASS, timed
from marram.runtime.bundle import Bundle
from marram.runtime.codecs import PICTURE_CODECS, decode, encode
from marram.runtime.fit import plan
from marram.runtime.image import Image
from marram.runtime.model import Model, fit_for
from marram.schema.agreement import disagree, given_up
from marram.schema.errors import Invalid, MarramError, Missing
from marram.schema.model import Codec, Input

Report = Callable[[str, int, int], None]

# Enough to tell a loss of 1 % from one of 3 %; more only take longer.
MOST_PICTURES = 400
# Larger pictures are made as small as this first: what models see of them is smaller still.
_MOST_SIDE = 640
_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


def gathered(folder: Path | None) -> list[Image]:
    """The pictures of `folder` (and of those in it), in name order, evenly of them where they are many.

    None: views of the photos that scikit-image and scikit-learn bring. Raises Missing (no folder, no picture in it),
    NotReady (those packages are not installed), Invalid for a broken picture.
    """
    return [_modest(image) for image in (photos.crops() if folder is None else _read(folder))]


@dataclass(frozen=True, slots=True)
class Measured:
    """A codec's cost for the card, and the share of answers (0–1) that were others at all."""

    codec: Codec
    changed: float


def codecs(bundle: Bundle, images: Sequence[Image], report: Report = lambda what, done, of: None) -> list[Measured]:
    """Every codec's cost for the model's first variant that runs here. Raises Invalid for a model of readings."""
    card = bundle.card
    if card.input.kind != "image":
        raise Invalid("takes readings, which are sent as they are: it has no codecs", where=card.reference)
    if len(images) < 2:
        raise Invalid("one picture is not enough to measure by")
    # Fitting is the same for every way, so what is timed is encoding what is fitted already.
    fitted = fit_for(card, images[0])
    times_ms = timed(*(partial(encode, codec, card, fitted) for codec in PICTURE_CODECS))
    model = Model.load(bundle)
    try:
        wanted = [model.predict(image, None, EVERY_CLASS) for image in images]
        found = []
        for name, encode_ms in zip(PICTURE_CODECS, times_ms, strict=True):
            sizes, lost, changed = [], 0.0, 0
            for number, (image, whole) in enumerate(zip(images, wanted, strict=True)):
                payload = encode(name, card, image)
                answer = model.predict(decode(payload, card), payload.frame_size)
                sizes.append(len(payload.body))
                lost += given_up(answer, whole)
                changed += disagree(whole, answer)
                report(name, number + 1, len(images))
            loss, size = round(lost / len(images), 4), round(statistics.fmean(sizes))
            found.append(Measured(Codec(name=name, bytes=size, loss=loss, encode_ms=encode_ms), changed / len(images)))
        return found
    finally:
        model.close()


def _read(folder: Path) -> Iterator[Image]:
    if not folder.is_dir():
        raise Missing("no such folder", where=str(folder))
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in _SUFFIXES and file.is_file())
    if not files:
        raise Missing("has no pictures", where=str(folder), hint="JPEG, PNG, WebP, BMP, GIF and TIFF are read.")
    for number in range(min(len(files), MOST_PICTURES)):
        file = files[number * len(files) // min(len(files), MOST_PICTURES)]
        try:
            yield pictures.decode(file.read_bytes(), str(file))
        except MarramError:
            raise
        except OSError as error:
            raise Missing(f"cannot be read: {error.strerror}", where=str(file)) from error


def _modest(image: Image) -> Image:
    height, width = image.shape[:2]
    factor = _MOST_SIDE / max(height, width)
    if factor >= 1:
        return image
    size = [max(1, round(height * factor)), max(1, round(width * factor))]
    return pictures.apply(plan(Input(size=size), height, width), image)
