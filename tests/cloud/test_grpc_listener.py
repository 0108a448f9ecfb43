"""gRPC's port: the cloud's certificate over TLS, renewed for the handshakes that follow; a taken port is told."""

from __future__ import annotations

import asyncio
import hashlib
import socket
import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from marram.cloud.grpc_listener import GrpcListener, _Certificates
from marram.schema.errors import Conflict
from marram.serving.contract import Answer, Question, ServedModel
from marram.serving.oip.inference import Inference
from marram.serving.oip.messages import CALLS, SERVICE
from marram.serving.oip.rpc import Rpc
from marram.trust.authority import Authority
from marram.trust.keys import Keys


class Nothing:
    """Serves nothing."""

    def models(self) -> list[ServedModel]:
        return []

    async def infer(self, question: Question) -> Answer:
        raise AssertionError


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    made = Keys(tmp_path / "keys")
    made.make()
    Authority.create(made, time.time())
    return made


@pytest.fixture
async def secured(keys: Keys) -> AsyncIterator[tuple[_Certificates, int]]:
    certificates = _Certificates("127.0.0.1", Authority.open(keys))
    server = Rpc(Inference(Nothing())).server()
    port = server.add_secure_port("127.0.0.1:0", certificates.credentials())
    await server.start()
    yield certificates, port
    await server.stop(0)


async def live(port: int, authority: bytes) -> bool:
    call = CALLS["ServerLive"]
    async with grpc.aio.secure_channel(f"127.0.0.1:{port}", grpc.ssl_channel_credentials(authority)) as channel:
        ask: Any = channel.unary_unary(
            f"/{SERVICE}/ServerLive", call.request.SerializeToString, call.response.FromString
        )
        return bool((await ask(call.request(), timeout=20)).live)


def shown(port: int) -> str:
    """The certificate that a handshake gets now."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    with socket.create_connection(("127.0.0.1", port)) as plain, context.wrap_socket(plain) as wrapped:
        certificate = wrapped.getpeercert(binary_form=True)
        assert certificate is not None
        return hashlib.sha256(certificate).hexdigest()


async def test_it_shows_the_clouds_certificate_and_a_newer_one_once_that_is_due(
    secured: tuple[_Certificates, int], keys: Keys
) -> None:
    certificates, port = secured
    authority = keys.ca_certificate.read_bytes()
    assert await live(port, authority)
    first = await asyncio.to_thread(shown, port)
    assert await asyncio.to_thread(shown, port) == first
    certificates._due._made_s -= 1e9  # long ago
    assert await asyncio.to_thread(shown, port) != first
    assert await live(port, authority)


async def test_a_stranger_s_authority_is_not_believed(secured: tuple[_Certificates, int], tmp_path: Path) -> None:
    other = Keys(tmp_path / "other")
    other.make()
    Authority.create(other, time.time())
    with pytest.raises(grpc.RpcError):
        await live(secured[1], other.ca_certificate.read_bytes())


async def test_a_port_in_use_is_told(keys: Keys) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        listener = GrpcListener("127.0.0.1", taken.getsockname()[1])
        with pytest.raises(Conflict, match="--grpc-port"):
            await listener.start(Rpc(Inference(Nothing())), Authority.open(keys))
        await listener.stop()
