"""Who may ask: a Bearer token on everything but /healthz and POST /join."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from marram.cloud.api.contract import State
from marram.cloud.api.faults import Unproven
from marram.cloud.api.limits import FailureLimit

_bearer = HTTPBearer(auto_error=False, description="The token `marram cloud` wrote into its context file.")


def state_of(request: Request) -> State:
    """The cloud behind this request's app."""
    state: State = request.app.state.marram
    return state


def failures_of(request: Request) -> FailureLimit:
    """The failure limit of this request's app."""
    limit: FailureLimit = request.app.state.failures
    return limit


def address_of(request: Request) -> str:
    """Who asks, for the failure limit only."""
    return request.client.host if request.client else "?"


async def admitted(
    request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> None:
    """Raises Unproven (401) without the right token, TooMany (429) after too many wrong ones.

    The right token is let in however many wrong ones came from the same address: a neighbour behind the same router
    cannot lock an operator out.
    """
    limit, address = failures_of(request), address_of(request)
    if credentials is None:
        raise Unproven("this needs a token", hint="Send Authorization: Bearer TOKEN.")
    token = credentials.credentials
    if len(token) <= 512 and await run_in_threadpool(state_of(request).admits, token):
        return
    limit.check(address)
    limit.failed(address)
    raise Unproven("the token is not one of this cloud's", hint="`marram cloud` prints where it keeps the right one.")


Cloud = Annotated[State, Depends(state_of)]
