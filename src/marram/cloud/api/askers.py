"""Who may ask the cloud's models over the Open Inference Protocol: by the tokens, permissions and limits of the API.

Who has `infer` may ask; who has only `read` may look at what there is. Health is for everybody, as the protocol's own
two paths; it tells no names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from starlette.types import ASGIApp, Receive, Scope, Send

from marram.cloud.access import Access
from marram.cloud.api.guard import network_of, proven
from marram.cloud.api.limits import FailureLimit
from marram.schema.people import Permission
from marram.serving.oip import bearer

# As gRPC writes a peer: `ipv4:127.0.0.1:52000`, `ipv6:%5B::1%5D:52000`.
_PEER = re.compile(r"ipv[46]:(?:%5B|\[)?(.+?)(?:%5D|\])?:\d+")


class Askers:
    """Lets in, or raises: Unproven, TooMany, Refused."""

    def __init__(self, access: Access, failures: FailureLimit) -> None:
        self._access = access
        self._failures = failures

    async def by_header(self, scope: Scope, asks: bool) -> None:
        """One request over HTTP."""
        client = scope.get("client")
        await self._let_in(bearer.by_header(scope), client[0] if client else "?", asks)

    async def by_metadata(self, metadata: Mapping[str, str], peer: str, asks: bool) -> None:
        """One call over gRPC."""
        found = _PEER.fullmatch(peer)
        await self._let_in(bearer.by_metadata(metadata), found[1] if found else peer, asks)

    async def _let_in(self, token: str, host: str, asks: bool) -> None:
        caller = await proven(self._access, self._failures, network_of(host), token or None)
        caller.require(*([Permission.INFER] if asks else [Permission.READ, Permission.INFER]))


class Beside:
    """ASGI middleware: the protocol's paths go to `inferences`, all others on."""

    def __init__(self, app: ASGIApp, inferences: ASGIApp) -> None:
        self._app = app
        self._inferences = inferences

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if scope["type"] == "http" and (path == "/v2" or path.startswith("/v2/")):
            await self._inferences(scope, receive, send)
        else:
            await self._app(scope, receive, send)
