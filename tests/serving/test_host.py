"""Several models in one process: none waits for another, swapped under load, put aside and brought back."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from marram.runtime.bundle import Bundle
from marram.runtime.session import CheckedSession
from marram.schema.errors import Busy, Missing, NotReady
from marram.serving import parts as module
from marram.serving.contract import Question
from marram.serving.host import Host, Limits
from marram.serving.memory import resident_bytes
from marram.serving.warmup import warm

from .conftest import MakeModel

Ask = Callable[..., Question]


@pytest.fixture
async def host() -> AsyncIterator[Host]:
    made = Host(Limits(cores=2))
    yield made
    await made.close()


class Slow:
    """Holds every run of the models whose picture has this size, until it is let go; counts rows of all runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
        self.gate = threading.Event()
        self.runs: list[int] = []
        run = CheckedSession.run

        def held(session: CheckedSession, tensors: list[Any]) -> list[Any]:
            if tensors[0].shape[-1] == size:
                self.gate.wait(60)
                self.runs.append(len(tensors[0]))
            return run(session, tensors)

        monkeypatch.setattr(CheckedSession, "run", held)


async def busy(host: Host, name: str) -> None:
    while not host.busy(name, 1):
        await asyncio.sleep(0)


async def test_a_slow_model_holds_nobody_elses_questions_up(
    host: Host, make_model: MakeModel, ask_of: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    await host.put(make_model("slow", size=8))
    await host.put(make_model("slower", size=8))
    await host.put(make_model())
    slow = Slow(monkeypatch, 8)
    try:
        held = [
            asyncio.create_task(host.infer(ask_of("red", name, 8))) for name in ("slow", "slower") for _ in range(8)
        ]
        await busy(host, "slow")
        await busy(host, "slower")
        for _ in range(20):
            assert (await host.infer(ask_of("green"))).result
        assert not any(task.done() for task in held)
    finally:
        slow.gate.set()
    assert all(answer.result for answer in await asyncio.gather(*held))


async def test_who_waits_runs_together_and_nobody_is_late_for_it(
    make_model: MakeModel, ask_of: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = Host(Limits(cores=1))
    await host.put(make_model())
    speed = host.speed("colours", 1)
    assert speed is not None and speed.most == 8
    for _ in range(50):  # as were it an engine for which a batch pays
        for count in (1, 2, 4, 8):
            speed.ran(count, 0.2 + 0.01 * count)
    slow = Slow(monkeypatch, 4)
    try:
        asked = [asyncio.create_task(host.infer(ask_of("red")))]
        await busy(host, "colours")
        asked += [asyncio.create_task(host.infer(ask_of("blue"))) for _ in range(8)]
        while host.waiting("colours", 1) < 9:
            await asyncio.sleep(0)
        with pytest.raises(Busy, match="it would be answered in") as refused:
            await host.infer(ask_of("blue", left_s=0.01))
        assert refused.value.queue_s > 0 and refused.value.waiting == 8
        slow.gate.set()
        assert [(await task).result.label for task in asked] == ["red"] + ["blue"] * 8  # type: ignore[union-attr]
        assert slow.runs[0] == 1 and max(slow.runs) > 1 and sum(slow.runs) == 9
    finally:
        slow.gate.set()
        await host.close()


async def test_a_queue_is_bounded_and_who_finds_it_full_is_told_how_long_it_is(
    make_model: MakeModel, ask_of: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = Host(Limits(cores=1, waiting=3))
    await host.put(make_model())
    slow = Slow(monkeypatch, 4)
    try:
        asked = [asyncio.create_task(host.infer(ask_of()))]
        await busy(host, "colours")
        asked += [asyncio.create_task(host.infer(ask_of())) for _ in range(3)]
        while host.waiting("colours", 1) < 4:
            await asyncio.sleep(0)
        with pytest.raises(Busy, match="3 wait here already"):
            await host.infer(ask_of())
        slow.gate.set()
        assert all(answer.result for answer in await asyncio.gather(*asked))
    finally:
        slow.gate.set()
        await host.close()


async def test_swaps_under_load_fail_nobody_and_leave_nothing(
    host: Host, make_model: MakeModel, ask_of: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("marram.serving.warmup._BUDGET_S", 0.0)  # how fast it is does not matter here
    versions = [make_model(version=number, weights=2_000_000) for number in (1, 2)]
    await host.put(versions[0])
    going, answered, sizes = True, [0, 0, 0], []

    async def ask() -> None:
        while going:
            answered[(await host.infer(ask_of("green"))).version] += 1

    asking = [asyncio.create_task(ask()) for _ in range(4)]
    try:
        for swap in range(40):  # a hundred, with a real model: bench/swap.py
            new = 2 - swap % 2
            await host.put(versions[new - 1])
            await host.drop("colours", 3 - new)
            seen = answered[new]
            while answered[new] == seen:
                await asyncio.sleep(0)
            sizes.append(resident_bytes())
    finally:
        going = False
    await asyncio.gather(*asking)
    assert answered[1] > 40 and answered[2] > 40
    assert len([thread for thread in threading.enumerate() if thread.name.startswith("colours@")]) <= 2
    # Each swap loads 2 MB more than it unloads until the old one is gone: all of it would be 80 MB.
    assert min(sizes[-10:]) - max(sizes[5:15]) < 20e6


async def test_the_same_version_put_again_replaces_itself(host: Host, make_model: MakeModel, ask_of: Ask) -> None:
    await host.put(make_model())
    await host.put(make_model())
    assert len(host.models()) == 1
    assert (await host.infer(ask_of())).result
    assert len([thread for thread in threading.enumerate() if thread.name.startswith("colours@")]) <= 2


def in_memory(host: Host) -> list[tuple[str, int]]:
    """The models that need not be loaded first."""
    keys = [(each.card.model, each.card.version) for each in host.models()]
    return [key for key in keys if host.speed(*key) is not None]


async def test_what_has_no_room_is_put_aside_and_comes_back_when_it_is_asked_for(
    make_model: MakeModel, ask_of: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "resident_bytes", lambda: 0)  # each counts as its file, wherever malloc got room from
    host = Host(Limits(memory_bytes=5_000_000, cores=1))
    names = ["a", "b", "c"]
    try:
        for name in names:
            await host.put(make_model(name, weights=2_000_000))
        assert in_memory(host) == [("c", 1)]  # what a new one needs is guessed, and more than what it then took
        assert all(each.ready for each in host.models())
        assert (await host.infer(ask_of("blue", "a"))).result
        assert in_memory(host) == [("a", 1), ("c", 1)]
        answers = await asyncio.gather(*(host.infer(ask_of("green", names[n % 3])) for n in range(12)))
        assert {answer.result.label for answer in answers if answer.result} == {"green"}
        with pytest.raises(NotReady, match=r"needs .* MB, and models may take 5 MB"):
            await host.put(make_model("huge", weights=9_000_000))
        assert (await host.infer(ask_of("blue", "a"))).result
    finally:
        await host.close()


async def test_who_waits_for_a_model_that_loads_waits_no_longer_than_it_can(
    make_model: MakeModel, ask_of: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "resident_bytes", lambda: 0)
    host = Host(Limits(memory_bytes=3_000_000, cores=1))
    gate = threading.Event()

    def held(bundle: Bundle, cut: str, cores: int) -> Any:
        gate.wait(60)
        return warm(bundle, cut, cores)

    try:
        for name in ("a", "b"):
            await host.put(make_model(name, weights=2_000_000))
        monkeypatch.setattr(module, "warm", held)
        with pytest.raises(NotReady, match="still being loaded"):
            await host.infer(ask_of("red", "a", left_s=0.01))
        patient = asyncio.create_task(host.infer(ask_of("red", "a")))
        gate.set()
        assert (await patient).result
    finally:
        gate.set()
        await host.close()


async def test_a_file_that_vanished_is_told_and_not_looked_for_at_every_question(
    make_model: MakeModel, ask_of: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "resident_bytes", lambda: 0)
    host = Host(Limits(memory_bytes=3_000_000, cores=1))
    try:
        folder = make_model("a", weights=2_000_000)
        await host.put(folder)
        await host.put(make_model("b", weights=2_000_000))
        (folder / "net.onnx").unlink()
        with pytest.raises(Exception, match=r"net\.onnx|load"):
            await host.infer(ask_of("red", "a"))
        began_s = time.monotonic()
        with pytest.raises(NotReady, match="cannot be loaded"):
            await host.infer(ask_of("red", "a"))
        assert time.monotonic() - began_s < 1  # it was not tried again
        assert (await host.infer(ask_of("red", "b"))).result
        await host.drop("a", 1)
        with pytest.raises(Missing):
            await host.infer(ask_of("red", "a"))
    finally:
        await host.close()


def test_a_graph_that_answers_only_one_at_a_time_is_asked_one_at_a_time(make_model: MakeModel) -> None:
    """All declare one item. One fails with two, one answers, and wrongly; nothing says so but trying."""
    for change, most in (({}, 8), ({"fixed": True}, 1), ({"coupled": True}, 1)):
        ready = warm(Bundle.open(make_model(**change)), "", 1)
        assert ready.speed.most == most, change
        ready.answerers[0].close()
