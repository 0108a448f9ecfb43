"""JSON text in columns: written compactly, whatever a device sent in it; read back as plain types."""

from __future__ import annotations

import base64
import json
import math
from typing import Any

from pydantic import ValidationError

from marram.schema.device import Reported

_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode  # made once: it is used for every event


def dump(document: Any) -> str:
    """`document` as JSON text. What JSON cannot say (bytes, NaN, infinities) is kept readable instead of refused."""
    try:
        return _encode(document)
    except (ValueError, TypeError):
        return _encode(_plain(document))


def load(text: str) -> Any:
    """The inverse of `dump`."""
    return json.loads(text)


def read_report(text: str | None) -> Reported | None:
    """What a device said, as its row has it; None where it said nothing, or what only another version of us took.

    One device's row must not hide all the others; its next report takes the place of what nobody can read.
    """
    try:
        return None if text is None else Reported.model_validate_json(text)
    except ValidationError:
        return None


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None  # as JavaScript's JSON does
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode()}
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return str(value)
