"""What strangers and broken clients get: a clean 4xx in the one shape, never a page, a traceback or a stuck server."""

from __future__ import annotations

import hashlib
import json
import re
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import pytest
from fastapi import Request
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.cloud.api.serving import Served, serving

from marram.cloud.api.faults import TooMany
from marram.cloud.api.guard import address_of
from marram.cloud.api.limits import FailureLimit
from marram.schema.api import MAX_REQUEST_BYTES, ErrorReply
from marram.schema.errors import Retryable
from marram.trust import identity

OPEN = [
    ("get", "/healthz"), ("get", "/ca.pem"), ("post", "/api/v1/join"), ("post", "/api/v1/renew"),
    ("post", "/api/v1/standing"),
    ("post", "/api/v1/sessions"), ("get", "/api/v1/metadata/{name}"),
]  # fmt: skip


def fault(answer: httpx.Response) -> ErrorReply:
    """The fault of an answer, which must have our shape."""
    assert 400 <= answer.status_code < 500, (answer.status_code, answer.text)
    found = ErrorReply.model_validate_json(answer.content)
    assert found.error.what and "Traceback" not in answer.text
    return found


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One cloud for the many small attacks."""
    with serving(tmp_path_factory.mktemp("abuse") / "cloud") as cloud:
        yield cloud


def test_without_the_right_token_nothing_is_told(served: Served) -> None:
    wrong: list[dict[str, Any]] = [
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Basic bWFycmFt"},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer " + "x" * 5000},
        {"Authorization": b"Bearer \xff\xfe"},
    ]
    with httpx.Client(base_url=served.url, trust_env=False) as client:
        for headers in wrong:
            for path in ("/api/v1/devices", "/api/v1/status", "/metrics", "/api/v1/samples/1/body"):
                answer = client.get(path, headers=headers)
                assert answer.status_code == 401 and fault(answer).error.kind == "refused", (headers, path)
                assert answer.headers["www-authenticate"].startswith("Bearer")


def test_every_call_but_the_open_ones_needs_a_token(served: Served) -> None:
    with httpx.Client(base_url=served.url, trust_env=False) as client:
        for path, calls in client.get("/openapi.json").json()["paths"].items():
            for method in calls:
                place = path.replace("{sha256}", "0" * 64).replace("{id}", "1").replace("{version}", "1")
                answer = client.request(method, place.replace("{name}", "a").replace("{app}", "a"))
                guarded = (method, path) not in OPEN
                assert (answer.status_code == 401) == guarded, (method, path, answer.status_code)


def test_guessing_is_slowed_down_but_the_right_token_still_passes(served: Served) -> None:
    authority = ssl.create_default_context(cadata=served.state.ca.decode())
    cloud, csr = served.state.authority.fingerprint, identity.request(identity.new_key()).decode()
    with httpx.Client(base_url=served.tls_url, verify=authority, trust_env=False) as client:
        guesses = [{"token": f"mrm1.{n:040}.{cloud}", "csr": csr} for n in range(40)]
        statuses = [client.post("/api/v1/join", json=guess).status_code for guess in guesses]
        assert statuses[0] == 403 and statuses[-1] == 429
        slow = client.get("/api/v1/status", headers={"Authorization": "Bearer nope"})
        assert slow.status_code == 429 and int(slow.headers["retry-after"]) >= 1
        assert client.get("/api/v1/status", headers={"Authorization": f"Bearer {served.token}"}).status_code == 200


def test_failures_come_back_with_time_and_addresses_are_forgotten() -> None:
    now = [0.0]
    limit = FailureLimit(burst=2, refill_s=10, remembered=3, clock=lambda: now[0])
    for _ in range(2):
        limit.check("a")
        limit.failed("a")
    with pytest.raises(TooMany):
        limit.check("a")
    limit.check("b")
    now[0] = 10.0
    limit.check("a")
    limit.failed("a")
    with pytest.raises(TooMany):
        limit.check("a")
    for address in "bcd":
        limit.failed(address)
    limit.check("a")


def test_failures_are_neither_saved_up_nor_owed() -> None:
    now = [0.0]
    limit = FailureLimit(burst=2, refill_s=10, remembered=3, clock=lambda: now[0])
    limit.failed("a")
    now[0] = 1e6  # a long peace gives no more than the first burst
    for _ in range(2):
        limit.check("a")
        limit.failed("a")
    with pytest.raises(TooMany):
        limit.check("a")
    for _ in range(10):
        limit.failed("a")
    now[0] += 10.0
    limit.check("a")
    for address in "bcad":  # who failed last is remembered
        limit.failed(address)
    assert list(limit._left) == ["c", "a", "d"]


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("2001:db8:1:2:3::9", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::1", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::1", "2001:db8:1:3::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("nonsense", "nonsense"),
        (None, "?"),
    ],
)
def test_a_network_of_ipv6_is_one_address(host: str | None, address: str) -> None:
    assert address_of(Request({"type": "http", "client": host and (host, 1)})) == address


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b"1e999", b'"x"', b"\xff\xfe\x00", b"{}" * 9, b"[" * 100_000, b'{"labels": 5}',
     b'{"ttl_s": NaN}', b'{"ttl_s": Infinity}', b'{"uses": 1e400}', b'{"uses": ' + b"9" * 5000 + b"}",
     b'{"labels": {"": ""}}', b'{"labels": {"a": "\\u0000"}}', b'{"unknown": 1}', b'{"ttl_s": -1}',
     '{"labels": {"a": "\ud800"}}'.encode("utf-8", "surrogatepass")],
)  # fmt: skip
def test_garbage_is_invalid(shared: Served, body: bytes) -> None:
    headers = {"Authorization": f"Bearer {shared.token}", "Content-Type": "application/json"}
    answer = httpx.post(f"{shared.url}/api/v1/tokens", content=body, headers=headers, trust_env=False)
    assert fault(answer).error.kind == "invalid"


@pytest.mark.parametrize(("method", "path", "body"), [
    ("POST", "/api/v1/join", '{"token": "t", "name": "\\ud800", "csr": "c"}'),
    ("POST", "/api/v1/users", '{"name": "\\ud800", "role": "viewer", "password": "x"}'),
    ("POST", "/api/v1/tokens", '{"\\ud800": 1}'),
])  # fmt: skip
def test_half_a_character_is_invalid_and_told_of(shared: Served, method: str, path: str, body: str) -> None:
    headers = {"Authorization": f"Bearer {shared.token}", "Content-Type": "application/json"}
    answer = httpx.request(method, shared.url + path, content=body, headers=headers, trust_env=False)
    assert fault(answer).error.kind in ("invalid", "refused") and answer.status_code < 500


def test_a_body_that_does_not_call_itself_json_is_told_so(shared: Served) -> None:
    headers = {"Authorization": f"Bearer {shared.token}"}
    answer = httpx.post(f"{shared.url}/api/v1/tokens", content=b"{}", headers=headers, trust_env=False)
    assert answer.status_code == 400
    assert answer.json()["error"]["what"] == "the body is not a JSON object sent with Content-Type: application/json"


@pytest.mark.parametrize("chunked", [False, True])
def test_a_huge_body_is_refused_before_it_is_held(http: httpx.Client, chunked: bool) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(2 * MAX_REQUEST_BYTES // 65536):
            yield b" " * 65536

    content: Any = endless() if chunked else b" " * (MAX_REQUEST_BYTES + 1)
    try:
        answer = http.post("/api/v1/tokens", content=content, headers={"Content-Type": "application/json"})
    except httpx.WriteError:
        return  # refused so early that the rest could not even be sent
    assert answer.status_code == 413 and "4 MB" in fault(answer).error.what


def test_a_lying_length_is_refused(shared: Served) -> None:
    for length in ("-1", "99999999999999999999", "abc"):
        assert b" 4" in raw(shared, f"PUT /api/v1/blobs/{'0' * 64} HTTP/1.1", f"Content-Length: {length}")[:13]


def test_an_upload_cut_off_leaves_nothing(served: Served, http: httpx.Client) -> None:
    sha256 = hashlib.sha256(b"x" * 5000).hexdigest()
    head = f"PUT /api/v1/blobs/{sha256} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {served.token}\r\n"
    with connected(served) as peer:
        peer.sendall(f"{head}Content-Length: 5000\r\n\r\n".encode() + b"x" * 1000)
    # The server notices when it serves on: the next answers come, and the half upload is gone by then.
    for _ in range(200):
        assert http.get("/api/v1/status").status_code == 200
        if not list(served.state.scratch.iterdir()):
            break
    assert list(served.state.scratch.iterdir()) == []
    assert http.head(f"/api/v1/blobs/{sha256}").status_code == 404


@pytest.mark.parametrize(
    "path",
    ["/api/v1/blobs/../../../etc/passwd", "/api/v1/blobs/%2e%2e%2f%2e%2e%2fetc%2fpasswd", "/api/v1/blobs/" + "g" * 64,
     "/api/v1/blobs/" + "A" * 64, "/api/v1/models/..%2f..", "/api/v1/devices/%00", "/api/v1/devices/a%0d%0aX:1",
     "/api/v1/samples/99999999999999999999999/body", "/api/v1/samples/-1/body", "/api/v1/samples/1e3/body",
     "/api/v1/events?after=-1", "/api/v1/events?limit=0", "/api/v1/events?limit=99999999", "/api/v1/events?kind=x",
     "/api/v1/events?device=%00", "/api/v1/events?since=nan", "/api/v1/devices?selector=x", "/api/v2/devices",
     "/api/v1/nothing", "/api/../../etc/passwd", "//etc/passwd", "/nothing", "/api/v1/models/a/0"],
)  # fmt: skip
def test_path_tricks_find_nothing(shared: Served, path: str) -> None:
    answer = raw(shared, f"GET {path} HTTP/1.1", f"Authorization: Bearer {shared.token}")
    status = int(answer.split(b" ", 2)[1])
    assert status in (400, 404) and b"root:" not in answer
    ErrorReply.model_validate_json(answer.partition(b"\r\n\r\n")[2])


def test_a_wrong_method_is_told(http: httpx.Client) -> None:
    answer = http.delete("/api/v1/devices")
    assert answer.status_code == 405 and "DELETE is nothing" in fault(answer).error.what


def test_our_own_faults_keep_their_shape_and_their_secrets(
    served: Served, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: object) -> None:
        raise ZeroDivisionError("a secret path /root/x")

    def away(self: object) -> None:
        raise Retryable("the database does not answer")

    monkeypatch.setattr(type(served.state), "models", broken)
    monkeypatch.setattr(type(served.state), "tokens", away)
    answer = http.get("/api/v1/models")
    assert answer.status_code == 500 and "secret" not in answer.text and "ZeroDivisionError" in answer.text
    ErrorReply.model_validate_json(answer.content)
    away_answer = http.get("/api/v1/tokens")
    assert away_answer.status_code == 503 and away_answer.json()["error"]["kind"] == "retryable"
    assert http.get("/api/v1/status").status_code == 200


# ---------------------------------------------------------------- every call, with anything

_TEXT = st.text(st.characters(codec="utf-8"), max_size=30)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | _TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3),
    max_leaves=8,
)
_FIELDS = ["token", "name", "labels", "info", "uses", "ttl_s", "card", "manifest", "version", "app_yaml", "files",
           "selector", "label", "sha256", "path"]  # fmt: skip
_BODY = st.binary(max_size=60) | (_JSON | st.dictionaries(st.sampled_from(_FIELDS), _JSON)).map(
    lambda document: json.dumps(document).encode()
)
_PART = st.text(st.characters(codec="utf-8", exclude_characters="."), min_size=1, max_size=20)
_QUERY = st.dictionaries(
    st.sampled_from(["app", "device", "kind", "after", "limit", "since", "labelled", "selector", "x"]),
    _TEXT,
    max_size=3,
)


@pytest.fixture(scope="module")
def hostile(shared: Served) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {shared.token}", "Content-Type": "application/json"}
    with httpx.Client(base_url=shared.url, headers=headers, trust_env=False, timeout=20) as client:
        yield client


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_no_request_makes_it_fail(hostile: httpx.Client, data: st.DataObject) -> None:
    if not SPEC:
        SPEC.update(hostile.get("/openapi.json").json()["paths"])
    template = data.draw(st.sampled_from(sorted(SPEC)))
    method = data.draw(st.sampled_from(sorted(SPEC[template])))
    path = re.sub(r"\{\w+\}", lambda _: quote(data.draw(_PART), safe=""), template)
    answer = hostile.request(
        method,
        path,
        params=data.draw(_QUERY),
        content=data.draw(_BODY) if method in ("post", "put") else None,
    )
    assert answer.status_code < 500, answer.text
    if answer.status_code >= 400 and method != "head":
        ErrorReply.model_validate_json(answer.content)


SPEC: dict[str, Any] = {}


def connected(served: Served) -> socket.socket:
    parts = urlsplit(served.url)
    return socket.create_connection((parts.hostname, parts.port), 10)


def raw(served: Served, line: str, *headers: str) -> bytes:
    """One request as exactly these bytes: no client library tidies it up."""
    with connected(served) as peer:
        peer.sendall("\r\n".join([line, "Host: a", "Connection: close", *headers, "", ""]).encode())
        answer = b""
        while piece := peer.recv(65536):
            answer += piece
        return answer


def test_the_scratch_folder_is_empty_in_the_end(shared: Served) -> None:
    assert list(Path(shared.state.scratch).iterdir()) == []
