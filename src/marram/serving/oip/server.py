"""The protocol on its ports in this process: `async with Server(…).running(): …`, on a loop that is there already.

Who may ask: everybody on this machine, where only it reaches the ports; from elsewhere only who knows the token. It
must never listen for other machines without one.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import socket
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import uvicorn
from starlette.types import Scope

from marram.schema.addresses import bracketed, is_loopback
from marram.schema.errors import Conflict, Invalid, Refused, Retryable
from marram.serving.contract import Answering
from marram.serving.oip import bearer
from marram.serving.oip.faults import Unproven
from marram.serving.oip.inference import Inference
from marram.serving.oip.rest import Rest, only_v2
from marram.serving.oip.rpc import Rpc
from marram.system.ports import bound

# Requests at a time; more are told to come again.
_MOST_REQUESTS = 256
_MOST_HEAD_BYTES = 64 * 1024
# How long what was asked may take to be answered once it ends.
_GRACE_S = 3.0


@dataclass(frozen=True, slots=True)
class Tls:
    """Files, PEM: the certificate with those that vouch for it, and its key."""

    certificate: Path
    key: Path

    def check(self) -> None:
        """Raises Invalid where they cannot be read, or do not belong together."""
        for file in (self.certificate, self.key):
            try:
                file.read_bytes()
            except OSError as error:
                raise Invalid(f"cannot read it: {error.strerror}", where=str(file)) from error
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self.certificate, self.key)
        except OSError as error:
            raise Invalid("the certificate and the key do not belong together", where=str(self.certificate)) from error


@dataclass(frozen=True, slots=True)
class Place:
    """Where to listen: ports (None: not that way; 0: any free one) of `host`. `token`: who knows it may ask."""

    http: int | None = None
    grpc: int | None = None
    host: str = "127.0.0.1"
    token: str | None = field(default=None, repr=False)
    tls: Tls | None = None

    def check(self) -> None:
        """Raises Refused where other machines would be let in without a token, Invalid where TLS' files are none."""
        if self.token is None and not is_loopback(self.host):
            raise Refused(f"whoever reaches {self.host} could ask: that needs a token")
        if self.tls is not None:
            self.tls.check()


class Server:
    """See the module's words. `http` and `grpc`: the ports, once it runs."""

    def __init__(self, answering: Answering, place: Place) -> None:
        """Raises Refused where other machines would be let in without a token, Invalid where TLS' files are none."""
        place.check()
        self._place = place
        self._inference = Inference(answering)
        self.http: int | None = None
        self.grpc: int | None = None

    @property
    def url(self) -> str | None:
        """Of HTTP."""
        scheme = "https" if self._place.tls else "http"
        return None if self.http is None else f"{scheme}://{bracketed(self._place.host)}:{self.http}"

    @property
    def grpc_address(self) -> str | None:
        """`host:port`, as clients of gRPC take it."""
        return None if self.grpc is None else f"{bracketed(self._place.host)}:{self.grpc}"

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Server]:
        """Listening; at the end what was asked is answered first. Raises Conflict (port taken)."""
        async with contextlib.AsyncExitStack() as closing:
            if self._place.grpc is not None:
                closing.push_async_callback((await self._start_rpc(self._place.grpc)).stop, _GRACE_S)
            if self._place.http is not None:
                closing.push_async_callback(await self._start_rest(self._place.http))
            yield self

    async def _start_rpc(self, port: int) -> grpc.aio.Server:
        server = Rpc(self._inference, None if self._place.token is None else self._by_metadata).server()
        address = f"{bracketed(self._place.host)}:{port}"
        try:
            if self._place.tls is None:
                self.grpc = server.add_insecure_port(address)
            else:
                self.grpc = server.add_secure_port(address, _credentials(self._place.tls))
        except (RuntimeError, ValueError) as error:
            raise _taken(self._place.host, port) from error
        await server.start()
        return server

    async def _start_rest(self, port: int) -> _Stop:
        try:
            listener = bound(self._place.host, port)
        except OSError as error:
            raise _taken(self._place.host, port, error.strerror or "") from error
        try:
            self.http = listener.getsockname()[1]
            app = only_v2(Rest(self._inference, None if self._place.token is None else self._by_header))
            server = _Uvicorn(_configured(app, self._place.tls))
            serving = asyncio.create_task(server.serve(sockets=[listener]), name="oip")
        except BaseException:
            listener.close()
            raise
        while not server.started:
            if serving.done():
                listener.close()
                raise Retryable("the HTTP server did not start", hint="Its log says why.")
            await asyncio.sleep(0.001)
        return _Stop(server, serving, listener)

    async def _by_header(self, scope: Scope, asks: bool) -> None:
        self._prove(bearer.by_header(scope))

    async def _by_metadata(self, metadata: Mapping[str, str], peer: str, asks: bool) -> None:
        self._prove(bearer.by_metadata(metadata))

    def _prove(self, token: str) -> None:
        assert self._place.token is not None
        if not token or not hmac.compare_digest(token.encode(), self._place.token.encode()):
            raise Unproven("this needs the token", hint="Send Authorization: Bearer TOKEN.")


class _Uvicorn(uvicorn.Server):
    """uvicorn without its signal handlers: one process has one place that decides when to end."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Stop:
    """Ends the HTTP server in order."""

    def __init__(self, server: uvicorn.Server, serving: asyncio.Task[None], listener: socket.socket) -> None:
        self._server, self._serving, self._listener = server, serving, listener

    async def __call__(self) -> None:
        self._server.should_exit = True
        await asyncio.gather(self._serving, return_exceptions=True)
        self._listener.close()


def _configured(app: object, tls: Tls | None) -> uvicorn.Config:
    return uvicorn.Config(
        app,  # type: ignore[arg-type]
        log_config=None,
        log_level="warning",
        access_log=False,
        lifespan="off",
        proxy_headers=False,
        server_header=False,
        date_header=False,
        limit_concurrency=_MOST_REQUESTS,
        h11_max_incomplete_event_size=_MOST_HEAD_BYTES,
        timeout_graceful_shutdown=round(_GRACE_S),
        ssl_certfile=None if tls is None else tls.certificate,
        ssl_keyfile=None if tls is None else tls.key,
    )


def _credentials(tls: Tls) -> grpc.ServerCredentials:
    return grpc.ssl_server_credentials([(tls.key.read_bytes(), tls.certificate.read_bytes())])


def _taken(host: str, port: int, why: str = "") -> Conflict:
    return Conflict(f"cannot listen on {host}:{port}" + (f": {why}" if why else ""), hint="Choose another port.")
