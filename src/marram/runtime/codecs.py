"""What is sent of an input, and back: pictures as JPEG or as their pixels, readings, what crosses a cut.

Everything that asks a model elsewhere encodes here, everything that answers decodes here: a device, a peer, a replica.
`decode` reads what a stranger sent: it refuses whatever does not fit the card before it makes room for it, so a few
bytes that claim to be gigabytes cost nothing. Numbers travel as bytes, never as text.
"""

from __future__ import annotations

import math

import numpy as np
import zstandard
from numpy.typing import NDArray

from marram.runtime import image as pictures
from marram.runtime.contract import Tensor
from marram.runtime.image import Image
from marram.runtime.model import fit_for
from marram.schema.errors import Invalid, Missing
from marram.schema.model import MAX_CUT_BYTES, Codec, CodecName, Cut, ModelCard
from marram.schema.payload import Payload

JPEG, PIXELS = "image/jpeg", "application/x-pixels+zstd"
READINGS, CROSSING = "application/x-tensor", "application/x-cut+zstd"

# The codec of readings: there is one, so cards do not list it.
AS_THEY_ARE = "readings"
RAW: CodecName = "raw-zstd"
# JPEG qualities. 4:2:0 in all: below 95 full colour costs a third more and changed no answer that was looked at.
_QUALITIES: dict[str, int] = {"jpeg-60": 60, "jpeg-75": 75, "jpeg-85": 85, "jpeg-95": 95}
PICTURE_CODECS: tuple[CodecName, ...] = ("jpeg-60", "jpeg-75", "jpeg-85", "jpeg-95", RAW)
# Sent where nobody measured what codecs cost: a quality at which JPEG hardly shows.
UNMEASURED: CodecName = "jpeg-85"
# Bytes a pixel of photos, before any was sent.
_GUESS = {UNMEASURED: 0.25, RAW: 2.3}

# A picture that was not fitted may have so many bytes as pixels; a fitted one is as large as the model's input.
MAX_PIXEL_BYTES = 2**26
_NO_HARM_PIXELS = 2**20
_MAX_SIDE = 65_536
_MAX_DIMENSIONS = 8
# Level 1 and 3 are as fast on pixels (0.1 ms for 224 × 224) and differ by a hundredth in size.
_LEVEL = 3


def encode(codec: str, card: ModelCard, data: Image | Tensor) -> Payload:
    """One input for the model of `card`, sent as `codec` says (one of `PICTURE_CODECS`, or `AS_THEY_ARE`).

    `data`: a frame, uint8 [H, W, 3], RGB, which is fitted to the model's input here; or readings, any numbers.
    Raises Invalid where it is not what the model takes, Missing for a codec that there is not.
    """
    if card.input.kind == "tensor":
        if codec != AS_THEY_ARE:
            raise Missing(f'readings have no codec "{codec}"', where=card.model, hint=f'They are sent "{AS_THEY_ARE}".')
        try:
            readings = np.ascontiguousarray(data, "<f4")
        except (TypeError, ValueError) as error:
            raise Invalid("readings are numbers", where=card.model) from error
        return Payload(READINGS, readings.tobytes(), readings.shape)
    fitted = fit_for(card, np.asarray(data))
    height, width = data.shape[:2]
    frame_size = (int(height), int(width))
    if codec in _QUALITIES:
        return Payload(JPEG, pictures.encode_jpeg(fitted, _QUALITIES[codec]), frame_size=frame_size)
    if codec == RAW:
        return Payload(PIXELS, _compressed(fitted), fitted.shape, frame_size)
    raise Missing(f'no codec "{codec}"', where=card.model, hint=f"There are {', '.join(PICTURE_CODECS)}.")


def encode_cut(cut: Cut, crossing: NDArray[np.uint8], frame_size: tuple[int, int] | None = None) -> Payload:
    """What `runtime.cut.Front.run` gave, for the replica's back; `frame_size` (height, width): of the frame."""
    shape = tuple(cut.shape)
    return Payload(CROSSING, _compressed(crossing), shape, frame_size, cut.name, cut.scale, cut.zero_point)


def decode(payload: Payload, card: ModelCard) -> Image | Tensor:
    """What was sent to the model of `card`: a picture (uint8 [H, W, 3], RGB), readings (float32), or at a cut uint8.

    Give it to `prepare` of the model, or of the back of the cut that `payload.cut` names, with `payload.frame_size`.
    Raises Invalid (malformed, or not for this model), Missing (the card has no such cut).
    """
    size = payload.frame_size
    if size is not None and not (0 < size[0] < _MAX_SIDE and 0 < size[1] < _MAX_SIDE):
        raise Invalid(f"{size[0]}×{size[1]} is no size of a frame")
    if payload.media == CROSSING:
        return _crossing(payload, card)
    if payload.cut:
        raise Invalid(f'{payload.media} does not come from a cut, and "{payload.cut}" is named', where=card.model)
    if payload.media == READINGS:
        _takes(card, "tensor", "readings were sent")
        return _readings(payload)
    if payload.media != PIXELS and not payload.media.startswith("image/"):
        raise Invalid(f'"{payload.media[:100]}" is nothing that a model takes', where=card.model)
    _takes(card, "image", "a picture was sent")
    rows, columns = card.input.size
    if payload.media == PIXELS:
        return _pixels(payload, (rows, columns) if size is not None else None)
    # A fitted picture is as large as the model's input (one a little larger is told so by `prepare`).
    most = max(rows * columns, _NO_HARM_PIXELS) if size is not None else pictures.MAX_PIXELS
    return pictures.decode(payload.body, "the picture sent", most_pixels=most)


