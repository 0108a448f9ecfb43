"""The labelled photos as cameras in trouble would give them, and what two real models answer. No benchmark itself.

Each photo of `../shared/data/images` in several crops, each crop clean and blurred, noisy, dark or squeezed into a poor
JPEG, at three strengths: what separates a small model from a larger one. Seeds are fixed. Both models answer each view
once; the answers are kept under `build/`, under a name that changes with the models and with how views are made.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from marram.runtime.build import recipes
from marram.runtime.bundle import CARD, Bundle, dump_card
from marram.runtime.model import Model, Options
from marram.schema.model import Engine, Input, ModelCard, Output, Task, Variant
from marram.schema.result import Result

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
KEPT = Path(__file__).resolve().parents[1] / "build"
CROPS = 6  # of each photo, the whole of it among them
CLOUD = "efficientnet-lite2"
EDGES = {"float": "mobilenet_v1_0.25_224_float.tflite", "quant": "mobilenet_v1_0.25_224_quant.tflite"}
_VERSION = 1  # of how views are made

Picture = NDArray[np.uint8]  # uint8 [H, W, 3], RGB


def blur(picture: Picture, strength: float, random: np.random.Generator) -> Picture:
    """Gaussian, `strength` in percent of the shorter side: out of focus."""
    radius = strength / 100 * min(picture.shape[:2])
    return np.asarray(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(radius)))


def noise(picture: Picture, strength: float, random: np.random.Generator) -> Picture:
    """Gaussian on each channel, `strength` its deviation in levels: a sensor at night."""
    noisy = picture.astype(np.float32) + random.normal(0.0, strength, picture.shape)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)


def darkness(picture: Picture, strength: float, random: np.random.Generator) -> Picture:
    """`strength` times less light, and the noise of what a sensor then reads."""
    return noise(np.rint(picture / strength).astype(np.uint8), 2.0, random)


def jpeg(picture: Picture, strength: float, random: np.random.Generator) -> Picture:
    """Quality `strength`: a link that was short of bytes."""
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", quality=int(strength))
    return np.asarray(Image.open(stream).convert("RGB"))


Corruption = Callable[[Picture, float, np.random.Generator], Picture]
CORRUPTIONS: dict[str, tuple[Corruption, tuple[float, float, float]]] = {
    "blur": (blur, (0.6, 1.2, 2.5)),
    "noise": (noise, (15.0, 35.0, 70.0)),
    "darkness": (darkness, (3.0, 6.0, 12.0)),
    "jpeg": (jpeg, (20.0, 10.0, 5.0)),
}


@dataclass(frozen=True, slots=True)
class View:
    """One picture both models were asked about. `truth`: the class ids that are right.

    `strength`: 0 clean, 1–3. `edge`: the edge's answers, by the name of the variant; labels are class ids.
    """

    photo: str
    kind: str
    strength: int
    truth: frozenset[str]
    edge: dict[str, Result]
    cloud: Result


def missing() -> str | None:
    """What is not here that the views are made of, None where all is."""
    needed = [SHARED / "images/labels.csv", *(SHARED / "models" / file for file in EDGES.values())]
    absent = [path for path in needed if not path.is_file()]
    return f"it needs {absent[0]}, which is absent here" if absent else None


def views() -> list[View]:
    """Every view with both models' answers; made once (minutes), then read. Raises what building the model raises."""
    cloud = recipes.build(CLOUD)
    kept = KEPT / f"cascade-{_digest(cloud)}.json"
    if not kept.is_file():
        KEPT.mkdir(exist_ok=True)
        temporary = kept.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps(list(_answered(cloud))))
        temporary.rename(kept)
    told = json.loads(kept.read_text())
    return [
        View(
            each["photo"],
            each["kind"],
            each["strength"],
            frozenset(each["truth"]),
            {name: Result.from_dict(result) for name, result in each["edge"].items()},
            Result.from_dict(each["cloud"]),
        )
        for each in told
    ]


