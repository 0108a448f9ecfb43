"""People: passwords that prove them, sessions and tokens that never do more than their person may, whoever tries."""

from __future__ import annotations

import threading
import time
import unicodedata
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from argon2 import PasswordHasher
from argon2.exceptions import VerificationError

from marram.cloud.access import MOST_SESSIONS, Access, Caller
from marram.cloud.passwords import MEMORY_KIB, PASSES, Passwords, chosen
from marram.cloud.people import People, WrongPassword
from marram.schema.errors import Conflict, Invalid, Missing, Refused, Retryable
from marram.schema.people import ApiTokenAsk, Permission, Role, SessionAsk, UserAsk, UserChange
from marram.store import Store, open_store

WORDS = "correct horse battery"


class World:
    """A store with people in it; hashing that costs nothing where its cost is not what is tested."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.access = Access(store)
        self.passwords = Passwords(memory_kib=8, passes=1)
        self.people = People(store, self.access, self.passwords)
        machine = self.access.caller(self.access.create("this machine").text)
        assert machine is not None
        self.machine = machine

    def add(self, name: str, role: Role) -> Caller:
        self.people.add(self.machine, UserAsk(name=name, role=role, password=WORDS))
        return self.session(name)

    def session(self, name: str) -> Caller:
        caller = self.access.caller(self.people.sign_in(SessionAsk(name=name, password=WORDS)).token)
        assert caller is not None
        return caller

    def token(self, owner: Caller, *scopes: Permission) -> str:
        return self.people.create_token(owner, ApiTokenAsk(name="x", scopes=list(scopes) or None)).token


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    store = open_store(tmp_path / "cloud.db")
    yield World(store)
    store.close()


# ---------------------------------------------------------------- passwords


def test_a_password_is_kept_as_owasp_says() -> None:
    kept = Passwords().hash(WORDS)
    assert kept.startswith(f"$argon2id$v=19$m={MEMORY_KIB},t={PASSES},p=1$") and MEMORY_KIB >= 19 * 1024 and PASSES >= 2
    assert Passwords().hash(WORDS) != kept, "each has a salt of its own"


def test_the_same_password_typed_on_another_keyboard_is_the_same() -> None:
    passwords = Passwords(8, 1)
    composed, apart = "é" * 6 + "abcdefg", unicodedata.normalize("NFD", "é" * 6 + "abcdefg")
    assert composed != apart
    kept = passwords.hash(chosen(composed, "ann"))
    assert passwords.proves(apart, kept) and passwords.proves(composed.replace("a", "ａ"), kept)
    assert not passwords.proves(composed.upper(), kept) and not passwords.proves("", kept)


@pytest.mark.parametrize(
    "password",
    ["", "sh0rter", "a" * 40, "abcabcabcabc", "x" * 257, "ﷺ" * 200, "tab\tin the middle", "nul\x00in the middle",
     "19840512198405", "password12345678", "Ann-1234567890", "\ud800" + "unpaired half",
     "a\u0301" + "e\u0301" + "i\u0301" + "o\u0301" + "u\u0301" + "yz", "elevenlette", "zero\uffffwidth and more"],
)  # fmt: skip
def test_a_poor_password_is_refused_without_being_repeated(password: str) -> None:
    with pytest.raises(Invalid) as caught:
        chosen(password, "ann")
    assert password == "" or password not in str(caught.value)


@pytest.mark.parametrize(
    "password",
    [WORDS, "x9!Kq" * 51, "x9!Kq" * 51 + "y", "twelveletter", "密码必须足够长才行啊对不对", "🐎 a horse of 🐎"],
)
def test_a_good_password_is_taken(password: str) -> None:
    passwords = Passwords(8, 1)
    kept = passwords.hash(chosen(password, "ann"))
    assert passwords.proves(password, kept) and not passwords.proves(password + "x", kept)


@pytest.mark.parametrize("given", ["x" * 1_000_000, "\ud800", "\x00", "ﷺ" * 1000])
def test_what_nobody_could_have_chosen_is_wrong_and_cheap(given: str) -> None:
    passwords = Passwords(8, 1)
    assert not passwords.proves(given, passwords.hash(WORDS)) and not passwords.proves(given, None)


@pytest.mark.parametrize("kept", ["", "nonsense", "$argon2id$v=19$m=8,t=1,p=1$x$y", "h" * 64])
def test_a_damaged_hash_lets_nobody_in(kept: str) -> None:
    assert not Passwords(8, 1).proves(WORDS, kept)


def test_without_memory_to_look_nobody_is_told_that_a_password_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    passwords = Passwords(8, 1)
    kept = passwords.hash(WORDS)

    def fails(*_: Any) -> bool:
        raise VerificationError("Memory allocation error")

    monkeypatch.setattr(PasswordHasher, "verify", fails)
    with pytest.raises(Retryable, match="memory to look at a password"):
        passwords.proves(WORDS, kept)


def test_nobody_has_the_password_of_nobody() -> None:
    assert not Passwords(8, 1).proves("nobody has this password", None)


def test_hashes_are_made_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    passwords = Passwords(8, 1)
    inside, most = 0, 0
    verify = PasswordHasher.verify

    def counted(self: PasswordHasher, hash: str, password: str) -> Any:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        try:
            return verify(self, hash, password)
        finally:
            inside -= 1

    monkeypatch.setattr(PasswordHasher, "verify", counted)
    threads = [threading.Thread(target=passwords.proves, args=(WORDS, None)) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


# ---------------------------------------------------------------- signing in


def test_a_person_signs_in_and_out(world: World) -> None:
    world.add("ann", Role.OPERATOR)
    made = world.people.sign_in(SessionAsk(name="  ＡＮＮ ", password=WORDS, ttl_s=60))
    caller = world.access.caller(made.token)
    assert caller is not None and (caller.user, caller.role, caller.session) == ("ann", Role.OPERATOR, True)
    assert caller.actor == "user:ann" and caller.permissions == Role.OPERATOR.permissions
    assert made.expires_s is not None and 50 < made.expires_s - time.time() <= 60
    world.access.end(caller)
    assert world.access.caller(made.token) is None


@pytest.mark.parametrize(
    ("name", "password"),
    [("ann", "wrong"), ("nobody", WORDS), ("", WORDS), ("an\x00n", WORDS), ("a" * 200, WORDS), ("gone", WORDS)],
)
def test_whatever_is_wrong_is_said_in_the_same_words_after_the_same_work(
    world: World, name: str, password: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.add("ann", Role.VIEWER)
    world.add("gone", Role.VIEWER)
    world.people.change(world.machine, "gone", UserChange(disabled=True))
    world.passwords.proves("x", None)
    worked: list[str] = []
    verify = PasswordHasher.verify

    def counted(self: PasswordHasher, hash: str, password: str) -> Any:
        worked.append(hash.rpartition("$")[0].rpartition("$")[0])  # its parameters
        return verify(self, hash, password)

    monkeypatch.setattr(PasswordHasher, "verify", counted)
    with pytest.raises(WrongPassword, match="name or password is wrong"):
        world.people.sign_in(SessionAsk.model_construct(name=name, password=password, ttl_s=60.0))
    assert worked == ["$argon2id$v=19$m=8,t=1,p=1"]


def test_a_hash_of_older_parameters_is_made_anew_at_the_next_sign_in(world: World) -> None:
    world.add("ann", Role.VIEWER)
    old = world.store.users.get("ann").password_hash
    newer = People(world.store, world.access, Passwords(memory_kib=16, passes=1))
    newer.sign_in(SessionAsk(name="ann", password=WORDS))
    kept = world.store.users.get("ann").password_hash
    assert old != kept and "m=16" in kept
    newer.sign_in(SessionAsk(name="ann", password=WORDS))
    assert world.store.users.get("ann").password_hash == kept
    assert [row.action for row in world.store.audit.list() if row.action == "user.change"] == []


def test_a_person_has_so_many_sessions_and_the_oldest_gives_way(world: World) -> None:
    world.add("ann", Role.VIEWER)
    world.token(world.session("ann"))
    first = world.people.sign_in(SessionAsk(name="ann", password=WORDS)).token
    for _ in range(MOST_SESSIONS):
        last = world.people.sign_in(SessionAsk(name="ann", password=WORDS)).token
    assert world.access.caller(first) is None and world.access.caller(last) is not None
    rows = world.store.admins.list("ann")
    assert sum(row.session for row in rows) == MOST_SESSIONS and sum(not row.session for row in rows) == 1


def test_what_is_over_is_forgotten(world: World) -> None:
    world.add("ann", Role.VIEWER)
    over, _ = world.access.add("signed in", "ann", ttl_s=-1.0, session=True)
    assert world.access.caller(over.text) is None
    before = len(world.store.admins.list("ann"))
    world.session("ann")
    assert len(world.store.admins.list("ann")) == before


# ---------------------------------------------------------------- what counts is what a person is now


@pytest.mark.parametrize("cached", [True, False])
def test_a_change_counts_at_once_for_live_sessions_and_tokens(
    world: World, cached: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = world.people
    world.add("ann", Role.ADMIN)
    live = world.people.sign_in(SessionAsk(name="ann", password=WORDS)).token
    owner = world.access.caller(live)
    assert owner is not None
    program = world.token(owner)
    limited = world.token(owner, Permission.READ, Permission.DEPLOY)

    def may(token: str) -> frozenset[Permission] | None:
        caller = other.caller(token)
        return None if caller is None else caller.permissions

    # In this process at once; in another one as soon as it asks again.
    other = world.access if cached else Access(world.store)
    if not cached:
        monkeypatch.setattr("marram.cloud.access._CACHE_S", 0.0)
    assert may(live) == may(program) == frozenset(Permission) and may(limited) == {Permission.READ, Permission.DEPLOY}
    session.change(world.machine, "ann", UserChange(role=Role.VIEWER))
    assert may(live) == may(program) == may(limited) == {Permission.READ}
    session.change(world.machine, "ann", UserChange(disabled=True))
    assert may(live) is None and may(program) is None
    session.change(world.machine, "ann", UserChange(disabled=False))
    assert may(live) is None, "a session that ended stays so"
    assert may(program) == {Permission.READ}
    session.change(world.machine, "ann", UserChange(password="another horse, another battery"))
    assert may(program) == {Permission.READ}
    session.remove(world.machine, "ann")
    assert may(program) is None and may(limited) is None


def test_what_was_read_before_a_change_is_not_remembered_after_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.add("ann", Role.ADMIN)
    live = world.people.sign_in(SessionAsk(name="ann", password=WORDS)).token
    held = world.store.admins.held

    def meanwhile() -> Any:
        found = held()
        monkeypatch.undo()
        world.people.remove(world.machine, "ann")
        return found

    world.access.forget()
    monkeypatch.setattr(world.access._admins, "held", meanwhile)
    world.access.caller(live)
    assert world.access.caller(live) is None


def test_while_the_database_is_away_who_was_let_in_still_is(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.add("ann", Role.VIEWER)
    live = world.people.sign_in(SessionAsk(name="ann", password=WORDS)).token

    def away() -> Any:
        raise Retryable("the database is away")

    other = Access(world.store)
    assert other.caller(live) is not None
    monkeypatch.setattr("marram.cloud.access._CACHE_S", 0.0)
    monkeypatch.setattr(other._admins, "held", away)
    assert other.caller(live) is not None
    with pytest.raises(Retryable):
        Access(world.store).caller(live)


def test_a_scope_narrows_what_a_machines_token_may(world: World) -> None:
    token, _ = world.access.add("a script", None, scopes=frozenset({Permission.READ}))
    caller = world.access.caller(token.text)
    assert caller is not None and caller.is_machine and caller.permissions == {Permission.READ}


def test_each_act_leaves_one_row_that_says_whose_it_was(world: World) -> None:
    world.add("ann", Role.OPERATOR)
    ann = world.session("ann")
    made = world.people.create_token(ann, ApiTokenAsk(name="x", ttl_s=3600.0))
    assert made.expires_s is not None and made.expires_s < time.time() + 3700
    world.people.revoke_token(ann, made.id)
    world.people.change(world.machine, "ann", UserChange(disabled=False))
    world.access.end(ann)
    world.people.remove(world.machine, "ann")
    session = world.access.caller(world.access.machine_session().text)
    assert session is not None and session.expires_s is not None and session.session
    world.access.end(session)
    rows = [(row.actor, row.action, row.target) for row in world.store.audit.list()]
    assert rows == [
        ("cloud", "token.create", "this machine"),
        ("machine", "user.add", "ann"),
        ("user:ann", "session.open", "ann"),
        ("user:ann", "session.open", "ann"),
        ("user:ann", "token.create", "ann"),
        ("cloud", "token.revoke", made.id),  # as whoever the API says is acting
        ("machine", "user.change", "ann"),
        ("user:ann", "session.close", "ann"),
        ("machine", "user.remove", "ann"),
        ("machine", "session.open", "machine"),
        ("machine", "session.close", "machine"),
    ]


def test_a_token_is_no_session_to_sign_out_of(world: World) -> None:
    with pytest.raises(Refused, match="is not a session"):
        world.access.end(world.machine)


def test_a_namesake_gets_nothing_of_who_had_the_name_before(world: World) -> None:
    program = world.token(world.add("ann", Role.ADMIN))
    world.people.remove(world.machine, "ann")
    world.add("ann", Role.ADMIN)
    assert world.access.caller(program) is None
    assert [row.session for row in world.store.admins.list("ann")] == [True]


def test_a_token_for_one_who_was_removed_meanwhile_is_not_made(world: World) -> None:
    world.add("ann", Role.ADMIN)
    world.store.users.remove("ann")
    with pytest.raises(Missing):
        world.access.add("x", "ann")
    assert world.store.admins.list("ann") == []


# ---------------------------------------------------------------- nobody gives what they do not have


def test_no_token_goes_beyond_its_owner(world: World) -> None:
    operator, viewer = world.add("olga", Role.OPERATOR), world.add("vic", Role.VIEWER)
    for scope in (Permission.PEOPLE, Permission.AUDIT):
        with pytest.raises(Refused, match=f"olga .operator. has no permission {scope.value}"):
            world.token(operator, Permission.READ, scope)
    with pytest.raises(Refused, match="no permission label"):
        world.token(viewer, Permission.LABEL)
    for owner in ("root", "olga"):
        with pytest.raises((Refused, Missing)):
            world.people.create_token(viewer, ApiTokenAsk(name="x", owner=owner))
    # Written into the database itself, it still allows no more than its owner may.
    forged, _ = world.access.add("x", "vic", scopes=frozenset(Permission))
    caller = world.access.caller(forged.text)
    assert caller is not None and caller.permissions == {Permission.READ}


def test_a_token_makes_no_tokens(world: World) -> None:
    admin = world.add("root", Role.ADMIN)
    program = world.access.caller(world.token(admin))
    assert program is not None and program.permissions == frozenset(Permission)
    with pytest.raises(Refused, match="makes no other tokens"):
        world.people.create_token(program, ApiTokenAsk(name="x"))


def test_people_alone_is_no_way_to_everything(world: World) -> None:
    admin = world.add("root", Role.ADMIN)
    world.add("vic", Role.VIEWER)
    clerk = world.access.caller(world.token(admin, Permission.PEOPLE, Permission.READ))
    assert clerk is not None
    with pytest.raises(Refused, match="may not make a person admin: it lacks audit, deploy"):
        world.people.add(clerk, UserAsk(name="mole", role=Role.ADMIN, password=WORDS))
    for change in (UserChange(password="a new one for root"), UserChange(disabled=True), UserChange(role=Role.VIEWER)):
        with pytest.raises(Refused, match="may not change root, who is admin"):
            world.people.change(clerk, "root", change)
    with pytest.raises(Refused):
        world.people.change(clerk, "vic", UserChange(role=Role.OPERATOR))
    with pytest.raises(Refused):
        world.people.remove(clerk, "root")
    boss = world.add("boss", Role.ADMIN)
    for token in (boss.token, world.machine.token):
        with pytest.raises(Refused, match="revoke the token of one who may do more"):
            world.people.revoke_token(clerk, token)
    # What it has, it may give.
    world.people.add(clerk, UserAsk(name="guest", role=Role.VIEWER, password=WORDS))
    world.people.remove(clerk, "vic")


def test_nobody_makes_a_token_for_one_who_may_do_more(world: World) -> None:
    world.add("root", Role.ADMIN)
    world.add("vic", Role.VIEWER)
    clerk = Caller("user:c", "c", frozenset({Permission.PEOPLE, Permission.READ}), "t", "c", session=True)
    with pytest.raises(Refused, match="may not make a token for root, who is admin"):
        world.people.create_token(clerk, ApiTokenAsk(name="x", owner="root"))
    assert world.people.create_token(clerk, ApiTokenAsk(name="x", owner="vic")).owner == "vic"
    orphan, _ = world.access.add("x", "vic")
    world.store.users.remove("vic")
    nobody = replace(clerk, permissions=frozenset({Permission.READ}))
    with pytest.raises((Refused, Missing)):
        world.people.revoke_token(nobody, orphan.id)


def test_a_role_that_changed_while_people_decide_is_left_alone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    admin = world.add("root", Role.ADMIN)
    clerk = world.access.caller(world.token(admin, Permission.PEOPLE, Permission.READ))
    assert clerk is not None
    world.add("ann", Role.VIEWER)
    before = world.store.users.get("ann")
    world.people.change(world.machine, "ann", UserChange(role=Role.ADMIN))
    monkeypatch.setattr(world.people._users, "get", lambda name: before)  # as it was when it was looked at
    with pytest.raises(Conflict, match="was made admin meanwhile"):
        world.people.change(clerk, "ann", UserChange(password="another horse, another battery"))
    with pytest.raises(Missing):
        world.people.remove(clerk, "ann")
    monkeypatch.undo()
    assert world.session("ann").role is Role.ADMIN


def test_a_role_that_changed_while_it_was_decided_about_is_left_alone(world: World) -> None:
    world.add("ann", Role.VIEWER)
    row = world.store.users.get("ann")
    world.people.change(world.machine, "ann", UserChange(role=Role.ADMIN))
    with pytest.raises(Conflict, match="was made admin meanwhile"):
        world.store.users.change("ann", password_hash="mine", only=row.role)
    with pytest.raises(Missing):
        world.store.users.remove("ann", row.role)


def test_a_person_sees_and_revokes_their_own_tokens_only(world: World) -> None:
    ann, bob = world.add("ann", Role.OPERATOR), world.add("bob", Role.OPERATOR)
    mine, others = world.token(ann), world.token(bob)
    assert {token.owner for token in world.people.tokens(ann)} == {"ann"}
    assert {token.owner for token in world.people.tokens(world.machine)} == {None, "ann", "bob"}
    with pytest.raises(Refused):
        world.people.tokens(ann, "bob")
    ids = {row.owner: row.id for row in world.store.admins.list() if not row.session}
    with pytest.raises(Refused):
        world.people.revoke_token(ann, ids["bob"])
    assert world.access.caller(mine) is not None
    world.people.revoke_token(ann, ids["ann"])
    assert world.access.caller(mine) is None and world.access.caller(others) is not None


def test_ones_own_password_is_changed_by_proof_of_the_old_one(world: World) -> None:
    ann = world.add("ann", Role.VIEWER)
    with pytest.raises(WrongPassword):
        world.people.change_own_password(ann, "wrong", "another horse, another battery")
    with pytest.raises(Invalid):
        world.people.change_own_password(ann, WORDS, "short")
    live = world.people.sign_in(SessionAsk(name="ann", password=WORDS)).token
    world.people.change_own_password(ann, WORDS, "another horse, another battery")
    assert world.access.caller(live) is None
    with pytest.raises(WrongPassword):
        world.session("ann")


# ---------------------------------------------------------------- names


@pytest.mark.parametrize("name", ["Ann", "ＡＮＮ", " ann\n", "aNN"])
def test_a_name_is_one_however_it_is_written(world: World, name: str) -> None:
    world.add("ann", Role.VIEWER)
    assert UserAsk(name=name, role=Role.VIEWER, password=WORDS).name == "ann"
    with pytest.raises(Conflict):
        world.people.add(world.machine, UserAsk(name=name, role=Role.ADMIN, password=WORDS))


@pytest.mark.parametrize(
    "name",
    [
        "аnn",
        "ann\r\n2026 root signed in",
        "a\x1b[31mnn",
        "an\u200bn",
        "an\u202en",
        "",
        "../x",
        "a" * 64,
        "a b",
    ],
)
def test_a_name_that_could_be_taken_for_another_or_for_a_line_of_a_log_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is not a name"):
        UserAsk(name=name, role=Role.VIEWER, password=WORDS)


def test_no_secret_stands_in_the_log_or_in_what_is_printed(world: World) -> None:
    ann = world.add("ann", Role.ADMIN)
    token = world.token(ann)
    world.people.change(world.machine, "ann", UserChange(password="another horse, another battery"))
    kept = world.store.users.get("ann").password_hash
    written = "\n".join(map(repr, world.store.audit.list(limit=1000)))
    for secret in (WORDS, "another horse", token, token[13:], kept, kept.rpartition("$")[2]):
        assert secret not in written
    assert WORDS not in repr(SessionAsk(name="ann", password=WORDS)) + repr(UserChange(password=WORDS))
