"""The door: without a session, nothing of the console is served, its scripts and its socket included.

The sign-in page is plain HTML of its own, so that not even the console's assets stand open.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from pydantic import ValidationError
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from marram.cloud.access import MACHINE_SESSION_S, Access, Caller
from marram.cloud.api.contract import State
from marram.cloud.api.desk import Desk
from marram.cloud.api.faults import TooMany
from marram.cloud.api.guard import address_of, needs_nothing
from marram.cloud.api.limits import FailureLimit
from marram.cloud.people import WrongPassword
from marram.console.sessions import LIFE_S, Codes
from marram.schema.errors import Retryable
from marram.schema.people import SessionAsk
from marram.store import acting_as

COOKIE = "marram_session"
# What the API itself guards (or leaves open on purpose): everything else on this port is the console's.
_API = ("/api/", "/v2", "/healthz", "/metrics", "/openapi.json", "/docs", "/ca.pem")
# Only from this port: the page works, and stays private, on a network without the internet. NiceGUI's Vue templates
# are compiled in the browser, which takes unsafe-eval.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; font-src 'self' data:; connect-src 'self' ws: wss:; frame-ancestors 'none'; "
    "base-uri 'self'; form-action 'self'"
)
_PAGE = (Path(__file__).parent / "sign_in.html").read_text(encoding="utf-8")
_MOST_FORM_BYTES = 4096
_LONGEST_COOKIE = 512
# How often an open socket's session is looked at, where anything is said on it.
_LOOK_S = 2.0
_LAST_WORD_S = 2.0


class Gate:
    """ASGI middleware: requests for the console pass with a session cookie; others go to the sign-in page.

    What another site's page asks for in a person's browser is refused, whatever cookie comes along: cookies know no
    port, so every program of this machine that serves pages is "the same site" to them. A socket that is open when its
    session ends is closed soon after, with the next word on it.
    """

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or (scope["type"] == "http" and _is_under(scope["path"], _API)):
            await self._app(scope, receive, send)
            return
        try:
            await self._console(scope, receive, send)
        except Retryable as error:  # nobody can be known just now
            await _refuse(scope, receive, send, 503, str(error))

    async def _console(self, scope: Scope, receive: Receive, send: Send) -> None:
        asks = HTTPConnection(scope)
        if _is_foreign(asks.headers):
            await _refuse(scope, receive, send, 403, "only the console's own page may ask this")
        elif scope["type"] == "http" and _is_under(scope["path"], ("/sign-in",)):
            await self._app(scope, receive, send)
        elif (caller := await signed_in(self._access, asks.cookies.get(COOKIE))) is not None:
            acting_as(caller.actor)
            ended = _Ending(self._access, asks.cookies[COOKIE], send) if scope["type"] == "websocket" else None
            await self._app(scope, receive, _guarded(ended or send))
        elif scope["method"] in ("GET", "HEAD") and scope["path"] == "/":
            await RedirectResponse("/sign-in", 303)(scope, receive, send)
        else:
            await _refuse(scope, receive, send, 401, "sign in first: /sign-in")


async def signed_in(access: Access, cookie: str | None) -> Caller | None:
    """Whose session the cookie is; None where it is nobody's any more. API tokens open no page.

    Raises what `Access.caller` does.
    """
    if not cookie or len(cookie) > _LONGEST_COOKIE:
        return None
    caller = await run_in_threadpool(access.caller, cookie)
    return caller if caller is not None and caller.session else None


class _Ending:
    """What is sent on a socket, as long as its session lasts; a moment later the socket is closed, once.

    In that moment the page, which stops by itself, sends its browser to the sign-in.
    """

    def __init__(self, access: Access, cookie: str, send: Send, clock: Callable[[], float] = time.monotonic) -> None:
        self._access, self._cookie, self._send, self._clock = access, cookie, send, clock
        self._looked_s = clock()
        self._ends_s = float("inf")
        self._closed = False

    async def __call__(self, message: Message) -> None:
        now_s = self._clock()
        if self._ends_s == float("inf") and now_s - self._looked_s > _LOOK_S:
            self._looked_s = now_s
            if await signed_in(self._access, self._cookie) is None:
                self._ends_s = now_s + _LAST_WORD_S
        if now_s < self._ends_s:
            await self._send(message)
        elif not self._closed:
            self._closed = True
            await self._send({"type": "websocket.close", "code": 4401, "reason": "signed out"})


def _is_under(path: str, places: tuple[str, ...]) -> bool:
    return any(path == place or path.startswith(f"{place.rstrip('/')}/") for place in places)


def _is_foreign(headers: Headers) -> bool:
    """Whether a browser says that another site's page asks. A proxy before us may name the host it was asked for."""
    origin = headers.get("origin")
    ours = {headers.get("host", "").lower(), headers.get("x-forwarded-host", "").lower()} - {""}
    return origin is not None and origin.lower().partition("://")[2] not in ours


