"""Where API and console are reached: plain HTTP on this machine alone, HTTPS for everybody else, one app behind both.

One `ServerState` counts the connections of both, so that the door's limit holds for them together. The HTTPS listener's
certificate is made at the start and again well before its end: it is never on disk, and nothing has to renew it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from marram.cloud.door import BACKLOG, Door
from marram.cloud.loops import DUE_LOOK_S, Due, for_ever
from marram.cloud.threshold import replace_identity, server_context, threshold
from marram.schema.addresses import bracketed as bracketed
from marram.schema.addresses import is_loopback as is_loopback
from marram.schema.errors import Conflict, Retryable
from marram.system.ports import bound
from marram.trust.authority import SERVER_LIFE_S, Authority

log = logging.getLogger(__name__)

# Of a server certificate's life: when the next one takes its place.
_RENEW_AT = 1 / 2


class Listeners:
    """Both sockets, taken when it is made: the commonest fault, a port in use, is told in a millisecond."""

    def __init__(self, host: str, port: int, tls_port: int) -> None:
        """Raises Conflict where a port is taken, or `host` is no address of this machine."""
        self._host = host
        self._servers: list[_Server] = []
        self._tasks: list[asyncio.Task[None]] = []
        plain_host = host if is_loopback(host) else "127.0.0.1"
        self.plain = _listen(plain_host, port, "--port")
        try:
            self.tls = _listen(host, tls_port, "--tls-port")
        except BaseException:
            self.plain.close()
            raise
        self.url = f"http://{bracketed(plain_host)}:{self.plain.getsockname()[1]}"
        self.tls_url = f"https://{bracketed(reachable(host))}:{self.tls.getsockname()[1]}"

    async def start(
        self, app: FastAPI, authority: Authority, folder: Path, ended: Callable[[asyncio.Task[None]], None]
    ) -> None:
        """Serve `app`; `ended` is told of a server that ends by itself. Raises Retryable where one does not start."""
        names = names_of(self._host)
        context = server_context(folder, authority.server_certificate(names, time.time()))

        due = Due(SERVER_LIFE_S, _RENEW_AT)

        async def renew() -> None:
            if due:
                replace_identity(context, folder, authority.server_certificate(names, time.time()))
                due.made()
                log.info("the server has a new certificate")

        renewals = for_ever("the server's certificate was not renewed", renew, DUE_LOOK_S)
        self._tasks.append(asyncio.create_task(renewals, name="server certificate"))
        plain = _Server(_config(app, http=Door))
        # The app's own start and end belong to the first; headers that proxies set count for nothing here.
        secured = _Server(_config(app, http=threshold(context), lifespan="off", proxy_headers=False))
        secured.server_state = plain.server_state
        for server, listener in ((plain, self.plain), (secured, self.tls)):
            serving = asyncio.create_task(server.serve(sockets=[listener]), name="api")
            serving.add_done_callback(ended)
            self._servers.append(server)
            self._tasks.append(serving)
            while not server.started:
                if serving.done():
                    raise Retryable("the HTTP server did not start", hint="Its log says why.")
                await asyncio.sleep(0.005)

    async def stop(self) -> None:
        """Answer what was asked, then end; any number of times."""
        for server in self._servers:
            server.should_exit = True
        if self._tasks:
            self._tasks[0].cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.plain.close()
        self.tls.close()


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: one process has one place that decides when to end."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _config(app: FastAPI, **options: object) -> uvicorn.Config:
    # Without a configuration of its own, uvicorn logs where everybody does.
    config = uvicorn.Config(
        app,
        backlog=BACKLOG,
        log_config=None,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=3,
        **options,  # type: ignore[arg-type]
    )
    # NiceGUI looks at the app of every server there is as the first one starts, and fails at one that has none yet.
    config.load()
    return config


def _listen(host: str, port: int, option: str) -> socket.socket:
    try:
        listener = bound(host, port)
        listener.listen(512)
    except OSError as error:
        raise Conflict(
            f"cannot listen on {host}:{port}: {error.strerror}", hint=f"Choose another: marram cloud {option} PORT"
        ) from error
    return listener


def reachable(host: str) -> str:
    """How other machines reach what listens on `host`: on every address, the one that leads outwards."""
    if host not in ("0.0.0.0", "", "::"):
        return host
    family, far = (socket.AF_INET6, "2001:db8::1") if host == "::" else (socket.AF_INET, "192.0.2.1")
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((far, 9))  # sends nothing: it only asks the routing table
            return str(probe.getsockname()[0])
    except OSError:
        return socket.gethostname()


def names_of(host: str) -> list[str]:
    """What a server that listens on `host` may be called: for browsers and other tools; devices do not look at it."""
    return list(dict.fromkeys([reachable(host), socket.gethostname(), "localhost", "127.0.0.1", "::1"]))
