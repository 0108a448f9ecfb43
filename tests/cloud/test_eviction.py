"""Doubles are found whenever they come: also in the middle of a look, and where the broker does not answer one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from marram.bus.callout import Caller
from marram.bus.connections import Connection, Connections
from marram.cloud.eviction import Evictions
from marram.schema.device import DeviceInfo
from marram.schema.errors import Retryable
from marram.store import Store, open_store


class Broker(Connections):
    """Who is connected, and everybody talks; `asked` happens after it made its answer."""

    def __init__(self) -> None:
        self.present: list[Connection] = []
        self.asked: Callable[[], None] = lambda: None
        self.questions = 0
        self.silent: set[str] = set()
        self.ended: list[str] = []

    async def all(self) -> list[Connection]:
        return self.present

    async def of(self, user: str) -> list[Connection]:
        def said(each: Connection) -> int:
            return 0 if each.name in self.silent else self.questions

        self.questions += 1
        answer = [
            Connection(each.user, each.name, each.address, each.server, each.id, each.since, said(each))
            for each in self.present
            if each.user == user
        ]
        self.asked()
        return answer

    async def cut(self, connections: Iterable[Connection]) -> int:
        names = [each.name for each in connections]
        self.ended += names
        return len(names)

    def add(self, name: str) -> None:
        number = len(self.present)
        self.present.append(Connection("pi", name, "10.0.0.1", "server", number, f"2026-01-01T00:00:0{number}Z", 0))


@pytest.fixture
def broker() -> Broker:
    return Broker()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = open_store(tmp_path / "cloud.db")
    yield made
    made.close()


@pytest.fixture
def barred() -> list[str]:
    return []


@pytest.fixture
def evictions(broker: Broker, store: Store, barred: list[str]) -> Evictions:
    return Evictions(None, broker, store, lambda device, process, seconds: barred.append(process))  # type: ignore[arg-type]


def let_in(evictions: Evictions, broker: Broker, name: str) -> None:
    evictions.admitted(Caller((), "pi", name, "10.0.0.1", "server", 1), False)
    broker.add(name)


async def test_a_double_that_comes_in_the_middle_of_a_look_is_found(
    evictions: Evictions, broker: Broker, barred: list[str]
) -> None:
    let_in(evictions, broker, "first")
    broker.asked = lambda: let_in(evictions, broker, "copy") if len(broker.present) < 2 else None
    for _ in range(3):
        await evictions.look()
    assert barred == ["copy"]


async def test_a_double_that_was_let_in_and_is_not_there_yet_is_found(
    evictions: Evictions, broker: Broker, barred: list[str]
) -> None:
    broker.add("first")
    evictions.admitted(Caller((), "pi", "copy", "10.0.0.1", "server", 1), False)
    await evictions.look()
    broker.add("copy")
    await evictions.look()
    await evictions.look()
    assert barred == ["copy"]


async def test_a_look_that_the_broker_does_not_answer_is_taken_again(
    evictions: Evictions, broker: Broker, barred: list[str]
) -> None:
    def silent() -> None:
        raise Retryable("no answer")

    let_in(evictions, broker, "first")
    let_in(evictions, broker, "copy")
    await evictions.look()
    broker.asked = silent
    with pytest.raises(Retryable):
        await evictions.look()
    broker.asked = lambda: None
    await evictions.look()
    await evictions.look()
    assert barred == ["copy"]


async def test_who_is_there_once_is_soon_asked_after_no_more(evictions: Evictions, broker: Broker) -> None:
    let_in(evictions, broker, "first")
    for _ in range(5):
        await evictions.look()
    assert broker.questions == 2


async def test_of_two_that_speak_the_first_stays_and_it_is_written_down(
    evictions: Evictions, broker: Broker, barred: list[str], store: Store
) -> None:
    for name in ("first", "copy"):
        let_in(evictions, broker, name)
    await evictions.look()
    assert broker.ended == [], "who speaks is known from the second look on"
    await evictions.look()
    assert (broker.ended, barred) == (["copy"], ["copy"])
    assert [(row.action, row.target) for row in store.audit.list()] == [("device.cloned", "pi")]


async def test_an_end_that_says_nothing_gives_way_and_is_no_double(
    evictions: Evictions, broker: Broker, barred: list[str]
) -> None:
    for name in ("dead", "alive"):
        let_in(evictions, broker, name)
    broker.silent = {"dead"}
    await evictions.look()
    await evictions.look()
    assert (broker.ended, barred) == (["dead"], [])


async def test_where_nobody_speaks_nobody_is_cut(evictions: Evictions, broker: Broker, barred: list[str]) -> None:
    for name in ("one", "two"):
        let_in(evictions, broker, name)
    broker.silent = {"one", "two"}
    for _ in range(3):
        await evictions.look()
    assert (broker.ended, barred) == ([], [])


async def test_older_connections_of_one_process_are_cut(
    evictions: Evictions, broker: Broker, barred: list[str]
) -> None:
    for _ in range(2):
        let_in(evictions, broker, "same")
    await evictions.look()
    assert (broker.ended, barred) == (["same"], [])


async def test_who_is_not_in_the_store_is_cut_and_the_clouds_own_are_not(
    evictions: Evictions, broker: Broker, store: Store
) -> None:
    for user in ("pi", "gone", "never", "CONTROL", "CALLOUT"):
        broker.present.append(Connection(user, f"process of {user}", "10.0.0.1", "server", 1, "", 0))
    for device in ("pi", "gone"):
        store.devices.add(device, {}, DeviceInfo())
    store.devices.revoke("gone")
    await evictions.sweep()
    assert sorted(broker.ended) == ["process of gone", "process of never"]


async def test_a_first_use_ends_the_others_and_not_itself(evictions: Evictions, broker: Broker) -> None:
    for name in ("old", "new"):
        broker.add(name)
    await evictions._superseded(Caller((), "pi", "new", "10.0.0.1", "server", 1))
    assert broker.ended == ["old"]
