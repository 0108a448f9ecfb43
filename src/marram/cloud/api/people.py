"""Signing in and out; people, API tokens, the audit log."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request

from marram.cloud.access import Caller
from marram.cloud.api.desk import Desk
from marram.cloud.api.guard import Cloud, Who, address_of, needs, needs_nothing, needs_sign_in
from marram.schema.errors import Invalid
from marram.schema.people import (
    ApiTokenAsk,
    ApiTokenMade,
    ApiTokenView,
    AuditCheck,
    AuditView,
    Me,
    PasswordChange,
    Permission,
    SessionAsk,
    SessionMade,
    UserAsk,
    UserChange,
    UserName,
    UserView,
)
from marram.store import AuditFilter, AuditRow

router = APIRouter(tags=["people"])

_LARGEST = 2**63 - 1
TokenId = Annotated[str, Path(max_length=32)]
Words = Annotated[str | None, Query(max_length=400)]


def desk_of(request: Request) -> Desk:
    """Where this app's people sign in."""
    desk: Desk = request.app.state.desk
    return desk


@router.post("/sessions", status_code=201)
@needs_nothing
async def sign_in(ask: SessionAsk, cloud: Cloud, request: Request) -> SessionMade:
    """Sign in with name and password: a token for this session, told once. So many wrong ones, then 429 for a while."""
    return await desk_of(request).attempt(ask.name, address_of(request), lambda: cloud.people.sign_in(ask))


@router.delete("/sessions/mine", status_code=204)
@needs_sign_in
def sign_out(cloud: Cloud, who: Who) -> None:
    """The token that comes with this call is good for nothing from now on."""
    cloud.access.end(who)


@router.get("/me")
@needs_sign_in
def me(who: Who) -> Me:
    """Who the caller is, and what the caller's token allows."""
    return me_view(who)


@router.post("/me/password", status_code=204)
@needs_sign_in
async def change_own_password(ask: PasswordChange, cloud: Cloud, who: Who, request: Request) -> None:
    """A new password, by proof of the old one; ends all of the person's sessions."""

    def change() -> None:
        cloud.people.change_own_password(who, ask.old, ask.new)

    await desk_of(request).attempt(who.user or "", address_of(request), change)


@router.get("/users")
@needs(Permission.PEOPLE)
def users(cloud: Cloud) -> list[UserView]:
    """Everybody, by name."""
    return cloud.people.everybody()


@router.post("/users", status_code=201)
@needs(Permission.PEOPLE)
def add_user(ask: UserAsk, cloud: Cloud, who: Who) -> UserView:
    """A new person."""
    return cloud.people.add(who, ask)


@router.patch("/users/{name}")
@needs(Permission.PEOPLE)
def change_user(name: UserName, ask: UserChange, cloud: Cloud, who: Who) -> UserView:
    """Another role, a new password, disabled or not. Counts at once, for live sessions and tokens too."""
    if ask == UserChange():
        raise Invalid("nothing to change", hint="Send role, disabled or password.")
    return cloud.people.change(who, name, ask)


@router.delete("/users/{name}", status_code=204)
@needs(Permission.PEOPLE)
def remove_user(name: UserName, cloud: Cloud, who: Who) -> None:
    """Forget a person, with their sessions and tokens. The audit log remembers."""
    cloud.people.remove(who, name)


@router.post("/api-tokens", status_code=201)
@needs_sign_in
def create_api_token(ask: ApiTokenAsk, cloud: Cloud, who: Who) -> ApiTokenMade:
    """An API token: told once, here. One's own; anybody's for who may change people."""
    return cloud.people.create_token(who, ask)


@router.get("/api-tokens")
@needs_sign_in
def api_tokens(cloud: Cloud, who: Who, owner: UserName | None = None) -> list[ApiTokenView]:
    """API tokens and sessions, without the tokens themselves: one's own; everybody's for who may change people."""
    return cloud.people.tokens(who, owner)


@router.delete("/api-tokens/{id}", status_code=204)
@needs_sign_in
def revoke_api_token(id: TokenId, cloud: Cloud, who: Who) -> None:
    """It is good for nothing from now on. One's own; anybody's for who may change people."""
    cloud.people.revoke_token(who, id)


@router.get("/audit")
@needs(Permission.AUDIT)
def audit(
    cloud: Cloud,
    actor: Words = None,
    action: Words = None,
    target: Words = None,
    since: Annotated[float | None, Query(ge=0, le=1e12, description="at this Unix time or later")] = None,
    after: Annotated[int | None, Query(ge=0, le=_LARGEST)] = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 100,
) -> list[AuditView]:
    """Changes, oldest first: the first `limit` after row `after`; without it, the last `limit`.

    `actor` and `action` mean what is below them, too: `user:ann` also her tokens, `user` every change of people.
    """
    which = AuditFilter(actor, action, target, since)
    return [audit_view(row) for row in cloud.audit.list(which, limit, after)]


@router.get("/audit/check")
@needs(Permission.AUDIT)
def check_audit(
    cloud: Cloud,
    id: Annotated[int | None, Query(ge=1, le=_LARGEST)] = None,
    digest: Annotated[str | None, Query(pattern="^[0-9a-f]{64}$")] = None,
) -> AuditCheck:
    """Whether the log is whole. With `id` and `digest` of a row that was kept elsewhere: whether it is still there."""
    if (id is None) != (digest is None):
        raise Invalid("id and digest go together")
    found = cloud.audit.verify(None if id is None or digest is None else (id, digest))
    return AuditCheck(rows=found.rows, head=found.head, broken=found.broken, why=found.why)


def me_view(caller: Caller) -> Me:
    """A caller as the API shows them."""
    return Me(user=caller.user, role=caller.role, permissions=sorted(caller.permissions), expires_s=caller.expires_s)


def audit_view(row: AuditRow) -> AuditView:
    """A row of the audit log as the API shows it."""
    return AuditView(
        id=row.id,
        time_s=row.time_s,
        actor=row.actor,
        action=row.action,
        target=row.target,
        detail=row.detail,
        previous=row.previous,
        digest=row.digest,
    )
