"""Every fault as the one JSON shape: `{"error": {"kind", "what", "where", "hint"}}`, whoever raised it.

Nothing that leaves here may carry a traceback, a path of the server or a secret: an unexpected exception is logged
and told as "the cloud failed at this".
"""

from __future__ import annotations

import logging
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from marram.schema.api import ErrorReply, Fault
from marram.schema.errors import Invalid, MarramError, Threat, Untrusted
from marram.schema.model import TRAVERSAL
from marram.schema.words import field_fault
from marram.serving.oip.faults import TooLarge as TooLarge
from marram.serving.oip.faults import TooMany as TooMany
from marram.serving.oip.faults import Unproven as Unproven

_log = logging.getLogger(__name__)

_STATUSES = {
    "not_ready": 503, "busy": 503, "retryable": 503, "invalid": 400, "missing": 404, "refused": 403, "conflict": 409,
    "untrusted": 403, "permanent": 500,
}  # fmt: skip
_OF_STATUS = {401: "refused", 403: "refused", 404: "missing", 409: "conflict", 429: "retryable"}


def reply(error: MarramError) -> JSONResponse:
    """One of our errors as a response."""
    status, headers = _STATUSES[error.kind], {}
    if isinstance(error, TooLarge):
        status = 413
    elif isinstance(error, Unproven):
        status, headers = 401, {"WWW-Authenticate": 'Bearer realm="marram"'}
    elif isinstance(error, TooMany):
        status, headers = 429, {"Retry-After": str(max(1, round(error.wait_s)))}
    return _json(status, Fault(kind=error.kind, what=error.what, where=error.where, hint=error.hint), headers)  # type: ignore[arg-type]


def install(app: FastAPI) -> None:
    """Make every fault of `app` speak this shape."""
    app.add_exception_handler(MarramError, _ours)
    app.add_exception_handler(RequestValidationError, _wrong)
    app.add_exception_handler(HTTPException, _http)
    app.add_middleware(Supervisor)


def _json(status: int, fault: Fault, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse(ErrorReply(error=fault).model_dump(mode="json"), status, headers)


async def _ours(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, MarramError)
    return reply(error)


async def _wrong(request: Request, error: Exception) -> JSONResponse:
    """Pydantic's faults, one a line; what was sent is not echoed (it may be a secret, or huge)."""
    assert isinstance(error, RequestValidationError)
    lines = []
    faults = error.errors()
    out = next((fault for fault in faults if fault["type"] == TRAVERSAL), None)
    if out is not None:
        where = ".".join(str(part)[:80] for part in out["loc"] if part != "body")
        return reply(Untrusted(field_fault(out)[:500], threat=Threat.TRAVERSAL, where=where))
    for fault in faults[:20]:
        where = ".".join(str(part)[:80] for part in fault["loc"] if part not in ("body", "query", "path"))
        what = field_fault(fault, echo=False)
        if fault["type"] == "json_invalid":
            where, what = "", f"the body is not JSON: {fault.get('ctx', {}).get('error', what)}"
        elif fault["type"] == "model_attributes_type" and where == "":  # FastAPI parses only what calls itself JSON
            what = "the body is not a JSON object sent with Content-Type: application/json"
        lines.append(f"{where}: {what}"[:500] if where else what[:500])
    return _json(
        400, Fault(kind="invalid", what="\n".join(lines), hint=f"See /openapi.json, {request.url.path[:200]}.")
    )


async def _http(request: Request, error: Exception) -> JSONResponse:
    """Starlette's own: no such path, no such method, a body that could not be read."""
    assert isinstance(error, HTTPException)
    if isinstance(error.__cause__, MarramError):
        # FastAPI calls whatever stops it from reading a body "an error parsing the body"; ours says which.
        return reply(error.__cause__)
    status, path = error.status_code, request.url.path[:200]
    what = {
        404: f"there is no {path} here",
        405: f"{request.method} is nothing one can do with {path}",
    }.get(status, str(error.detail) or HTTPStatus(status).phrase)
    kind = _OF_STATUS.get(status, "retryable" if status >= 500 else "invalid")
    fault = Fault(kind=kind, what=what, hint="See /openapi.json." if status in (404, 405) else None)  # type: ignore[arg-type]
    return _json(status, fault, dict(error.headers or {}))


class Supervisor:
    """ASGI middleware: an exception nobody foresaw is logged here, told in our shape, and goes no further.

    Left to the server, it would end the connection, and the next request on it would fail without any fault of its own.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = False

        async def noted(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except Exception as error:
            if not begun and isinstance(error, UnicodeEncodeError) and error.reason == "surrogates not allowed":
                # JSON can spell halves of characters, which neither a message nor a database takes.
                halved = Invalid("what was sent holds half a character, which is no text")
                await reply(halved)(scope, receive, send)
                return
            _log.exception("%s %s failed", scope["method"], scope["path"])
            if begun:
                raise  # half an answer is out: only a broken connection still tells that it is not whole
            what = f"the cloud failed at this ({type(error).__name__})"
            fault = Fault(kind="retryable", what=what, hint="Its log says more; this is a fault of Marram's.")
            await _json(500, fault)(scope, receive, send)
