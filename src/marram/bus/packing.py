"""Plain types as msgpack, and back: the bottom of everything that travels, on the bus and between processes.

Decoding trusts nothing: a malformed message raises Invalid, never anything else. It must import no more than msgpack:
processes that start for one question use it.
"""

from __future__ import annotations

from typing import Any

import msgpack

from marram.schema.errors import Invalid

MAX_MESSAGE_BYTES = 4_000_000


def pack(document: Any) -> bytes:
    """Plain types (None, bool, int, float, str, bytes, list, dict with str keys) to msgpack."""
    return bytes(msgpack.packb(document, use_bin_type=True))


def unpack(message: bytes) -> Any:
    """The inverse of `pack`. Raises Invalid."""
    if len(message) > 2 * MAX_MESSAGE_BYTES:
        raise Invalid(f"not a message of ours: {len(message)} bytes")
    try:
        # Lengths claimed inside are bounded by the message's own.
        return msgpack.unpackb(message, raw=False, strict_map_key=True, ext_hook=_no_extension, timestamp=1)
    except (ValueError, msgpack.UnpackException) as error:
        raise Invalid(f"not a message of ours: {error or type(error).__name__}") from error


def _no_extension(code: int, data: bytes) -> Any:
    raise ValueError(f"extension type {code}")


def unpack_dict(message: bytes) -> dict[str, Any]:
    """Like `unpack`, for messages that are mappings. Raises Invalid."""
    document = unpack(message)
    if not isinstance(document, dict):
        raise Invalid(f"not a message of ours: a {type(document).__name__} where a mapping belongs")
    return document
