"""The cloud at a glance: status, health, metrics."""

from __future__ import annotations

from fastapi import APIRouter, Response

from marram.cloud.api.guard import Cloud, needs, needs_nothing
from marram.cloud.api.metrics import exposition
from marram.schema.api import Check, Health, Status
from marram.schema.people import Permission

open_router = APIRouter(tags=["the whole"])
router = APIRouter(tags=["the whole"])
metrics_router = APIRouter(tags=["the whole"])

# A check writes to the disk, and anybody may ask for one: so many a second and no more.
_HEALTH_KEEP_S = 1.0


@open_router.get("/healthz", responses={503: {"model": Health}})
@needs_nothing
def healthz(cloud: Cloud, response: Response) -> Health:
    """Whether database, objects, broker and ingest work: each was tried for real within a second. 503 where one fails.

    Anybody may ask, so it says which, and not where they are: that is in `/status`.
    """
    checks = [Check(name=check.name, ok=check.ok) for check in cloud.checks(_HEALTH_KEEP_S)]
    ok = bool(checks) and all(check.ok for check in checks)
    response.status_code = 200 if ok else 503
    return Health(ok=ok, checks=checks)


@router.get("/status")
@needs(Permission.READ)
def status(cloud: Cloud) -> Status:
    """The cloud at a glance."""
    return cloud.status()


@metrics_router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
@needs(Permission.READ)
def metrics(cloud: Cloud) -> Response:
    """Prometheus text: the fleet, its placement and delays, what is stored."""
    body, media = exposition(cloud)
    return Response(body, media_type=media)
