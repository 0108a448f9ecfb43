"""Who may ask what: each route names the permission it needs, in one line above it; one that names none is shut.

    @router.delete("/devices/{id}")
    @needs(Permission.DEVICES)
    def remove_device(…)

`admitted` stands before every route of the application. It must never let anybody in whom it cannot name, and it sets
who acts, for the audit log.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from marram.cloud.access import Access, Caller
from marram.cloud.api.contract import State
from marram.cloud.api.faults import Unproven
from marram.cloud.api.limits import FailureLimit
from marram.schema.errors import Refused
from marram.schema.people import Permission
from marram.store import acting_as

_bearer = HTTPBearer(auto_error=False, description="The token `marram cloud` wrote into its context file, or your own.")
_DECLARED = "__marram_needs__"
_LONGEST_TOKEN = 512
_Route = TypeVar("_Route", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Needs:
    """What a route asks of its caller: any one of `permissions`; with none of them, only to be somebody (or nobody)."""

    permissions: tuple[Permission, ...] = ()
    anonymous: bool = False


def needs(*any_of: Permission) -> Callable[[_Route], _Route]:
    """The route is for those who have one of these permissions."""
    return _declare(Needs(any_of))


def needs_sign_in(route: _Route) -> _Route:
    """The route is for everybody who is signed in: it shows or changes nothing but what is the caller's own."""
    return _declare(Needs())(route)


def needs_nothing(route: _Route) -> _Route:
    """The route is for strangers: what it asks for (a join token, a password) is the proof, or it tells no secret."""
    return _declare(Needs(anonymous=True))(route)


def needed(endpoint: Any) -> Needs | None:
    """What a route declared; None where it did not."""
    return getattr(endpoint, _DECLARED, None)


def _declare(what: Needs) -> Callable[[_Route], _Route]:
    def declared(route: _Route) -> _Route:
        setattr(route, _DECLARED, what)
        return route

    return declared


def state_of(request: Request) -> State:
    """The cloud behind this request's app."""
    state: State = request.app.state.marram
    return state


def failures_of(request: Request) -> FailureLimit:
    """The failure limit of this request's app."""
    limit: FailureLimit = request.app.state.failures
    return limit


def address_of(request: Request) -> str:
    """Who asks, for the limits only. Of IPv6 the network: one machine has as many addresses in it as it likes."""
    return network_of(request.client.host if request.client else "?")


def network_of(host: str) -> str:
    """The address that limits count: of IPv4 itself, of IPv6 its network."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv4Address):
        return host
    return str(address.ipv4_mapped or ipaddress.ip_network((address, 64), strict=False))


async def admitted(
    request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> None:
    """Raises Unproven (401) without the right token, TooMany (429) after too many wrong ones, Refused (403) where the
    caller may not.

    The right token is let in however many wrong ones came from the same address: a neighbour behind the same router
    cannot lock an operator out.
    """
    declared = needed(getattr(request.scope.get("route"), "endpoint", None))
    if declared is not None and declared.anonymous:
        acting_as("anybody")
        return
    caller = await _caller(request, credentials)
    if declared is None:
        raise Refused("this call says of nobody that they may", hint="This is a fault of Marram's.")
    if declared.permissions:
        caller.require(*declared.permissions)
    request.state.caller = caller
    acting_as(caller.actor)


async def _caller(request: Request, credentials: HTTPAuthorizationCredentials | None) -> Caller:
    token = None if credentials is None else credentials.credentials
    return await proven(state_of(request).access, failures_of(request), address_of(request), token)


async def proven(access: Access, limit: FailureLimit, address: str, token: str | None) -> Caller:
    """Whose `token` it is. Raises Unproven (401), TooMany (429) after too many wrong ones from `address`."""
    if token is None:
        raise Unproven("this needs a token", hint="Send Authorization: Bearer TOKEN.")
    if len(token) <= _LONGEST_TOKEN:
        caller = await run_in_threadpool(access.caller, token)
        if caller is not None:
            return caller
    limit.check(address)
    limit.failed(address)
    raise Unproven(
        "the token is not one of this cloud's, or it is over",
        hint="Sign in again, or see where `marram cloud` says it keeps this machine's.",
    )


def caller_of(request: Request) -> Caller:
    """Who asks, as `admitted` found."""
    caller: Caller = request.state.caller
    return caller


Cloud = Annotated[State, Depends(state_of)]
Who = Annotated[Caller, Depends(caller_of)]
