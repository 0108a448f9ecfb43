"""What strangers may send: every answer is one plain line with the right status, and costs no more than it should."""

from __future__ import annotations

import base64
import gzip
import json
import ssl
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.serving.oip.scene import Plain, Running, picture

from marram.schema.errors import Conflict, Invalid, Refused
from marram.serving.oip.messages import CALLS, SERVICE, TYPES
from marram.serving.oip.server import Place, Server, Tls
from marram.trust.authority import Authority
from marram.trust.keys import Keys

ROW = {"name": "x", "datatype": "FP32", "shape": [1, 4]}
FITTING = {"inputs": [ROW | {"data": [1, 2, 3, 4]}]}


@pytest.fixture(scope="module")
def http(server: Server) -> Iterator[httpx.Client]:
    assert server.url is not None
    with httpx.Client(base_url=server.url) as client:
        yield client


def ask(http: httpx.Client, body: Any = FITTING, path: str = "/v2/models/tiny/infer", **headers: str) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return http.post(path, content=content, headers={name.replace("_", "-"): value for name, value in headers.items()})


def changed(**what: Any) -> dict[str, Any]:
    return {"inputs": [ROW | {"data": [1, 2, 3, 4]} | what]}


@pytest.mark.parametrize(
    ("body", "status", "why"),
    [
        (b"", 400, "not JSON"),
        (b"{", 400, "not JSON"),
        (b"\xff\xfe", 400, "not JSON"),
        (b"[]", 400, "no JSON object"),
        (b"[" * 100_000, 400, "not JSON"),
        ({}, 400, "inputs"),
        ({"inputs": {}}, 400, "inputs"),
        ({"inputs": []}, 400, "needs inputs"),
        ({"inputs": [3]}, 400, "list of objects"),
        ({"inputs": [ROW] * 101}, 400, "100 at most"),
        (changed(name=3), 400, "has a name"),
        (changed(shape=[-1, 4]), 400, "above 0"),
        (changed(shape=[2**40, 2**40]), 400, "MB"),
        (changed(shape=[4]), 400, "takes the shape"),
        (changed(datatype="BF16"), 400, "no datatype"),
        (changed(data="1234"), 400, "no list"),
        (changed(data=[1, 2, 3]), 400, "not 4 numbers"),
        (changed(parameters=[]), 400, "object"),
        (changed(parameters={"binary_data_size": 16}), 400, "binary_data_size"),
        (changed(parameters={"binary_data_size": -1}), 400, "binary_data_size"),
        (changed(parameters={"shared_memory_region": "r"}), 400, "memory shared"),
        (FITTING | {"outputs": [{"name": 3}]}, 400, "its name"),
        (FITTING | {"parameters": {"timeout": "soon"}}, 400, "microseconds"),
        (FITTING | {"parameters": {"min_confidence": 2}}, 400, "0 to 1"),
        (FITTING | {"id": "x" * 501}, 400, "500 characters"),
    ],
)
def test_requests_that_are_none(http: httpx.Client, body: Any, status: int, why: str) -> None:
    answer = ask(http, body)
    assert (answer.status_code, list(answer.json())) == (status, ["error"])
    assert why in answer.json()["error"]


@pytest.mark.parametrize(
    ("length", "body", "why"),
    [
        ("9" * 30, b"{}", "up to the body's"),
        ("-1", b"{}", "up to the body's"),
        ("x", b"{}", "up to the body's"),
        ("3", b"{}", "up to the body's"),
        (None, json.dumps(changed(data=None, parameters={"binary_data_size": 15})).encode() + b"0" * 15, "no FP32"),
        (None, json.dumps(changed(data=None, parameters={"binary_data_size": 99})).encode() + b"0" * 16, "16 bytes"),
        (None, json.dumps(FITTING).encode() + b"0" * 16, "belong to none"),
    ],
)
def test_lengths_that_lie(http: httpx.Client, length: str | None, body: bytes, why: str) -> None:
    told = length if length is not None else str(body.rindex(b"}") + 1)
    answer = ask(http, body, inference_header_content_length=told)
    assert answer.status_code == 400
    assert why in answer.json()["error"]


def test_the_body_alone_is_the_one_tensor(http: httpx.Client) -> None:
    row = np.array([1, 2, 3, 4], np.float32)
    answer = ask(http, np.tile(row, 3).tobytes(), inference_header_content_length="0").json()
    assert answer["outputs"][0]["shape"] == [3, 3]
    answer = ask(http, picture("blue"), "/v2/models/colours/infer", inference_header_content_length="0").json()
    assert {each["name"]: each["data"] for each in answer["outputs"]}["label"] == ["blue"]
    assert ask(http, b"12345", inference_header_content_length="0").status_code == 400


def test_a_picture_in_json(http: httpx.Client) -> None:
    sent = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [base64.b64encode(picture("red")).decode()]}
    answer = ask(http, {"inputs": [sent | {"parameters": {"content_type": "base64"}}]}, "/v2/models/colours/infer")
    assert answer.json()["outputs"][1] == {"name": "label", "datatype": "BYTES", "shape": [1], "data": ["red"]}


