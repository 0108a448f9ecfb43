"""What a worker has under way to the cloud is bounded by the agent, whatever the worker's own end promises."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from marram.bus.codec import MAX_MESSAGE_BYTES
from marram.edge.relay import Relay
from marram.schema.errors import Invalid, MarramError, NotReady, Refused, Retryable


class Requests:
    """A bus on which nobody answers until `answer` is set."""

    def __init__(self) -> None:
        self.connected = True
        self.asked = 0
        self.answer = asyncio.Event()
        self.fault: MarramError | None = None

    async def request(self, subject: str, payload: bytes, timeout_s: float) -> bytes:
        self.asked += 1
        await self.answer.wait()
        if self.fault is not None:
            raise self.fault
        return b"answer"


class Said:
    """The agent's end of a channel."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []

    def send(self, message: dict[str, Any]) -> None:
        self.messages.append(message)


def ask(relay: Relay, number: int, payload: bytes) -> None:
    relay.ask({"t": "infer", "id": number, "model": "big", "version": 1, "payload": payload, "timeout_s": 60})


async def settled(relay: Relay) -> None:
    while relay._asked:
        await asyncio.sleep(0)


@pytest.mark.parametrize(("payload", "fit"), [(b"small", 64), (bytes(MAX_MESSAGE_BYTES), 4)])
@pytest.mark.parametrize("fault", [None, NotReady("nobody there")])
async def test_questions_under_way_are_bounded_in_number_and_size_and_room_comes_back(
    payload: bytes, fit: int, fault: MarramError | None
) -> None:
    bus, said = Requests(), Said()
    bus.fault = fault
    relay = Relay(bus, said, [("big", 1)])  # type: ignore[arg-type]
    for _ in range(2):
        bus.asked = 0
        bus.answer.clear()
        said.messages.clear()
        for number in range(fit + 3):
            ask(relay, number, payload)
        await asyncio.sleep(0)
        assert bus.asked == fit
        assert [(m["id"], m["kind"]) for m in said.messages] == [(fit + n, Retryable.kind) for n in range(3)]
        bus.answer.set()
        await settled(relay)
        assert len(said.messages) == fit + 3


async def test_with_the_link_down_nothing_is_asked_and_the_worker_told_at_once() -> None:
    bus, said = Requests(), Said()
    bus.connected = False
    relay = Relay(bus, said, [("big", 1)])  # type: ignore[arg-type]
    ask(relay, 1, b"x")
    assert [(m["id"], m["kind"]) for m in said.messages] == [(1, NotReady.kind)]
    assert bus.asked == 0


async def test_what_is_no_question_is_nonsense_and_keeps_nothing() -> None:
    bus, said = Requests(), Said()
    relay = Relay(bus, said, [("big", 1)])  # type: ignore[arg-type]
    for number in (bytes(MAX_MESSAGE_BYTES), "1", None, [1], True):
        with pytest.raises(Invalid):
            relay.ask({"t": "probe", "id": number, "size": 1})
    for model, version in ((["big"], 1), ({}, 1), ("big", {}), ("big", True), ("small", 1)):
        relay.ask({"t": "infer", "id": 7, "model": model, "version": version, "payload": b"x"})
    assert [m["kind"] for m in said.messages] == [Refused.kind] * 5 and bus.asked == 0
