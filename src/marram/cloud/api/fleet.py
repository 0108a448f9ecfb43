"""Joining, join tokens, devices."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request

from marram.cloud.api.guard import Cloud, address_of, failures_of
from marram.schema.api import JoinAsk, Joined, TokenAsk, TokenMade, TokenView
from marram.schema.device import Device
from marram.schema.errors import Invalid, Refused
from marram.schema.ids import Name, matches, parse_labels

open_router = APIRouter(tags=["joining"])
router = APIRouter()


@open_router.post("/join", status_code=201)
def join(ask: JoinAsk, cloud: Cloud, request: Request) -> Joined:
    """Become a device: the token in, an identity on the bus out. The one call that needs no Bearer token."""
    limit, address = failures_of(request), address_of(request)
    limit.check(address)
    try:
        return cloud.join(ask)
    except Refused:
        limit.failed(address)
        raise


@router.post("/tokens", status_code=201, tags=["joining"])
def create_token(ask: TokenAsk, cloud: Cloud) -> TokenMade:
    """Make a join token: told once, here."""
    return cloud.create_token(ask)


@router.get("/tokens", tags=["joining"])
def tokens(cloud: Cloud) -> list[TokenView]:
    """Join tokens that can still be used."""
    return cloud.tokens()


@router.delete("/tokens/{id}", status_code=204, tags=["joining"])
def revoke_token(id: str, cloud: Cloud) -> None:
    """Nobody joins with it any more."""
    cloud.revoke_token(id)


@router.get("/devices", tags=["devices"])
def devices(
    cloud: Cloud, selector: Annotated[str, Query(max_length=4000, examples=["site=shanghai"])] = "all"
) -> list[Device]:
    """Devices whose labels match, by name: labels, state, desired, reported with its stats."""
    try:
        wanted = parse_labels(selector)
    except ValueError as error:
        raise Invalid(str(error), where="selector") from error
    return [device for device in cloud.devices() if matches(wanted, device.labels)]


@router.get("/devices/{id}", tags=["devices"])
def device(id: Name, cloud: Cloud) -> Device:
    """One device."""
    return cloud.device(id)


@router.delete("/devices/{id}", status_code=204, tags=["devices"])
def remove_device(id: Name, cloud: Cloud) -> None:
    """Revoke a device: its identity on the bus ends and its live connection is cut. What it delivered stays."""
    cloud.remove_device(id)
