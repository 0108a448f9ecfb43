"""What user code hands over becomes what every store, broker and file can carry, or is refused by name."""

from __future__ import annotations

import datetime
import enum
import json
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from marram.pipeline.plain import parse_payload, plain
from marram.schema.errors import Invalid


class Colour(enum.Enum):
    RED = "red"


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (np.float32(0.5), 0.5),
        (np.int64(7), 7),
        (np.bool_(True), True),
        (np.arange(6).reshape(2, 3), [[0, 1, 2], [3, 4, 5]]),
        ((1, {"a": {2}}), [1, {"a": [2]}]),
        ({1: "a", None: "b"}, {"1": "a", "None": "b"}),
        (float("nan"), None),
        (np.float64("-inf"), None),
        (10**30, 1e30),
        (datetime.datetime(2026, 1, 2, 3, 4), "2026-01-02T03:04:00"),
        (Path("a/b"), "a/b"),
        (b"text", "text"),
        (Colour.RED, "red"),
        ("lone \ud800 surrogate", "lone ? surrogate"),
        (True, True),
    ],
)
def test_becomes_plain(value: Any, wanted: Any) -> None:
    found = plain(value)
    assert found == wanted
    assert type(found) is type(wanted)
    json.dumps(found, allow_nan=False)
    msgpack.packb(found)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"a": [1, object()]}, r"return\.a\[1\] is a object"),
        ({"f": print}, r"return\.f is a builtin"),
        (b"\xff", "bytes that are not UTF-8"),
        (1j, "complex"),
    ],
)
def test_is_refused_by_name(value: Any, says: str) -> None:
    with pytest.raises(Invalid, match=says):
        plain(value, "return")


def test_what_contains_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(Invalid, match="contains itself"):
        plain(loop)


@given(st.binary(max_size=60))
def test_any_payload_is_something_that_travels(body: bytes) -> None:
    value = parse_payload(body)
    msgpack.packb(value)
    if isinstance(value, bytes):
        assert value == body


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**63), 2**63 - 1)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(st.characters(codec="utf-8"), max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=3)
        ),
        max_leaves=8,
    )
)
def test_json_comes_through_unchanged(value: Any) -> None:
    assert parse_payload(json.dumps(value).encode()) == value
