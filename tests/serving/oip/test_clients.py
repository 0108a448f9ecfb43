"""tritonclient, unmodified: HTTP and gRPC, blocking and asyncio, against a server of ours on real ports."""

from __future__ import annotations

import json
import queue
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
import tritonclient.http.aio
from tests.serving.oip.scene import Plain, layer, picture
from tritonclient.utils import InferenceServerException

from marram.schema.errors import Busy, NotReady, Permanent
from marram.serving.oip.server import Server

WAYS = {"http": tritonclient.http, "grpc": tritonclient.grpc}
NUMBERS = np.arange(12, dtype=np.float32).reshape(3, 4) / 7
Clients = Callable[[str], Any]


def numbers(way: str, x: np.ndarray = NUMBERS, datatype: str = "FP32", **how: bool) -> list[Any]:
    sent = WAYS[way].InferInput("x", list(x.shape), datatype)
    sent.set_data_from_numpy(x, **how)
    return [sent]


def pictures(way: str, *colours: str) -> list[Any]:
    sent = WAYS[way].InferInput("image", [len(colours)], "BYTES")
    sent.set_data_from_numpy(np.array([picture(colour) for colour in colours], object))
    return [sent]


@pytest.mark.parametrize("way", WAYS)
def test_what_there_is(way: str, clients: Clients) -> None:
    client = clients(way)
    how = {} if way == "http" else {"as_json": True}
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("colours") and client.is_model_ready("colours", "3")
    assert client.get_server_metadata(**how)["name"] == "marram"
    metadata = client.get_model_metadata("colours", **how)
    assert metadata["versions"] == ["3"]
    assert [entry["name"] for entry in metadata["inputs"]] == ["pixels", "image"]
    assert [entry["datatype"] for entry in metadata["outputs"]] == ["FP32", "BYTES", "BYTES", "FP32"]
    assert [int(n) for n in metadata["inputs"][0]["shape"]] == [-1, 3, 8, 8]
    config = client.get_model_config("tiny", **how)
    config = config.get("config", config)
    assert config["input"][0]["data_type"] == "TYPE_FP32"
    index = client.get_model_repository_index(**how)
    assert [entry["name"] for entry in (index if way == "http" else index["models"])] == ["colours", "tiny"]


@pytest.mark.parametrize("way", WAYS)
def test_numbers_in_and_out(way: str, clients: Clients) -> None:
    answer = clients(way).infer("tiny", numbers(way), request_id="seven")
    np.testing.assert_allclose(answer.as_numpy("y"), layer(NUMBERS), rtol=1e-6)
    response = answer.get_response() if way == "http" else answer.get_response(as_json=True)
    assert (response["id"], response["model_version"]) == ("seven", "1")


def test_numbers_as_json(clients: Clients) -> None:
    wanted = [tritonclient.http.InferRequestedOutput("y", binary_data=False)]
    answer = clients("http").infer("tiny", numbers("http", binary_data=False), outputs=wanted)
    assert "data" in answer.get_output("y")
    np.testing.assert_allclose(answer.as_numpy("y"), layer(NUMBERS), rtol=1e-6)


@pytest.mark.parametrize("way", WAYS)
def test_pictures_in_results_out(way: str, clients: Clients) -> None:
    answer = clients(way).infer("colours", pictures(way, "green", "red"), model_version="3", parameters={"top": 2})
    assert list(answer.as_numpy("label")) == [b"green", b"red"]
    assert answer.as_numpy("confidence").min() > 0.9
    results = [json.loads(text) for text in answer.as_numpy("result")]
    assert [len(result["top"]) for result in results] == [2, 2]
    assert results[0]["model"] == "colours@3"


@pytest.mark.parametrize("way", WAYS)
def test_only_what_is_asked_for(way: str, clients: Clients) -> None:
    wanted = [WAYS[way].InferRequestedOutput("label")]
    answer = clients(way).infer("colours", pictures(way, "blue"), outputs=wanted)
    assert list(answer.as_numpy("label")) == [b"blue"]
    assert answer.as_numpy("result") is None


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_compressed_both_ways_over_http(coding: str, clients: Clients) -> None:
    many = np.tile(NUMBERS, (700, 1))  # enough that the answer is worth compressing, too
    answer = clients("http").infer(
        "tiny",
        numbers("http", many),
        request_compression_algorithm=coding,
        response_compression_algorithm=coding,
    )
    assert answer._buffer is not None
    np.testing.assert_allclose(answer.as_numpy("y"), layer(many), rtol=1e-6)


