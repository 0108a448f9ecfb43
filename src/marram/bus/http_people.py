"""The part of `CloudApi` that is about people: signing in, users, API tokens, the audit log."""

from __future__ import annotations

from collections.abc import Iterable

from marram.bus.http_wire import Wire, segment, valid
from marram.schema.people import (
    SESSION_S,
    TOKEN_S,
    ApiTokenAsk,
    ApiTokenMade,
    ApiTokenView,
    AuditCheck,
    AuditView,
    Me,
    PasswordChange,
    Permission,
    Role,
    SessionAsk,
    SessionMade,
    UserAsk,
    UserChange,
    UserView,
)


class PeopleCalls(Wire):
    """Raises what every method of `CloudApi` does; Refused where the caller may not."""

    def sign_in(self, name: str, password: str, *, ttl_s: float = SESSION_S) -> SessionMade:
        """A session; its token is not used by this object. Raises Refused (name or password), Retryable (too many)."""
        return self._post("/sessions", valid(SessionAsk, name=name, password=password, ttl_s=ttl_s), SessionMade)

    def sign_out(self) -> None:
        """The token of this object is good for nothing from now on."""
        self._call("DELETE", "/sessions/mine")

    def me(self) -> Me:
        """Who the caller is, and what the token allows."""
        return self._one(Me, self._call("GET", "/me"))

    def change_own_password(self, old: str, new: str) -> None:
        """Ends all of the caller's sessions. Raises Refused (the old one), Invalid (the new one)."""
        body = valid(PasswordChange, old=old, new=new)
        self._call("POST", "/me/password", body)

    def users(self) -> list[UserView]:
        """Everybody, by name."""
        return self._list("/users", UserView)

    def add_user(self, name: str, role: Role, password: str) -> UserView:
        """Raises Conflict (name taken), Invalid (password)."""
        return self._post("/users", valid(UserAsk, name=name, role=role, password=password), UserView)

    def change_user(
        self, name: str, *, role: Role | None = None, disabled: bool | None = None, password: str | None = None
    ) -> UserView:
        """Counts at once, for live sessions and tokens too. Raises Missing, Invalid."""
        body = valid(UserChange, role=role, disabled=disabled, password=password)
        return self._one(UserView, self._call("PATCH", f"/users/{segment(name)}", body))

    def remove_user(self, name: str) -> None:
        """With their sessions and tokens. Raises Missing."""
        self._call("DELETE", f"/users/{segment(name)}")

    def create_api_token(
        self,
        name: str,
        *,
        owner: str | None = None,
        scopes: Iterable[Permission] | None = None,
        ttl_s: float = TOKEN_S,
    ) -> ApiTokenMade:
        """For `owner` (None: the caller); it may never do more than its owner. Raises Refused, Missing."""
        wanted = None if scopes is None else list(scopes)
        ask = valid(ApiTokenAsk, name=name, owner=owner, scopes=wanted, ttl_s=ttl_s)
        return self._post("/api-tokens", ask, ApiTokenMade)

    def api_tokens(self, owner: str | None = None) -> list[ApiTokenView]:
        """The caller's own, or (who may change people) everybody's."""
        return self._list("/api-tokens", ApiTokenView, owner=owner)

    def revoke_api_token(self, id: str) -> None:
        """Raises Missing."""
        self._call("DELETE", f"/api-tokens/{segment(id)}")

    def audit(
        self,
        *,
        actor: str | None = None,
        action: str | None = None,
        target: str | None = None,
        since_s: float | None = None,
        after: int | None = None,
        limit: int = 100,
    ) -> list[AuditView]:
        """Changes, oldest first: the first `limit` after row `after`; without it, the last `limit`."""
        query = {"actor": actor, "action": action, "target": target, "since": since_s, "after": after, "limit": limit}
        return self._list("/audit", AuditView, **query)

    def check_audit(self, kept: tuple[int, str] | None = None) -> AuditCheck:
        """Whether the log is whole; `kept`: id and digest of a row, from elsewhere, that must still be there."""
        query = {} if kept is None else {"id": str(kept[0]), "digest": kept[1]}
        return self._one(AuditCheck, self._call("GET", "/audit/check", params=query))
