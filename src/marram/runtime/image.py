"""Pictures: decode, encode, fit into a model's input. An image is uint8 [H, W, 3], RGB, everywhere in Marram.

OpenCV resizes where it is installed (the `camera` extra), Pillow otherwise, with the same geometry (see `fit`) and
within one grey level of each other, so an app answers the same on both. A broken picture is an Invalid, never a
crash or a half-grey image.
"""

from __future__ import annotations

import io
import sys
import warnings
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageOps, UnidentifiedImageError

from marram.runtime.fit import Fit
from marram.schema.errors import Invalid
from marram.schema.words import first_line

Image = NDArray[np.uint8]  # uint8 [H, W, 3], RGB

# A picture that unpacks to more is refused: a few kilobytes can claim to be gigabytes ("decompression bomb").
MAX_PIXELS = 100_000_000


def decode(data: bytes, where: str = "picture", *, most_pixels: int = MAX_PIXELS) -> Image:
    """JPEG, PNG, WebP, BMP, GIF (first frame), TIFF … to uint8 [H, W, 3], RGB, upright (EXIF honoured), alpha dropped.

    Raises Invalid, with `where` (the file's name), on anything truncated, corrupt, not a picture, or of more than
    `most_pixels`, before it is unpacked.
    """
    if data[:2] == b"\xff\xd8":
        return _decode_jpeg(data, where, most_pixels)
    return _decode_pillow(data, where, most_pixels)


def encode_jpeg(image: Image, quality: int = 85) -> bytes:
    """uint8 [H, W, 3], RGB, as JPEG, colour at half resolution (4:2:0). Raises Invalid where it is no image."""
    check(image)
    contiguous = _turned(image[:, :, ::-1]) if image.strides[2] < 0 else np.ascontiguousarray(image)
    encoded: bytes = simplejpeg.encode_jpeg(contiguous, quality=quality, colorspace="RGB", colorsubsampling="420")
    return encoded


def check(image: Any, where: str = "image") -> Image:
    """`image`, if it is one. Raises Invalid otherwise."""
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        got = f"{image.dtype} {list(image.shape)}" if isinstance(image, np.ndarray) else type(image).__name__
        raise Invalid(f"an image is uint8 [H, W, 3], got {got}", where=where)
    if 0 in image.shape:
        raise Invalid(f"an image of {image.shape[0]}×{image.shape[1]} pixels has nothing in it", where=where)
    return image


