"""Doubles are found whenever they come: also in the middle of a look, and where the broker does not answer one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from marram.bus.callout import Caller
from marram.bus.connections import Connection, Connections
from marram.cloud.eviction import Evictions
from marram.schema.errors import Retryable
from marram.store import Store, open_store


class Broker(Connections):
    """Who is connected, and everybody talks; `asked` happens after it made its answer."""

    def __init__(self) -> None:
        self.present: list[Connection] = []
        self.asked: Callable[[], None] = lambda: None
        self.questions = 0

    async def of(self, user: str) -> list[Connection]:
        self.questions += 1
        answer = [
            Connection(each.user, each.name, each.address, each.server, each.id, each.since, self.questions)
            for each in self.present
            if each.user == user
        ]
        self.asked()
        return answer

    async def cut(self, connections: object) -> int:
        return 0

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
