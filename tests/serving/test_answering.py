"""The conformance suite of `serving.contract.Answering`: engines in this process, and in one of their own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from marram.runtime.postprocess.contract import Options
from marram.schema.errors import Busy, Invalid, Missing, Permanent
from marram.schema.payload import Payload
from marram.serving.contract import Question
from marram.serving.engine import EngineProcess
from marram.serving.host import Host

from .conftest import COLOURS, MakeModel

Ask = Callable[..., Question]
Answering = Host | EngineProcess


# One process for all: starting it takes longer than all that it is asked.
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(params=["here", "elsewhere"], scope="module", loop_scope="module")
async def engines(request: pytest.FixtureRequest, make_model: MakeModel) -> AsyncIterator[Answering]:
    made: Answering = Host()
    if request.param == "elsewhere":
        made = EngineProcess()
        await made.start()
    await made.put(make_model())
    yield made
    await made.close()


@pytest_asyncio.fixture(loop_scope="module")
async def answering(engines: Answering) -> AsyncIterator[Answering]:
    """Serves colours@1, whatever a test lets it serve besides."""
    yield engines
    for each in engines.models():
        if each.card.reference != "colours@1":
            await engines.drop(each.card.model, each.card.version)


async def test_it_answers_each_with_its_own(answering: Answering, ask_of: Ask) -> None:
    asked = [COLOURS[n % 3] for n in range(60)]
    answers = await asyncio.gather(*(answering.infer(ask_of(colour)) for colour in asked))
    assert [answer.result.label for answer in answers if answer.result] == asked
    for answer in answers:
        assert (answer.model, answer.version) == ("colours", 1)
        assert answer.service_s > 0 and answer.queue_s >= 0 and answer.waiting >= 0


async def test_a_files_own_tensors_come_back_by_name_however_many_items(answering: Answering) -> None:
    items = np.arange(20 * 48, dtype=np.float32).reshape(20, 3, 4, 4)
    answer = await answering.infer(Question("colours", tensors={"x": items}))
    assert answer.result is None
    np.testing.assert_allclose(answer.outputs["y"], items.mean(axis=(2, 3)), rtol=1e-5)
    together = [answering.infer(Question("colours", tensors={"x": items[n : n + 1]})) for n in range(20)]
    for item, one in zip(items, await asyncio.gather(*together), strict=True):
        np.testing.assert_allclose(one.outputs["y"], item[None].mean(axis=(2, 3)), rtol=1e-5)


async def test_more_than_a_slot_holds_is_answered_too(answering: Answering) -> None:
    items = np.ones((30_000, 3, 4, 4), np.float32)
    answer = await answering.infer(Question("colours", tensors={"x": items}))
    assert answer.outputs["y"].shape == (30_000, 3)


async def test_options_are_heeded(answering: Answering, ask_of: Ask) -> None:
    answer = await answering.infer(ask_of("blue", options=Options(top=2)))
    assert answer.result is not None and len(answer.result.top) == 2


@pytest.mark.parametrize(
    ("question", "error"),
    [
        (Question("colours"), Invalid),
        (Question("colours", payload=Payload("image/jpeg", b"")), Invalid),
        (Question("colours", payload=Payload("image/jpeg", b"\xff\xd8 no picture")), Invalid),
        (Question("colours", payload=Payload("nonsense", b"x")), Invalid),
        (Question("colours", payload=Payload("application/x-cut+zstd", b"x", cut="nowhere")), Missing),
        (Question("colours", tensors={"z": np.zeros((1, 3, 4, 4), np.float32)}), Invalid),
        (Question("colours", tensors={"x": np.zeros((1, 3, 4, 5), np.float32)}), Invalid),
        (Question("colours", tensors={"x": np.zeros((0, 3, 4, 4), np.float32)}), Invalid),
        (Question("colours", tensors={"x": np.zeros((1, 3, 4, 4), np.int32)}), Invalid),
        (Question("colors"), Missing),
        (Question("colours", 2), Missing),
    ],
)
async def test_what_is_wrong_is_told_and_harms_nobody(
    answering: Answering, ask_of: Ask, question: Question, error: type[Exception]
) -> None:
    good = [answering.infer(ask_of("green")) for _ in range(3)]
    bad, *rest = await asyncio.gather(answering.infer(question), *good, return_exceptions=True)
    assert type(bad) is error and str(bad)
    assert [answer.result.label for answer in rest if not isinstance(answer, BaseException) and answer.result] == [
        "green"
    ] * 3


async def test_a_model_that_answers_nan_is_told_so(answering: Answering, make_model: MakeModel, ask_of: Ask) -> None:
    await answering.put(make_model("broken", nan=True))
    with pytest.raises(Permanent, match="NaN"):
        await answering.infer(ask_of("red", "broken"))


async def test_what_nobody_needs_any_more_is_not_answered(answering: Answering, ask_of: Ask) -> None:
    with pytest.raises(Busy) as refused:
        await answering.infer(ask_of(left_s=-0.1))
    assert refused.value.queue_s >= 0


async def test_models_come_and_go_and_the_newest_answers(
    answering: Answering, make_model: MakeModel, ask_of: Ask
) -> None:
    served = await answering.put(make_model(version=2))
    assert served.ready and served.engine == "onnx" and served.inputs[0].name == "x"
    assert [(each.card.reference, each.ready) for each in answering.models()] == [
        ("colours@1", True),
        ("colours@2", True),
    ]
    assert (await answering.infer(ask_of())).version == 2
    assert (await answering.infer(ask_of(version=1))).version == 1
    await answering.drop("colours", 2)
    assert (await answering.infer(ask_of())).version == 1
    with pytest.raises(Missing, match="colours@2 is not served here"):
        await answering.infer(ask_of(version=2))


async def test_what_cannot_be_loaded_says_why_and_what_was_served_still_is(
    answering: Answering, make_model: MakeModel, ask_of: Ask
) -> None:
    broken = make_model(version=2)
    (broken / "net.onnx").write_bytes(b"no model")
    with pytest.raises(Invalid, match=r"net\.onnx"):
        await answering.put(broken)
    assert (await answering.infer(ask_of())).version == 1


async def test_who_goes_away_leaves_nothing_behind(answering: Answering, ask_of: Ask) -> None:
    for _ in range(3):
        asked = [asyncio.create_task(answering.infer(ask_of())) for _ in range(40)]
        await asyncio.sleep(0)
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
    answers: list[Any] = await asyncio.gather(*(answering.infer(ask_of("blue")) for _ in range(5)))
    assert {answer.result.label for answer in answers} == {"blue"}
    if isinstance(answering, EngineProcess):
        while answering.slots_free < 64:
            await asyncio.sleep(0)
