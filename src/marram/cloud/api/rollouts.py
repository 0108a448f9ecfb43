"""Rollouts: how they stand, and a person's say in them; and why a device runs what it runs."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query
from fastapi import Path as PathParameter

from marram.cloud.api.guard import Cloud, needs
from marram.schema.ids import Name
from marram.schema.people import Permission
from marram.schema.rollout_view import RolloutView
from marram.schema.why import Why

router = APIRouter(tags=["rollouts"])

Id = Annotated[int, PathParameter(ge=1, le=2**53)]


@router.get("/rollouts")
@needs(Permission.READ)
def rollouts(
    cloud: Cloud, app: Name | None = None, limit: Annotated[int, Query(ge=1, le=1000)] = 50
) -> list[RolloutView]:
    """The newest rollouts, newest first, without their devices."""
    return cloud.steering.list(app, limit)


@router.get("/rollouts/{id}")
@needs(Permission.READ)
def rollout(id: Id, cloud: Cloud) -> RolloutView:
    """One rollout: stages, gates, and how each device stands now."""
    return cloud.steering.show(id)


@router.post("/rollouts/{id}/{act}")
@needs(Permission.DEPLOY)
def act(id: Id, act: Literal["pause", "resume", "promote", "abort"], cloud: Cloud) -> RolloutView:
    """Pause, resume, promote into the next stage without waiting, or abort: every device back to what it had."""
    steer = cloud.steering
    return {"pause": steer.pause, "resume": steer.resume, "promote": steer.promote, "abort": steer.abort}[act](id)


@router.post("/rollouts/{id}/retry/{device}")
@needs(Permission.DEPLOY)
def retry(id: Id, device: Name, cloud: Cloud) -> RolloutView:
    """Let one device try again what it gave up."""
    return cloud.steering.retry(id, device)


@router.get("/devices/{id}/why", tags=["devices"])
@needs(Permission.READ)
def why(id: Name, cloud: Cloud) -> Why:
    """Why a device runs what it runs: one cause for each app, the evidence, and what to type next."""
    return cloud.steering.why(id)
