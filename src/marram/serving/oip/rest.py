"""The protocol over HTTP: a bare ASGI application, so that an inference pays for nothing but its own bytes.

    GET  /v2  /v2/health/live  /v2/health/ready
    GET  /v2/models/NAME[/versions/V]  …/ready  …/config  …/stats;  /v2/models/stats
    POST /v2/models/NAME[/versions/V]/infer;  /v2/repository/index

A request's body is bounded as it comes in and as it is unpacked. Every fault is `{"error": "…"}` with its status;
nothing that leaves here carries a traceback or a path of this machine.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from marram.schema.errors import Invalid, MarramError, Missing
from marram.serving.oip import describe
from marram.serving.oip.exchange import Asked, no_loading, no_shared_memory, version_of
from marram.serving.oip.faults import NotAllowed, TooLarge, status_of, wait_s, words
from marram.serving.oip.inference import IMAGE, Inference, inputs
from marram.serving.oip.rest_body import Binary, coding_of, encode, header_length, pack, parse, read, unpack, write
from marram.serving.oip.tensors import BYTES, NUMBERS, Named, check_shape, from_raw

log = logging.getLogger(__name__)

MOST_BODY_BYTES = 64_000_000
# Beyond so many bytes of JSON, or anything compressed, another thread reads it: the loop has others to answer.
_LONG_BYTES = 64_000
# Below, compressing costs more than it saves.
_WORTH_BYTES = 4096
_JSON, _BINARY = b"application/json", b"application/octet-stream"
_HEADER_LENGTH = b"inference-header-content-length"

# Lets a request in, or raises (Refused, Unproven …). `asks`: it is an inference, else it only looks.
Admit = Callable[[Scope, bool], Awaitable[None]]

_VERSIONED = re.compile(r"models/(?P<name>[^/]+)(?:/versions/(?P<version>[^/]+))?(?:/(?P<verb>[a-z]+))?")


class Rest:
    """See the module's words. `admit` None: everybody may, as where only this machine reaches it."""

    def __init__(self, inference: Inference, admit: Admit | None = None) -> None:
        self._inference = inference
        self._admit = admit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1003})
            return
        try:
            await self._answer(scope, receive, send)
        except MarramError as error:
            await _told(send, status_of(error), words(error), error)
        except OSError:
            return  # whoever asked has gone
        except Exception:
            log.exception("%s %s failed", scope["method"], scope["path"][:200])
            await _told(send, 500, "the server failed at this; its log says more")

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        path, method = path.removeprefix("/v2").strip("/"), scope["method"]
        if path in ("health/live", "health/ready"):
            # Of no use to a stranger, and what watches over a server seldom has a token.
            await _reply(send, 200 if path == "health/live" or self._inference.ready() else 503, b"")
            return
        found = _VERSIONED.fullmatch(path)
        verb = found["verb"] or "" if found else ""
        if self._admit is not None:
            await self._admit(scope, verb == "infer")
        if found is None or path == "models/stats":
            await _json(send, await self._whole(path, method, scope, receive))
            return
        name, version = found["name"], version_of(found["version"] or "")
        if verb == "infer":
            if method != "POST":
                raise NotAllowed(f"{method} is nothing one can do with this; POST is")
            await self._infer(name, version, scope, receive, send)
            return
        if verb == "ready":
            await _reply(send, 200 if self._inference.find(name, version).ready else 503, b"")
            return
        look = _LOOKS.get(verb)
        if look is None:
            raise _nowhere(path)
        await _json(send, look(self._inference, name, version))

    async def _whole(self, path: str, method: str, scope: Scope, receive: Receive) -> Any:
        if path == "":
            return describe.server()
        if path == "models/stats":
            return describe.statistics(self._inference, "", None)
        if path == "repository/index":
            body = await self._body(scope, receive)
            asked = parse(body) if body.strip() else {}
            return describe.index(self._inference, only_ready=asked.get("ready") is True)
        if path.startswith("repository/models/"):
            raise no_loading()
        if path.startswith(("systemsharedmemory", "cudasharedmemory")):
            raise no_shared_memory()
        raise _nowhere(path)

    # ------------------------------------------------------------ an inference

    async def _infer(self, name: str, version: int | None, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        body = await self._body(scope, receive)
        length = header_length(headers.get(_HEADER_LENGTH), len(body))
        if length == 0:
            asked, binary = self._bare(name, version, body), Binary(False, {})
        elif length > _LONG_BYTES:
            asked, binary = await asyncio.to_thread(read, name, version, body, length)
        else:
            asked, binary = read(name, version, body, length)
        given = await self._inference.infer(asked)
        more: list[tuple[bytes, bytes]] = []
        if sum(math.prod(each.shape) for each in given.outputs) > _LONG_BYTES:
            answer, header_bytes = await asyncio.to_thread(write, given, binary)
        else:
            answer, header_bytes = write(given, binary)
        if header_bytes is not None:
            more.append((_HEADER_LENGTH, str(header_bytes).encode()))
        if len(answer) > _WORTH_BYTES and (coding := coding_of(headers.get(b"accept-encoding", b""))):
            answer = await asyncio.to_thread(pack, answer, coding)
            more.append((b"content-encoding", coding.encode()))
        await _reply(send, 200, answer, _JSON if header_bytes is None else _BINARY, more)

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        """All of it, unpacked. Raises TooLarge; Invalid where it is not whole."""
        headers = dict(scope["headers"])
        most = MOST_BODY_BYTES
        declared = headers.get(b"content-length", b"0")
        if not declared.isdigit() or len(declared) > 18 or int(declared) > most:
            raise TooLarge(f"a request is at most {most // 10**6} MB")
        parts, seen, more = [], 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ConnectionResetError
            part = message.get("body", b"")
            seen += len(part)
            if seen > most:
                raise TooLarge(f"a request is at most {most // 10**6} MB")
            parts.append(part)
            more = message.get("more_body", False)
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        coding = headers.get(b"content-encoding", b"identity").strip().lower()
        if coding in (b"identity", b""):
            return body
        return await asyncio.to_thread(unpack, body, coding.decode("latin-1"), most)

    def _bare(self, name: str, version: int | None, body: bytes) -> Asked:
        """The body alone is the one tensor: one picture, or the numbers of the file's only input."""
        model = self._inference.find(name, version)
        taken = inputs(model)
        if any(each.name == IMAGE and each.datatype == BYTES for each in taken):
            return Asked(name, version, (Named(IMAGE, BYTES, (1,), [body]),))
        if len(taken) != 1 or any(length < 0 for length in taken[0].shape[1:]):
            raise Invalid("takes more than one tensor of a known shape", where=model.card.reference)
        entry = taken[0]
        each = NUMBERS[entry.datatype].itemsize * math.prod(entry.shape[1:])
        shape = check_shape(entry.name, entry.datatype, [max(1, len(body) // each), *entry.shape[1:]])
        return Asked(name, version, (from_raw(entry.name, entry.datatype, shape, body),))


_LOOKS: dict[str, Callable[[Inference, str, int | None], Any]] = {
    "": describe.metadata,
    "config": describe.config,
    "stats": describe.statistics,
}


def _nowhere(path: str) -> Missing:
    return Missing(
        f'there is no "{path[:200]}" here',
        hint="There are repository/index (by POST), and models/NAME with its infer, ready, config and stats.",
    )


async def _json(send: Send, document: Any) -> None:
    await _reply(send, 200, encode(document), _JSON)


async def _told(send: Send, status: int, text: str, error: MarramError | None = None) -> None:
    more = []
    if status == 401:
        more.append((b"www-authenticate", b'Bearer realm="marram"'))
    if error is not None and (seconds := wait_s(error)) is not None:
        more.append((b"retry-after", str(max(1, math.ceil(seconds))).encode()))
    await _reply(send, status, encode({"error": text}), _JSON, more)


async def _reply(
    send: Send, status: int, body: bytes, media: bytes = _JSON, more: Sequence[tuple[bytes, bytes]] = ()
) -> None:
    headers = [(b"content-type", media), (b"content-length", str(len(body)).encode()), *more]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


def only_v2(app: ASGIApp) -> ASGIApp:
    """`app` for the protocol's paths; another one is told where they are."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not (scope["path"] == "/v2" or scope["path"].startswith("/v2/")):
            await _told(send, 404, f"there is no {scope['path'][:200]} here. The Open Inference Protocol is at /v2.")
            return
        await app(scope, receive, send)

    return answer
