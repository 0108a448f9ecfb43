"""The agent's side of devices that answer each other: what a worker may ask, what it is asked, what it may say."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from marram.bus.inferences import InferReply, InferRequest
from marram.edge import neighbour
from marram.edge.guest import answer
from marram.edge.neighbour import Neighbour
from marram.edge.relay import Among, Relay
from marram.schema.errors import Busy, NotReady, Refused, Retryable
from marram.schema.payload import Payload

MODEL = ("colours", 1)


class End:
    """What was sent to the worker."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []

    def send(self, message: dict[str, Any]) -> bool:
        self.sent.append(message)
        return True


class Asked:
    """A bus that keeps what is asked, and has nobody who listens but at the last subject."""

    connected = True

    def __init__(self) -> None:
        self.subjects: list[str] = []

    async def request(self, subject: str, payload: bytes, timeout_s: float) -> bytes:
        self.subjects.append(subject)
        if subject.startswith("probe"):
            raise NotReady("nobody")
        return b"said"


async def test_a_question_reaches_the_worker_and_its_answer_comes_back() -> None:
    end = End()
    side = Neighbour(end, {MODEL})  # type: ignore[arg-type]
    first, second = (asyncio.create_task(side.ask(MODEL, body)) for body in (b"one", b"two"))
    await asyncio.sleep(0)
    assert [(m["t"], m["model"], m["payload"]) for m in end.sent] == [
        ("asked", ["colours", 1], b"one"),
        ("asked", ["colours", 1], b"two"),
    ]
    for number, payload in ((99, b"nobody's"), (None, b"x"), (end.sent[0]["id"], "no bytes"), ([], b"x")):
        side.answered({"t": "answer", "id": number, "payload": payload})
    side.answered({"t": "answer", "id": end.sent[1]["id"], "payload": b"of two"})
    side.answered({"t": "answer", "id": end.sent[0]["id"], "payload": b"of one"})
    assert (await first, await second) == (b"of one", b"of two")


async def test_models_that_are_not_for_others_are_not_asked() -> None:
    end = End()
    with pytest.raises(Refused, match="answers others with other@1"):
        await Neighbour(end, {MODEL}).ask(("other", 1), b"x")  # type: ignore[arg-type]
    assert not end.sent


async def test_few_at_once_and_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    side = Neighbour(End(), {MODEL})  # type: ignore[arg-type]
    waiting = [asyncio.create_task(side.ask(MODEL, b"x")) for _ in range(neighbour._MOST)]
    await asyncio.sleep(0)
    with pytest.raises(Busy):
        await side.ask(MODEL, b"x")
    side.close()  # the worker ended
    assert all(isinstance(said, NotReady) for said in await asyncio.gather(*waiting, return_exceptions=True))
    monkeypatch.setattr(neighbour, "_LONGEST_S", 0.01)
    with pytest.raises(Retryable, match="did not answer in time"):
        await side.ask(MODEL, b"x")


async def told(message: dict[str, Any], among: Among | None = None) -> tuple[list[str], dict[str, Any]]:
    bus, end = Asked(), End()
    relay = Relay(bus, end, {("big", 1)}, among)  # type: ignore[arg-type]
    relay.ask({"id": 1, "payload": b"x", "timeout_s": 5.0, **message})
    while not end.sent:
        await asyncio.sleep(0)
    return bus.subjects, end.sent[0]


async def test_a_worker_asks_among_those_that_run_its_app_and_nobody_else() -> None:
    among = Among("pi", "gate", {MODEL})
    question = {"t": "infer", "model": "colours", "version": 1, "peers": True}
    assert await told(question, among) == (["d.pi.peer.gate.colours.1"], {
        "t": "reply", "id": 1, "payload": b"said", "gone": False,
    })  # fmt: skip
    assert (await told(question | {"replica": "pi-2"}, among))[0] == ["d.pi.peer.gate.colours.1.pi-2"]
    for other, who in (
        ({"model": "big"}, among),  # the cloud's is not asked of devices
        ({"version": 2}, among),
        ({"model": 5}, among),
        ({}, None),  # an app without `peers: yes`
        ({"peers": False}, among),  # and theirs is not asked of the cloud
    ):
        subjects, said = await told(question | other, who)
        assert not subjects and said["kind"] == "refused"
    for name in ("*", ">", "a.b", ""):
        subjects, said = await told(question | {"replica": name}, among)
        assert not subjects and said["kind"] == "invalid"


async def test_where_no_replica_runs_the_cloud_answers_probes() -> None:
    subjects, said = await told({"t": "probe", "size": 10}, Among("pi", "gate", {MODEL}))
    assert subjects == ["probe", "d.pi.peer.probe"] and said["payload"] == b"said"
    assert (await told({"t": "probe", "size": 10}))[0] == ["probe"]


def test_a_worker_that_runs_nothing_and_nonsense_are_answered_too() -> None:
    end = End()
    good = InferRequest(Payload("image/jpeg", b"x")).pack()
    answer({"id": 7, "model": ["colours", 1], "payload": good}, None, end)  # type: ignore[arg-type]
    reply = InferReply.unpack(end.sent[0]["payload"])
    assert end.sent[0]["id"] == 7 and reply.busy

    class Never:
        def ask(self, *_: object) -> None:
            raise AssertionError("asked with nonsense")

    answer({"id": 8, "model": ["colours", 1], "payload": b"\xc1"}, Never(), end)  # type: ignore[arg-type]
    reply = InferReply.unpack(end.sent[1]["payload"])
    assert reply.kind == "invalid" and not reply.busy
