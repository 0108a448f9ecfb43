"""People: added, changed, signed in; their API tokens. Who may do it to whom.

One rule stands behind all of them: nobody gives, or takes from others, what they do not have themselves. An operator
makes no admin, a token with the scope `people` alone touches nobody who may more, and a token makes no tokens at all
(a stolen one could outlive its revocation). Passwords and hashes go no further than `passwords`.
"""

from __future__ import annotations

from marram.cloud.access import Access, Caller
from marram.cloud.passwords import Passwords, chosen
from marram.schema.errors import Invalid, Refused
from marram.schema.people import (
    ApiTokenAsk,
    ApiTokenMade,
    ApiTokenView,
    Permission,
    Role,
    SessionAsk,
    SessionMade,
    UserAsk,
    UserChange,
    UserView,
    normal_name,
)
from marram.store import AdminRow, Store, UserRow, auditing


class WrongPassword(Refused):
    """No such person, a wrong password, or one who is disabled: which of them is nobody's business."""

    def __init__(self) -> None:
        super().__init__("name or password is wrong", hint="An admin sets a new one: marram user passwd NAME")


class People:
    """Blocking; safe from any thread."""

    def __init__(self, store: Store, access: Access, passwords: Passwords | None = None) -> None:
        self._users, self._admins, self._access = store.users, store.admins, access
        self._passwords = passwords or Passwords()

    # ------------------------------------------------------------ signing in

    def sign_in(self, ask: SessionAsk) -> SessionMade:
        """A session. Raises WrongPassword, after the same work whoever is named."""
        row = self._proven(ask.name, ask.password)
        with auditing(f"user:{row.name}", "session.open", row.name):
            token, _ = self._access.add("signed in", row.name, ttl_s=ask.ttl_s, session=True)
        caller = self._access.caller(token.text)
        if caller is None:  # disabled between the two
            raise WrongPassword
        return SessionMade(
            token=token.text,
            user=row.name,
            role=row.role,
            permissions=sorted(caller.permissions),
            expires_s=caller.expires_s,
        )

    def change_own_password(self, caller: Caller, old: str, new: str) -> None:
        """Ends all of the person's sessions, the caller's too. Raises WrongPassword, Invalid, Refused (no person)."""
        if caller.user is None:
            raise Refused("this machine's token has no password", hint="marram user passwd NAME")
        row = self._proven(caller.user, old)
        self._set(caller, row, password=new)

    def _proven(self, name: str, password: str) -> UserRow:
        row = self._users.find(str(normal_name(name)))
        right = self._passwords.proves(password, row.password_hash if row else None)
        if row is None or not right or row.disabled:
            raise WrongPassword
        if self._passwords.is_old(row.password_hash):
            self._users.rehash(row.name, row.password_hash, self._passwords.hash(password))
        return row

    # ------------------------------------------------------------ people

    def everybody(self) -> list[UserView]:
        """By name."""
        return [user_view(row) for row in self._users.list()]

    def get(self, name: str) -> UserView:
        """Raises Missing."""
        return user_view(self._users.get(name))

    def add(self, caller: Caller, ask: UserAsk) -> UserView:
        """Raises Conflict (name taken), Invalid (password), Refused (a role that may more than the caller)."""
        _has_all(caller, ask.role, f"make a person {ask.role.value}")
        kept = self._passwords.hash(chosen(ask.password, ask.name))
        with auditing(caller.actor, "user.add", ask.name, role=ask.role.value):
            return user_view(self._users.add(ask.name, ask.role, kept))

    def change(self, caller: Caller, name: str, change: UserChange) -> UserView:
        """Role, password, disabled or not. Raises Missing, Invalid, Refused, Conflict."""
        row = self._users.get(name)
        _has_all(caller, row.role, f"change {name}, who is {row.role.value}")
        if change.role is not None:
            _has_all(caller, change.role, f"make a person {change.role.value}")
        return user_view(self._set(caller, row, change.role, change.disabled, change.password))

    def _set(
        self,
        caller: Caller,
        row: UserRow,
        role: Role | None = None,
        disabled: bool | None = None,
        password: str | None = None,
    ) -> UserRow:
        kept = None if password is None else self._passwords.hash(chosen(password, row.name))
        detail = {
            **({} if role is None else {"role": role.value}),
            **({} if disabled is None else {"disabled": disabled}),
            **({} if password is None else {"credentials": "new"}),
        }
        with auditing(caller.actor, "user.change", row.name, **detail):
            new = self._users.change(row.name, role=role, disabled=disabled, password_hash=kept, only=row.role)
        self._access.forget()
        return new

    def remove(self, caller: Caller, name: str) -> None:
        """With their sessions and tokens. Raises Missing, Refused."""
        row = self._users.get(name)
        _has_all(caller, row.role, f"remove {name}, who is {row.role.value}")
        with auditing(caller.actor, "user.remove", name, role=row.role.value):
            self._users.remove(name, row.role)
        self._access.forget()

    # ------------------------------------------------------------ API tokens

    def create_token(self, caller: Caller, ask: ApiTokenAsk) -> ApiTokenMade:
        """For the caller, or (who may change people) for somebody else. Raises Refused, Missing, Invalid."""
        if not (caller.is_machine or caller.session):
            raise Refused("an API token makes no other tokens", hint="Sign in with name and password: marram login")
        owner = ask.owner or caller.user
        if owner is None:
            raise Invalid("whose token is it to be?", where="owner", hint="marram user token create NAME")
        row = self._users.get(owner)
        if owner != caller.user:
            caller.require(Permission.PEOPLE)
            _has_all(caller, row.role, f"make a token for {owner}, who is {row.role.value}")
        scopes = None if ask.scopes is None else frozenset(ask.scopes)
        beyond = sorted((scopes or frozenset()) - row.role.permissions)
        if beyond:
            raise Refused(
                f"{owner} ({row.role.value}) has no permission {', '.join(beyond)}, nor can a token of theirs",
                hint=f"Scopes that it can have: {', '.join(sorted(row.role.permissions))}",
            )
        said = "all" if scopes is None else sorted(scopes)
        with auditing(caller.actor, "token.create", owner, name=ask.name, scopes=said):
            token, made = self._access.add(ask.name, owner, ttl_s=ask.ttl_s, scopes=scopes)
        return ApiTokenMade(**token_view(made).model_dump(), token=token.text)

    def tokens(self, caller: Caller, owner: str | None = None) -> list[ApiTokenView]:
        """Tokens and sessions: the caller's own, or (who may change people) anybody's. Raises Refused."""
        if not caller.may(Permission.PEOPLE):
            if owner not in (None, caller.user):
                caller.require(Permission.PEOPLE)
            owner = caller.user
        return [token_view(row) for row in self._admins.list(owner)]

    def revoke_token(self, caller: Caller, id: str) -> None:
        """One's own, or (who may change people) anybody's who may no more than the caller. Raises Missing, Refused."""
        row = self._admins.get(id)
        if row.owner is None or row.owner != caller.user:
            caller.require(Permission.PEOPLE)
            owner = self._users.find(row.owner) if row.owner else None
            _has_all(caller, owner.role if owner else Role.ADMIN, "revoke the token of one who may do more")
        self._access.revoke(id)


def user_view(row: UserRow) -> UserView:
    """A person as the API shows them."""
    return UserView(name=row.name, role=row.role, created_s=row.created_s, disabled=row.disabled)


def token_view(row: AdminRow) -> ApiTokenView:
    """An API token as the API shows it."""
    return ApiTokenView(
        id=row.id,
        name=row.name,
        owner=row.owner,
        scopes=None if row.scopes is None else sorted(row.scopes),
        created_s=row.created_s,
        expires_s=row.expires_s,
        revoked=row.revoked,
        session=row.session,
    )


def _has_all(caller: Caller, role: Role, what: str) -> None:
    """Raises Refused where `role` may do something that `caller` may not."""
    beyond = sorted(role.permissions - caller.permissions)
    if beyond:
        raise Refused(f"{caller.name} may not {what}: it lacks {', '.join(beyond)}", hint="An admin may.")
