"""Tensors there and back in every form, and that no hostile one gets through or costs much."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor

from marram.schema.errors import Invalid, Permanent
from marram.serving.oip.tensors import (
    BYTES,
    MOST_ELEMENTS,
    NUMBERS,
    Named,
    check_shape,
    from_json,
    from_raw,
    to_json,
    to_raw,
)

shapes = hnp.array_shapes(min_dims=1, max_dims=5, min_side=1, max_side=4)
elements = st.lists(st.binary(max_size=30), min_size=1, max_size=8)


@st.composite
def arrays(draw: st.DrawFn, finite: bool = False) -> tuple[str, np.ndarray]:
    datatype = draw(st.sampled_from(sorted(NUMBERS)))
    dtype = NUMBERS[datatype]
    if dtype.kind == "f" and finite:
        numbers: Any = st.floats(width=8 * dtype.itemsize, allow_nan=False, allow_infinity=False)  # type: ignore[arg-type]
        return datatype, draw(hnp.arrays(dtype, shapes, elements=numbers))
    return datatype, draw(hnp.arrays(dtype, shapes))


@given(arrays())
def test_numbers_come_back_from_bytes(drawn: tuple[str, np.ndarray]) -> None:
    datatype, array = drawn
    raw = to_raw(Named.of("x", array))
    back = from_raw("x", datatype, check_shape("x", datatype, list(array.shape)), raw)
    assert back.array().dtype == NUMBERS[datatype]
    np.testing.assert_array_equal(back.array(), array)


@given(arrays(finite=True))
@example(("UINT64", np.array([0, 2**63], np.uint64)))
def test_numbers_come_back_from_json(drawn: tuple[str, np.ndarray]) -> None:
    datatype, array = drawn
    for data in (json.loads(json.dumps(to_json(Named.of("x", array)))), array.tolist()):  # flat, and nested
        back = from_json("x", datatype, array.shape, data)
        assert back.array().dtype == NUMBERS[datatype]
        np.testing.assert_array_equal(back.array(), array)


@given(elements)
def test_elements_come_back_and_are_the_clients_own_form(parts: list[bytes]) -> None:
    raw = to_raw(Named("x", BYTES, (len(parts),), parts))
    assert from_raw("x", BYTES, (len(parts),), raw).elements() == parts
    assert list(deserialize_bytes_tensor(raw)) == parts
    theirs = np.empty(len(parts), object)
    theirs[:] = parts
    assert serialize_byte_tensor(theirs).item() == raw


def test_what_is_read_from_an_odd_place_can_be_computed_with() -> None:
    body = b"x" + struct.pack("<2f", 1.5, 2.5)
    array = from_raw("x", "FP32", (2,), memoryview(body)[1:]).array()
    assert array.flags.aligned
    assert array.tolist() == [1.5, 2.5]


@settings(max_examples=50, deadline=None)
@given(
    st.sampled_from([*NUMBERS, BYTES, "BF16", "", None, 3]),
    st.one_of(
        st.lists(st.one_of(st.integers(), st.booleans(), st.floats(), st.none(), st.text()), max_size=20),
        st.none(),
        st.text(),
        st.integers(),
        st.dictionaries(st.text(), st.integers()),
    ),
    st.one_of(st.binary(max_size=200), st.lists(st.recursive(st.none() | st.integers() | st.text(), st.lists))),
)
def test_anything_else_is_invalid(datatype: Any, shape: Any, sent: Any) -> None:
    try:
        checked = check_shape("x", datatype, shape)
        made = (
            from_raw("x", datatype, checked, sent)
            if isinstance(sent, bytes)
            else from_json("x", datatype, checked, sent)
        )
    except Invalid:
        return
    assert isinstance(made.data, list) or made.data.shape == tuple(shape)


@pytest.mark.parametrize(
    "shape",
    [[-1, 4], [0], [], [2**62, 2**62], [10**30], [True], [1.0], ["4"], "44", None, [1] * 17, [64_000_001]],
)
def test_shapes_that_are_refused(shape: Any) -> None:
    with pytest.raises(Invalid, match="tensor"):
        check_shape("x", "FP32", shape)


def test_no_more_elements_than_are_worth_it() -> None:
    with pytest.raises(Invalid, match="more than"):
        check_shape("x", BYTES, [MOST_ELEMENTS + 1])


@pytest.mark.parametrize(
    ("datatype", "shape", "raw", "why"),
    [
        ("FP32", (2,), b"1234567", "7 bytes are no FP32"),
        ("FP32", (2,), b"123456789", "9 bytes"),
        (BYTES, (1,), b"\x01\x00", "cut off"),
        (BYTES, (1,), b"\xff\xff\xff\xffx", "1 are left"),
        (BYTES, (1,), b"\x00" * 8, "there are more"),
        (BYTES, (3,), b"\x00" * 8, "there are 2"),
    ],
)
def test_bytes_that_are_not_what_the_shape_says(datatype: str, shape: tuple[int, ...], raw: bytes, why: str) -> None:
    with pytest.raises(Invalid, match=why):
        from_raw("x", datatype, shape, raw)


@pytest.mark.parametrize(
    ("datatype", "data"),
    [
        ("FP32", ["1", "2"]),
        ("FP32", [1, None]),
        ("FP32", [[1], [2, 3]]),
        ("FP32", [10**400, 1]),
        ("FP32", [1]),
        ("INT32", [1.5, 2]),
        ("INT8", [128, 0]),
        ("UINT8", [-1, 0]),
        ("UINT64", [2**64, 0]),
        ("BOOL", [0, 1]),
        ("FP32", {"0": 1, "1": 2}),
        (BYTES, ["a", 1]),
        (BYTES, ["a", ["b"]]),
        (BYTES, ["\ud800", "a"]),
    ],
)
def test_json_that_is_not_what_the_datatype_says(datatype: str, data: Any) -> None:
    with pytest.raises(Invalid):
        from_json("x", datatype, (2,), data)


def test_elements_in_base64() -> None:
    assert from_json("x", BYTES, (1,), ["/9j/"], coded=True).elements() == [b"\xff\xd8\xff"]
    with pytest.raises(Invalid, match="base64"):
        from_json("x", BYTES, (1,), ["é"], coded=True)


@pytest.mark.parametrize(
    "tensor", [Named("x", "FP32", (1,), np.array([np.nan], "f4")), Named("x", BYTES, (1,), [b"\xff"])]
)
def test_what_json_does_not_have_is_said(tensor: Named) -> None:
    with pytest.raises(Permanent, match="binary"):
        to_json(tensor)
