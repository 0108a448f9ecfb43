"""A page of YAML: whatever the text is, plain data or one fault with its line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marram.schema.errors import Invalid, Missing
from marram.schema.page import Page, field, parse_field

GATE = "app: gate\nsource: {camera: 0}\nsteps:\n  - classify: m\n    top: 3\n  -\n    keep: x\nraw: never\n"


@pytest.mark.parametrize(
    ("place", "line", "words"),
    [
        (("app",), 1, "app"),
        (("steps", 0, "top"), 5, "steps[0].top"),
        (("steps", 1, "keep"), 7, "steps[1].keep"),
        (("steps", 0, "absent"), 4, "steps[0].absent"),
        (("steps", 9, "keep"), 3, "steps[9].keep"),
        (("source", "camera"), 2, "source.camera"),
    ],
)
def test_a_field_has_a_line(place: tuple[str | int, ...], line: int, words: str) -> None:
    assert Page.read(GATE, "gate.yaml").where(place) == f"gate.yaml:{line}  {words}"
    assert tuple(parse_field(words)) == place
    assert field(place) == words


def test_an_error_is_located_where_it_names_a_field() -> None:
    page = Page.read(GATE, "gate.yaml")
    assert str(page.locate(Invalid("bad", where="steps[1].keep"))) == "gate.yaml:7  steps[1].keep: bad"
    assert str(page.locate(Invalid("bad", where="limits.power"))) == "gate.yaml  limits.power: bad"
    for where in (None, "/a/model.yaml", "colours@3/onnx", "gate.yaml:5  steps[0].top"):
        error = Missing("gone", where=where)
        assert page.locate(error) is error
        assert error.where == where


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("raw: never\napp: x\nraw: allowed\n", 'p.yaml:3: "raw" stands here twice, on line 1 too. Keep one.'),
        ("steps:\n  - classify: a\n    top: 1\n    top: 2\n", 'p.yaml:4: "top" stands here twice, on line 3 too.'),
        ("source: {camera: 0, camera: 1}", 'p.yaml:1: "camera" stands here twice. Keep one.'),
        ("a: 1\n'a': 2\n", "on line 1 too"),
    ],
)
def test_a_key_stands_once(text: str, says: str) -> None:
    with pytest.raises(Invalid) as caught:
        Page.read(text, "p.yaml")
    assert says in str(caught.value)


def test_the_same_key_in_other_mappings_and_over_a_merged_one_is_no_fault() -> None:
    page = Page.read("a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}\nc: *a\n", "p.yaml")
    assert page.document == {"a": {"x": 1, "y": 2}, "b": {"x": 3, "y": 2}, "c": {"x": 1, "y": 2}}


@pytest.mark.parametrize(
    "text",
    ["[" * 5000, "2001-99-99", "!!int x", "!!bool maybe", "!!timestamp x", "? [a]\n: 1\n", "\x00\x01PNG", "a: [",
     "a: *b", "a: &a [1, *a]", "a: &a {b: *a}", "!!python/object/apply:os.system [true]", "&a [*a, {*a : 1}]"],
)  # fmt: skip
def test_what_cannot_be_read_is_invalid_in_one_line(text: str) -> None:
    with pytest.raises(Invalid) as caught:
        Page.read(text, "p.yaml")
    assert str(caught.value).startswith("p.yaml")
    assert "\n" not in str(caught.value)


@given(st.text(max_size=200))
def test_no_text_raises_anything_but_invalid(text: str) -> None:
    try:
        Page.read(text, "p.yaml")
    except Invalid as error:
        assert str(error).startswith("p.yaml")
