"""Joining, join tokens, devices."""

from __future__ import annotations

from fastapi import APIRouter, Request

from marram.cloud.api.guard import Cloud, address_of, failures_of
from marram.cloud.api.selector import Selector, labels_of
from marram.schema.api import JoinAsk, Joined, TokenAsk, TokenMade, TokenView
from marram.schema.device import Device
from marram.schema.errors import Refused
from marram.schema.ids import Name, matches

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
def devices(cloud: Cloud, selector: Selector = "all") -> list[Device]:
    """Devices whose labels match, by name: labels, state, desired, reported with its stats."""
    wanted = labels_of(selector)
    return [device for device in cloud.devices() if matches(wanted, device.labels)]


@router.get("/devices/{id}", tags=["devices"])
def device(id: Name, cloud: Cloud) -> Device:
    """One device."""
    return cloud.device(id)


@router.delete("/devices/{id}", status_code=204, tags=["devices"])
def remove_device(id: Name, cloud: Cloud) -> None:
    """Revoke a device: its identity on the bus ends and its live connection is cut. What it delivered stays."""
    cloud.remove_device(id)
