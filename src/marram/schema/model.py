"""A model's card (`model.yaml`): what it does, what goes in, what comes out, and in which files it exists.

A bundle is a folder: `model.yaml` and the files it names. One model may have several variants of the same
function (litert-int8, onnx-fp32 …); a device runs whichever it can, fastest first in the card's order.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from marram.schema.errors import Threat, Untrusted
from marram.schema.ids import Name

# The type of pydantic's fault for a path that leads out of its folder.
TRAVERSAL = "path_traversal"


# What every file system of a device takes.
_MOST_PARTS, _MOST_PART_BYTES, _MOST_PATH_BYTES = 32, 255, 1024


def _inside(path: str) -> str:
    parts = path.split("/")
    if (
        any(part in ("", ".", "..") for part in parts)
        or "\\" in path
        or parts[0][1:2] == ":"  # a drive
        # Control characters, text that is shown in another order than it is read, halves of characters.
        or any(unicodedata.category(letter) in ("Cc", "Cf", "Cs") for letter in path)
        or len(parts) > _MOST_PARTS
        or any(len(part.encode()) > _MOST_PART_BYTES for part in parts)
        or len(path.encode()) > _MOST_PATH_BYTES
    ):
        # Of a type of its own: who takes files from strangers refuses it by its name.
        shown = path if path.isprintable() and len(path) < 200 else ascii(path[:200])[1:-1]
        plain = f'"{shown}" must be a plain path inside the folder: relative, no "..", no backslash'
        raise PydanticCustomError(TRAVERSAL, "{plain}", {"plain": plain})
    return path


def _apart(files: list[File]) -> list[File]:
    """That no file takes another's place, nor on a file system that does not tell upper case from lower."""
    taken, folders = set[str](), set[str]()
    for file in files:
        place = unicodedata.normalize("NFC", file.path).casefold()
        above = [place[:at] for at, letter in enumerate(place) if letter == "/"]
        if place in taken or place in folders or not taken.isdisjoint(above):
            plain = f'"{file.path}" takes the place of another file in the same bundle, or of a folder'
            raise PydanticCustomError(TRAVERSAL, "{plain}", {"plain": plain})
        taken.add(place)
        folders.update(above)
    return files


RelativePath = Annotated[str, AfterValidator(_inside)]


class Strict(BaseModel):
    """A frozen model that refuses unknown fields: a misspelt field is an error, never silently ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Task(StrEnum):
    """What a model answers; each has its postprocessing in `runtime/postprocess`."""

    CLASSIFICATION = "classification"
    DETECTION = "detection"
    REGRESSION = "regression"
    ANOMALY = "anomaly"


class Engine(StrEnum):
    """Which runtime plug-in loads a variant; the value is the plug-in's file name in `runtime/engines`."""

    LITERT = "litert"
    ONNX = "onnx"
    TORCH = "torch"
    REFERENCE = "reference"


class Input(Strict):
    """What goes in: an image `[1, H, W, C]` or `[1, C, H, W]`, or a vector/series of any shape."""

    kind: Literal["image", "tensor"] = "image"
    layout: Literal["NHWC", "NCHW"] = "NHWC"
    # Height, width of an image; or the full shape without the batch of a tensor.
    size: list[int] = Field(min_length=1)
    colour: Literal["RGB", "BGR", "gray"] = "RGB"
    # stretch: all of the frame, aspect lost; crop: the largest centred part of the input's aspect, × crop_share;
    # letterbox: all of the frame, aspect kept, the rest black.
    fit: Literal["stretch", "crop", "letterbox"] = "stretch"
    crop_share: float = Field(default=0.875, gt=0, le=1)
    # real = (pixel - mean) / std, per channel or for all; quantised inputs are then quantised by the file's own scale.
    mean: list[float] = [0.0]
    std: list[float] = [1.0]


class Output(Strict):
    """What comes out, and how it becomes a result: `form` names the postprocessing, the rest are its settings."""

    form: Literal["softmax", "logits", "ssd", "fastestdet", "yunet", "blazeface", "value", "reconstruction", "score"]
    # The file's outputs that the form takes, by name and in its order; default: all, as they stand in the file.
    tensors: list[str] = []
    # Detections below are dropped; boxes overlapping more than `overlap` (IoU) of a better one are dropped.
    min_confidence: float = Field(default=0.5, ge=0, le=1)
    overlap: float = Field(default=0.45, ge=0, le=1)
    # Line of the labels file that names class 0 (1 where it starts with "background" and the outputs do not).
    label_offset: int = 0
    # For anomaly scores: at or above is an anomaly.
    threshold: float | None = None
    # For a regression: what the value is counted in.
    unit: str | None = None


