"""People and API tokens as rows, on both databases."""

from __future__ import annotations

import time

import pytest
from sqlalchemy import text

from marram.schema.errors import Conflict, Missing
from marram.schema.people import Permission, Role
from marram.store import AdminRow, Store, auditing


def token(id: str, owner: str | None, **more: object) -> AdminRow:
    return AdminRow(id, "x", "h" * 64, more.pop("created_s", 1.0), owner=owner, **more)  # type: ignore[arg-type]


def test_a_person_is_kept_changed_and_removed(store: Store) -> None:
    made = store.users.add("ann", Role.OPERATOR, "hash", 5.0)
    assert store.users.get("ann") == made and store.users.find("bob") is None and store.users.list() == [made]
    with pytest.raises(Conflict, match='"ann" exists already'):
        store.users.add("ann", Role.ADMIN, "other")
    assert store.users.change("ann", role=Role.ADMIN, disabled=True).role is Role.ADMIN
    assert (store.users.get("ann").disabled, store.users.get("ann").password_hash) == (True, "hash")
    for change in (lambda: store.users.get("an"), lambda: store.users.change("an"), lambda: store.users.remove("an")):
        with pytest.raises(Missing, match='did you mean "ann"'):
            change()
    store.users.rehash("ann", "old", "wrong")
    assert store.users.get("ann").password_hash == "hash", "it was changed meanwhile"
    store.users.rehash("ann", "hash", "new")
    assert store.users.get("ann").password_hash == "new"
    store.users.remove("ann")
    assert store.users.list() == []


def test_a_token_stands_with_what_its_owner_is(store: Store) -> None:
    store.users.add("ann", Role.VIEWER, "hash")
    store.admins.add(token("machine", None))
    store.admins.add(token("hers", "ann", scopes=frozenset({Permission.READ, Permission.LABEL}), expires_s=9e9))
    store.admins.add(token("gone", None))
    store.admins.revoke("gone")
    held = {each.token.id: each for each in store.admins.held()}
    assert set(held) == {"machine", "hers"}
    assert (held["machine"].role, held["hers"].role, held["hers"].disabled) == (None, Role.VIEWER, False)
    assert held["hers"].token.scopes == {Permission.READ, Permission.LABEL} and held["machine"].token.scopes is None
    with pytest.raises(Missing):
        store.admins.add(token("x", "nobody"))


def test_a_scope_that_is_not_known_and_a_token_without_any_allow_nothing(store: Store) -> None:
    store.users.add("ann", Role.ADMIN, "hash")
    store.admins.add(token("newer", "ann", scopes=frozenset({Permission.READ})))
    store.admins.add(token("none", "ann", scopes=frozenset()))
    with store.database.write() as connection:
        connection.execute(text("UPDATE admins SET scopes = '[\"fly\"]' WHERE id = 'newer'"))
    assert {each.token.id: each.token.scopes for each in store.admins.held()} == {
        "newer": frozenset(),
        "none": frozenset(),
    }


def test_a_token_that_is_revoked_again_leaves_one_row(store: Store) -> None:
    store.admins.add(token("x", None))
    for _ in range(2):
        with auditing("user:ann", "token.revoke", "x"):
            store.admins.revoke("x")
    (row,) = store.audit.list()
    assert row.detail == {"owner": None, "name": "x"}


def test_a_role_that_was_changed_meanwhile_is_left_alone(store: Store) -> None:
    store.users.add("ann", Role.VIEWER, "hash")
    with auditing("user:bob", "user.change", "ann", role="admin"):
        store.users.change("ann", role=Role.ADMIN, only=Role.VIEWER)
    assert store.audit.list()[-1].detail == {"role": "admin", "was": "viewer"}
    with pytest.raises(Conflict, match="was made admin meanwhile"):
        store.users.change("ann", disabled=True, only=Role.VIEWER)
    with pytest.raises(Missing):
        store.users.remove("ann", Role.VIEWER)
    assert store.users.get("ann").disabled is False
    store.users.remove("ann", Role.ADMIN)


def test_sessions_end_with_a_new_password_and_beyond_so_many(store: Store) -> None:
    store.users.add("ann", Role.VIEWER, "hash")
    store.users.add("bob", Role.VIEWER, "hash")
    store.admins.add(token("program", "ann"))
    store.admins.add(token("over", "ann", session=True, expires_s=time.time() - 1))
    for number in range(5):
        store.admins.add(token(f"a{number}", "ann", session=True, created_s=10.0 + number), most_sessions=3)
        store.admins.add(token(f"b{number}", "bob", session=True, created_s=10.0 + number), most_sessions=3)
    assert [row.id for row in store.admins.list("ann")] == ["program", "a2", "a3", "a4"]
    store.users.change("ann", password_hash="new")
    assert [row.id for row in store.admins.list("ann")] == ["program"] and len(store.admins.list("bob")) == 3
    store.users.change("bob", role=Role.ADMIN)
    assert len(store.admins.list("bob")) == 3
    store.users.change("bob", disabled=True)
    assert store.admins.list("bob") == []
    store.users.remove("ann")
    assert store.admins.list() == []
