"""The door: without a session, nothing of the console is served, its scripts and its socket included.

The sign-in page is plain HTML of its own, so that not even the console's assets stand open.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from marram.cloud.api.contract import State
from marram.cloud.api.faults import TooMany
from marram.cloud.api.limits import FailureLimit
from marram.console.sessions import LIFE_S, Sessions

COOKIE = "marram_session"
# What the API itself guards (or leaves open on purpose): everything else on this port is the console's.
_API = ("/api/", "/healthz", "/metrics", "/openapi.json", "/docs", "/ca.pem")
# Only from this port: the page works, and stays private, on a network without the internet. NiceGUI's Vue templates
# are compiled in the browser, which takes unsafe-eval.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; font-src 'self' data:; connect-src 'self' ws: wss:; frame-ancestors 'none'; "
    "base-uri 'self'; form-action 'self'"
)
_PAGE = (Path(__file__).parent / "sign_in.html").read_text(encoding="utf-8")
_MOST_FORM_BYTES = 4096


class Gate:
    """ASGI middleware: requests for the console pass with a session cookie; others go to the sign-in page.

    What another site's page asks for in a person's browser is refused, whatever cookie comes along: cookies know no
    port, so every program of this machine that serves pages is "the same site" to them.
    """

    def __init__(self, app: ASGIApp, sessions: Sessions) -> None:
        self._app, self._sessions = app, sessions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or (scope["type"] == "http" and _is_under(scope["path"], _API)):
            await self._app(scope, receive, send)
            return
        asks = HTTPConnection(scope)
        if _is_foreign(asks.headers):
            await _refuse(scope, receive, send, 403, "only the console's own page may ask this")
        elif scope["type"] == "http" and _is_under(scope["path"], ("/sign-in",)):
            await self._app(scope, receive, send)
        elif await run_in_threadpool(self._sessions.opens, asks.cookies.get(COOKIE)):
            await self._app(scope, receive, _guarded(send))
        elif scope["method"] in ("GET", "HEAD") and scope["path"] == "/":
            await RedirectResponse("/sign-in", 303)(scope, receive, send)
        else:
            await _refuse(scope, receive, send, 401, "sign in first: /sign-in")


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


def sign_in_router(state: State, sessions: Sessions, failures: FailureLimit) -> APIRouter:
    """The sign-in page, and the way out."""
    router = APIRouter(include_in_schema=False)

    @router.get("/sign-in")
    async def show(request: Request, code: str = "") -> Response:
        """The form; with a one-time code from the terminal, straight in."""
        if code:
            address = request.client.host if request.client else "?"
            fault = await run_in_threadpool(_attempt, failures, address, lambda: sessions.take_code(code[:100]))
            if fault is None:
                return _enter(request, sessions)
            return _form(fault or "This link was used already, or is older than an hour. The token still works.")
        return _form("")

    @router.post("/sign-in")
    async def enter(request: Request) -> Response:
        body = await _small_body(request)
        token = parse_qs(body.decode("utf-8", "replace")).get("token", [""])[0].strip()
        address = request.client.host if request.client else "?"
        admits = len(token) <= 512 and token != "" and await run_in_threadpool(state.admits, token)
        fault = await run_in_threadpool(_attempt, failures, address, lambda: admits)
        return _enter(request, sessions) if fault is None else _form(fault or "That is not a token of this cloud.")

    @router.post("/sign-out")
    async def leave() -> Response:
        response = RedirectResponse("/sign-in", 303)
        response.delete_cookie(COOKIE)
        return response

    return router


def _attempt(failures: FailureLimit, address: str, proven: Callable[[], bool]) -> str | None:
    """None where it is proven; else what to tell ("": the usual). The right proof is never held up by wrong ones."""
    if proven():
        return None
    try:
        failures.check(address)
    except TooMany as error:
        return str(error)
    failures.failed(address)
    return ""


async def _small_body(request: Request) -> bytes:
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > _MOST_FORM_BYTES:
            return b""
    return body


def _enter(request: Request, sessions: Sessions) -> Response:
    response = RedirectResponse("/", 303)
    options: dict[str, Any] = {"httponly": True, "samesite": "lax", "secure": request.url.scheme == "https"}
    response.set_cookie(COOKIE, sessions.cookie(), max_age=LIFE_S, **options)
    return response


def _form(fault: str) -> Response:
    response = HTMLResponse(_PAGE.replace("<!--fault-->", fault), 401 if fault else 200)
    _protect(response.headers)
    response.headers["Cache-Control"] = "no-store"
    return response