@pytest.mark.parametrize("sent", [b"no picture", b"\xff\xd8\xff" + b"x" * 50, b"\x89PNG\r\n\x1a\n", b""])
def test_what_is_no_picture(http: httpx.Client, sent: bytes) -> None:
    answer = ask(http, sent, "/v2/models/colours/infer", inference_header_content_length="0")
    assert answer.status_code == 400
    assert list(answer.json()) == ["error"]


def bomb(coding: str, size: int) -> bytes:
    packer = zlib.compressobj(1, zlib.DEFLATED, 31 if coding == "gzip" else 15)
    block = bytes(1_000_000)
    return b"".join(packer.compress(block) for _ in range(size // len(block))) + packer.flush()


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_bombs_are_not_unpacked(http: httpx.Client, coding: str) -> None:
    answer = ask(http, bomb(coding, 80_000_000), content_encoding=coding)
    assert (answer.status_code, answer.json()) == (413, {"error": "a request is at most 64 MB, unpacked"})


@pytest.mark.parametrize(
    ("coding", "body", "why"),
    [
        ("br", b"x", "not taken"),
        ("gzip", b"no gzip at all", "no gzip"),
        ("gzip", gzip.compress(b"{}", mtime=0)[:-3], "one whole gzip"),
        ("gzip", gzip.compress(b"{}", mtime=0) + b"more", "one whole gzip"),
        ("deflate", gzip.compress(b"{}", mtime=0), "no deflate"),
    ],
)
def test_what_cannot_be_unpacked(http: httpx.Client, coding: str, body: bytes, why: str) -> None:
    answer = ask(http, body, content_encoding=coding)
    assert answer.status_code == 400
    assert why in answer.json()["error"]


def test_a_request_that_is_too_large(http: httpx.Client) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(65):
            yield bytes(1_000_000)

    answer = http.post("/v2/models/tiny/infer", content=endless())
    assert answer.status_code == 413


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/v2x", 404),
        ("GET", "/v2/nothing", 404),
        ("GET", "/v2/models", 404),
        ("GET", "/v2/models/tiny/versions/x", 400),
        ("GET", "/v2/models/tiny/versions/9", 404),
        ("GET", "/v2/models/tiny/explain", 404),
        ("GET", "/v2/models/nothing/ready", 404),
        ("GET", "/v2/models/tiny/infer", 405),
        ("GET", "/v2/models/..%2f..%2fetc/passwd", 404),
        ("GET", "/v2/models/tiny/stats", 200),
        ("GET", "/v2/models/stats", 200),
        ("POST", "/v2/repository/index", 200),
        ("POST", "/v2/repository/models/tiny/unload", 400),
    ],
)
def test_paths(http: httpx.Client, method: str, path: str, status: int) -> None:
    answer = http.request(method, path)
    assert answer.status_code == status
    if status != 200:
        assert list(answer.json()) == ["error"]


def test_a_path_that_is_none_is_told_the_next_step(http: httpx.Client) -> None:
    said = http.get("/v2/models").json()["error"]
    assert said.startswith('there is no "models" here. There are repository/index (by POST), and models/NAME')


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["inputs", "outputs", "name", "datatype", "shape", "data", "parameters", "id", "x"]),
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(document=_JSON, extra=st.binary(max_size=40))
def test_no_json_fells_it(http: httpx.Client, document: Any, extra: bytes) -> None:
    body = json.dumps(document).encode()
    answer = ask(http, body + extra, inference_header_content_length=str(len(body)))
    assert answer.status_code == 400
    assert list(answer.json()) == ["error"]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=4),
    datatype=st.sampled_from(["FP32", "BYTES", "FP16", "INT8", ""]),
    raw=st.lists(st.binary(max_size=40), max_size=2),
    ints=st.lists(st.integers(-(2**31), 2**31 - 1), max_size=4),
)
def test_no_message_fells_it(server: Server, shape: Any, datatype: str, raw: list[bytes], ints: list[int]) -> None:
    request = TYPES["ModelInferRequest"](model_name="tiny", raw_input_contents=raw)
    request.inputs.add(name="x", datatype=datatype, shape=shape).contents.int_contents.extend(ints)
    with pytest.raises(grpc.RpcError) as caught:
        _call(server, request)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def _call(server: Server, request: Any, **how: Any) -> bytes:
    channel = _CHANNELS.setdefault(server.grpc_address, grpc.insecure_channel(server.grpc_address))
    infer = channel.unary_unary(f"/{SERVICE}/ModelInfer", request_serializer=type(request).SerializeToString)
    answer: bytes = infer(request, timeout=20, **how)
    return answer


_CHANNELS: dict[str | None, grpc.Channel] = {}


def test_a_compressed_message_is_not_unpacked_beyond_what_is_taken(server: Server) -> None:
    request = TYPES["ModelInferRequest"](model_name="tiny", raw_input_contents=[bytes(70_000_000)])
    with pytest.raises(grpc.RpcError) as caught:
        _call(server, request, compression=grpc.Compression.Gzip)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


