"""The audit log: a row with each change and never without one; what is touched is found, on both databases."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from sqlalchemy import text

from marram.schema.device import DeviceInfo
from marram.schema.errors import Conflict, MarramError
from marram.store import AuditFilter, Store, auditing, noted, open_store, unchanged
from marram.store import audit as audit_module


def add(store: Store, *names: str, actor: str = "user:ann") -> None:
    for name in names:
        with auditing(actor, "device.add", name):
            store.devices.add(name, {}, DeviceInfo())


def force(store: Store, *statements: str) -> None:
    """What somebody does who may do anything to the database: the triggers first."""
    with store.database.write() as connection:
        for table, triggers in (
            ("audit", ("audit_no_update", "audit_no_delete", "audit_no_insert", "audit_only_added_to")),
            ("audit_head", ("audit_head_no_update", "audit_head_no_delete", "audit_head_no_insert",
                            "audit_head_stays", "audit_head_rises")),
        ):  # fmt: skip
            for trigger in triggers:
                on = f" ON {table}" if store.database.dialect == "postgresql" else ""
                connection.execute(text(f"DROP TRIGGER IF EXISTS {trigger}{on}"))
        for statement in statements:
            connection.execute(text(statement))


# ---------------------------------------------------------------- which changes leave a row


def test_a_change_and_its_row_are_one_transaction(store: Store) -> None:
    with auditing("user:ann", "device.add", "pi", site="a"):
        store.devices.add("pi", {}, DeviceInfo())
    (row,) = store.audit.list()
    assert (row.id, row.actor, row.action, row.target, row.detail) == (1, "user:ann", "device.add", "pi", {"site": "a"})
    with pytest.raises(Conflict), auditing("user:ann", "device.add", "pi"):
        store.devices.add("pi", {}, DeviceInfo())
    assert len(store.audit.list()) == 1, "what was undone has no row"


def test_where_the_row_cannot_be_written_the_change_is_not_made(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise Conflict("no room")

    monkeypatch.setattr("marram.store.database.record", fails)
    with pytest.raises(Conflict), auditing("user:ann", "device.add", "pi"):
        store.devices.add("pi", {}, DeviceInfo())
    assert store.devices.count() == 0


def test_an_act_of_several_transactions_has_one_row(store: Store) -> None:
    with auditing("rollout:12", "deploy", "gate"):
        add_silently = store.deployments.add("gate", 1, {})
        store.deployments.add("gate", 2, {})
    (row,) = store.audit.list()
    assert row.detail == {"deployment": add_silently.id, "version": 1}, "what the second one notes is not in it"
    store.deployments.add("gate", 3, {})  # nobody's act
    assert len(store.audit.list()) == 1


def test_the_first_transaction_that_commits_takes_the_row(store: Store) -> None:
    add(store, "pi")
    with auditing("user:ann", "device.add", "pi2"):
        with pytest.raises(Conflict):
            store.devices.add("pi", {}, DeviceInfo())
        store.devices.add("pi2", {}, DeviceInfo())
    assert [row.target for row in store.audit.list()] == ["pi", "pi2"]


def test_what_changes_nothing_leaves_no_row(store: Store) -> None:
    with auditing("user:ann", "nothing", "x"), store.database.write():
        unchanged()
    assert store.audit.list() == []
    with auditing("user:ann", "something", "x"):
        with store.database.write():
            unchanged()
        with store.database.write():
            noted(late=True)
    assert [(row.action, row.detail) for row in store.audit.list()] == [("something", {"late": True})]


def test_an_act_inside_another_has_its_own_row(store: Store) -> None:
    with auditing("user:ann", "outer", "x"):
        with auditing("cloud", "inner", "y"):
            store.audit.add("cloud", "innermost", "z")
            store.deployments.add("a", 1, {})
        store.deployments.add("b", 1, {})
    assert [row.action for row in store.audit.list()] == ["innermost", "inner", "outer"]


def test_threads_have_acts_of_their_own(store: Store) -> None:
    threads = [threading.Thread(target=add, args=(store, *(f"d{n}-{i}" for i in range(10)))) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = store.audit.verify()
    assert (found.rows, found.broken) == (60, None)
    assert {row.target for row in store.audit.list(limit=100)} == {f"d{n}-{i}" for n in range(6) for i in range(10)}


def test_two_processes_write_one_chain(url: str) -> None:
    stores = [open_store(url), open_store(url)]
    names = [[f"{number}-{i}" for i in range(20)] for number in range(2)]
    threads = [threading.Thread(target=add, args=(each, *mine)) for each, mine in zip(stores, names, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (stores[0].audit.verify().rows, stores[0].audit.verify().broken) == (40, None)
    for each in stores:
        each.close()


@pytest.mark.parametrize("name", ["password", "secret", "new_password", "secret_hash"])
def test_a_secret_in_the_detail_is_a_fault_of_ours(name: str) -> None:
    with pytest.raises(AssertionError, match=name), auditing("a", "b", "c", **{name: "x"}):
        pass


def test_names_too_long_or_odd_are_kept_within_their_columns(store: Store) -> None:
    odd = "x\x00\n\x1b[31m" + "y" * 5000
    with auditing(odd, odd, odd, note="z" * 10_000):
        store.deployments.add("a", 1, {})
    (row,) = store.audit.list()
    assert (len(row.actor), len(row.action), len(row.target)) == (200, 64, 400) and "\x00" not in row.target
    assert set(row.detail) == {"cut"} and len(row.detail["cut"]) < 4000
    assert store.audit.verify().broken is None


# ---------------------------------------------------------------- asking


def test_rows_are_chosen_by_who_what_and_when(store: Store) -> None:
    for actor, action in (
        ("user:ann", "device.add"), ("user:ann/token:x", "device.remove"), ("user:anna", "deploy"),
        ("user:a%", "devices"),
    ):  # fmt: skip
        store.audit.add(actor, action, "t")

    def ids(**which: Any) -> list[int]:
        return [row.id for row in store.audit.list(AuditFilter(**which))]

    assert ids(actor="user:ann") == [1, 2] and ids(actor="user:a%") == [4] and ids(action="device") == [1, 2]
    assert (
        ids(action="deploy") == [3]
        and ids(action="%") == []
        and ids(target="t") == [1, 2, 3, 4]
        and ids(since_s=1e11) == []
    )
    assert [row.id for row in store.audit.list(limit=2)] == [3, 4]
    assert [row.id for row in store.audit.list(limit=2, after=1)] == [2, 3]


# ---------------------------------------------------------------- touched


@pytest.mark.parametrize(
    ("statement", "broken"),
    [
        ("UPDATE audit SET actor = 'user:bob' WHERE id = 3", 3),
        ("UPDATE audit SET time_s = time_s + 1 WHERE id = 2", 2),
        ("UPDATE audit SET target = 'x' WHERE id = 2", 2),
        ("UPDATE audit SET action = 'x' WHERE id = 2", 2),
        ("UPDATE audit SET detail = '[1]' WHERE id = 4", 4),
        ("UPDATE audit SET detail = 'not json' WHERE id = 4", 4),
        ("UPDATE audit SET previous = '0' WHERE id = 2", 2),
        ("UPDATE audit SET digest = previous WHERE id = 5", 5),
        ("UPDATE audit SET id = 9 WHERE id = 5", 5),
        ("UPDATE audit SET id = -1 WHERE id = 1", -1),
        ("DELETE FROM audit WHERE id = 1", 1),
        ("DELETE FROM audit WHERE id = 3", 3),
        ("DELETE FROM audit WHERE id > 3", 4),  # the end cut off
        ("DELETE FROM audit", 1),
        ("DELETE FROM audit_head", 5),
        ("UPDATE audit_head SET digest = 'x'", 5),
    ],
)  # fmt: skip
def test_what_was_touched_is_named(store: Store, statement: str, broken: int) -> None:
    add(store, "a", "b", "c", "d", "e")
    assert store.audit.verify().broken is None
    force(store, statement)
    found = store.audit.verify()
    assert found.broken == broken and found.why, found
    assert all(isinstance(row.detail, dict) for row in store.audit.list()), "it can still be read"


def test_a_row_that_is_gone_is_told_from_one_that_was_changed(store: Store) -> None:
    add(store, "a", "b", "c", "d")
    force(store, "DELETE FROM audit WHERE id = 3")
    assert store.audit.verify().why == "it was taken out of the log"
    force(store, "UPDATE audit SET id = -1 WHERE id = 1")
    assert store.audit.verify().why == "its number was changed"


def test_a_long_log_is_read_page_by_page(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_module, "_PAGE", 2)
    add(store, "a", "b", "c", "d", "e")
    found = store.audit.verify()
    assert (found.rows, found.broken) == (5, None)
    force(store, "UPDATE audit SET actor = 'user:bob' WHERE id = 5")
    assert store.audit.verify().broken == 5


def test_a_row_put_in_with_a_digest_of_its_own_is_found(store: Store) -> None:
    add(store, "a", "b", "c")
    second = store.audit.list()[1]
    forged = {
        "id": 2, "time_s": second.time_s, "actor": "user:bob", "action": "device.add", "target": "b", "detail": "{}",
        "previous": second.previous,
    }  # fmt: skip
    digest = audit_module._digest(forged)
    force(store, f"UPDATE audit SET actor = 'user:bob', detail = '{{}}', digest = '{digest}' WHERE id = 2")
    found = store.audit.verify()
    assert (found.broken, found.why) == (3, "the row before it was replaced")


def test_a_log_made_anew_is_found_by_whoever_kept_a_row(store: Store) -> None:
    add(store, "a", "b", "c")
    kept = (store.audit.verify().rows, store.audit.verify().head)
    add(store, "d")
    assert store.audit.verify(kept).broken is None
    force(store, "DELETE FROM audit", "DELETE FROM audit_head")
    assert store.audit.verify().broken is None, "by itself it cannot know"
    assert store.audit.verify(kept).broken == 3
    add(store, "e", "f", "g", "h")
    assert store.audit.verify().broken is None and store.audit.verify(kept).broken == 3


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit SET actor = 'x'",
        "UPDATE audit SET actor = 'x' WHERE id = 1",
        "DELETE FROM audit",
        "DELETE FROM audit WHERE id = 2",
        "DELETE FROM audit_head",
        "UPDATE audit_head SET id = 1",
        "UPDATE audit_head SET one = 2, id = 5",
        "TRUNCATE audit",
        "TRUNCATE audit_head",
        "INSERT OR REPLACE INTO audit SELECT id, time_s, 'x', action, target, detail, previous, digest FROM audit",
        "INSERT OR REPLACE INTO audit_head VALUES (1, 1, 'x')",
    ],
)
def test_triggers_refuse_to_touch_it(store: Store, statement: str) -> None:
    spoken = {"TRUNCATE": "postgresql", "INSERT OR": "sqlite"}
    only = next((dialect for word, dialect in spoken.items() if statement.startswith(word)), store.database.dialect)
    if only != store.database.dialect:
        statement = "DELETE FROM audit"
    add(store, "a", "b")
    with pytest.raises(MarramError, match="only ever"), store.database.write() as connection:
        connection.execute(text(statement))
    assert (store.audit.verify().rows, store.audit.verify().broken) == (2, None)
