"""Join tokens and API tokens as rows: only hashes of secrets are here. What proves a token is `trust`'s business."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, delete, insert, select, update

from marram.schema.errors import Missing
from marram.store.database import Database
from marram.store.documents import dump, load
from marram.store.tables import admins, tokens


@dataclass(frozen=True, slots=True)
class TokenRow:
    """A join token: devices that join with it get `labels`; good for `uses_left` more, until `expires_s`."""

    id: str
    secret_hash: str
    labels: dict[str, str]
    uses: int
    uses_left: int
    created_s: float
    expires_s: float


@dataclass(frozen=True, slots=True)
class AdminRow:
    """An API token of a person or a program."""

    id: str
    name: str
    secret_hash: str
    created_s: float
    revoked: bool = False


class Tokens:
    """The table of join tokens."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, row: TokenRow) -> None:
        with self._database.write() as connection:
            connection.execute(
                insert(tokens),
                {
                    "id": row.id,
                    "secret_hash": row.secret_hash,
                    "labels": dump(row.labels),
                    "uses": row.uses,
                    "uses_left": row.uses_left,
                    "created_s": row.created_s,
                    "expires_s": row.expires_s,
                },
            )

    def get(self, token: str) -> TokenRow | None:
        with self._database.read() as connection:
            row = connection.execute(select(tokens).where(tokens.c.id == token)).first()
        return None if row is None else _token(row)

    def list(self) -> list[TokenRow]:
        """Newest first."""
        with self._database.read() as connection:
            return [_token(row) for row in connection.execute(select(tokens).order_by(tokens.c.created_s.desc()))]

    def remove(self, token: str) -> None:
        """Raises Missing."""
        with self._database.write() as connection:
            if connection.execute(delete(tokens).where(tokens.c.id == token)).rowcount == 0:
                raise Missing(f'no token "{token}"', hint="`marram token list` shows all.")


class Admins:
    """The table of API tokens."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, admin: str, name: str, secret_hash: str, now_s: float | None = None) -> None:
        created_s = time.time() if now_s is None else now_s
        with self._database.write() as connection:
            connection.execute(
                insert(admins),
                {"id": admin, "name": name, "secret_hash": secret_hash, "created_s": created_s, "revoked": False},
            )

    def get(self, admin: str) -> AdminRow | None:
        with self._database.read() as connection:
            row = connection.execute(select(admins).where(admins.c.id == admin)).first()
        return None if row is None else AdminRow(row.id, row.name, row.secret_hash, row.created_s, row.revoked)

    def list(self) -> list[AdminRow]:
        with self._database.read() as connection:
            return [
                AdminRow(row.id, row.name, row.secret_hash, row.created_s, row.revoked)
                for row in connection.execute(select(admins).order_by(admins.c.created_s))
            ]

    def revoke(self, admin: str) -> None:
        """Raises Missing."""
        with self._database.write() as connection:
            if connection.execute(update(admins).where(admins.c.id == admin).values(revoked=True)).rowcount == 0:
                raise Missing(f'no API token "{admin}"')


def use_token(connection: Connection, token: str, now_s: float) -> bool:
    """Take one use, within a transaction of another noun; False where none is left or it is too late.

    Two who race for the last use: one gets it.
    """
    taken = connection.execute(
        update(tokens)
        .where(tokens.c.id == token, tokens.c.uses_left > 0, tokens.c.expires_s > now_s)
        .values(uses_left=tokens.c.uses_left - 1)
    )
    return taken.rowcount == 1


def _token(row: Any) -> TokenRow:
    return TokenRow(row.id, row.secret_hash, load(row.labels), row.uses, row.uses_left, row.created_s, row.expires_s)