def test_compressed_over_grpc(clients: Clients) -> None:
    answer = clients("grpc").infer("tiny", numbers("grpc"), compression_algorithm="gzip")
    np.testing.assert_allclose(answer.as_numpy("y"), layer(NUMBERS), rtol=1e-6)


@pytest.mark.parametrize("way", WAYS)
def test_many_at_once(way: str, clients: Clients) -> None:
    client = clients(way)
    if way == "http":
        answers = [each.get_result() for each in [client.async_infer("tiny", numbers(way)) for _ in range(8)]]
    else:
        got: queue.Queue[Any] = queue.Queue()
        for _ in range(8):
            client.async_infer("tiny", numbers(way), lambda result, error: got.put(result))
        answers = [got.get(timeout=20) for _ in range(8)]
    for answer in answers:
        np.testing.assert_allclose(answer.as_numpy("y"), layer(NUMBERS), rtol=1e-6)


def test_a_stream_goes_on_after_a_fault(clients: Clients) -> None:
    client, got = clients("grpc"), queue.Queue[Any]()
    client.start_stream(lambda result, error: got.put((result, error)))
    client.async_stream_infer("tiny", numbers("grpc"), request_id="1")
    client.async_stream_infer("nothing", numbers("grpc"), request_id="2")
    client.async_stream_infer("tiny", numbers("grpc"), request_id="3")
    answers = [got.get(timeout=20) for _ in range(3)]
    client.stop_stream()
    assert [error is None for _, error in answers] == [True, False, True]
    assert "not served here" in str(answers[1][1])
    assert [result.get_response().id for result, _ in answers if result] == ["1", "3"]


async def test_asyncio_over_http(server: Server) -> None:
    async with tritonclient.http.aio.InferenceServerClient(f"127.0.0.1:{server.http}") as client:
        assert await client.is_model_ready("tiny")
        answer = await client.infer("tiny", numbers("http"))
        np.testing.assert_allclose(answer.as_numpy("y"), layer(NUMBERS), rtol=1e-6)
        many = np.tile(NUMBERS, (700, 1))
        answer = await client.infer("tiny", numbers("http", many), response_compression_algorithm="gzip")
        np.testing.assert_allclose(answer.as_numpy("y"), layer(many), rtol=1e-6)


async def test_asyncio_over_grpc(server: Server) -> None:
    async with tritonclient.grpc.aio.InferenceServerClient(f"127.0.0.1:{server.grpc}") as client:
        assert await client.is_model_ready("tiny")
        answer = await client.infer("colours", pictures("grpc", "red"))
        assert list(answer.as_numpy("label")) == [b"red"]


@pytest.mark.parametrize("way", WAYS)
def test_statistics_count(way: str, clients: Clients) -> None:
    client = clients(way)

    def counts() -> tuple[int, int, int]:
        stats = client.get_inference_statistics("colours", "3", **({} if way == "http" else {"as_json": True}))
        of = stats["model_stats"][0]["inference_stats"]
        return tuple(int(of[name].get("count", 0)) for name in ("success", "fail", "compute_infer"))  # type: ignore[return-value]

    before = counts()
    client.infer("colours", pictures(way, "red", "red", "red"))
    with pytest.raises(InferenceServerException):
        client.infer("colours", numbers(way))
    assert tuple(a - b for a, b in zip(counts(), before, strict=True)) == (1, 1, 3)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("ask", "why"),
    [
        (lambda way, client: client.infer("nothing", numbers(way)), "is not served here"),
        (lambda way, client: client.infer("tiny", numbers(way), model_version="7"), "version 7"),
        (lambda way, client: client.infer("tiny", numbers(way), model_version="new"), "no version"),
        (lambda way, client: client.infer("tiny", numbers(way, NUMBERS.astype("f8"), "FP64")), "takes FP32, got FP64"),
        (lambda way, client: client.infer("tiny", numbers(way, NUMBERS[:, :3].copy())), r"\[\?, 4\], got \[3, 3\]"),
        (lambda way, client: client.infer("tiny", pictures(way, "red")), "takes no pictures"),
        (lambda way, client: client.infer("tiny", numbers(way) * 2), "twice"),
        (lambda way, client: client.infer("colours", numbers(way)), 'takes "pixels"'),
        (
            lambda way, client: client.infer(
                "tiny", numbers(way), outputs=[WAYS[way].InferRequestedOutput("z", **_no_binary(way))]
            ),
            "gives no output 'z'",
        ),
        (lambda way, client: client.infer("tiny", numbers(way), parameters={"top": 0}), "from 1 to"),
    ],
)
def test_faults_are_told_plainly(way: str, ask: Callable[[str, Any], Any], why: str, clients: Clients) -> None:
    with pytest.raises(InferenceServerException, match=why) as caught:
        ask(way, clients(way))
    assert "Traceback" not in str(caught.value) and ".py" not in str(caught.value)


