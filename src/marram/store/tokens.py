"""Join tokens as rows: only hashes of secrets are here. What proves a token is `trust`'s business."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, delete, insert, select, update

from marram.schema.errors import Missing
from marram.store.audit import noted
from marram.store.database import Database
from marram.store.documents import dump, load
from marram.store.tables import tokens


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


class Tokens:
    """The table of join tokens."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, row: TokenRow) -> None:
        with self._database.write() as connection:
            noted(id=row.id, labels=row.labels, uses=row.uses, expires_s=row.expires_s)
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
                raise Missing(f'no token "{token}"', hint="`marram token list` shows those that can still be used.")


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
