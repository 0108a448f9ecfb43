"""API tokens and sessions as rows: only hashes of secrets are here. What proves one is `trust`'s business."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, insert, select, update

from marram.schema.errors import Missing
from marram.schema.people import Permission, Role
from marram.store.audit import noted, unchanged
from marram.store.database import Database
from marram.store.documents import dump, load
from marram.store.tables import admins, users


@dataclass(frozen=True, slots=True)
class AdminRow:
    """An API token: of a person (`owner`), or of a machine that a cloud runs on (None), which may do everything.

    `scopes` None: all that its owner may do. `session`: made by signing in.
    """

    id: str
    name: str
    secret_hash: str
    created_s: float
    revoked: bool = False
    owner: str | None = None
    scopes: frozenset[Permission] | None = None
    expires_s: float | None = None
    session: bool = False


@dataclass(frozen=True, slots=True)
class Held:
    """A token and what its owner is now; `role` None: there is no such person (or the token is a machine's)."""

    token: AdminRow
    role: Role | None
    disabled: bool


class Admins:
    """The table of API tokens."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, row: AdminRow, most_sessions: int | None = None) -> None:
        """Keep a token. Its owner's expired ones are forgotten with it; so are sessions beyond `most_sessions`, the
        oldest first. Raises Missing (no such person).
        """
        with self._database.write() as connection:
            # None of nobody: a person who was removed since this began gets no token.
            if (
                row.owner is not None
                and not connection.execute(
                    select(users.c.name).where(users.c.name == row.owner).with_for_update()
                ).first()
            ):
                raise Missing(f'no user "{row.owner}"')
            mine = admins.c.owner == row.owner
            connection.execute(delete(admins).where(mine, admins.c.expires_s < time.time()))
            if most_sessions is not None:
                query = select(admins.c.id).where(mine, admins.c.session).order_by(admins.c.created_s.desc())
                old = connection.execute(query.offset(most_sessions - 1)).scalars().all()
                connection.execute(delete(admins).where(admins.c.id.in_(old)))
            connection.execute(
                insert(admins),
                {
                    "id": row.id,
                    "name": row.name,
                    "secret_hash": row.secret_hash,
                    "created_s": row.created_s,
                    "revoked": row.revoked,
                    "owner": row.owner,
                    "scopes": None if row.scopes is None else dump(sorted(row.scopes)),
                    "expires_s": row.expires_s,
                    "session": row.session,
                },
            )
            noted(id=row.id)

    def get(self, admin: str) -> AdminRow:
        """Raises Missing."""
        with self._database.read() as connection:
            row = connection.execute(select(admins).where(admins.c.id == admin)).first()
        if row is None:
            raise _missing(admin)
        return _admin(row)

    def held(self) -> list[Held]:
        """Every token that is not revoked, with what its owner is: all that decides who is let in."""
        query = (
            select(admins, users.c.role, users.c.disabled)
            .select_from(admins.outerjoin(users, users.c.name == admins.c.owner))
            .where(admins.c.revoked.is_(False))
        )
        with self._database.read() as connection:
            return [
                Held(_admin(row), None if row.role is None else Role(row.role), bool(row.disabled))
                for row in connection.execute(query)
            ]

    def revoke(self, admin: str) -> None:
        """A session is forgotten by it, a token kept as revoked. Raises Missing."""
        with self._database.write() as connection:
            row = connection.execute(select(admins).where(admins.c.id == admin)).first()
            if row is None:
                raise _missing(admin)
            noted(owner=row.owner, name=row.name)
            if row.session:
                connection.execute(delete(admins).where(admins.c.id == admin))
            elif row.revoked:
                unchanged()
            else:
                connection.execute(update(admins).where(admins.c.id == admin).values(revoked=True))

    def list(self, owner: str | None = None) -> list[AdminRow]:
        """Oldest first; of one person, or all."""
        query = select(admins).order_by(admins.c.created_s, admins.c.id)
        if owner is not None:
            query = query.where(admins.c.owner == owner)
        with self._database.read() as connection:
            return [_admin(row) for row in connection.execute(query)]


def _missing(admin: str) -> Missing:
    return Missing(f'no API token "{admin}"', hint="`marram user token list` shows them.")


def _scopes(text: str | None) -> frozenset[Permission] | None:
    """A scope that this Marram does not know allows nothing."""
    known: Iterable[str] = [] if text is None else load(text)
    return None if text is None else frozenset(Permission(each) for each in known if each in set(Permission))


def _admin(row: Any) -> AdminRow:
    return AdminRow(
        row.id,
        row.name,
        row.secret_hash,
        row.created_s,
        bool(row.revoked),
        row.owner,
        _scopes(row.scopes),
        row.expires_s,
        bool(row.session),
    )
