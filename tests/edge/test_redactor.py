"""Secrets blanked out of what workers say, wherever a stream cuts them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from marram.edge.redactor import Redactor


def test_as_it_is_and_as_a_url_has_it() -> None:
    redactor = Redactor(["p@ss word", "other"])
    assert redactor.text("mqtt://me:p%40ss%20word@x, p@ss word, another other") == "mqtt://me:***@x, ***, an*** ***"
    assert redactor.plain({"a": ["p@ss word", 1, None], "other": 2.5}) == {"a": ["***", 1, None], "***": 2.5}


def test_what_is_too_short_to_tell_from_words_stays() -> None:
    assert Redactor(["abc", ""]).text("abc") == "abc"


def test_of_two_the_longer_goes() -> None:
    assert Redactor(["secret", "secret-and-more"]).text("secret-and-more, secret") == "***, ***"


@given(
    secrets=st.lists(st.text("abcd", min_size=4, max_size=8), min_size=1, max_size=3),
    parts=st.lists(st.one_of(st.text("abcd\n", max_size=9), st.integers(0, 2)), max_size=12),
    cuts=st.lists(st.integers(1, 7), min_size=1, max_size=40),
)
def test_a_stream_holds_none_however_it_is_cut(secrets: list[str], parts: list[str | int], cuts: list[int]) -> None:
    text = "".join(secrets[part % len(secrets)] if isinstance(part, int) else part for part in parts)
    stream, said, at = text.encode(), b"", 0
    redactor = Redactor(secrets)
    for size in cuts:
        said += redactor.feed(stream[at : at + size])
        at += size
    said += redactor.feed(stream[at:]) + redactor.end()
    assert not any(secret.encode() in said for secret in secrets)
    if not any(secret in text for secret in secrets):
        assert said == stream