def apply(fit: Fit, image: Image) -> Image:
    """The frame in the model's input: uint8 [rows, columns, 3]. May be `image` itself where nothing changes.

    Bilinear. A frame more than twice as large is first averaged down by whole numbers, so that fine
    patterns do not turn into coarse ones that are not there.
    """
    if image.strides[2] < 0:
        # What a camera gave: a view of BGR read backwards. Turned round once it is small, not while it is large.
        return _turned(apply(fit, image[:, :, ::-1]))
    x, y, width, height = fit.source
    tx, ty, columns, rows = fit.target
    part = image[y : y + height, x : x + width]
    factor = min(width // columns, height // rows) // 2
    if factor > 1:
        resized = _resize_large(part, columns, rows, factor)
    elif (width, height) == (columns, rows):
        resized = part
    else:
        resized = _resize(part, columns, rows)
    if (rows, columns) == fit.size:
        return resized
    padded = np.zeros((*fit.size, 3), np.uint8)
    padded[ty : ty + rows, tx : tx + columns] = resized
    return padded


def _turned(image: Image) -> Image:
    """RGB to BGR or back, contiguous."""
    cv2 = _opencv()
    if cv2 is None or not image.flags.c_contiguous:
        return np.ascontiguousarray(image[:, :, ::-1])
    turned: Image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    return turned


def _resize(image: Image, columns: int, rows: int) -> Image:
    cv2 = _opencv()
    if cv2 is not None:
        resized: Image = cv2.resize(image, (columns, rows), interpolation=cv2.INTER_LINEAR)
        return resized
    scale_x, scale_y = image.shape[1] / columns, image.shape[0] / rows
    # transform(), not resize(): Pillow's resize averages while it shrinks, which OpenCV's does not.
    picture = Pillow.fromarray(image).transform(
        (columns, rows),
        Pillow.Transform.AFFINE,
        (scale_x, 0, 0, 0, scale_y, 0),
        Pillow.Resampling.BILINEAR,
    )
    return np.asarray(picture)


def _resize_large(image: Image, columns: int, rows: int, factor: int) -> Image:
    """Average blocks of `factor` × `factor` pixels, then resize. Pixels past the last whole block are left out."""
    height, width = image.shape[0] // factor, image.shape[1] // factor
    whole = image[: height * factor, : width * factor]
    cv2 = _opencv()
    if cv2 is not None:
        reduced: Image = cv2.resize(whole, (width, height), interpolation=cv2.INTER_AREA)
    else:
        reduced = np.asarray(Pillow.fromarray(whole).reduce(factor))
    return _resize(reduced, columns, rows)


def _opencv() -> Any:
    """OpenCV, where the process has it already: loading it only to resize would cost a small device 17 MB."""
    module = sys.modules.get("cv2")
    return module if hasattr(module, "resize") else None


def _decode_jpeg(data: bytes, where: str, most_pixels: int) -> Image:
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(data)
        _check_pixels(height, width, where, most_pixels)
        image: Image = simplejpeg.decode_jpeg(data, colorspace="RGB")
    except ValueError as error:
        if "unsupported" in str(error).lower() or "conver" in str(error).lower():
            return _decode_pillow(data, where, most_pixels)  # CMYK and other rarities
        raise Invalid(f"not a whole JPEG: {first_line(error)}", where=where) from error
    # Cameras write how they were held into EXIF; only then is Pillow asked, since it costs 0.1 ms.
    if b"Exif\0\0" in data[:4096]:
        return _upright(data, image)
    return image


def _upright(data: bytes, image: Image) -> Image:
    try:
        orientation = Pillow.open(io.BytesIO(data)).getexif().get(0x0112, 1)
    except (OSError, ValueError, SyntaxError, TypeError, KeyError):  # a broken EXIF block spoils no picture
        return image
    flips = {2: (0, True), 3: (2, False), 4: (2, True), 5: (3, True), 6: (3, False), 7: (1, True), 8: (1, False)}
    if orientation not in flips:
        return image
    turns, mirrored = flips[orientation]
    turned = np.rot90(image, turns)
    return np.ascontiguousarray(turned[:, ::-1] if mirrored else turned)


def _decode_pillow(data: bytes, where: str, most_pixels: int) -> Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of large and odd files; ours are checked or refused below
            picture = Pillow.open(io.BytesIO(data))
            _check_pixels(picture.height, picture.width, where, most_pixels)
            picture.load()
            if picture.mode.startswith("I;16"):
                grey = (np.asarray(picture) >> 8).astype(np.uint8)
                return np.repeat(grey[:, :, None], 3, axis=2)
            upright = ImageOps.exif_transpose(picture) or picture
            return np.array(upright.convert("RGB"))
    except Invalid:
        raise
    except UnidentifiedImageError as error:
        raise Invalid("not a picture Marram can read", where=where, hint="Use JPEG, PNG, WebP or BMP.") from error
    # Pillow's decoders raise all of these on broken files; each means the same to the caller.
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, TypeError, KeyError, OverflowError,
            MemoryError, Pillow.DecompressionBombError) as error:  # fmt: skip
        raise Invalid(f"a broken picture: {first_line(error)}", where=where) from error


def _check_pixels(height: int, width: int, where: str, most: int) -> None:
    if height * width > most:
        words = f"{most // 1_000_000} million" if most >= 1_000_000 else f"{most:,}"
        raise Invalid(f"{width}×{height} pixels are more than {words}", where=where, hint="Shrink it.")
