"""The Open Inference Protocol over gRPC on a port of its own: plain where only this machine reaches it, else over TLS.

The certificate is of the cloud's authority, made at the start and again well before its end, as that of HTTPS is; a
handshake takes the newest.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import grpc

from marram.cloud.listeners import names_of
from marram.cloud.loops import Due
from marram.schema.addresses import bracketed, is_loopback
from marram.schema.errors import Conflict
from marram.serving.oip.rpc import Rpc
from marram.trust.authority import SERVER_LIFE_S, Authority

_RENEW_AT = 1 / 2
_GRACE_S = 3.0
_KEY_END = b"-----END PRIVATE KEY-----\n"


class GrpcListener:
    """One server. `port`: the one it got."""

    def __init__(self, host: str, port: int) -> None:
        self.port = port
        self._host = host
        self._server: Any = None

    async def start(self, rpc: Rpc, authority: Authority) -> None:
        """From now on it answers. Raises Conflict where the port is taken."""
        server = rpc.server()
        address = f"{bracketed(self._host)}:{self.port}"
        try:
            if is_loopback(self._host):
                self.port = server.add_insecure_port(address)
            else:
                self.port = server.add_secure_port(address, _Certificates(self._host, authority).credentials())
        except RuntimeError as error:
            raise Conflict(
                f"cannot listen on {address}", hint="Choose another: marram cloud --grpc-port PORT"
            ) from error
        await server.start()
        self._server = server

    async def stop(self) -> None:
        """Answer what was asked, then end; any number of times."""
        if self._server is not None:
            await self._server.stop(_GRACE_S)


class _Certificates:
    """The server's certificate, renewed at the first handshake after its half life. Called by gRPC's own threads."""

    def __init__(self, host: str, authority: Authority) -> None:
        self._names = names_of(host)
        self._authority = authority
        self._due = Due(SERVER_LIFE_S, _RENEW_AT)
        self._lock = threading.Lock()

    def credentials(self) -> grpc.ServerCredentials:
        return grpc.dynamic_ssl_server_credentials(self._make(), self._newer)

    def _make(self) -> grpc.ServerCertificateConfiguration:
        both = self._authority.server_certificate(self._names, time.time())
        key, _, certificate = both.partition(_KEY_END)
        return grpc.ssl_server_certificate_configuration([(key + _KEY_END, certificate)])

    def _newer(self) -> grpc.ServerCertificateConfiguration | None:
        """None: the one it has is good."""
        with self._lock:
            if not self._due:
                return None
            made = self._make()
            self._due.made()
            return made
