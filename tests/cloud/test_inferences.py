"""The Open Inference Protocol at a running cloud: unmodified clients, API tokens, replicas on the bus."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc.aio
import tritonclient.http.aio
from tests.serving.oip.scene import Plain
from tritonclient.utils import InferenceServerException

from marram.bus import subjects
from marram.bus.client import Message
from marram.bus.codec import MAX_MESSAGE_BYTES
from marram.cloud.answering import OverBus
from marram.cloud.carried import pack_served, replied
from marram.cloud.server import Cloud
from marram.cloud.settings import Settings
from marram.runtime.image import encode_jpeg
from marram.runtime.model import Model
from marram.schema.api import DeployAsk
from marram.schema.errors import Busy, Invalid, Missing, NotReady, Permanent, Retryable
from marram.schema.people import Permission, Role
from marram.serving.contract import Question
from marram.serving.oip.inference import Asked, Inference
from marram.serving.oip.tensors import Named

KEY = ("colours", 1)
APP = "app: gate\nsource: {images: photos}\nsteps:\n  - classify: colours\n    cloud: colours\n"


@pytest.fixture
async def cloud(tmp_path: Path) -> AsyncIterator[Cloud]:
    async with Cloud(Settings(folder=tmp_path / "cloud", port=0, grpc_port=0)).running() as running:
        yield running


@pytest.fixture
async def replica(cloud: Cloud, colours: Path) -> AsyncIterator[Plain]:
    """What a replica process does, on a connection of this process."""
    assert cloud.gate is not None
    plain = Plain([Model.load(colours)])
    bus = await cloud.gate.connect()

    async def answer(message: Message) -> bytes:
        return (await replied(plain, *KEY, message.payload)).pack()

    async def served(message: Message) -> bytes:
        return pack_served("plain", plain.models())

    await bus.subscribe(subjects.infer(*KEY), answer, "replicas", parallel=8)
    await bus.subscribe(subjects.SERVED, served)
    await bus.subscribe(subjects.infer(*KEY, "plain"), answer, parallel=8)
    async with httpx.AsyncClient(base_url=cloud.url, headers={"Authorization": f"Bearer {token(cloud)}"}) as http:
        while (await http.get("/v2/models/colours/ready")).status_code != 200:
            await asyncio.sleep(0.02)
    yield plain
    await bus.close()


def token(cloud: Cloud, *scopes: Permission) -> str:
    return cloud.state.access.add("asker", None, scopes=frozenset(scopes) or None)[0].text


def image(module: Any, *pictures: Any) -> list[Any]:
    sent = module.InferInput("image", [len(pictures)], "BYTES")
    sent.set_data_from_numpy(np.array([encode_jpeg(each) for each in pictures], object))
    return [sent]


def pixels(module: Any, items: int) -> tuple[list[Any], np.ndarray]:
    x = np.random.default_rng(7).random((items, 3, 4, 4), np.float32)
    sent = module.InferInput("x", list(x.shape), "FP32")
    sent.set_data_from_numpy(x)
    return [sent], x


async def test_unmodified_clients_are_answered(cloud: Cloud, replica: Plain, picture: Callable[[str], Any]) -> None:
    bearer = {"authorization": f"Bearer {token(cloud, Permission.INFER)}"}
    http = tritonclient.http.aio.InferenceServerClient(cloud.url.removeprefix("http://"))
    grpc = tritonclient.grpc.aio.InferenceServerClient(f"127.0.0.1:{cloud.grpc_port}")
    async with http, grpc:
        for client, module in ((http, tritonclient.http), (grpc, tritonclient.grpc)):
            sent = dict(bearer)  # the client for HTTP adds to what it is given
            two = image(module, picture("green"), picture("red"))
            answer = await client.infer("colours", two, headers=sent, parameters={"top": 2})
            assert list(answer.as_numpy("label")) == [b"green", b"red"]
            assert [len(json.loads(each)["top"]) for each in answer.as_numpy("result")] == [2, 2]
            tensors, x = pixels(module, 3)
            answer = await client.infer("colours", tensors, headers=dict(bearer))
            np.testing.assert_allclose(answer.as_numpy("y"), x.mean((2, 3)), rtol=1e-5)
            assert await client.is_server_live() and await client.is_model_ready("colours", headers=dict(bearer))
            with pytest.raises(InferenceServerException, match="nothing"):
                await client.infer("nothing", tensors, headers=dict(bearer))
    assert replica.asked[0].options.top == 2


async def test_who_may_ask(cloud: Cloud, replica: Plain, picture: Callable[[str], Any]) -> None:
    ask = {"content": encode_jpeg(picture("blue")), "headers": {"Inference-Header-Content-Length": "0"}}

    async def status(method: str, path: str, bearer: str | None, **how: Any) -> int:
        headers = how.pop("headers", {}) | ({} if bearer is None else {"Authorization": f"Bearer {bearer}"})
        async with httpx.AsyncClient(base_url=cloud.url) as http:
            return (await http.request(method, path, headers=headers, **how)).status_code

    inferring, reading = token(cloud, Permission.INFER), token(cloud, Permission.READ)
    labelling = token(cloud, Permission.LABEL)
    for bearer, infers, looks in ((inferring, 200, 200), (reading, 403, 200), (labelling, 403, 403), (None, 401, 401)):
        assert await status("POST", "/v2/models/colours/infer", bearer, **ask) == infers
        assert await status("GET", "/v2/models/colours", bearer) == looks
        assert await status("GET", "/v2/health/ready", bearer) == 200
        metadata = [] if bearer is None else [("authorization", f"Bearer {bearer}")]
        grpc = tritonclient.grpc.aio.InferenceServerClient(f"127.0.0.1:{cloud.grpc_port}")
        async with grpc:
            if infers == 200:
                await grpc.infer("colours", image(tritonclient.grpc, picture("red")), headers=dict(metadata))
            else:
                code = "PERMISSION_DENIED" if infers == 403 else "UNAUTHENTICATED"
                with pytest.raises(InferenceServerException, match=code):
                    await grpc.infer("colours", image(tritonclient.grpc, picture("red")), headers=dict(metadata))
    assert Permission.INFER in Role.OPERATOR.permissions and Permission.INFER not in Role.VIEWER.permissions
    # Wrong ones are counted with those of the API, whichever way they come.
    got = {await status("GET", "/v2", "mrrm_wrong") for _ in range(25)}
    assert got == {401, 429}
    assert await status("GET", "/v2", inferring) == 200


async def test_many_items_go_in_as_many_messages_as_they_need(cloud: Cloud, replica: Plain) -> None:
    over = await looked(cloud)
    x = np.random.default_rng(7).random((1000, 3, 40, 40), np.float32)[:, :, ::10, ::10].repeat(24, 0)  # 4.6 MB
    answer = await over.infer(Question("colours", tensors={"x": x}))
    assert [len(each.tensors["x"]) for each in replica.asked] == [20_500, 3_500]
    np.testing.assert_allclose(answer.outputs["y"], x.mean((2, 3)), rtol=1e-4)
    with pytest.raises(Invalid, match="more than one inference may have"):
        await over.infer(Question("colours", tensors={"x": np.zeros((1, MAX_MESSAGE_BYTES // 4 + 1), np.float32)}))


async def looked(cloud: Cloud) -> OverBus:
    over = OverBus(cloud.bus)
    await over._look()
    return over


async def test_what_a_replica_raises_is_raised_here(cloud: Cloud, replica: Plain) -> None:
    over = await looked(cloud)
    question = Question("colours", tensors={"x": np.zeros((1, 3, 4, 4), np.float32)})
    for error in (Busy("32 wait", queue_s=1.25), Invalid("no picture"), Permanent("it failed"), Retryable("too late")):
        replica.failing = error
        with pytest.raises(type(error), match=str(error)) as caught:
            await over.infer(question)
        assert type(caught.value) is type(error)
        assert not isinstance(caught.value, Busy) or caught.value.queue_s == 1.25


async def test_what_comes_later_is_found_when_it_is_asked_for(cloud: Cloud, replica: Plain) -> None:
    over = OverBus(cloud.bus)
    with pytest.raises(Missing, match="is not served here"):
        await over.infer(Question("nothing", tensors={"x": np.zeros((1, 3, 4, 4), np.float32)}))
    over._served.clear()
    answer = await over.infer(Question("colours", tensors={"x": np.zeros((2, 3, 4, 4), np.float32)}))
    assert answer.outputs["y"].shape == (2, 3)
    assert [each.card.reference for each in over.models()] == ["colours@1"]


async def test_replicas_that_say_nothing_for_a_while_do_not_make_a_model_unknown(
    cloud: Cloud, replica: Plain, monkeypatch: pytest.MonkeyPatch
) -> None:
    over = await looked(cloud)
    question = Question("colours", tensors={"x": np.zeros((1, 3, 4, 4), np.float32)})

    async def silent(*_: object) -> list[bytes]:
        raise Retryable("no answer at all")

    async def nobody(*_: object) -> list[bytes]:
        return [b""]

    with monkeypatch.context() as told:
        told.setattr(over._bus, "gather", silent)
        await over._look()
        assert (await over.infer(question)).outputs["y"].shape == (1, 3)  # busy, and still answering
        assert [each.ready for each in over.models()] == [True]
        told.setattr(over._bus, "gather", nobody)
        await over._look()
        assert [(each.ready, each.reason) for each in over.models()] == [(False, "no replica is there now")]
    await over._look()
    assert [each.ready for each in over.models()] == [True]
    monkeypatch.setattr(over._bus, "gather", nobody)
    for _ in range(11):
        await over._look()
    assert not over.models()


async def test_what_is_going_to_be_served_is_being_loaded_and_not_unknown(
    cloud: Cloud, colours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    over = OverBus(cloud.bus, [Model.load(colours).card])
    asker = Inference(over)
    tensors = [Named.of("x", np.zeros((1, 3, 4, 4), np.float32))]
    for _ in range(2):  # as well once nobody was found
        assert not asker.ready() and not asker.find("colours", None).ready
        with pytest.raises(NotReady):
            await asker.infer(Asked("colours", None, tensors))
        await over._look()

    async def nothing(*_: object) -> list[bytes]:
        return [pack_served("empty", [])]  # a replica that still loads it

    monkeypatch.setattr(over._bus, "gather", nothing)
    await over._look()
    assert not asker.ready()
    for _ in range(60):
        await over._look()
    assert asker.ready() and not over.models()  # it cannot be loaded: the replica's log says why


async def test_a_replica_that_hangs_costs_a_question_nothing_but_a_moment(
    cloud: Cloud, replica: Plain, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cloud.gate is not None
    hung: list[Message] = []
    release = asyncio.Event()

    async def hangs(message: Message) -> bytes | None:
        hung.append(message)
        await release.wait()
        return None

    async with await cloud.gate.connect() as bus:
        listening = True

        async def served(message: Message) -> bytes:
            if not listening:
                await release.wait()
            return pack_served("hung", replica.models())

        await bus.subscribe(subjects.SERVED, served, parallel=8)
        await bus.subscribe(subjects.infer(*KEY), hangs, "replicas", parallel=64)
        over = OverBus(cloud.bus)
        while set(over._replicas) != {"plain", "hung"}:
            await over._look()
        listening = False
        monkeypatch.setattr("marram.cloud.answering._SECOND_S", 0.01)
        question = Question("colours", tensors={"x": np.zeros((1, 3, 4, 4), np.float32)})
        asked = [asyncio.create_task(over.infer(question)) for _ in range(16)]  # before that is known
        while not hung:
            await asyncio.sleep(0.01)
        while not over._replicas["hung"].unanswered or over._replicas["plain"].unanswered:
            await over._look()
        for answer in await asyncio.gather(*asked):
            assert answer.outputs["y"].shape == (1, 3)
        monkeypatch.setattr("marram.cloud.answering._SECOND_S", 60.0)
        before = len(hung)
        for _ in range(16):
            assert (await over.infer(question)).outputs["y"].shape == (1, 3)
        assert len(hung) == before  # nobody asks it any more
        release.set()


async def test_who_needs_it_sooner_waits_no_longer(cloud: Cloud, replica: Plain) -> None:
    over = await looked(cloud)
    release = asyncio.Event()
    replica.infer = lambda question: release.wait()  # type: ignore[method-assign,assignment,return-value]
    with pytest.raises(Retryable, match="no answer in time"):
        await over.infer(Question("colours", tensors={"x": np.zeros((1, 3, 4, 4), np.float32)}, left_s=0.05))
    release.set()


async def test_real_replicas_answer(tmp_path: Path, colours: Path, picture: Callable[[str], Any]) -> None:
    settings = Settings(folder=tmp_path / "cloud", port=0, grpc_port=0)
    async with Cloud(settings).running() as cloud:
        await asyncio.to_thread(cloud.state.registry.add_folder, colours)
        await asyncio.to_thread(cloud.state.deploy, DeployAsk(app_yaml=APP))
        bearer = {"authorization": f"Bearer {token(cloud, Permission.INFER)}"}
        http = tritonclient.http.aio.InferenceServerClient(cloud.url.removeprefix("http://"))
        grpc = tritonclient.grpc.aio.InferenceServerClient(f"127.0.0.1:{cloud.grpc_port}")
        async with http, grpc:
            async with asyncio.timeout(60):
                while not await grpc.is_server_ready() or not (await http.get_model_repository_index(dict(bearer))):
                    await asyncio.sleep(0.05)
            tensors, x = pixels(tritonclient.grpc, 5)
            answer = await grpc.infer("colours", tensors, headers=dict(bearer))
            np.testing.assert_allclose(answer.as_numpy("y"), x.mean((2, 3)), rtol=1e-5)
            answer = await http.infer("colours", image(tritonclient.http, picture("blue")), headers=dict(bearer))
            assert list(answer.as_numpy("label")) == [b"blue"]
            metadata = await http.get_model_metadata("colours", headers=dict(bearer))
            assert [each["name"] for each in metadata["inputs"]] == ["x", "image"]
