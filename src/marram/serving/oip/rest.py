"""The protocol over HTTP: a bare ASGI application, so that an inference pays for nothing but its own bytes.

    GET  /v2  /v2/health/live  /v2/health/ready
    GET  /v2/models/NAME[/versions/V]  …/ready  …/config  …/stats;  /v2/models/stats
    POST /v2/models/NAME[/versions/V]/infer;  /v2/repository/index

A request's body is bounded as it comes in and as it is unpacked. Every fault is `{"error": "…"}` with its status;
nothing that leaves here carries a traceback or a path of this machine.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import re
import zlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from marram.schema.errors import Invalid, MarramError, Missing
from marram.serving.oip import describe
from marram.serving.oip.exchange import Asked, Given, check_here, check_wanted, options_of, version_of
from marram.serving.oip.faults import NotAllowed, TooLarge, status_of, wait_s, words
from marram.serving.oip.inference import IMAGE, Inference, inputs
from marram.serving.oip.tensors import BYTES, NUMBERS, Named, check_shape, from_json, from_raw, to_json, to_raw

log = logging.getLogger(__name__)

MOST_BODY_BYTES = 64_000_000
# Beyond so many bytes of JSON, or anything compressed, another thread reads it: the loop has others to answer.
_LONG_BYTES = 64_000
# Below, compressing costs more than it saves.
_WORTH_BYTES = 4096
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_JSON, _BINARY = b"application/json", b"application/octet-stream"
_HEADER_LENGTH = b"inference-header-content-length"

# Lets a request in, or raises (Refused, Unproven …). `asks`: it is an inference, else it only looks.
Admit = Callable[[Scope, bool], Awaitable[None]]

_VERSIONED = re.compile(r"models/(?P<name>[^/]+)(?:/versions/(?P<version>[^/]+))?(?:/(?P<verb>[a-z]+))?")


class Rest:
    """See the module's words. `admit` None: everybody may, as where only this machine reaches it."""

    def __init__(self, inference: Inference, admit: Admit | None = None, most_bytes: int = MOST_BODY_BYTES) -> None:
        self._inference = inference
        self._admit = admit
        self._most_bytes = most_bytes

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
            asked = _parsed(body) if body.strip() else {}
            return describe.index(self._inference, only_ready=asked.get("ready") is True)
        if path.startswith("repository/models/"):
            raise Invalid("models are loaded and unloaded by Marram itself", hint="Its own commands say which.")
        raise _nowhere(path)

    # ------------------------------------------------------------ an inference

    async def _infer(self, name: str, version: int | None, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        body = await self._body(scope, receive)
        length = _header_length(headers.get(_HEADER_LENGTH), len(body))
        if length == 0:
            asked, binary = self._bare(name, version, body), _Binary(False, {})
        elif length > _LONG_BYTES:
            asked, binary = await asyncio.to_thread(_read, name, version, body, length)
        else:
            asked, binary = _read(name, version, body, length)
        given = await self._inference.infer(asked)
        more: list[tuple[bytes, bytes]] = []
        if sum(math.prod(each.shape) for each in given.outputs) > _LONG_BYTES:
            answer, header_bytes = await asyncio.to_thread(_written, given, binary)
        else:
            answer, header_bytes = _written(given, binary)
        if header_bytes is not None:
            more.append((_HEADER_LENGTH, str(header_bytes).encode()))
        if len(answer) > _WORTH_BYTES and (coding := _coding(headers.get(b"accept-encoding", b""))):
            answer = await asyncio.to_thread(_packed, answer, coding)
            more.append((b"content-encoding", coding.encode()))
        await _reply(send, 200, answer, _JSON if header_bytes is None else _BINARY, more)

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        """All of it, unpacked. Raises TooLarge; Invalid where it is not whole."""
        headers = dict(scope["headers"])
        most = self._most_bytes
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
        return await asyncio.to_thread(_unpacked, body, coding.decode("latin-1"), most)

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


class _Binary:
    """Which outputs go as bytes: `default`, unless `of` says otherwise by name."""

    def __init__(self, default: bool, of: Mapping[str, bool]) -> None:
        self.default, self.of = default, of

    def __call__(self, name: str) -> bool:
        return self.of.get(name, self.default)


_LOOKS: dict[str, Callable[[Inference, str, int | None], Any]] = {
    "": describe.metadata,
    "config": describe.config,
    "stats": describe.statistics,
}


# ---------------------------------------------------------------- reading


def _header_length(told: bytes | None, size: int) -> int:
    if told is None:
        return size if size else -1
    if not told.isdigit() or len(told) > 18 or int(told) > size:
        raise Invalid(f"Inference-Header-Content-Length is a number up to the body's {size} bytes")
    return int(told)


def _nowhere(path: str) -> Missing:
    return Missing(
        f'there is no "{path[:200]}" here',
        hint="There are repository/index (by POST), and models/NAME with its infer, ready, config and stats.",
    )


def _parsed(body: bytes) -> dict[str, Any]:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:  # a wrong encoding is a ValueError, too
        raise Invalid(f"the request is not JSON: {error}"[:200]) from error
    if not isinstance(document, dict):
        raise Invalid("the request is no JSON object")
    return document


def _read(name: str, version: int | None, body: bytes, length: int) -> tuple[Asked, _Binary]:
    document = _parsed(body[:length] if 0 <= length < len(body) else body)
    sent, at = [], max(0, length)
    for entry in _objects(document.get("inputs"), "inputs"):
        tensor, at = _tensor(entry, body, at)
        sent.append(tensor)
    if length >= 0 and at != len(body):
        raise Invalid(f"{len(body) - at} bytes after the tensors belong to none of them")
    parameters = _mapping(document.get("parameters"), "parameters")
    wanted, of = [], dict[str, bool]()
    for entry in _objects(document.get("outputs", []), "outputs"):
        how = _mapping(entry.get("parameters"), "outputs.parameters")
        wanted.append(check_wanted(entry.get("name"), how))
        if "binary_data" in how:
            of[wanted[-1]] = how["binary_data"] is True
    options, left_s = options_of(parameters)
    id = document.get("id", "")
    if not isinstance(id, str) or len(id) > 500:
        raise Invalid("is text, 500 characters at most", where="id")
    asked = Asked(name, version, tuple(sent), tuple(wanted), options, left_s, id)
    return asked, _Binary(parameters.get("binary_data_output") is True, of)


def _tensor(entry: dict[str, Any], body: bytes, at: int) -> tuple[Named, int]:
    """One input, and where in the body the next one's bytes begin."""
    name = entry.get("name")
    if not isinstance(name, str) or len(name) > 500:
        raise Invalid("each input has a name", where="inputs")
    datatype, parameters = entry.get("datatype"), _mapping(entry.get("parameters"), "inputs.parameters")
    shape = check_shape(name, datatype, entry.get("shape"))
    check_here(name, parameters)
    size = parameters.get("binary_data_size")
    if size is None:
        coded = parameters.get("content_type") == "base64"
        return from_json(name, str(datatype), shape, entry.get("data"), coded=coded), at
    if type(size) is not int or not 0 <= size <= len(body) - at:
        left = len(body) - at
        raise Invalid(
            f"binary_data_size is a number up to the {left} bytes that follow",
            where=f'tensor "{name}"',
            hint="The header Inference-Header-Content-Length says where the JSON ends.",
        )
    return from_raw(name, str(datatype), shape, memoryview(body)[at : at + size]), at + size


def _objects(value: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or len(value) > 100 or not all(isinstance(each, dict) for each in value):
        raise Invalid("is a list of objects, 100 at most", where=where)
    return value


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise Invalid("is an object", where=where)
    return value


def _unpacked(body: bytes, coding: str, most: int) -> bytes:
    """`body` decompressed, never more than `most` bytes of it. Raises TooLarge, Invalid."""
    if coding not in ("gzip", "deflate"):
        raise Invalid(f"Content-Encoding {coding[:40]!r} is not taken; gzip and deflate are")
    unpacker = zlib.decompressobj(31 if coding == "gzip" else 15)
    try:
        unpacked = unpacker.decompress(body, most)
    except zlib.error as error:
        raise Invalid(f"the body is no {coding}") from error
    if unpacker.unconsumed_tail or (not unpacker.eof and len(unpacked) == most):
        raise TooLarge(f"a request is at most {most // 10**6} MB, unpacked")
    if not unpacker.eof or unpacker.unused_data:
        raise Invalid(f"the body is not one whole {coding}")
    return unpacked


# ---------------------------------------------------------------- writing


def _encoded(document: Any) -> bytes:
    return _encode(document).encode()


def _written(given: Given, binary: Callable[[str], bool]) -> tuple[bytes, int | None]:
    """The body, and how much of it is JSON where bytes follow."""
    listed, raw = [], []
    for tensor in given.outputs:
        entry: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
        if binary(tensor.name):
            raw.append(to_raw(tensor))
            entry["parameters"] = {"binary_data_size": len(raw[-1])}
        else:
            entry["data"] = to_json(tensor)
        listed.append(entry)
    document: dict[str, Any] = {"model_name": given.model, "model_version": str(given.version), "outputs": listed}
    if given.id:
        document["id"] = given.id
    header = _encoded(document)
    return (b"".join((header, *raw)), len(header)) if raw else (header, None)


def _coding(accepted: bytes) -> str:
    """The first of ours that the asker takes."""
    names = [part.partition(b";") for part in accepted.lower().split(b",")]
    takes = {name.strip() for name, _, quality in names if quality.strip() != b"q=0"}
    return next((coding for coding in ("gzip", "deflate") if coding.encode() in takes), "")


def _packed(body: bytes, coding: str) -> bytes:
    packer = zlib.compressobj(1, zlib.DEFLATED, 31 if coding == "gzip" else 15)
    return packer.compress(body) + packer.flush()


async def _json(send: Send, document: Any) -> None:
    await _reply(send, 200, _encoded(document), _JSON)


async def _told(send: Send, status: int, text: str, error: MarramError | None = None) -> None:
    more = []
    if status == 401:
        more.append((b"www-authenticate", b'Bearer realm="marram"'))
    if error is not None and (seconds := wait_s(error)) is not None:
        more.append((b"retry-after", str(max(1, math.ceil(seconds))).encode()))
    await _reply(send, status, _encoded({"error": text}), _JSON, more)


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
