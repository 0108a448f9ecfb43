"""`CloudApi` against clouds that are away, silent, foreign or hostile; what it answers with is in tests/cloud/api."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from marram.bus.http import CloudApi
from marram.bus.http_wire import check_url
from marram.schema.device import DeviceInfo
from marram.schema.errors import Conflict, Invalid, MarramError, Missing, NotReady, Permanent, Refused, Retryable


@contextlib.contextmanager
def answering(answer: bytes | None) -> Iterator[str]:
    """A server that answers every request with exactly these bytes, or with nothing at all (None)."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            held = []
            with contextlib.suppress(OSError):
                while True:
                    peer, _ = listener.accept()
                    if answer is None:
                        held.append(peer)
                        continue
                    with peer:
                        peer.recv(65536)
                        peer.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)


def http_answer(status: str, body: str, media: str = "application/json") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {media}\r\nContent-Length: {len(body.encode())}\r\nConnection: close"
    return f"{head}\r\n\r\n{body}".encode()


def test_a_cloud_that_is_away_is_named_with_the_reason_and_the_next_step() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with CloudApi(f"http://127.0.0.1:{port}") as api, pytest.raises(Retryable) as caught:
        api.status()
    assert str(caught.value).startswith(
        f"127.0.0.1:{port} does not answer (connection refused). Is `marram cloud` running"
    )


def test_a_silent_cloud_is_not_waited_for_for_ever() -> None:
    with answering(None) as url, CloudApi(url, timeout_s=0.2) as api, pytest.raises(Retryable, match="took too long"):
        api.status()


def test_a_host_that_does_not_exist_and_tls_to_plain_http_are_told_apart() -> None:
    with CloudApi("nobody.invalid") as api, pytest.raises(Retryable, match="host name"):
        api.health()
    answer = http_answer("200 OK", "{}")
    with answering(answer) as url, CloudApi(url.replace("http", "https")) as api, pytest.raises(Retryable) as caught:
        api.health()
    assert "try http://" in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (http_answer("200 OK", "<html>router login</html>", "text/html"), Invalid),
        (http_answer("404 Not Found", "nothing here", "text/plain"), Invalid),
        (http_answer("502 Bad Gateway", "<html>proxy</html>", "text/html"), Retryable),
        (http_answer("200 OK", '{"version": 5}'), Invalid),
        (http_answer("200 OK", "{" * 5000), Invalid),
        (http_answer("400 Bad", '{"error": {"kind": "fancy", "what": "x"}}'), Invalid),
        (b"SSH-2.0-OpenSSH_9.2\r\n", Retryable),
        (b"", Retryable),
    ],
)
def test_something_else_that_answers_there_is_no_cloud(answer: bytes, kind: type[MarramError]) -> None:
    with answering(answer) as url, CloudApi(url) as api, pytest.raises(kind) as caught:
        api.status()
    assert "127.0.0.1" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("invalid", Invalid), ("missing", Missing), ("refused", Refused), ("conflict", Conflict),
     ("retryable", Retryable), ("not_ready", NotReady), ("permanent", Permanent)],
)  # fmt: skip
def test_the_clouds_own_faults_come_back_as_they_were_raised(name: str, kind: type[MarramError]) -> None:
    body = f'{{"error": {{"kind": "{name}", "what": "no", "where": "app.yaml:3", "hint": "Do this."}}}}'
    answer = http_answer("400 Bad Request", body)
    with answering(answer) as url, CloudApi(url) as api, pytest.raises(kind) as caught:
        api.devices()
    assert type(caught.value) is kind and str(caught.value) == "app.yaml:3: no. Do this."


def test_without_a_token_the_refusal_says_how_to_give_one() -> None:
    body = '{"error": {"kind": "refused", "what": "this needs a token"}}'
    answer = http_answer("401 Unauthorized", body)
    with answering(answer) as url, CloudApi(url) as api, pytest.raises(Refused) as caught:
        api.devices()
    assert "this needs a token. Give --token, set MARRAM_TOKEN" in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["", "http://", "ftp://a", "http://a/b", "http://a:b", "http://a:99999", "http://u:p@a", "a b", "http://a?x"],
)
def test_what_is_no_address_is_told_before_anything_travels(text: str) -> None:
    with pytest.raises(Invalid, match="is not a cloud address"):
        check_url(text)


def test_addresses_are_taken_as_people_write_them() -> None:
    assert check_url("cloud.local:8443") == "http://cloud.local:8443"
    assert check_url(" https://cloud.local/ ") == "https://cloud.local"
    assert check_url("http://[::1]:8080") == "http://[::1]:8080"


def test_wrong_arguments_never_leave() -> None:
    with CloudApi("127.0.0.1:1") as api:
        with pytest.raises(Invalid, match="Pi 7"):
            api.join("t", "csr", name="Pi 7", info=DeviceInfo())
        with pytest.raises(Invalid, match="uses"):
            api.create_token(uses=0)
        with pytest.raises(Missing, match="cannot read"):
            api.put_blob(Path("/no/such/file"))
        with pytest.raises(Missing):
            api.device("..")
    with pytest.raises(Invalid, match="Copy it again"):
        CloudApi("127.0.0.1:1", "tökén")


def test_a_proxy_for_the_world_does_not_catch_a_cloud_here(monkeypatch: pytest.MonkeyPatch) -> None:
    body = '{"ok": true, "checks": []}'
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with answering(http_answer("200 OK", body)) as url, CloudApi(url) as api:
        assert api.health().ok


def test_a_joined_agent_never_loads_the_http_library() -> None:
    probe = "import sys, marram.bus.http; print('httpx' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "False"