def _answered(cloud: Bundle) -> Iterator[dict[str, object]]:
    with tempfile.TemporaryDirectory() as folder:
        edges = {name: Model.load(_edge_bundle(Path(folder) / name, file)) for name, file in EDGES.items()}
        larger = Model.load(_renamed(cloud, Path(folder) / "cloud"))
        top = Options(top=2)
        for done, (photo, truth, kind, strength, picture) in enumerate(_pictures(), 1):
            yield {
                "photo": photo,
                "kind": kind,
                "strength": strength,
                "truth": sorted(truth),
                "edge": {name: model.predict(picture, None, top).to_dict() for name, model in edges.items()},
                "cloud": larger.predict(picture, None, top).to_dict(),
            }
            if done % 500 == 0:
                print(f"both models answered {done} views", flush=True)
        for model in (*edges.values(), larger):
            model.close()


def _pictures() -> Iterator[tuple[str, set[str], str, int, Picture]]:
    with (SHARED / "images/labels.csv").open(newline="") as table:
        rows = sorted(csv.DictReader(table), key=lambda row: row["file"])
    for row in rows:
        # A seed of its own for each photo: one that is added or taken away changes no other's views.
        seed = int.from_bytes(hashlib.sha256(row["file"].encode()).digest()[:8], "big")
        random = np.random.default_rng(seed)
        truth = set(row["accepted_class_ids_0_999"].split(";"))
        with Image.open(SHARED / "images" / row["file"]) as opened:
            photo = np.asarray(opened.convert("RGB"))
        for crop in _crops(photo, random):
            yield row["file"], truth, "clean", 0, crop
            for kind, (corrupt, strengths) in CORRUPTIONS.items():
                for level, strength in enumerate(strengths, 1):
                    yield row["file"], truth, kind, level, corrupt(crop, strength, random)


def _crops(photo: Picture, random: np.random.Generator) -> Iterator[Picture]:
    """The whole, then parts of 60 to 95 % of both sides: most of what the label names stays in."""
    yield photo
    height, width = photo.shape[:2]
    for _ in range(CROPS - 1):
        share = random.uniform(0.6, 0.95)
        rows, columns = int(height * share), int(width * share)
        top, left = random.integers(0, height - rows + 1), random.integers(0, width - columns + 1)
        yield np.ascontiguousarray(photo[top : top + rows, left : left + columns])


def _edge_bundle(folder: Path, file: str) -> Bundle:
    folder.mkdir(parents=True)
    (folder / "model.tflite").write_bytes((SHARED / "models" / file).read_bytes())
    card = ModelCard(
        model="mobilenet-v1",
        task=Task.CLASSIFICATION,
        input=Input(size=[224, 224], mean=[127.5], std=[127.5]),
        output=Output(form="softmax"),
        variants=[Variant(name="litert", engine=Engine.LITERT, file="model.tflite")],
        labels=["background", *_CLASSES],
        licence="Apache-2.0",
        source="tensorflow/tflite-support",
    )
    (folder / CARD).write_text(dump_card(card))
    return Bundle.open(folder)


def _renamed(bundle: Bundle, folder: Path) -> Bundle:
    """With class ids for labels, so that both models speak of the same."""
    folder.mkdir(parents=True)
    for variant in bundle.card.variants:
        (folder / variant.file).symlink_to(bundle.file(variant))
    (folder / CARD).write_text(dump_card(bundle.card.model_copy(update={"labels": _CLASSES})))
    return Bundle.open(folder)


_CLASSES = [str(number) for number in range(1000)]


def _digest(cloud: Bundle) -> str:
    told = hashlib.sha256(f"{_VERSION} {CROPS} {[(name, s) for name, (_, s) in CORRUPTIONS.items()]}".encode())
    for path in (cloud.file(cloud.card.variants[0]), *(SHARED / "models" / file for file in EDGES.values())):
        told.update(hashlib.sha256(path.read_bytes()).digest())
    told.update((SHARED / "images/labels.csv").read_bytes())
    return told.hexdigest()[:12]