class Variant(Strict):
    """One file (or set of files) that computes the model's function on one engine."""

    name: Name
    engine: Engine
    file: RelativePath
    precision: Literal["fp32", "fp16", "int8", "uint8"] = "fp32"
    # Measured on the card's own test set, where the builder measured it (0–1).
    accuracy: float | None = Field(default=None, ge=0, le=1)


# How a picture may be sent: as JPEG of that quality, or as its pixels, compressed without loss.
CodecName = Literal["jpeg-60", "jpeg-75", "jpeg-85", "jpeg-95", "raw-zstd"]
# More than any cut worth having by far: who receives one makes room for so many bytes.
MAX_CUT_BYTES = 2**24


class Codec(Strict):
    """What one way of sending a picture costs, as `marram model codecs` measured it.

    `bytes`: of one input, the mean. `loss`: the accuracy (0–1) that it gives up beside the input as it is
    (`schema/agreement.py`). `encode_ms`: on the machine that measured it; only proportions to the other times count.
    """

    name: CodecName
    bytes: int = Field(ge=1)
    loss: float = Field(ge=0, le=1)
    encode_ms: float = Field(default=0.0, ge=0, allow_inf_nan=False)


class Cut(Strict):
    """A tensor at which the model is parted: `front` runs on the device, what it gives is sent, `back` answers.

    What crosses is one tensor of `shape` (without the batch), a byte a number: real = (byte - zero_point) * scale.
    `variant`: the one whose two parts these are. `bytes` (compressed, the mean of one input), `loss` (as a codec's,
    beside the whole variant) and the milliseconds of both parts are as `marram model cut` measured them.
    """

    name: Name
    variant: Name
    tensor: str = Field(min_length=1)
    engine: Engine = Engine.ONNX
    front: RelativePath
    back: RelativePath
    shape: list[Annotated[int, Field(ge=1)]] = Field(min_length=1, max_length=7)
    scale: float = Field(gt=0, allow_inf_nan=False)
    zero_point: int = Field(default=0, ge=0, le=255)
    bytes: int = Field(ge=1)
    loss: float = Field(ge=0, le=1)
    front_ms: float = Field(ge=0, allow_inf_nan=False)
    back_ms: float = Field(ge=0, allow_inf_nan=False)

    @property
    def size(self) -> int:
        """Numbers that cross, and bytes before they are compressed."""
        return math.prod(self.shape)


class ModelCard(Strict):
    """`model.yaml`."""

    model: Name
    version: int = Field(default=1, ge=1)
    task: Task
    input: Input
    output: Output
    variants: list[Variant] = Field(min_length=1)
    # A device picks the fastest variant whose `accuracy` is at least this; None: any.
    accuracy_floor: float | None = Field(default=None, ge=0, le=1)
    # Whoever sends an input may choose among the codecs and cuts whose `loss` is at most this.
    accuracy_budget: float = Field(default=0.02, ge=0, le=1)
    codecs: list[Codec] = []
    cuts: list[Cut] = []
    # One label a line; or listed here.
    labels: RelativePath | list[str] | None = None
    licence: str
    source: str
    description: str = ""

    @property
    def reference(self) -> str:
        """`name@version`: what a result says answered it."""
        return f"{self.model}@{self.version}"

    def cuts_within(self, budget: float | None = None) -> list[Cut]:
        """The cuts that change at most this share of answers (None: the card's own budget)."""
        most = self.accuracy_budget if budget is None else budget
        return [cut for cut in self.cuts if cut.loss <= most]

    @property
    def files(self) -> list[str]:
        """Every file that the card names, each once, without the labels."""
        parts = [part for cut in self.cuts for part in (cut.front, cut.back)]
        return list(dict.fromkeys([*(variant.file for variant in self.variants), *parts]))


class File(Strict):
    """One file of a bundle, by content."""

    path: RelativePath
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size_bytes: int = Field(ge=0)


class Manifest(Strict):
    """A bundle's files. A bundle is known by the digest of this list (`registry/digest.py`)."""

    files: Annotated[list[File], AfterValidator(_apart)]

    @property
    def size_bytes(self) -> int:
        return sum(f.size_bytes for f in self.files)

    @classmethod
    def of(cls, files: Iterable[tuple[str, str, int]]) -> Manifest:
        """Of what stands in a folder: path, sha256, size in bytes of each file.

        Raises Untrusted (TRAVERSAL) where a path could not stand in every device's folder, or takes another's place.
        """
        try:
            return cls(files=[File(path=path, sha256=sha256, size_bytes=size) for path, sha256, size in files])
        except ValidationError as error:
            fault = error.errors(include_input=False, include_url=False)[0]
            raise Untrusted(fault["msg"], threat=Threat.TRAVERSAL, hint="Rename it.") from error
