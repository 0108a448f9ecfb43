"""From a picture or readings to a model's input, as its card says: fit, colour, mean and std, layout.

A quantised input is filled through a table of 256 entries instead of 150,000 float operations. The table is made with
the very arithmetic it replaces, so the two are bit-equal (a test compares them).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from marram.runtime.contract import Tensor, TensorInfo
from marram.runtime.image import Image
from marram.runtime.session import quantise
from marram.schema.errors import Invalid
from marram.schema.model import Input

_Table = NDArray[np.generic]

# Fewer different values than this, or more pixel values than this in one: the card's mean and std are not the file's.
_LEAST_LEVELS, _MOST_ALIKE = 16, 64


class Preprocessor:
    """Bound to one card's input and one file's first input. Keeps tables, no frames; safe from several threads."""

    def __init__(self, entry: Input, info: TensorInfo, where: str) -> None:
        self._entry = entry
        self._info = info
        self._where = where
        self._mean = np.array(entry.mean, np.float32)
        self._std = np.array(entry.std, np.float32)
        self._plain = not self._mean.any() and bool((self._std == 1).all())
        self._shape = self._expected_shape()
        # A file that takes integers without saying a scale takes raw pixels.
        self._raw = info.dtype in ("uint8", "int8") and info.scale is None
        self._tables = self._make_tables() if entry.kind == "image" and info.dtype in ("uint8", "int8") else []
        shifted = np.arange(-128, 128, dtype=np.int8)
        table = self._tables[0] if len(self._tables) == 1 else None
        self._flips = table is not None and table.dtype == np.int8 and np.array_equal(table, shifted)

    def check(self) -> None:
        """Raises Invalid where no picture could come through: an input of another kind, or levels fall together."""
        dtype = self._info.dtype
        if self._entry.kind == "image" and not self._tables and not dtype.startswith("float"):
            raise Invalid(
                f"a picture cannot fill an input of {dtype}",
                where=self._where,
                hint="Export it with an input of float32, uint8 or int8.",
            )
        for table in self._tables:
            if table is None:
                continue
            left, counts = np.unique(table, return_counts=True)
            # A table made for another range: pixels / 255 rounded to 0 and 1, or all of them above the largest value.
            if left.size < _LEAST_LEVELS or counts.max() > _MOST_ALIKE:
                takes = (
                    f"pixels as they are, in {dtype}"
                    if self._raw
                    else f"{dtype} for {_real_range(self._info)} after mean and std"
                )
                raise Invalid(
                    f"the file takes {takes}; with this mean and std {counts.max()} of 256 pixel values become one",
                    where=f"{self._where}  input.mean, input.std",
                    hint="Leave mean and std out of model.yaml."
                    if self._raw and dtype == "uint8"
                    else "Mend mean and std in model.yaml: real = (pixel - mean) / std, pixels from 0 to 255.",
                )

    def image(self, fitted: Image) -> Tensor:
        """uint8 [rows, columns, 3], RGB, already fitted, to the file's input (batch of 1)."""
        pixels = self._coloured(fitted)
        if self._tables:
            filled = self._looked_up(pixels)
        else:
            filled = pixels.astype(np.float32) if self._plain else self._normalised(pixels)
        if self._entry.layout == "NCHW":
            filled = np.ascontiguousarray(filled.transpose(2, 0, 1))
        return filled[None]

    def tensor(self, values: Tensor) -> Tensor:
        """Readings of the card's size (any shape with as many numbers) to the file's input. Raises Invalid."""
        size = tuple(self._entry.size)
        if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiub":
            raise Invalid(f"takes an array of numbers, got {_describe(values)}", where=self._where)
        if values.size != int(np.prod(size)):
            raise Invalid(f"takes {list(size)} numbers, got {list(values.shape)}", where=self._where)
        real = values.reshape(size).astype(np.float32)
        if not self._plain:
            real = (real - self._mean) / self._std
        return real[None]

    def _coloured(self, image: Image) -> Image:
        if self._entry.colour == "RGB":
            return image
        if self._entry.colour == "BGR":
            return np.ascontiguousarray(image[:, :, ::-1])
        # ITU-R BT.601 luma in 1/256, as OpenCV and Pillow weigh it: exact in integers.
        weighed = image.astype(np.uint16) @ np.array([77, 150, 29], np.uint16)
        return (weighed >> 8).astype(np.uint8)[:, :, None]

    def _normalised(self, pixels: Image) -> NDArray[np.float32]:
        if self._mean.size == 1 and self._std.size == 1:
            scaled: NDArray[np.float32] = np.subtract(pixels, self._mean[0], dtype=np.float32)
            scaled /= self._std[0]
            return scaled
        # Channel by channel: broadcasting three numbers over the last axis is ten times slower.
        real = np.empty(pixels.shape, np.float32)
        for channel in range(pixels.shape[2]):
            plane = real[:, :, channel]
            np.subtract(pixels[:, :, channel], self._mean[channel % self._mean.size], out=plane, dtype=np.float32)
            plane /= self._std[channel % self._std.size]
        return real

    def _make_tables(self) -> list[_Table | None]:
        """For each channel what a pixel value becomes; None where it stays as it is. One table where all are equal."""
        levels = np.arange(256, dtype=np.uint8)
        channels = max(self._mean.size, self._std.size)
        tables: list[_Table | None] = []
        for channel in range(channels):
            mean, std = self._mean[channel % self._mean.size], self._std[channel % self._std.size]
            real = (levels.astype(np.float32) - mean) / std
            if self._raw:
                table: _Table = np.clip(np.rint(real), *_limits(self._info.dtype)).astype(self._info.dtype)
            else:
                table = quantise(real, self._info)
            tables.append(None if table.dtype == np.uint8 and np.array_equal(table, levels) else table)
        return tables

    def _looked_up(self, pixels: Image) -> Tensor:
        if len(self._tables) == 1:
            table = self._tables[0]
            if table is None:
                return pixels
            # The usual int8 input: pixel - 128 is one flipped bit, 20 times faster than a table.
            return (pixels ^ 0x80).view(np.int8) if self._flips else np.take(table, pixels)
        filled = np.empty(pixels.shape, self._info.dtype)
        for channel, table in enumerate(self._tables):
            plane = pixels[:, :, channel]
            filled[:, :, channel] = plane if table is None else table[plane]
        return filled

    def _expected_shape(self) -> tuple[int, ...]:
        """Raises Invalid where the file's input is not what the card says."""
        entry = self._entry
        size = tuple(entry.size)
        if entry.kind == "image":
            channels = 1 if entry.colour == "gray" else 3
            size = (*size, channels) if entry.layout == "NHWC" else (channels, *size)
        shape = (1, *size)
        declared = self._info.shape
        if len(declared) != len(shape) or any(d not in (-1, s) for d, s in zip(declared, shape, strict=True)):
            raise Invalid(
                f"the card says {list(shape)}, the file {[None if d < 0 else d for d in declared]}",
                where=f"{self._where}  input.size",
                hint="Export it with a batch of 1."
                if declared[1:] == shape[1:]
                else "Mend input.size, layout or colour in model.yaml.",
            )
        return shape


def _limits(dtype: str) -> tuple[int, int]:
    limits = np.iinfo(dtype)
    return int(limits.min), int(limits.max)


def _real_range(info: TensorInfo) -> str:
    lowest, highest = ((limit - info.zero_point) * (info.scale or 1) for limit in _limits(info.dtype))
    return f"{lowest:.4g} to {highest:.4g}"


def _describe(values: object) -> str:
    return f"{values.dtype} {list(values.shape)}" if isinstance(values, np.ndarray) else type(values).__name__
