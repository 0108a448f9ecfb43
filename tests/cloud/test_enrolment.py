"""Joining and who may use the API: tokens are good once, in time, and only the right ones."""

from __future__ import annotations

import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from marram.cloud.access import Access, write_context
from marram.cloud.enrolment import Enrolment
from marram.schema import paths
from marram.schema.api import JoinAsk, TokenAsk
from marram.schema.errors import Conflict, Refused
from marram.store import Store, open_store
from marram.trust import API, JOIN, new_token


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(tmp_path / "cloud.db")
    yield opened
    opened.close()


def test_a_token_makes_a_device_with_its_labels(store: Store) -> None:
    enrolment = Enrolment(store)
    made = enrolment.create_token(TokenAsk(labels={"site": "x"}), "http://cloud:8080")
    assert made.join == f"marram edge join http://cloud:8080 {made.token}"
    name, secret, labels = enrolment.join(JoinAsk(token=made.token, name="pi", labels={"site": "forged", "line": "2"}))
    assert (name, labels) == ("pi", {"site": "x", "line": "2"})
    assert store.devices.secrets() == {"pi": secret}
    assert len(secret) >= 32
    with pytest.raises(Refused, match="used already"):
        enrolment.join(JoinAsk(token=made.token))


def test_a_device_without_a_name_gets_one(store: Store) -> None:
    enrolment = Enrolment(store)
    made = enrolment.create_token(TokenAsk(uses=2), "")
    names = {enrolment.join(JoinAsk(token=made.token))[0] for _ in range(2)}
    assert len(names) == 2


def test_a_taken_name_costs_no_use(store: Store) -> None:
    enrolment = Enrolment(store)
    made = enrolment.create_token(TokenAsk(uses=2), "")
    enrolment.join(JoinAsk(token=made.token, name="pi"))
    with pytest.raises(Conflict, match='"pi" exists already'):
        enrolment.join(JoinAsk(token=made.token, name="pi"))
    [token] = enrolment.tokens()
    assert token.uses_left == 1


def test_a_wrong_expired_or_revoked_token_is_refused(store: Store) -> None:
    enrolment = Enrolment(store)
    made = enrolment.create_token(TokenAsk(ttl_s=0.001), "")
    while True:
        try:
            enrolment.join(JoinAsk(token=made.token))
        except Refused as error:
            assert "expired" in str(error)
            break
    good = enrolment.create_token(TokenAsk(), "")
    forged = good.token[:-1] + ("a" if good.token[-1] != "a" else "b")
    for token in (forged, new_token(JOIN).text, new_token(API).text, "mrm1.", ""[:1] or "x"):
        with pytest.raises(Refused):
            enrolment.join(JoinAsk(token=token))
    store.tokens.remove(good.id)
    with pytest.raises(Refused, match="does not know"):
        enrolment.join(JoinAsk(token=good.token))
    assert store.devices.count() <= 1


def test_many_who_race_with_one_token_make_one_device(store: Store) -> None:
    enrolment = Enrolment(store)
    made = enrolment.create_token(TokenAsk(), "")
    outcomes: list[str] = []

    def race(number: int) -> None:
        try:
            outcomes.append(enrolment.join(JoinAsk(token=made.token, name=f"pi-{number}"))[0])
        except Refused:
            outcomes.append("refused")

    threads = [threading.Thread(target=race, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count("refused") == 7
    assert store.devices.count() == 1


def test_the_first_token_is_made_once_and_kept_private(store: Store, tmp_path: Path) -> None:
    access = Access(store)
    token = access.first(tmp_path)
    assert access.caller(token.text) is not None
    assert Access(store).first(tmp_path) == token
    assert stat.S_IMODE((tmp_path / "admin.token").stat().st_mode) == 0o600
    context = write_context("http://127.0.0.1:1", token.text)
    assert context == paths.context() and stat.S_IMODE(context.stat().st_mode) == 0o600


def test_a_token_file_that_is_not_good_is_replaced(store: Store, tmp_path: Path) -> None:
    access = Access(store)
    for content in (b"", b"\xff\xfe", new_token(API).text.encode(), b"mra1.short"):
        (tmp_path / "admin.token").write_bytes(content)
        assert access.caller(access.first(tmp_path).text) is not None


def test_only_the_right_tokens_are_admitted(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("marram.cloud.access._CACHE_S", 0.0)
    access = Access(store)
    token = access.create("ann")
    assert access.caller(token.text) is not None
    for wrong in (
        "",
        token.text[:-1],
        token.text + "x",
        new_token(API).text,
        f"{token.text[:-1]}\x00",
        "mra1." + "é" * 40,
    ):
        assert access.caller(wrong) is None
    access.revoke(token.id)
    assert access.caller(token.text) is None
