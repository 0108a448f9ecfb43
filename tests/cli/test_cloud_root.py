"""`marram cloud root`: the ceremony with keys that are somewhere else, as a person types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from marram.cli import execute
from marram.cloud.signing import Signing
from marram.store import open_store
from marram.trust.keys import Keys


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A cloud that was started once, its offline keys on a stick."""
    place = tmp_path / "cloud"
    assert execute(["cloud", "init", "--folder", str(place), "--offline", str(tmp_path / "stick")]) == 0
    store = open_store(place / "marram.db")
    Signing(store, Keys(place / "keys")).open()
    store.close()
    return place


def root(folder: Path, *words: str) -> int:
    return execute(["cloud", "root", *words, "--folder", str(folder)])


def said(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    return captured.out + captured.err


def test_a_draft_goes_to_the_stick_and_back(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draft, stick = str(tmp_path / "draft.json"), tmp_path / "stick"
    assert root(folder, "renew") == 2
    assert "the keys that sign this are not on this machine" in said(capsys)
    there = sorted((folder / "keys" / "signing").iterdir())
    assert root(folder, "rotate", "snapshot") == 2
    assert "the keys that sign this are not on this machine" in said(capsys)
    assert sorted((folder / "keys" / "signing").iterdir()) == there  # no key is left that nobody asked to use
    assert root(folder, "renew", "--to", draft) == 0
    assert "root: version 1 becomes 2" in said(capsys)
    assert root(folder, "import", draft) == 2
    waiting = said(capsys)
    assert (
        "not enough have signed: root needs 1 more of the present root keys" in waiting
        and waiting.count("root needs") == 1
    )
    for role in ("root", "targets"):
        assert execute(["cloud", "root", "sign", draft, "--key", str(stick / f"{role}.pem"), "--yes"]) == 0
    assert f"on the cloud: marram cloud root import {draft}" in said(capsys)
    assert root(folder, "import", draft) == 0
    assert "in force; to be renewed before" in said(capsys)
    assert root(folder, "import", draft) == 2
    assert "version 2 is in force by now" in said(capsys)
    assert root(folder, "status") == 0
    assert "1 of 1" in said(capsys)


def test_what_is_no_draft_is_named(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    junk = tmp_path / "junk.json"
    for text in ("{}", "[]", "1"):
        junk.write_text(text)
        assert root(folder, "import", str(junk)) == 2
        assert f"{junk}: this is no draft: nothing in it says what it is" in said(capsys)


def test_a_draft_changed_on_the_way_is_not_taken(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever has the file in between makes it say that other keys, his own, are the present ones."""
    draft, stick = tmp_path / "draft.json", tmp_path / "stick"
    assert execute(["cloud", "root", "key", str(tmp_path / "thief.pem"), "--plain"]) == 0
    assert root(folder, "rotate", "root", "--new", str(tmp_path / "thief.pub"), "--to", str(draft)) == 0
    document = json.loads(draft.read_bytes())
    document["present root"] = document["root"]
    draft.write_text(json.dumps(document))
    assert execute(["cloud", "root", "sign", str(draft), "--key", str(tmp_path / "thief.pem"), "--yes"]) == 0
    capsys.readouterr()
    assert root(folder, "import", str(draft)) == 2
    assert "more of the present root keys" in said(capsys)
    assert (stick / "root.pem").exists()


def test_online_keys_are_made_and_used_on_the_cloud(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stick = tmp_path / "stick"
    for role, key in (("timestamp", "root"), ("snapshot", "root"), ("main", "targets")):
        assert root(folder, "rotate", role, "--key", str(stick / f"{key}.pem")) == 0
        assert f"{role}: the key" in said(capsys)
        (folder / "keys" / "signing" / f"{role}.pem").unlink()  # the old one is of no use any more
    store = open_store(folder / "marram.db")
    signing = Signing(store, Keys(folder / "keys"))
    assert signing.repository.publish({"apps/main/gate/1.json": b"x"})
    store.close()


def test_a_locked_key_never_shows_its_passphrase(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    secret, key, draft = tmp_path / "passphrase", tmp_path / "second.pem", str(tmp_path / "draft.json")
    secret.write_text("four words make one\n")
    assert execute(["cloud", "root", "key", str(key), "--passphrase-file", str(secret)]) == 0
    assert b"ENCRYPTED" in key.read_bytes()
    assert root(folder, "add-key", str(key.with_suffix(".pub")), "--to", draft) == 0
    assert execute(["cloud", "root", "sign", draft, "--key", str(key), "--yes"]) == 2
    secret_wrong = tmp_path / "wrong"
    secret_wrong.write_text("five words make another")
    wrong = ["cloud", "root", "sign", draft, "--key", str(key), "--yes", "--passphrase-file", str(secret_wrong)]
    assert execute(wrong) == 2
    told = said(capsys)
    assert "locked with a passphrase" in told and "does not open this key" in told and "words make" not in told


def test_where_there_is_no_cloud_it_makes_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert root(tmp_path / "nowhere", "status") == 2
    assert "there is no cloud here" in said(capsys)
    assert not (tmp_path / "nowhere").exists()
