"""What the body of a request over HTTP asks, and the body of its answer: JSON, and tensors' bytes after it.

What came is believed nowhere: Invalid is raised for whatever is not what it says, TooLarge for what unpacks to more.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping
from typing import Any

from marram.schema.errors import Invalid
from marram.serving.oip.exchange import Asked, Given, check_here, check_wanted, options_of
from marram.serving.oip.faults import TooLarge
from marram.serving.oip.tensors import Named, check_shape, from_json, from_raw, to_json, to_raw

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class Binary:
    """Which outputs go as bytes after the JSON: `default`, unless `of` says otherwise by name."""

    def __init__(self, default: bool, of: Mapping[str, bool]) -> None:
        self.default, self.of = default, of

    def __call__(self, name: str) -> bool:
        return self.of.get(name, self.default)


def header_length(told: bytes | None, size: int) -> int:
    """How many of the body's `size` bytes are JSON, by the header `told` (None: there is none, so all are).

    0: the body is the one tensor. -1: there is no body. Raises Invalid.
    """
    if told is None:
        return size if size else -1
    if not told.isdigit() or len(told) > 18 or int(told) > size:
        raise Invalid(f"Inference-Header-Content-Length is a number up to the body's {size} bytes")
    return int(told)


def parse(body: bytes) -> dict[str, Any]:
    """The JSON object in `body`. Raises Invalid."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:  # a wrong encoding is a ValueError, too
        raise Invalid(f"the request is not JSON: {error}"[:200]) from error
    if not isinstance(document, dict):
        raise Invalid("the request is no JSON object")
    return document


def read(name: str, version: int | None, body: bytes, length: int) -> tuple[Asked, Binary]:
    """What is asked of a model, and which outputs go as bytes. `length`: as `header_length` has it. Raises Invalid."""
    document = parse(body[:length] if 0 <= length < len(body) else body)
    sent, at = [], max(0, length)
    for entry in _objects(document.get("inputs"), "inputs"):
        tensor, at = _tensor(entry, body, at)
        sent.append(tensor)
    if length >= 0 and at != len(body):
        raise Invalid(f"{len(body) - at} bytes after the tensors belong to none of them")
    parameters = _mapping(document.get("parameters"), "parameters")
    wanted, of = [], dict[str, bool]()
    for entry in _objects(document.get("outputs", []), "outputs"):
        how = _mapping(entry.get("parameters"), "outputs.parameters")
        wanted.append(check_wanted(entry.get("name"), how))
        if "binary_data" in how:
            of[wanted[-1]] = how["binary_data"] is True
    options, left_s = options_of(parameters)
    id = document.get("id", "")
    if not isinstance(id, str) or len(id) > 500:
        raise Invalid("is text, 500 characters at most", where="id")
    asked = Asked(name, version, tuple(sent), tuple(wanted), options, left_s, id)
    return asked, Binary(parameters.get("binary_data_output") is True, of)


def _tensor(entry: dict[str, Any], body: bytes, at: int) -> tuple[Named, int]:
    """One input, and where in the body the next one's bytes begin."""
    name = entry.get("name")
    if not isinstance(name, str) or len(name) > 500:
        raise Invalid("each input has a name", where="inputs")
    datatype, parameters = entry.get("datatype"), _mapping(entry.get("parameters"), "inputs.parameters")
    shape = check_shape(name, datatype, entry.get("shape"))
    check_here(name, parameters)
    size = parameters.get("binary_data_size")
    if size is None:
        coded = parameters.get("content_type") == "base64"
        return from_json(name, str(datatype), shape, entry.get("data"), coded=coded), at
    if type(size) is not int or not 0 <= size <= len(body) - at:
        left = len(body) - at
        raise Invalid(
            f"binary_data_size is a number up to the {left} bytes that follow",
            where=f'tensor "{name}"',
            hint="The header Inference-Header-Content-Length says where the JSON ends.",
        )
    return from_raw(name, str(datatype), shape, memoryview(body)[at : at + size]), at + size


def _objects(value: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or len(value) > 100 or not all(isinstance(each, dict) for each in value):
        raise Invalid("is a list of objects, 100 at most", where=where)
    return value


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise Invalid("is an object", where=where)
    return value


def unpack(body: bytes, coding: str, most: int) -> bytes:
    """`body` decompressed, never more than `most` bytes of it. Raises TooLarge, Invalid."""
    if coding not in ("gzip", "deflate"):
        raise Invalid(f"Content-Encoding {coding[:40]!r} is not taken; gzip and deflate are")
    unpacker = zlib.decompressobj(31 if coding == "gzip" else 15)
    try:
        unpacked = unpacker.decompress(body, most)
    except zlib.error as error:
        raise Invalid(f"the body is no {coding}") from error
    if unpacker.unconsumed_tail or (not unpacker.eof and len(unpacked) == most):
        raise TooLarge(f"a request is at most {most // 10**6} MB, unpacked")
    if not unpacker.eof or unpacker.unused_data:
        raise Invalid(f"the body is not one whole {coding}")
    return unpacked


def encode(document: Any) -> bytes:
    """As JSON."""
    return _encode(document).encode()


def write(given: Given, binary: Callable[[str], bool]) -> tuple[bytes, int | None]:
    """The body, and how much of it is JSON where bytes follow."""
    listed, raw = [], []
    for tensor in given.outputs:
        entry: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
        if binary(tensor.name):
            raw.append(to_raw(tensor))
            entry["parameters"] = {"binary_data_size": len(raw[-1])}
        else:
            entry["data"] = to_json(tensor)
        listed.append(entry)
    document: dict[str, Any] = {"model_name": given.model, "model_version": str(given.version), "outputs": listed}
    if given.id:
        document["id"] = given.id
    header = encode(document)
    return (b"".join((header, *raw)), len(header)) if raw else (header, None)


def coding_of(accepted: bytes) -> str:
    """The first of ours that the asker takes."""
    names = [part.partition(b";") for part in accepted.lower().split(b",")]
    takes = {name.strip() for name, _, quality in names if quality.strip() != b"q=0"}
    return next((coding for coding in ("gzip", "deflate") if coding.encode() in takes), "")


def pack(body: bytes, coding: str) -> bytes:
    """`body` compressed, `coding` one of ours."""
    packer = zlib.compressobj(1, zlib.DEFLATED, 31 if coding == "gzip" else 15)
    return packer.compress(body) + packer.flush()
