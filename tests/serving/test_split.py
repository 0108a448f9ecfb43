"""The back of a cut is served as any model is: many at once, beside the whole, from this process and from another."""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from tests.runtime.cutting import bundle, picture, with_cut

from marram.bus.inferences import InferRequest
from marram.runtime.bundle import Bundle
from marram.runtime.codecs import encode, encode_cut
from marram.runtime.cut import Front
from marram.runtime.model import Model
from marram.schema.errors import Invalid, Missing
from marram.schema.payload import Payload
from marram.serving.contract import Question
from marram.serving.engine import EngineProcess
from marram.serving.host import Host

IMAGES = [picture(seed, 30, 50) for seed in range(24)]


@pytest.fixture(scope="module")
def parted(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The quantised variant, parted in the middle and at its embedding."""
    made, _ = with_cut(bundle(tmp_path_factory.mktemp("models") / "small", int8=True), "mixed")
    made, _ = with_cut(made, "embedding")
    return made


def crossed(made: Bundle, name: str) -> list[Payload]:
    """What a device sends of each picture, as it comes off the bus."""
    front = Front.load(made, name)
    try:
        sent = [encode_cut(front.cut, front.run(image), image.shape[:2]) for image in IMAGES]
    finally:
        front.close()
    return [InferRequest.unpack(InferRequest(payload).pack()).payload for payload in sent]


@pytest.mark.parametrize("where", [Host, EngineProcess])
async def test_fronts_here_and_backs_there_answer_as_the_whole(
    parted: Bundle, where: type[Host] | type[EngineProcess]
) -> None:
    whole = Model.load(parted)
    wanted = [whole.predict(image) for image in IMAGES]
    whole.close()
    made = where()
    if isinstance(made, EngineProcess):
        await made.start()
    try:
        await made.put(parted.folder)
        pictures = [encode("raw-zstd", parted.card, image) for image in IMAGES]
        sent = [*crossed(parted, "mixed"), *crossed(parted, "embedding"), *pictures]
        answers = await asyncio.gather(*(made.infer(Question("small", payload=payload)) for payload in sent))
        for answer, right in zip(answers, 3 * wanted, strict=True):
            assert answer.result is not None and answer.result.label == right.label
            assert answer.result.confidence == pytest.approx(right.confidence, abs=1e-5)
        (payload, *_) = sent
        for spoilt, fault in (
            (replace(payload, cut="stem"), Missing),
            (replace(payload, scale=2 * payload.scale), Invalid),
            (replace(payload, body=payload.body[:-2]), Invalid),
            (replace(payload, shape=(8, 8)), Invalid),
        ):
            with pytest.raises(fault):
                await made.infer(Question("small", payload=spoilt))
        again = await made.infer(Question("small", payload=payload))
        assert again.result is not None and again.result.label == wanted[0].label
    finally:
        await made.close()


async def test_a_device_that_has_no_back_answers_whole_pictures_alone(parted: Bundle, tmp_path: Path) -> None:
    here = tmp_path / "here"
    shutil.copytree(parted.folder, here)
    for cut in parted.card.cuts:
        (here / cut.back).unlink()
    host = Host()
    try:
        await host.put(Bundle.open(here, partial=True))
        whole = await host.infer(Question("small", payload=encode("raw-zstd", parted.card, IMAGES[0])))
        assert whole.result is not None
        (payload, *_) = crossed(parted, "mixed")
        with pytest.raises(Missing, match='no cut "mixed"'):
            await host.infer(Question("small", payload=payload))
    finally:
        await host.close()
