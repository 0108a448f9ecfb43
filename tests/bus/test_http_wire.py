"""How a call travels: whom it believes, how much it takes of a stranger, what it never repeats."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from marram.bus.http import CloudApi
from marram.bus.http_wire import fetch_authority, segment, valid
from marram.schema.api import ModelView
from marram.schema.errors import Invalid, MarramError, Missing, Retryable, Threat, Untrusted
from marram.schema.model import Manifest
from marram.schema.people import SessionAsk
from marram.trust.authority import Authority
from marram.trust.keys import Keys

HEALTHY = b'{"ok": true, "checks": []}'


@contextlib.contextmanager
def answering(body: bytes, identity: Path | None = None, newest: ssl.TLSVersion | None = None) -> Iterator[str]:
    """A server that answers every request with `body`; over TLS where it has an `identity`."""
    context = None
    if identity is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(identity)
        context.maximum_version = newest or ssl.TLSVersion.TLSv1_3

    def serve() -> None:
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            with contextlib.suppress(OSError), context.wrap_socket(peer, server_side=True) if context else peer as end:
                end.recv(65536)
                end.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: application/json\r\n\r\n" + body)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        yield f"{'https' if context else 'http'}://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.create(Keys(tmp_path / "keys"), time.time())


@pytest.fixture
def identity(authority: Authority, tmp_path: Path) -> Path:
    file = tmp_path / "server.pem"
    file.write_bytes(authority.server_certificate(["localhost"], time.time()))
    return file


def test_over_https_one_authority_is_believed_and_no_other(
    authority: Authority, identity: Path, tmp_path: Path
) -> None:
    other = Authority.create(Keys(tmp_path / "other"), time.time())
    with answering(HEALTHY, identity) as url:
        with CloudApi(url, authority=authority.certificate_pem.decode()) as api:
            assert api.health().ok
        for believed in (other.certificate_pem.decode(), None):
            with CloudApi(url, authority=believed) as api, pytest.raises(Untrusted, match="marram login") as caught:
                api.health()
            assert caught.value.threat is Threat.OTHER_CLOUD
    with pytest.raises(Invalid, match="no certificate that can be read"):
        CloudApi("https://127.0.0.1:1", authority="nonsense")


def test_a_cloud_is_not_spoken_to_over_an_older_tls(authority: Authority, identity: Path) -> None:
    with (
        answering(HEALTHY, identity, ssl.TLSVersion.TLSv1_2) as url,
        CloudApi(url, authority=authority.certificate_pem.decode()) as api,
        pytest.raises(MarramError),
    ):
        api.health()


def test_of_whoever_has_proven_nothing_little_is_read(authority: Authority, identity: Path) -> None:
    with answering(authority.certificate_pem, identity) as url:
        assert fetch_authority(url) == authority.certificate_pem
    with answering(b"x" * 100_000, identity) as url, pytest.raises(Untrusted) as caught:
        fetch_authority(url)
    assert caught.value.threat is Threat.ENDLESS


def test_content_that_is_not_what_was_asked_for_is_not_kept(tmp_path: Path) -> None:
    model = ModelView.model_construct(manifest=Manifest.of([("net.onnx", hashlib.sha256(b"good").hexdigest(), 4)]))
    with answering(b"evil") as url, CloudApi(url) as api, pytest.raises(Retryable, match="other content than asked"):
        api.pull_model(model, tmp_path / "model")
    assert not (tmp_path / "model").exists()
    with answering(b"good") as url, CloudApi(url) as api:
        api.pull_model(model, tmp_path / "model")
    assert (tmp_path / "model" / "net.onnx").read_bytes() == b"good"


def test_no_name_leaves_its_place_in_a_path() -> None:
    assert segment("a/../b?c#d e") == "a%2F..%2Fb%3Fc%23d%20e"
    for text in ("", ".", "..", " .. "):
        with pytest.raises(Missing):
            segment(text)


def test_a_wrong_argument_is_told_without_being_repeated() -> None:
    with pytest.raises(Invalid) as caught:
        valid(SessionAsk, name="ann", password="hush-hush" * 500)
    assert "hush" not in str(caught.value) and caught.value.__cause__ is None and caught.value.__suppress_context__