# ---------------------------------------------------------------- who may ask


@pytest.fixture(scope="module")
def guarded(plain: Plain) -> Iterator[Server]:
    with Running(lambda: Server(plain, Place(http=0, grpc=0, token="open sesame"))) as running:
        yield running


@pytest.mark.parametrize("sent", [None, "Bearer", "Bearer wrong", "Basic open sesame", "Bearer öpen"])
def test_without_the_token_nobody_asks(guarded: Server, sent: str | None) -> None:
    headers = {} if sent is None else {"Authorization": sent.encode()}
    with httpx.Client(base_url=guarded.url or "", headers=headers) as http:  # type: ignore[arg-type]
        assert ask(http).status_code == 401
        assert http.get("/v2/models/tiny").status_code == 401
        assert http.get("/v2/health/live").status_code == 200
    metadata = [] if sent is None or not sent.isascii() else [("authorization", sent)]
    request = TYPES["ModelInferRequest"](model_name="tiny")
    with pytest.raises(grpc.RpcError) as caught:
        _call(guarded, request, metadata=metadata)
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_of_a_stranger_nothing_is_read(guarded: Server) -> None:
    """What is too large for anybody is refused for what its sender is."""
    large = TYPES["ModelInferRequest"](raw_input_contents=[bytes(70_000_000)])
    with pytest.raises(grpc.RpcError) as caught:
        _call(guarded, large)
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    with httpx.Client(base_url=guarded.url or "") as http:
        assert ask(http, bytes(70_000_000)).status_code == 401


def test_with_the_token_one_does(guarded: Server) -> None:
    with httpx.Client(base_url=guarded.url or "", headers={"Authorization": "Bearer open sesame"}) as http:
        assert ask(http).status_code == 200
    request = TYPES["ModelInferRequest"](
        model_name="tiny", raw_input_contents=[np.array([1, 2, 3, 4], np.float32).tobytes()]
    )
    request.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    _call(guarded, request, metadata=[("authorization", "bearer open sesame")])


def test_others_are_not_let_in_without_a_token(plain: Plain) -> None:
    with pytest.raises(Refused, match="needs a token"):
        Server(plain, Place(http=0, host="0.0.0.0"))


@pytest.mark.parametrize("call", ["ServerLive", "ModelInfer", "ModelStreamInfer"])
def test_what_is_no_message_is_a_fault_of_its_sender(
    server: Running, call: str, caplog: pytest.LogCaptureFixture
) -> None:
    channel = _CHANNELS.setdefault(server.grpc_address, grpc.insecure_channel(server.grpc_address))
    path, said = f"/{SERVICE}/{call}", b"\xff" * 100
    if call == "ModelStreamInfer":
        reads = TYPES["ModelStreamInferResponse"].FromString
        (answer,) = channel.stream_stream(path, response_deserializer=reads)(iter([said]), timeout=20)
        assert answer.error_message.startswith("not a ModelInferRequest: 100 bytes")
    else:
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(path)(said, timeout=20)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert caught.value.details().startswith(f"not a {call}Request: 100 bytes")
    assert not caplog.records


@pytest.mark.parametrize("way", ["http", "grpc"])
async def test_a_port_in_use_is_told(plain: Plain, server: Server, way: str) -> None:
    with pytest.raises(Conflict, match=r"cannot listen on 127\.0\.0\.1"):
        async with Server(plain, Place(**{way: getattr(server, way)})).running():
            pass


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tls, Path]:
    """A certificate for 127.0.0.1, and that of the authority that vouches for it."""
    folder = tmp_path_factory.mktemp("tls")
    keys = Keys(folder / "keys")
    keys.make()
    authority = Authority.create(keys, time.time())
    both = folder / "both.pem"
    both.write_bytes(authority.server_certificate(["127.0.0.1"], time.time()))
    return Tls(both, both), keys.ca_certificate


def test_over_tls(plain: Plain, tls: tuple[Tls, Path]) -> None:
    files, authority = tls
    with Running(lambda: Server(plain, Place(http=0, grpc=0, tls=files))) as server:
        with httpx.Client(base_url=server.url or "", verify=ssl.create_default_context(cafile=authority)) as http:
            assert http.get("/v2/health/ready").status_code == 200
        credentials = grpc.ssl_channel_credentials(authority.read_bytes())
        with grpc.secure_channel(server.grpc_address, credentials) as channel:
            call = CALLS["ServerLive"]
            live = channel.unary_unary(
                f"/{SERVICE}/ServerLive", call.request.SerializeToString, call.response.FromString
            )
            assert live(call.request(), timeout=20).live


def test_a_certificate_that_is_none_is_told(plain: Plain, tls: tuple[Tls, Path], tmp_path: Path) -> None:
    files, authority = tls
    with pytest.raises(Invalid, match=r"key\.pem: cannot read it"):
        Server(plain, Place(http=0, tls=Tls(authority, tmp_path / "key.pem")))
    with pytest.raises(Invalid, match="do not belong together"):
        Server(plain, Place(http=0, tls=Tls(authority, files.key)))
