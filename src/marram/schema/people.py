"""People and programs that use the cloud: what each may do.

A permission is the smallest thing that can be allowed. A role is a set of them, for a person; a scope is one of them,
for an API token, which may never do more than its owner.
"""

from __future__ import annotations

from enum import StrEnum


class Permission(StrEnum):
    """What a caller may do; each route of the API names the one it needs."""

    READ = "read"  # see devices, results, models, deployments
    LABEL = "label"  # say what samples show
    DEPLOY = "deploy"  # deploy, promote, pause, abort, retry; upload what that needs
    MODELS = "models"  # add models, move channels; upload what that needs
    DEVICES = "devices"  # join tokens, remove and revoke devices, their labels, secrets
    PEOPLE = "people"  # users, their roles, everybody's API tokens
    AUDIT = "audit"  # read the audit log


class Role(StrEnum):
    """What a person is to the cloud."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMIN = "admin"

    @property
    def permissions(self) -> frozenset[Permission]:
        return ROLES[self]


_OPERATES = frozenset({Permission.READ, Permission.LABEL, Permission.DEPLOY, Permission.MODELS, Permission.DEVICES})
ROLES: dict[Role, frozenset[Permission]] = {
    Role.VIEWER: frozenset({Permission.READ}),
    Role.OPERATOR: _OPERATES,
    Role.ADMIN: frozenset(Permission),
}
