"""Joining, join tokens, devices."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse

from marram.cloud.api.guard import Cloud, address_of, failures_of, needs, needs_nothing
from marram.cloud.api.selector import Selector, labels_of
from marram.schema.api import JoinAsk, Joined, RenewAsk, Renewed, StandingAsk, TokenAsk, TokenMade, TokenView
from marram.schema.device import Device
from marram.schema.errors import Refused
from marram.schema.ids import Name, matches
from marram.schema.people import Permission

open_router = APIRouter(tags=["joining"])
router = APIRouter()


# Not below the API's prefix: a device fetches it before it knows more of its cloud than an address.
ca_router = APIRouter(tags=["joining"])


@ca_router.get("/ca.pem", response_class=PlainTextResponse)
@needs_nothing
def authority(cloud: Cloud) -> PlainTextResponse:
    """The certificate of this cloud's authority: no secret, and nothing to trust before its fingerprint is compared."""
    return PlainTextResponse(cloud.ca, media_type="application/x-pem-file")


@open_router.post("/join", status_code=201)
@needs_nothing
def join(ask: JoinAsk, cloud: Cloud, request: Request) -> Joined:
    """Become a device: a token and a signing request in, a certificate out. Over HTTPS only; no Bearer token."""
    _secured(request)
    with _failures(request):
        return cloud.join(ask)


@open_router.post("/renew", status_code=201)
@needs_nothing
def renew(ask: RenewAsk, cloud: Cloud, request: Request) -> Renewed:
    """A new certificate for a device that was off past its old one's end: by proof of its key. Over HTTPS only."""
    _secured(request)
    with _failures(request):
        return cloud.renew(ask)


@open_router.post("/standing", status_code=204)
@needs_nothing
def standing(ask: StandingAsk, cloud: Cloud, request: Request) -> None:
    """Why the broker refuses a device, for that device: by proof of its key, and changing nothing. Over HTTPS only."""
    _secured(request)
    with _failures(request):
        cloud.standing(ask)


def _secured(request: Request) -> None:
    if request.url.scheme != "https":
        raise Refused("joining and renewing go over HTTPS only", hint="Use the address that `marram cloud` shows.")


@contextlib.contextmanager
def _failures(request: Request) -> Iterator[None]:
    """Strangers may fail so often."""
    limit, address = failures_of(request), address_of(request)
    limit.check(address)
    try:
        yield
    except Refused:
        limit.failed(address)
        raise


@router.post("/tokens", status_code=201, tags=["joining"])
@needs(Permission.DEVICES)
def create_token(ask: TokenAsk, cloud: Cloud) -> TokenMade:
    """Make a join token: told once, here."""
    return cloud.create_token(ask)


@router.get("/tokens", tags=["joining"])
@needs(Permission.DEVICES)
def tokens(cloud: Cloud) -> list[TokenView]:
    """Join tokens that can still be used."""
    return cloud.tokens()


@router.delete("/tokens/{id}", status_code=204, tags=["joining"])
@needs(Permission.DEVICES)
def revoke_token(id: str, cloud: Cloud) -> None:
    """Nobody joins with it any more."""
    cloud.revoke_token(id)


@router.get("/devices", tags=["devices"])
@needs(Permission.READ)
def devices(cloud: Cloud, selector: Selector = "all") -> list[Device]:
    """Devices whose labels match, by name: labels, state, desired, reported with its stats."""
    wanted = labels_of(selector)
    return [device for device in cloud.devices() if matches(wanted, device.labels)]


@router.get("/devices/{id}", tags=["devices"])
@needs(Permission.READ)
def device(id: Name, cloud: Cloud) -> Device:
    """One device."""
    return cloud.device(id)


@router.delete("/devices/{id}", status_code=204, tags=["devices"])
@needs(Permission.DEVICES)
def remove_device(id: Name, cloud: Cloud) -> None:
    """Revoke a device: its identity on the bus ends and its live connection is cut. What it delivered stays."""
    cloud.remove_device(id)
