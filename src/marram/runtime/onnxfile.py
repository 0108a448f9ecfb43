"""An ONNX file read without any library, which a device does not have: where its weights lie, how many items it takes.

A model may keep weights in other files, named by a path. A path that leaves the bundle would make whoever loads the
model read, and a hostile one's author learn of, any file of that machine. Most are exported for one item at a time
though their graphs would take several. The fields are those of onnx.proto3.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from marram.schema.errors import Invalid

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_DEPTH = 64
# Message -> its fields that are messages which may hold tensors, by number.
_PARTS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
    "entry": {},
}


def outside(file: Path) -> set[str]:
    """Every path outside of itself that the model names. Raises Invalid where the file is no ONNX model."""
    content = memoryview(file.read_bytes())
    try:
        if not any(number == 7 and kind == _BYTES for number, kind, _ in _fields(content)):
            raise ValueError("no graph")
        return set(_locations(content, "model", 0))
    except (ValueError, IndexError) as error:
        raise Invalid("not an ONNX model", where=str(file), hint="Is the file complete?") from error


# A dimension that is 1 long, and one whose length has no name: as many bytes, so that nothing around it has to change.
_ONE, _FREE = b"\x08\x01", b"\x12\x00"
_GRAPH, _INITIALIZER, _INPUT, _OUTPUT, _NAME, _TENSOR_NAME = 7, 5, 11, 12, 1, 8


def freed(file: Path) -> bytes | None:
    """The model with the first length of its inputs and outputs declared free where it is 1, None where none is.

    Whether the graph answers several items as it does each alone is not looked at. A model that keeps weights in other
    files is None too: it cannot be loaded from bytes. Raises Invalid where the file is no ONNX model.
    """
    if outside(file):
        return None
    content = bytearray(file.read_bytes())
    changed = False
    for _, graph in _parts(memoryview(content), _GRAPH):
        constants = {bytes(name) for _, each in _parts(graph, _INITIALIZER) for _, name in _parts(each, _TENSOR_NAME)}
        for _, value in _parts(graph, _INPUT, _OUTPUT):
            if constants.isdisjoint(bytes(name) for _, name in _parts(value, _NAME)):
                changed |= _free_first(value)
    return bytes(content) if changed else None


def _free_first(value: memoryview) -> bool:
    """ValueInfoProto.type(2).tensor_type(1).shape(2).dim(1), the first of them."""
    for path in (2, 1, 2):
        value = next((part for _, part in _parts(value, path)), value[:0])
    first = next((part for _, part in _parts(value, 1)), value[:0])
    if bytes(first) != _ONE:
        return False
    first[:] = _FREE
    return True


def _parts(content: memoryview, *numbers: int) -> Iterator[tuple[int, memoryview]]:
    for number, _, value in _fields(content):
        if number in numbers and isinstance(value, memoryview):
            yield number, value


def _locations(content: memoryview, message: str, depth: int) -> Iterator[str]:
    if depth > _DEPTH:
        raise ValueError("nested too deep")
    parts = _PARTS[message]
    for number, kind, value in _fields(content):
        inner = parts.get(number)
        if inner is None or kind != _BYTES:
            continue
        assert isinstance(value, memoryview)
        if inner == "entry":
            pair = {n: bytes(v) for n, k, v in _fields(value) if k == _BYTES and isinstance(v, memoryview)}
            if pair.get(1) == b"location":
                yield pair.get(2, b"").decode("utf-8", errors="replace")
        else:
            yield from _locations(value, inner, depth + 1)


def _fields(content: memoryview) -> Iterator[tuple[int, int, memoryview | int]]:
    """(number, wire type, value) of each field. Raises ValueError, IndexError where it is no message."""
    at = 0
    while at < len(content):
        key, at = _varint(content, at)
        number, kind = key >> 3, key & 7
        if number == 0:
            raise ValueError("no field 0")
        if kind == _VARINT:
            value, at = _varint(content, at)
            yield number, kind, value
            continue
        if kind == _BYTES:
            length, at = _varint(content, at)
        elif kind in (_FIXED64, _FIXED32):
            length = 8 if kind == _FIXED64 else 4
        else:
            raise ValueError("unknown wire type")
        if at + length > len(content):
            raise ValueError("it ends early")
        yield number, kind, content[at : at + length]
        at += length


def _varint(content: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = content[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number of more than ten bytes")
