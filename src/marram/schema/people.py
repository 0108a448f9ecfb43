"""People and programs that use the cloud: what each may do.

A permission is the smallest thing that can be allowed. A role is a set of them, for a person; a scope is one of them,
for an API token, which may never do more than its owner.
"""

from __future__ import annotations

import unicodedata
from enum import StrEnum
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, StringConstraints

from marram.schema.api import LONGEST_S, Label, Reply
from marram.schema.ids import Name
from marram.schema.model import Strict


class Permission(StrEnum):
    """What a caller may do; each route of the API names the one it needs."""

    READ = "read"  # see devices, results, models, deployments
    LABEL = "label"  # say what samples show
    DEPLOY = "deploy"  # deploy, promote, pause, abort, retry; upload what that needs
    MODELS = "models"  # add models, move channels; upload what that needs
    DEVICES = "devices"  # join tokens, remove and revoke devices, their labels, secrets
    PEOPLE = "people"  # users, their roles, everybody's API tokens
    AUDIT = "audit"  # read the audit log
    INFER = "infer"  # have the cloud's models answer, over the Open Inference Protocol: it costs computing


class Role(StrEnum):
    """What a person is to the cloud."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMIN = "admin"

    @property
    def permissions(self) -> frozenset[Permission]:
        return ROLES[self]


_OPERATES = frozenset(
    {
        Permission.READ,
        Permission.LABEL,
        Permission.DEPLOY,
        Permission.MODELS,
        Permission.DEVICES,
        Permission.INFER,
    }
)
ROLES: dict[Role, frozenset[Permission]] = {
    Role.VIEWER: frozenset({Permission.READ}),
    Role.OPERATOR: _OPERATES,
    Role.ADMIN: frozenset(Permission),
}


def normal_name(text: object) -> object:
    """How a person's name is written: NFKC, small letters, no spaces around; the alphabet is that of every name."""
    return unicodedata.normalize("NFKC", text[:200]).casefold().strip()[:200] if isinstance(text, str) else text


UserName = Annotated[Name, BeforeValidator(normal_name)]
# As long as it may be to be looked at; which may be chosen is `cloud.passwords`' business. No field of it has a `repr`.
Password = Annotated[str, StringConstraints(min_length=1, max_length=1024)]
TokenName = Annotated[Label, StringConstraints(max_length=100)]
DAY_S = 86400.0
# How long a command line stays signed in, and an API token is good, where nobody says otherwise.
SESSION_S = 12 * 3600.0
TOKEN_S = 90 * DAY_S


class SessionAsk(Strict):
    """Sign in: the token that comes back is good for `ttl_s`."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=200)]
    password: Password = Field(repr=False)
    ttl_s: float = Field(default=SESSION_S, gt=0, le=7 * DAY_S)


class Me(Reply):
    """Who the caller is: a person (`user`), or the machine that the cloud runs on (None)."""

    user: str | None = None
    role: Role | None = None
    permissions: list[Permission] = []
    expires_s: float | None = None


class SessionMade(Me):
    """A session's token: the only time it is told."""

    token: str = Field(repr=False)


class UserAsk(Strict):
    """A new person."""

    name: UserName
    role: Role
    password: Password = Field(repr=False)


class UserChange(Strict):
    """What to change of a person; None leaves it. A new password ends their sessions."""

    role: Role | None = None
    disabled: bool | None = None
    password: Password | None = Field(default=None, repr=False)


class PasswordChange(Strict):
    """A person's own new password."""

    old: Password = Field(repr=False)
    new: Password = Field(repr=False)


class UserView(Reply):
    """A person."""

    name: str
    role: Role
    created_s: float
    disabled: bool = False


class ApiTokenAsk(Strict):
    """An API token for `owner` (None: the caller), good for `ttl_s`. `scopes` None: all that the owner may do."""

    name: TokenName
    owner: UserName | None = None
    scopes: list[Permission] | None = Field(default=None, min_length=1, max_length=len(Permission))
    ttl_s: float = Field(default=TOKEN_S, gt=0, le=LONGEST_S)


class ApiTokenView(Reply):
    """An API token, without the token itself; `owner` None: of a machine that a cloud runs on."""

    id: str
    name: str
    owner: str | None = None
    scopes: list[Permission] | None = None
    created_s: float = 0
    expires_s: float | None = None
    revoked: bool = False
    # Made by signing in.
    session: bool = False


class ApiTokenMade(ApiTokenView):
    """A fresh API token: the only time it is told."""

    token: str = Field(repr=False)


class AuditView(Reply):
    """One change, by whom. `digest` is made of the rest of the row, `previous` (of the row before) included."""

    id: int
    time_s: float
    actor: str
    action: str
    target: str
    detail: dict[str, Any] = {}
    previous: str
    digest: str


class AuditCheck(Reply):
    """Whether the log is whole: `rows` that hold, and the digest of the last; else the first broken row and why."""

    rows: int
    head: str
    broken: int | None = None
    why: str = ""
