"""Tokens: random, told once, proven against a hash; nothing about them leaks into a message."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marram.schema.errors import Refused
from marram.trust import API, JOIN, hash_secret, new_token, parse_token, proves

CLOUD = "A-_" * 14 + "z"


def test_a_token_is_taken_apart_as_it_was_made() -> None:
    for kind, cloud in ((JOIN, CLOUD), (API, "")):
        token = new_token(kind, cloud)
        assert parse_token(f" {token.text}\n", kind) == token
        assert proves(token.secret, token.secret_hash)
        assert token.secret not in token.secret_hash


def test_no_two_tokens_are_alike() -> None:
    tokens = [new_token(JOIN) for _ in range(200)]
    assert len({t.id for t in tokens}) == len({t.secret for t in tokens}) == 200


def test_a_token_of_the_other_kind_is_refused() -> None:
    with pytest.raises(Refused, match="mrm1"):
        parse_token(new_token(API).text, JOIN)
    with pytest.raises(Refused, match="mra1"):
        parse_token(new_token(JOIN, CLOUD).text, API)


@given(st.text(max_size=80))
def test_what_is_no_token_is_refused_without_being_repeated(text: str) -> None:
    for given_text in (text, f"mrm1.{text}"):
        try:
            parse_token(given_text, JOIN)
        except Refused as error:
            assert len(text) < 12 or text not in str(error)


def test_a_cut_token_says_so() -> None:
    whole = new_token(JOIN, CLOUD).text
    # The fingerprint cannot be left off: nothing would keep the token from being shown to anybody.
    for cut in (whole[:-1], whole[:-44], whole[:-43], whole + "x", whole[:-1] + "!"):
        with pytest.raises(Refused, match="not complete"):
            parse_token(cut, JOIN)


@pytest.mark.parametrize("rest", ["é" * 40, "\ud800" * 40, "A" * 39, "A" * 41, "A" * 39 + "-", "A" * 40 + "."])
def test_an_api_token_is_so_many_letters_and_digits(rest: str) -> None:
    assert parse_token(f"mra1.{'A' * 40}", API)
    with pytest.raises(Refused, match="not complete"):
        parse_token(f"mra1.{rest}", API)


def test_only_the_secret_proves() -> None:
    token = new_token(API)
    assert not proves(token.secret[:-1], token.secret_hash)
    assert not proves("", token.secret_hash)
    assert not proves(token.secret, hash_secret("another"))