async def _refuse(scope: Scope, receive: Receive, send: Send, status: int, why: str) -> None:
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 4000 + status, "reason": why})
    else:
        await Response(f"{why}\n", status, media_type="text/plain")(scope, receive, send)


def _guarded(send: Send) -> Callable[[Message], Awaitable[None]]:
    async def guarded(message: Message) -> None:
        if message["type"] == "http.response.start":
            _protect(MutableHeaders(scope=message))
        await send(message)

    return guarded


def _protect(headers: MutableHeaders) -> None:
    headers["Content-Security-Policy"] = _POLICY
    headers["X-Content-Type-Options"] = "nosniff"
    # Tells no other site anything, and unlike "no-referrer" lets our own forms say where they come from.
    headers["Referrer-Policy"] = "same-origin"


def sign_in_router(state: State, codes: Codes, desk: Desk, failures: FailureLimit) -> APIRouter:
    """The sign-in page, and the way out."""
    router = APIRouter(include_in_schema=False)

    @router.get("/sign-in")
    @needs_nothing
    async def show(request: Request, code: str = "") -> Response:
        """The form; with a one-time code from the terminal, straight in."""
        if not code:
            return _form("")
        if codes.take_code(code[:100]):
            token = await run_in_threadpool(state.access.machine_session)
            return _enter(request, token.text, MACHINE_SESSION_S)
        try:
            failures.check(address_of(request))
        except TooMany as error:
            return _form(str(error))
        failures.failed(address_of(request))
        return _form("This link was used already, or is older than an hour.")

    @router.post("/sign-in")
    @needs_nothing
    async def enter(request: Request) -> Response:
        given = parse_qs((await _small_body(request)).decode("utf-8", "replace"))
        name, password = given.get("name", [""])[0], given.get("password", [""])[0]
        try:
            ask = SessionAsk(name=name, password=password, ttl_s=LIFE_S)
            made = await desk.attempt(name, address_of(request), lambda: state.people.sign_in(ask))
        except ValidationError:
            return _form("Give a name and a password.", name)
        except WrongPassword as error:
            return _form(_sentence(error.what), name)
        except Retryable as error:  # too many of them, or the database is away
            return _form(_sentence(str(error)), name)
        return _enter(request, made.token, LIFE_S)

    @router.post("/sign-out")
    @needs_nothing
    async def leave(request: Request) -> Response:
        caller = await signed_in(state.access, request.cookies.get(COOKIE))
        if caller is not None:
            await run_in_threadpool(state.access.end, caller)
        response = RedirectResponse("/sign-in", 303)
        response.delete_cookie(COOKIE)
        return response

    return router


async def _small_body(request: Request) -> bytes:
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > _MOST_FORM_BYTES:
            return b""
    return body


def _enter(request: Request, token: str, life_s: float) -> Response:
    response = RedirectResponse("/", 303)
    options: dict[str, Any] = {"httponly": True, "samesite": "lax", "secure": request.url.scheme == "https"}
    response.set_cookie(COOKIE, token, max_age=int(life_s), **options)
    response.headers["Referrer-Policy"] = "no-referrer"  # the address we come from may hold a code
    return response


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:].rstrip('.')}."


def _form(fault: str, name: str = "") -> Response:
    page = _PAGE.replace("<!--fault-->", escape(fault)).replace("<!--name-->", escape(name[:200]))
    response = HTMLResponse(page, 401 if fault else 200)
    _protect(response.headers)
    response.headers["Cache-Control"] = "no-store"
    return response
