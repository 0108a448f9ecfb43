"""A replica with a real model: right answers, errors that are replies, early refusals; nothing ends it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from marram.bus.client import Message
from marram.bus.inferences import InferReply, InferRequest
from marram.cloud.carried import answer_of, request_of
from marram.cloud.replica import Replica
from marram.runtime.image import encode_jpeg
from marram.runtime.session import CheckedSession
from marram.schema.payload import Payload
from marram.serving.contract import Question
from marram.serving.host import Host, Limits


@pytest.fixture
async def host(colours: Path) -> AsyncIterator[Host]:
    made = Host()
    await made.put(colours)
    yield made
    await made.close()


@pytest.fixture
def replica(host: Host) -> Replica:
    return Replica(host)


async def ask(replica: Replica, payload: bytes) -> InferReply:
    answer = await replica.on_infer(Message("infer.colours.1", payload, True))
    assert answer is not None
    return InferReply.unpack(answer)


def jpeg(image: Any, frame: tuple[int, int] | None = (4, 4)) -> bytes:
    return InferRequest(Payload("image/jpeg", encode_jpeg(image, 95), (), frame)).pack()


@pytest.mark.parametrize("colour", ["red", "green", "blue"])
async def test_it_answers_with_the_models_answer_and_its_times(
    replica: Replica, picture: Callable[[str], Any], colour: str
) -> None:
    reply = await ask(replica, jpeg(picture(colour)))
    assert reply.error is None and reply.result is not None
    assert reply.result["label"] == colour
    assert reply.service_s > 0 and reply.queue_s >= 0 and reply.waiting == 0


async def test_a_picture_of_any_size_is_fitted_where_it_was_not(replica: Replica) -> None:
    large = np.zeros((40, 60, 3), np.uint8)
    large[:, :, 2] = 255
    reply = await ask(replica, InferRequest(Payload("image/jpeg", encode_jpeg(large))).pack())
    assert reply.result is not None and reply.result["label"] == "blue"


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1garbage",
        InferRequest(Payload("image/jpeg", b"")).pack(),
        InferRequest(Payload("image/jpeg", b"\xff\xd8\xff\xe0 truncated")).pack(),
        InferRequest(Payload("image/jpeg", b"no picture at all", (), (4, 4))).pack(),
        InferRequest(Payload("image/jpeg", b"x", (), (-1, 10**9))).pack(),
        InferRequest(Payload("application/x-tensor", b"\x00" * 12, (3,))).pack(),
        InferRequest(Payload("application/x-tensor", b"\x00" * 11, (3,))).pack(),
        InferRequest(Payload("application/x-tensor", b"", (-3, 2))).pack(),
        InferRequest(Payload("application/x-tensor", b"", (2**62, 2**62))).pack(),
    ],
)
async def test_bad_input_is_an_error_reply_and_the_next_is_answered(
    replica: Replica, picture: Callable[[str], Any], payload: bytes
) -> None:
    reply = await ask(replica, payload)
    assert reply.result is None and reply.error
    good = await ask(replica, jpeg(picture("red")))
    assert good.result is not None and good.result["label"] == "red"
    assert (replica.figures.failed, replica.figures.answered, replica.figures.waiting) == (1, 1, 0)


async def test_a_picture_fitted_for_another_size_is_told_so(replica: Replica) -> None:
    reply = await ask(replica, jpeg(np.zeros((9, 9, 3), np.uint8)))
    assert reply.error is not None and "4×4" in reply.error


async def test_a_full_queue_refuses_at_once_and_says_how_long_it_is(
    colours: Path, picture: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    run = CheckedSession.run

    def stuck(session: CheckedSession, tensors: list[Any]) -> list[Any]:
        gate.wait(30)
        return run(session, tensors)

    host = Host(Limits(waiting=2, cores=1))
    await host.put(colours)
    replica = Replica(host)
    monkeypatch.setattr(CheckedSession, "run", stuck)
    try:
        payload = jpeg(picture("green"))
        asked = [asyncio.create_task(ask(replica, payload))]
        while not host.busy("colours", 1):
            await asyncio.sleep(0)
        asked += [asyncio.create_task(ask(replica, payload)) for _ in range(2)]
        while host.waiting("colours", 1) < 3:
            await asyncio.sleep(0)
        refused = await ask(replica, payload)
        assert refused.result is None and refused.error is not None and "busy" in refused.error
        assert refused.busy and refused.queue_s > 0 and refused.waiting == 2
        gate.set()
        replies = await asyncio.gather(*asked)
        assert all(reply.result is not None for reply in replies)
        assert max(reply.queue_s for reply in replies) > 0
        assert replica.figures.refused == 1
    finally:
        gate.set()
        await host.close()


async def test_what_would_come_too_late_is_refused_before_it_is_tried(
    replica: Replica, host: Host, picture: Callable[[str], Any]
) -> None:
    late = InferRequest(Payload("image/jpeg", encode_jpeg(picture("red")), (), (4, 4)), left_s=-1.0).pack()
    assert (await ask(replica, late)).busy


async def test_a_files_own_tensors_are_answered_with_its_own(replica: Replica) -> None:
    question = Question("colours", 1, tensors={"x": np.ones((3, 3, 4, 4), np.float32)})
    reply = await ask(replica, request_of(question).pack())
    assert reply.error is None
    np.testing.assert_allclose(answer_of(question, 1, reply).outputs["y"], np.ones((3, 3)))


async def test_a_probe_is_answered(replica: Replica) -> None:
    answer = await replica.on_probe(Message("probe", b"x" * 6000, True))
    assert answer is not None and InferReply.unpack(answer).error is None