def codecs_for(card: ModelCard) -> list[Codec]:
    """The codecs that a sender may choose from: those of the card whose loss its `accuracy_budget` allows.

    Pixels as they are lose nothing and are always allowed. Where nobody measured, JPEG of quality 85 is, as guessed.
    Empty for a model that takes readings, which are sent as they are.
    """
    if card.input.kind != "image":
        return []
    pixels = math.prod(card.input.size)
    guessed = {name: Codec(name=name, bytes=math.ceil(rate * pixels), loss=0.0) for name, rate in _GUESS.items()}
    allowed = [codec for codec in card.codecs if codec.loss <= card.accuracy_budget or codec.name == RAW]
    if not card.codecs:
        allowed.append(guessed[UNMEASURED])
    if all(codec.name != RAW for codec in allowed):
        allowed.append(guessed[RAW])
    return allowed


def unmeasured(card: ModelCard) -> str:
    """Where nobody measured what sending a picture to the model of `card` costs: so, and what to type. Else ""."""
    if card.input.kind != "image" or card.codecs:
        return ""
    return (
        f"pictures sent to {card.reference} go as {UNMEASURED}, and nobody measured what that costs it; on pictures "
        f"like yours: marram model codecs {card.model} --images FOLDER"
    )


def cuts_for(card: ModelCard) -> list[Cut]:
    """The cuts at which it may be parted: those of the card whose loss its `accuracy_budget` allows."""
    return card.cuts_within()


# ---------------------------------------------------------------- each medium


def _readings(payload: Payload) -> NDArray[np.float32]:
    shape, body = payload.shape, payload.body
    if not (0 < len(shape) <= _MAX_DIMENSIONS) or any(n < 1 for n in shape) or 4 * math.prod(shape) != len(body):
        raise Invalid(f"{len(body)} bytes are no float32 tensor of shape {_words(shape)}")
    return np.frombuffer(body, dtype="<f4").astype(np.float32).reshape(shape)


def _pixels(payload: Payload, fitted: tuple[int, int] | None) -> Image:
    shape = payload.shape
    if len(shape) != 3 or shape[2] != 3 or any(n < 1 for n in shape) or math.prod(shape) > MAX_PIXEL_BYTES:
        raise Invalid(f"{_words(shape)} is no shape of a picture: [height, width, 3]")
    if fitted is not None and shape[:2] != fitted:
        raise Invalid(f"a fitted picture is {fitted[1]}×{fitted[0]} here, got {shape[1]}×{shape[0]}")
    return _expanded(payload.body, math.prod(shape)).reshape(shape)


def _crossing(payload: Payload, card: ModelCard) -> NDArray[np.uint8]:
    cut = next((cut for cut in card.cuts if cut.name == payload.cut), None)
    if cut is None:
        has = ", ".join(each.name for each in card.cuts) or "none"
        raise Missing(f'no cut "{payload.cut[:100]}"; it has {has}', where=card.reference)
    if payload.shape != tuple(cut.shape) or cut.size > MAX_CUT_BYTES:
        raise Invalid(f'cut "{cut.name}" has shape {cut.shape}, got {_words(payload.shape)}', where=card.reference)
    if (payload.scale, payload.zero_point) != (cut.scale, cut.zero_point):
        # Sent by another build of the model: its numbers would mean others here.
        raise Invalid(f'cut "{cut.name}" has another scale than was sent', where=card.reference)
    return _expanded(payload.body, cut.size).reshape(payload.shape)


def _takes(card: ModelCard, kind: str, what: str) -> None:
    if card.input.kind != kind:
        takes = "readings" if card.input.kind == "tensor" else "a picture"
        raise Invalid(f"takes {takes}, and {what}", where=card.model)


def _words(shape: tuple[int, ...]) -> str:
    """A stranger's shape, short enough for a message."""
    return str(list(shape))[:100]


def _compressed(values: NDArray[np.uint8]) -> bytes:
    return zstandard.ZstdCompressor(level=_LEVEL).compress(np.ascontiguousarray(values).data)


def _expanded(body: bytes, size_bytes: int) -> NDArray[np.uint8]:
    """The `size_bytes` bytes that `body` holds. Raises Invalid where it says or holds another number of them."""
    try:
        if zstandard.frame_content_size(body) != size_bytes:
            raise Invalid(f"what was sent does not hold the {size_bytes:,} bytes of its shape")
        expanded = zstandard.ZstdDecompressor().decompress(body, max_output_size=size_bytes, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise Invalid(f"what was sent is not whole: {error}") from error
    if len(expanded) != size_bytes:
        raise Invalid(f"what was sent does not hold the {size_bytes:,} bytes of its shape")
    return np.frombuffer(expanded, np.uint8)