def _in_bf16(way: str) -> Any:
    (sent,) = numbers(way)
    if way == "http":
        sent._datatype = "BF16"
    else:
        sent._input.datatype = "BF16"
    return [sent]


def _in_shared_memory(way: str) -> Any:
    sent = WAYS[way].InferInput("x", [3, 4], "FP32")
    sent.set_shared_memory("region", 48)
    return [sent]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("ask", "why", "next_step"),
    [
        (lambda way, client: client.infer("tiny", _in_bf16(way)), "'BF16' is no datatype", "Send it as FP32"),
        (
            lambda way, client: client.infer("tiny", numbers(way), sequence_id=7, sequence_start=True),
            "sequences are not offered",
            "send what belongs together in one request",
        ),
        (
            lambda way, client: client.infer(
                "tiny", numbers(way), outputs=[WAYS[way].InferRequestedOutput("y", class_count=2)]
            ),
            "classification extension is not offered",
            'Send the picture as the input "image"',
        ),
        (lambda way, client: client.infer("tiny", _in_shared_memory(way)), "memory shared", "as binary data"),
        (lambda way, client: client.register_system_shared_memory("r", "/r", 8), "memory shared", "as binary data"),
        (lambda way, client: client.get_system_shared_memory_status(), "memory shared", "as binary data"),
        (lambda way, client: client.unregister_cuda_shared_memory("r"), "memory shared", "as binary data"),
        (lambda way, client: client.load_model("tiny"), "by Marram itself", "marram cloud --serve NAME"),
        (lambda way, client: client.unload_model("tiny"), "by Marram itself", "marram cloud --serve NAME"),
        (lambda way, client: client.get_trace_settings(), "there is no", "(There are|there are)"),
    ],
)
def test_what_is_not_offered_is_refused_with_the_next_step(
    way: str, ask: Callable[[str, Any], Any], why: str, next_step: str, clients: Clients
) -> None:
    with pytest.raises(InferenceServerException, match=f"{why}.*{next_step}"):
        ask(way, clients(way))


def _no_binary(way: str) -> dict[str, bool]:
    return {"binary_data": False} if way == "http" else {}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (Busy("32 wait here", queue_s=1.5), "503", "RESOURCE_EXHAUSTED"),
        (NotReady("it is being loaded"), "503", "UNAVAILABLE"),
        (Permanent("the engine failed", where="/home/somebody/models/x/1/x.tflite"), "500", "INTERNAL"),
        (ZeroDivisionError("secret detail"), "500", "INTERNAL"),
    ],
)
def test_what_fails_inside_has_its_status(
    way: str, error: Exception, status: str, code: str, clients: Clients, plain: Plain
) -> None:
    plain.failing = error
    try:
        with pytest.raises(InferenceServerException) as caught:
            clients(way).infer("tiny", numbers(way))
    finally:
        plain.failing = None
    assert (status if way == "http" else code) in caught.value.status()
    assert "somebody" not in str(caught.value) and "secret" not in str(caught.value)


@pytest.mark.parametrize("way", WAYS)
def test_what_is_left_of_the_time_goes_along(way: str, clients: Clients, plain: Plain) -> None:
    clients(way).infer("tiny", numbers(way), timeout=2_000_000)
    left_s = plain.asked[-1].left_s
    assert left_s is not None and left_s <= 2
    clients(way).infer("tiny", numbers(way), **({} if way == "http" else {"client_timeout": 5}))
    assert (plain.asked[-1].left_s is None) == (way == "http")


async def test_a_fault_says_when_to_come_again(server: Server, plain: Plain) -> None:
    import httpx

    plain.failing = Busy("32 wait here", queue_s=1.5)
    try:
        async with httpx.AsyncClient() as client:
            answer = await client.post(f"{server.url}/v2/models/tiny/infer", content=_json_request())
    finally:
        plain.failing = None
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "2"
    assert answer.json() == {"error": "32 wait here"}


def _json_request() -> bytes:
    return json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}).encode()
