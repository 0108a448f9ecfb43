"""Secrets, sealed: who may have them, which version it is. What they are, this database never learns."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, select

from marram.schema.errors import Missing
from marram.store.database import Database
from marram.store.documents import dump, load
from marram.store.tables import secrets
from marram.store.upsert import upsert


@dataclass(frozen=True, slots=True)
class SecretRow:
    """One secret. `version` is another with each change, also after it was removed and set anew."""

    name: str
    sealed: str
    selector: dict[str, str]
    version: int
    changed_s: float


class Secrets:
    """The table of secrets."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def set(
        self, name: str, selector: dict[str, str], seal: Callable[[int], str], now_s: float | None = None
    ) -> SecretRow:
        """Set it; `seal` gives what to keep for a version, in the transaction that decides which that is."""
        now_s = time.time() if now_s is None else now_s
        with self._database.write() as connection:
            self._database.order_ids(connection)
            before = connection.execute(select(secrets.c.version).where(secrets.c.name == name)).scalar()
            # By the clock, so that a name that was removed does not come back under a version that devices know.
            version = max((before or 0) + 1, int(now_s) % 2**31)
            row = SecretRow(name, seal(version), selector, version, now_s)
            upsert(
                connection,
                secrets,
                {
                    "name": name,
                    "sealed": row.sealed,
                    "selector": dump(selector),
                    "version": version,
                    "changed_s": now_s,
                },
            )
            return row

    def list(self) -> list[SecretRow]:
        """By name."""
        with self._database.read() as connection:
            return [_row(row) for row in connection.execute(select(secrets).order_by(secrets.c.name))]

    def remove(self, name: str) -> None:
        """Raises Missing."""
        with self._database.write() as connection:
            if connection.execute(delete(secrets).where(secrets.c.name == name)).rowcount == 0:
                raise Missing(f'no secret "{name}"', hint="`marram secret list` shows all.")


def _row(row: Any) -> SecretRow:
    return SecretRow(row.name, row.sealed, load(row.selector), row.version, row.changed_s)
