"""What user code hands over, as the plain JSON types that events, files and brokers carry.

A handler returns NumPy scalars, tuples, dates, NaN: each becomes what JSON has for it, or is refused by name. Without
this, one odd value of one handler would only show up as an event that nobody can store.
"""

from __future__ import annotations

import datetime
import json
import math
from enum import Enum
from pathlib import PurePath
from typing import Any

from marram.schema.errors import Invalid

_MAX_DEPTH = 32
# Beyond 64 bits an integer travels neither in msgpack nor in most readers of JSON.
_INT_LIMIT = 2**63


def plain(value: Any, name: str = "value") -> Any:
    """`value` as None, bool, int, float, str, list or dict; NaN and infinities become None.

    Accepts NumPy and torch scalars and arrays, tuples, sets, dates, paths, enums, bytes that are UTF-8 text.
    Raises Invalid, naming the place inside `value`, for anything else and for what is nested too deep.
    """
    return _plain(value, name, 0)


def _plain(value: Any, name: str, depth: int) -> Any:
    if depth > _MAX_DEPTH:
        raise Invalid(f"{name} is nested deeper than {_MAX_DEPTH} levels, or contains itself")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, Enum):
        return _plain(value.value, name, depth + 1)
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, int):
        return int(value) if -_INT_LIMIT <= value < _INT_LIMIT else float(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {_key(key): _plain(item, f"{name}.{key}", depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        # Long lists are lists of numbers, mostly: those need no name, which would take longer than all the rest.
        return [
            item if type(item) is float and math.isfinite(item) else _plain(item, f"{name}[{i}]", depth + 1)
            for i, item in enumerate(value)
        ]
    if isinstance(value, (datetime.datetime, datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, (bytes, bytearray)):
        return _decoded(bytes(value), name)
    if isinstance(value, PurePath):
        return _text(str(value))
    to_list = getattr(value, "tolist", None)  # NumPy arrays and scalars, torch tensors
    if callable(to_list):
        return _plain(to_list(), name, depth + 1)
    raise Invalid(
        f"{name} is a {type(value).__name__}, which JSON has no word for", hint="Return numbers, text, lists, dicts."
    )


def parse_payload(body: bytes) -> Any:
    """A message's payload: what its JSON says, else its text, else the bytes themselves. Never raises.

    A bare number is a number. JSON with NaN or with integers beyond 64 bits stays text: no store would take it.
    """
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError:
        return body
    try:
        value = json.loads(text, parse_constant=_refuse)
        return value if plain(value) == value else text
    except (ValueError, RecursionError, OverflowError, Invalid):
        return text


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _text(value: str) -> str:
    # Lone surrogates cannot be written as UTF-8.
    return value if value.isascii() else value.encode("utf-8", "replace").decode("utf-8")


def _key(key: Any) -> str:
    return _text(key if isinstance(key, str) else str(key))


def _decoded(value: bytes, name: str) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Invalid(f"{name} is bytes that are not UTF-8 text") from error
