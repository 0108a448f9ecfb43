"""Signed documents as rows: none is written twice, every root stays, on both databases."""

from __future__ import annotations

import pytest

from marram.schema.errors import Conflict
from marram.schema.signed import SignedDocument
from marram.store import Store


def document(role: str, version: int) -> SignedDocument:
    return SignedDocument(role, version, f"{role} {version}".encode(), 1e10)


def test_a_version_is_written_once_and_all_that_came_with_it_is_undone(store: Store) -> None:
    store.signed.add([document("snapshot", 1), document("timestamp", 1)])
    with pytest.raises(Conflict):
        store.signed.add([document("snapshot", 2), document("timestamp", 1)])
    assert store.signed.newest("snapshot") == document("snapshot", 1) == store.signed.get("snapshot", 1)
    assert store.signed.get("snapshot", 2) is None and store.signed.newest("main") is None


def test_the_highest_version_is_the_newest_whenever_it_was_written(store: Store) -> None:
    for version in (2, 10, 9):
        store.signed.add([document("timestamp", version)], now_s=100.0 - version)
    assert store.signed.newest("timestamp") == document("timestamp", 10)


@pytest.mark.parametrize("version", [2**31 - 1, 2**31, 2**63, 10**30])
def test_a_version_that_cannot_be_is_not_there(store: Store, version: int) -> None:
    assert store.signed.get("root", version) is None


def test_every_root_stays_and_of_the_others_the_latest(store: Store) -> None:
    """A device that was off goes from root to root: without one of them it is shut out for good."""
    for version in range(1, 41):
        store.signed.add([document("root", version), document("targets", version + 100), document("main", version)])
    assert all(store.signed.get("root", version) for version in range(1, 41))
    for role, least in (("main", 1), ("targets", 101)):
        kept = [version for version in range(least, least + 40) if store.signed.get(role, version)]
        assert kept == list(range(least + 24, least + 40))
