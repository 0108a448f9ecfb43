"""What everybody serves, and the pictures that all are asked about: made anew for each run, from public weights."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from bench.peers._classifier import Classifier
from marram.runtime import image as pictures
from marram.runtime.build import photos, recipes
from marram.runtime.bundle import CARD, Bundle, dump_card
from marram.runtime.fit import plan

MODEL = "efficientnet-lite0"
VARIANT = "onnx-int8"
PICTURES = 16
_QUALITY = 90
# A picture whose first answer is less sure than this might get another from the same model in another batch.
_SURE = 2.0


@dataclass(frozen=True, slots=True)
class Material:
    """What is served: Marram's bundle with one variant, the same file and labels for the others, and JPEGs to ask."""

    folder: Path
    bundle: Path
    model: Path
    labels: Path
    pictures: Path

    @classmethod
    def make(cls, folder: Path) -> Material:
        """Build it. Raises what `recipes.build` raises."""
        made = recipes.build(MODEL, force=True)
        bundle = folder / MODEL
        variant = made.variant(VARIANT)
        bundle.mkdir()
        shutil.copyfile(made.file(variant), bundle / variant.file)
        shutil.copyfile(made.folder / str(made.card.labels), bundle / "labels.txt")
        card = made.card.model_copy(update={"variants": [variant], "labels": "labels.txt"})
        (bundle / CARD).write_text(dump_card(card), encoding="utf-8")
        material = cls(folder, bundle, bundle / variant.file, bundle / "labels.txt", folder / "pictures")
        material.pictures.mkdir()
        for number, jpeg in enumerate(material._sure()):
            (material.pictures / f"{number:02}.jpg").write_bytes(jpeg)
        return material

    def jpegs(self) -> list[bytes]:
        """The pictures, in the bare loop's order."""
        return [file.read_bytes() for file in sorted(self.pictures.glob("*.jpg"))]

    def _sure(self) -> list[bytes]:
        """Views of photos, of the model's size, whose first answer is clear; evenly over the photos there are."""
        entry = Bundle.open(self.bundle).card.input
        classifier = Classifier(str(self.model), str(self.labels))
        clear = []
        for crop in photos.crops():
            jpeg = pictures.encode_jpeg(pictures.apply(plan(entry, *crop.shape[:2]), crop), _QUALITY)
            first, second, *_ = classifier.answer([jpeg])[0]["scores"]
            if first > _SURE * second:
                clear.append(jpeg)
        return clear[:: max(1, len(clear) // PICTURES)][:PICTURES]
