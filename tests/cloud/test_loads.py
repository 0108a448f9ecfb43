"""Replicas tell each other their load and hand on what another answers sooner: over a real broker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from marram.bus import subjects
from marram.bus.client import Bus, Message
from marram.cloud.loads import Loads
from marram.lab.gatehouse import Gatehouse
from marram.schema.load import Load

KEY = ("lite2", 1)


@dataclass
class Mate:
    """One replica: its load is what the test sets, its answers are its name."""

    name: str
    bus: Bus
    loads: Loads = field(init=False)
    waiting: int = 0
    service_s: float = 0.02
    silent: bool = False

    def __post_init__(self) -> None:
        self.loads = Loads(self.bus)

    def load(self) -> Load:
        return Load(self.name, "lite2@1", self.waiting, self.waiting * self.service_s, self.service_s)

    async def serve(self) -> None:
        await self.bus.subscribe(subjects.infer(*KEY, self.name), self.answer, parallel=8)
        await self.bus.subscribe(subjects.hand("*", *KEY, self.name), self.answer, parallel=8)
        await self.loads.serve(KEY, self.load)

    async def answer(self, message: Message) -> bytes | None:
        handed = await self.loads.hand_on(KEY, message)
        if handed is not None:
            return handed
        return None if self.silent else f"{self.name} {subjects.hop_of(message.subject)}".encode()

    def wait(self, waiting: int) -> None:
        self.waiting = waiting
        self.loads.changed(KEY)


@pytest.fixture
async def mates(tmp_path: Path) -> AsyncIterator[list[Mate]]:
    gate = Gatehouse(tmp_path)
    await asyncio.to_thread(gate.start)
    made = []
    for name in ("a", "b", "c"):
        bus = await gate.connect()
        await bus.wait_connected(20)
        made.append(Mate(name, bus))
        await made[-1].serve()
    yield made
    for mate in made:
        await mate.loads.close()
        await mate.bus.close()
    await asyncio.to_thread(gate.stop)


async def known(mate: Mate, condition: Callable[[dict[str, Load]], Any]) -> None:
    async with asyncio.timeout(20):
        while not condition({load.replica: load for load in mate.loads.known(KEY)}):
            await asyncio.sleep(0.005)


async def test_each_knows_the_load_of_all_and_its_own_first(mates: list[Mate]) -> None:
    for mate in mates:
        await known(mate, lambda loads: set(loads) == {"a", "b", "c"})
        assert mate.loads.known(KEY)[0].replica == mate.name
    mates[1].wait(7)
    await known(mates[0], lambda loads: loads["b"].waiting == 7)


async def test_who_has_left_is_known_no_more_and_what_is_no_load_is_ignored(mates: list[Mate]) -> None:
    await known(mates[0], lambda loads: len(loads) == 3)
    await mates[2].loads.close()
    await mates[2].bus.publish(subjects.load(*KEY), b"\xc1 nonsense")
    await known(mates[0], lambda loads: set(loads) == {"a", "b"})


async def test_a_request_is_handed_on_to_where_few_wait(mates: list[Mate]) -> None:
    a, b, c = mates
    a.wait(10)
    b.wait(10)
    await known(a, lambda loads: loads["b"].waiting == 10 and "c" in loads)
    assert await c.bus.request(subjects.infer(*KEY, "a"), b"", 20) == b"c 1"
    assert await c.bus.request(subjects.infer(*KEY, "c"), b"", 20) == b"c 0", "it has nothing to hand on"


async def test_a_slow_one_hands_on_what_comes_to_it_though_nobody_waits(mates: list[Mate]) -> None:
    mates[0].service_s = 1.0
    mates[0].wait(0)
    await known(mates[0], lambda loads: len(loads) == 3)
    assert (await mates[2].bus.request(subjects.infer(*KEY, "a"), b"", 20)).endswith(b" 1")


async def test_what_was_handed_on_twice_stays(mates: list[Mate]) -> None:
    a, b, c = mates
    for mate in (a, b):
        mate.wait(10)
    await known(a, lambda loads: loads["b"].waiting == 10 and "c" in loads)
    third = subjects.hand(2, *KEY, "a")
    assert await c.bus.request(third, b"", 20) == b"a 2"


@pytest.mark.parametrize("how", ["gone", "silent"])
async def test_what_another_does_not_answer_is_answered_here(mates: list[Mate], how: str) -> None:
    a, b, c = mates
    a.wait(2)
    b.wait(10)
    c.silent = True
    await known(a, lambda loads: loads["b"].waiting == 10 and "c" in loads)
    if how == "gone":  # as by kill -9: its load is still remembered
        await c.bus.close()
    assert await b.bus.request(subjects.infer(*KEY, "a"), b"", 20) == b"a 0"
