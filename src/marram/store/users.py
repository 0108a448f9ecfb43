"""People as rows: name, role, the hash of a password. What proves a password is `cloud`'s business."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import delete, insert, select, update

from marram.schema.errors import Conflict, Missing
from marram.schema.people import Role
from marram.schema.words import did_you_mean
from marram.store.audit import noted
from marram.store.database import Database
from marram.store.tables import admins, users


@dataclass(frozen=True, slots=True)
class UserRow:
    """A person. A disabled one keeps everything and may do nothing."""

    name: str
    role: Role
    password_hash: str
    created_s: float = 0.0
    disabled: bool = False


class Users:
    """The table of people."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, name: str, role: Role, password_hash: str, now_s: float | None = None) -> UserRow:
        """Raises Conflict where the name is taken."""
        row = UserRow(name, role, password_hash, time.time() if now_s is None else now_s)
        values = {"name": name, "role": role.value, "password_hash": password_hash, "created_s": row.created_s}
        try:
            with self._database.write() as connection:
                connection.execute(insert(users), values | {"disabled": False})
        except Conflict as error:
            raise Conflict(f'a user named "{name}" exists already', hint="`marram user list` shows all.") from error
        return row

    def find(self, name: str) -> UserRow | None:
        with self._database.read() as connection:
            row = connection.execute(select(users).where(users.c.name == name)).first()
        return None if row is None else _user(row)

    def get(self, name: str) -> UserRow:
        """Raises Missing."""
        row = self.find(name)
        if row is None:
            raise self._missing(name)
        return row

    def list(self) -> list[UserRow]:
        """By name."""
        with self._database.read() as connection:
            return [_user(row) for row in connection.execute(select(users).order_by(users.c.name))]

    def change(
        self,
        name: str,
        *,
        role: Role | None = None,
        disabled: bool | None = None,
        password_hash: str | None = None,
        only: Role | None = None,
    ) -> UserRow:
        """Change what is given; a new password ends the person's sessions, for good with being disabled.

        `only`: the role the caller decided about; Conflict where it is another by now. Raises Missing.
        """
        with self._database.write() as connection:
            found = connection.execute(select(users).where(users.c.name == name).with_for_update()).first()
            if found is None:
                raise self._missing(name)
            old = _user(found)
            if only is not None and old.role is not only:
                raise Conflict(f'"{name}" was made {old.role.value} meanwhile', hint="Look again: marram user list")
            new = replace(
                old,
                role=old.role if role is None else role,
                disabled=old.disabled if disabled is None else disabled,
                password_hash=old.password_hash if password_hash is None else password_hash,
            )
            values = {"role": new.role.value, "disabled": new.disabled, "password_hash": new.password_hash}
            connection.execute(update(users).where(users.c.name == name).values(**values))
            if new.role is not old.role:
                noted(was=old.role.value)
            if password_hash is not None or (new.disabled and not old.disabled):
                connection.execute(delete(admins).where(admins.c.owner == name, admins.c.session))
        return new

    def rehash(self, name: str, old_hash: str, new_hash: str) -> None:
        """Keep the same password under newer parameters; nothing where it was changed meanwhile. No act of anybody."""
        with self._database.write() as connection:
            same = (users.c.name == name) & (users.c.password_hash == old_hash)
            connection.execute(update(users).where(same).values(password_hash=new_hash))

    def remove(self, name: str, only: Role | None = None) -> None:
        """Forget a person, with their sessions and API tokens; the audit log remembers. Raises Missing, Conflict."""
        with self._database.write() as connection:
            known = users.c.name == name
            if only is not None:
                known &= users.c.role == only.value
            if connection.execute(delete(users).where(known)).rowcount == 0:
                raise self._missing(name)
            connection.execute(delete(admins).where(admins.c.owner == name))

    def _missing(self, name: str) -> Missing:
        near = did_you_mean(name, (row.name for row in self.list()))
        return Missing(f'no user "{name}"{near}', hint="`marram user list` shows all.")


def _user(row: Any) -> UserRow:
    return UserRow(row.name, Role(row.role), row.password_hash, row.created_s, bool(row.disabled))
