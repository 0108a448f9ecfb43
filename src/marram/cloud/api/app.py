"""`create_app(state)`: the FastAPI application: routers, limits, faults. The console is mounted on it later."""

from __future__ import annotations

from html import escape

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import HTMLResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match

from marram import __version__
from marram.cloud.api import content, faults, fleet, models, people, records, rollouts, secrets, signed, whole
from marram.cloud.api.askers import Askers, Beside
from marram.cloud.api.contract import State
from marram.cloud.api.desk import Desk
from marram.cloud.api.guard import admitted, needs_nothing
from marram.cloud.api.limits import BodyLimit, FailureLimit
from marram.schema.api import PREFIX, ErrorReply
from marram.serving.oip.inference import Inference
from marram.serving.oip.rest import Rest

_FAULTS = {
    status: {"model": ErrorReply, "description": text}
    for status, text in {
        400: "The request is wrong",
        401: "No token, or a wrong one",
        413: "The request is too large",
        429: "Too many wrong tokens",
        503: "A part of the cloud is away: try again",
    }.items()
}


def create_app(state: State, inference: Inference | None = None) -> FastAPI:
    """The API over `state`, with the Open Inference Protocol at /v2 where there is `inference`.

    FastAPI's documentation pages load from a CDN, so /docs is a page of our own.
    """
    app = FastAPI(
        title="Marram",
        version=__version__,
        description="The cloud's API: join devices, deploy apps, read what they answered.",
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
        responses=_FAULTS,  # type: ignore[arg-type]
        # Before every route, whoever adds it: one that does not say whom it is for is for nobody.
        dependencies=[Depends(admitted)],
    )
    app.state.marram = state
    app.state.failures = FailureLimit()
    app.state.desk = Desk()
    faults.install(app)
    app.add_middleware(BodyLimit)
    app.include_router(whole.open_router)
    app.include_router(whole.metrics_router)
    app.include_router(fleet.ca_router)
    app.include_router(fleet.open_router, prefix=PREFIX)
    app.include_router(signed.router, prefix=PREFIX)
    for module in (fleet, content, models, rollouts, records, people, secrets, whole):
        app.include_router(module.router, prefix=PREFIX)
    app.include_router(_rest(app))
    if inference is not None:
        asked = Rest(inference, Askers(state.access, app.state.failures).by_header)
        # Outermost: an inference pays for nothing but itself; it bounds and supervises itself.
        app.add_middleware(Beside, inferences=asked)
    return app


def _rest(app: FastAPI) -> APIRouter:
    router = APIRouter(include_in_schema=False)

    @router.get("/docs", response_class=HTMLResponse)
    @needs_nothing
    def docs() -> str:
        return _docs(app)

    # Whatever is mounted after this (the console) must never answer in the API's place with a page.
    @router.api_route("/api/{path:path}", methods=["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH"])
    @needs_nothing
    def nothing(path: str, request: Request) -> None:
        known = any(route.matches(request.scope)[0] is Match.PARTIAL for route in app.router.routes)
        raise HTTPException(405 if known else 404)

    return router


def _docs(app: FastAPI) -> str:
    """Every call on one plain page, offline: method, path, what it does."""
    rows = []
    for path, calls in app.openapi()["paths"].items():
        for method, call in calls.items():
            text = escape(call.get("description") or call.get("summary") or "")
            rows.append(f"<tr><td><b>{method.upper()}</b></td><td><code>{escape(path)}</code></td><td>{text}</td></tr>")
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        "<meta name=color-scheme content='light dark'><title>Marram API</title>"
        "<style>body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem}"
        "td{padding:.35rem .8rem .35rem 0;vertical-align:top}code{white-space:nowrap}</style>"
        f"<h1>Marram API {escape(app.version)}</h1><p>Calls need <code>Authorization: Bearer TOKEN</code>: "
        f"from <code>marram user token create</code>, or for a while from <code>POST {PREFIX}/sessions</code>. "
        "Types: <a href=/openapi.json>/openapi.json</a>.</p>"
        f"<table>{''.join(rows)}</table></html>"
    )
