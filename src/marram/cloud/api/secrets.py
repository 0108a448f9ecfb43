"""Secrets: set, listed, removed. What one is, no route tells."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter
from fastapi import Path as PathParameter

from marram.cloud.api.guard import Cloud, needs
from marram.schema.api import SecretAsk, SecretView
from marram.schema.ids import SECRET
from marram.schema.people import Permission

router = APIRouter(tags=["secrets"])
SecretName = Annotated[str, PathParameter(pattern=SECRET)]


@router.put("/secrets/{name}")
@needs(Permission.DEVICES)
def set_secret(name: SecretName, ask: SecretAsk, cloud: Cloud) -> SecretView:
    """Set a secret for devices whose labels match; they have it with their next report, if an app declares it."""
    return cloud.set_secret(name, ask)


@router.get("/secrets")
@needs(Permission.READ)
def secrets(cloud: Cloud) -> list[SecretView]:
    """Which secrets there are, for whom, since when; not what they are."""
    return cloud.secrets()


@router.delete("/secrets/{name}", status_code=204)
@needs(Permission.DEVICES)
def remove_secret(name: SecretName, cloud: Cloud) -> None:
    """Devices forget it with their next report."""
    cloud.remove_secret(name)
