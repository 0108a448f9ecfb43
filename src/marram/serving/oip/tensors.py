"""Tensors of the Open Inference Protocol: what their bytes and their JSON mean, and what is refused of both.

Nothing that comes in is believed: a shape is bounded before anything is made of it, and bytes must be as many as the
shape says. Raises Invalid, never anything else.
"""

from __future__ import annotations

import base64
import binascii
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from marram.runtime.contract import Tensor, TensorInfo
from marram.schema.errors import Invalid, Permanent

BYTES = "BYTES"
# The protocol's name of each type of number -> NumPy's, as it travels: little-endian.
NUMBERS = {
    "BOOL": np.dtype("?"),
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
DATATYPES = {dtype: name for name, dtype in NUMBERS.items()}
# One tensor, decoded.
MOST_BYTES = 256_000_000
# A shape has so many lengths, and BYTES so many elements, at most.
MOST_RANK = 16
MOST_ELEMENTS = 65_536


@dataclass(frozen=True, slots=True)
class Named:
    """A tensor that travels: an array, or for BYTES the elements in row-major order."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Tensor | list[bytes]

    @classmethod
    def of(cls, name: str, data: Tensor) -> Named:
        """An array of ours."""
        return cls(name, DATATYPES[data.dtype.newbyteorder("<")], data.shape, data)

    def elements(self) -> list[bytes]:
        """Of BYTES. Raises Invalid for numbers."""
        if not isinstance(self.data, list):
            raise Invalid(f"is {self.datatype}, not {BYTES}", where=f'tensor "{self.name}"')
        return self.data

    def array(self) -> Tensor:
        """Of numbers. Raises Invalid for BYTES."""
        if isinstance(self.data, list):
            raise Invalid(f"is {BYTES}, not numbers", where=f'tensor "{self.name}"')
        return self.data


def datatype_of(info: TensorInfo) -> str:
    """How a model's tensor is announced: where it is quantised, as the real numbers that it stands for."""
    return "FP32" if info.scale is not None else DATATYPES[np.dtype(info.dtype).newbyteorder("<")]


def check_shape(name: str, datatype: Any, shape: Any) -> tuple[int, ...]:
    """`shape` as a tuple, of a size that one may make. Raises Invalid."""
    where = f'tensor "{name}"'
    if datatype != BYTES and datatype not in NUMBERS:
        shown = datatype[:20] if isinstance(datatype, str) else type(datatype).__name__
        raise Invalid(
            f"{shown!r} is no datatype taken here; there are {', '.join(NUMBERS)}, {BYTES}",
            where=where,
            hint="Send it as FP32." if shown == "BF16" else None,
        )
    if (
        not isinstance(shape, Sequence)
        or isinstance(shape, str)
        or not 0 < len(shape) <= MOST_RANK
        or not all(type(length) is int and length > 0 for length in shape)
    ):
        raise Invalid(f"a shape is a list of 1 to {MOST_RANK} whole numbers above 0", where=where)
    count = math.prod(shape)
    if datatype == BYTES and count > MOST_ELEMENTS:
        raise Invalid(f"{count} elements are more than the {MOST_ELEMENTS} that are taken", where=where)
    if datatype != BYTES and count * NUMBERS[datatype].itemsize > MOST_BYTES:
        raise Invalid(f"shape {list(shape)} is more than the {MOST_BYTES // 10**6} MB that are taken", where=where)
    return tuple(shape)


def from_raw(name: str, datatype: str, shape: tuple[int, ...], raw: memoryview | bytes) -> Named:
    """Of the bytes that the binary extension and gRPC send; `shape` is checked. The array is a view of `raw`."""
    where, count = f'tensor "{name}"', math.prod(shape)
    if datatype == BYTES:
        return Named(name, datatype, shape, _split(where, count, raw))
    dtype = NUMBERS[datatype]
    if count * dtype.itemsize != len(raw):
        raise Invalid(f"{len(raw)} bytes are no {datatype} {list(shape)}, {count * dtype.itemsize} are", where=where)
    array = np.frombuffer(raw, dtype).reshape(shape)
    return Named(name, datatype, shape, array if array.flags.aligned else array.copy())


def _split(where: str, count: int, raw: memoryview | bytes) -> list[bytes]:
    """Elements, each after its length (4 bytes, little-endian)."""
    elements: list[bytes] = []
    at, end = 0, len(raw)
    while at < end:
        if end - at < 4:
            raise Invalid(f"the length of element {len(elements)} is cut off", where=where)
        length = struct.unpack_from("<I", raw, at)[0]
        at += 4
        if length > end - at:
            raise Invalid(
                f"element {len(elements)} says that it has {length} bytes, {end - at} are left",
                where=where,
                hint="Each element of BYTES begins with its length: 4 bytes, little-endian.",
            )
        if len(elements) == count:
            raise Invalid(f"its shape says {count} elements, there are more", where=where)
        elements.append(bytes(raw[at : at + length]))
        at += length
    if len(elements) != count:
        raise Invalid(f"its shape says {count} elements, there are {len(elements)}", where=where)
    return elements


def from_json(name: str, datatype: str, shape: tuple[int, ...], data: Any, *, coded: bool = False) -> Named:
    """Of a JSON list, nested or flat; `shape` is checked. `coded`: elements of BYTES are base64."""
    where, count = f'tensor "{name}"', math.prod(shape)
    if not isinstance(data, list):
        raise Invalid("its data is no list", where=where)
    if datatype == BYTES:
        return Named(name, datatype, shape, [_element(where, each, coded) for each in _flat(where, data, count)])
    dtype = NUMBERS[datatype]
    try:
        found = np.asarray(data)
        if dtype.kind == "u" and found.dtype.kind == "f":  # what NumPy makes of numbers on both sides of 2^63
            exactly = np.asarray(data, object)
            found = exactly.astype(dtype) if all(type(each) is int for each in exactly.flat) else found
        fits = found.dtype.kind in _KINDS[dtype.kind] and found.size == count
        if fits and dtype.kind in "iu":
            limits = np.iinfo(dtype.name)
            fits = bool(found.min() >= limits.min and found.max() <= limits.max)
        with np.errstate(over="ignore"):
            array = found.astype(dtype).reshape(shape) if fits else None
    except (ValueError, TypeError, OverflowError, RecursionError):
        array = None
    if array is None:
        raise Invalid(f"its data is not {count} numbers of {datatype} in lists of equal lengths", where=where)
    return Named(name, datatype, shape, array)


# Kinds of NumPy's that a number in JSON may have where one of such a kind is wanted.
_KINDS = {"b": "b", "u": "iu", "i": "iu", "f": "fiu"}


def _flat(where: str, data: list[Any], count: int) -> list[Any]:
    level = data
    for _ in range(MOST_RANK):
        if not any(isinstance(each, list) for each in level):
            break
        if not all(isinstance(each, list) for each in level):
            raise Invalid("its data has lists beside elements", where=where)
        level = [each for inner in level for each in inner]
    if len(level) != count:
        raise Invalid(f"its shape says {count} elements, there are {len(level)}", where=where)
    return level


def _element(where: str, value: Any, coded: bool) -> bytes:
    if not isinstance(value, str):
        raise Invalid("an element of BYTES is text in JSON", where=where, hint="Or send it with the binary extension.")
    try:
        return base64.b64decode(value, validate=True) if coded else value.encode()
    except (binascii.Error, ValueError) as error:
        raise Invalid("an element is " + ("no base64" if coded else "no text"), where=where) from error


def to_raw(tensor: Named) -> bytes:
    """The inverse of `from_raw`."""
    if isinstance(tensor.data, list):
        return b"".join(part for each in tensor.data for part in (struct.pack("<I", len(each)), each))
    return np.ascontiguousarray(tensor.data, NUMBERS[tensor.datatype]).tobytes()


def to_json(tensor: Named) -> list[Any]:
    """The inverse of `from_json`, flat. Raises Permanent for what JSON does not have: NaN, infinity, bytes."""
    if isinstance(tensor.data, list):
        try:
            return [each.decode() for each in tensor.data]
        except UnicodeDecodeError as error:
            raise Permanent(
                "holds bytes that are no text", where=f'tensor "{tensor.name}"', hint="Ask for it as binary data."
            ) from error
    if tensor.data.dtype.kind == "f" and not np.isfinite(tensor.data).all():
        raise Permanent(
            "holds NaN or infinity, which JSON does not have",
            where=f'tensor "{tensor.name}"',
            hint="Ask for it as binary data.",
        )
    numbers: list[Any] = tensor.data.ravel().tolist()
    return numbers
