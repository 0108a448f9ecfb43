"""The protocol over the engines themselves: batched, swapped while it is asked, refused where too many wait."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc.aio
import tritonclient.http.aio
from tests.serving.oip.scene import layer, picture
from tritonclient.utils import InferenceServerException

from marram.runtime.bundle import Bundle
from marram.serving.host import Host, Limits
from marram.serving.oip.server import Place, Server

WAYS = {"http": tritonclient.http, "grpc": tritonclient.grpc}


@pytest.fixture
async def host(bundles: dict[str, Path]) -> AsyncIterator[Host]:
    made = Host(Limits(cores=2))
    for folder in bundles.values():
        await made.put(folder)
    yield made
    await made.close()


@pytest.fixture
async def clients(host: Host) -> AsyncIterator[dict[str, Any]]:
    async with Server(host, Place(http=0, grpc=0)).running() as server:
        http = tritonclient.http.aio.InferenceServerClient(f"127.0.0.1:{server.http}")
        grpc = tritonclient.grpc.aio.InferenceServerClient(f"127.0.0.1:{server.grpc}")
        async with http, grpc:
            yield {"http": http, "grpc": grpc}


def numbers(way: str, x: np.ndarray) -> list[Any]:
    sent = WAYS[way].InferInput("x", list(x.shape), "FP32")
    sent.set_data_from_numpy(x)
    return [sent]


@pytest.mark.parametrize("way", WAYS)
async def test_any_number_of_items_and_pictures(way: str, clients: dict[str, Any]) -> None:
    x = np.random.default_rng(3).normal(size=(37, 4)).astype(np.float32)
    answer = await clients[way].infer("tiny", numbers(way, x))
    np.testing.assert_allclose(answer.as_numpy("y"), layer(x), rtol=1e-4, atol=1e-5)
    colours = ["red", "green", "blue"] * 5
    sent = WAYS[way].InferInput("image", [len(colours)], "BYTES")
    sent.set_data_from_numpy(np.array([picture(each) for each in colours], object))
    answer = await clients[way].infer("colours", [sent])
    assert [each.decode() for each in answer.as_numpy("label")] == colours


@pytest.mark.parametrize("way", WAYS)
async def test_no_request_fails_while_versions_are_swapped(
    way: str, clients: dict[str, Any], host: Host, bundles: dict[str, Path]
) -> None:
    x = np.ones((2, 4), np.float32)
    ended = asyncio.Event()
    seen: set[str] = set()

    async def ask() -> int:
        asked = 0
        while not ended.is_set():
            answer = await clients[way].infer("tiny", numbers(way, x))
            np.testing.assert_allclose(answer.as_numpy("y"), layer(x), rtol=1e-5)
            response = answer.get_response()
            seen.add(response["model_version"] if way == "http" else response.model_version)
            asked += 1
        return asked

    asking = [asyncio.ensure_future(ask()) for _ in range(4)]
    for version in range(2, 6):
        opened = Bundle.open(bundles["tiny"])
        await host.put(replace(opened, card=opened.card.model_copy(update={"version": version})))
        await host.drop("tiny", version - 1)
    while "5" not in seen:
        await asyncio.sleep(0)
    ended.set()
    assert min(await asyncio.gather(*asking)) > 0
    assert (await clients[way].get_model_repository_index()) is not None
    with pytest.raises(InferenceServerException, match="version 1"):
        await clients[way].infer("tiny", numbers(way, x), model_version="1")


async def test_what_is_no_picture_harms_no_other(clients: dict[str, Any]) -> None:
    def sent(content: bytes) -> list[Any]:
        made = tritonclient.http.InferInput("image", [1], "BYTES")
        made.set_data_from_numpy(np.array([content], object))
        return [made]

    contents = [picture("red"), b"\xff\xd8\xffnothing", picture("blue"), b""]
    answers = await asyncio.gather(
        *(clients["http"].infer("colours", sent(each)) for each in contents), return_exceptions=True
    )
    assert [isinstance(each, InferenceServerException) for each in answers] == [False, True, False, True]
    assert "400" in answers[1].status() and "400" in answers[3].status()
