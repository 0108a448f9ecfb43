"""App versions as rows: an integer by app name, and all that a device needs to run it (`DesiredApp`)."""

from __future__ import annotations

import builtins
import time
from dataclasses import dataclass
from typing import Any

from sqlalchemy import distinct, func, insert, select

from marram.schema.device import DesiredApp
from marram.store.audit import unchanged
from marram.store.database import Database
from marram.store.tables import apps


@dataclass(frozen=True, slots=True)
class AppRow:
    """One app version. `digest` covers its files and the model versions it means."""

    name: str
    version: int
    digest: str
    app: DesiredApp
    created_s: float


class Apps:
    """The table of app versions."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, app: DesiredApp, digest: str, now_s: float | None = None) -> AppRow:
        """The version that holds this content: the one that has it already, else the next number.

        `app.version` is ignored: the number is given here, inside the transaction.
        """
        with self._database.write() as connection:
            self._database.order_ids(connection)
            unchanged()  # nobody runs it before it is deployed
            same = connection.execute(select(apps).where(apps.c.name == app.name, apps.c.digest == digest)).first()
            if same is not None:
                return _app(same)
            last = connection.execute(select(func.max(apps.c.version)).where(apps.c.name == app.name)).scalar() or 0
            numbered = app.model_copy(update={"version": last + 1})
            row = {
                "name": app.name,
                "version": numbered.version,
                "digest": digest,
                "document": numbered.model_dump_json(),
                "created_s": time.time() if now_s is None else now_s,
            }
            connection.execute(insert(apps), row)
            return AppRow(app.name, numbered.version, digest, numbered, float(str(row["created_s"])))

    def get(self, name: str, version: int | None = None) -> AppRow | None:
        """One version, the newest where `version` is None; None where there is none."""
        query = select(apps).where(apps.c.name == name)
        query = (
            query.order_by(apps.c.version.desc()).limit(1)
            if version is None
            else query.where(apps.c.version == version)
        )
        with self._database.read() as connection:
            row = connection.execute(query).first()
        return None if row is None else _app(row)

    def list(self) -> list[AppRow]:
        """Every version, by name, newest first."""
        with self._database.read() as connection:
            return [_app(row) for row in connection.execute(select(apps).order_by(apps.c.name, apps.c.version.desc()))]

    def versions(self) -> builtins.list[tuple[str, int]]:
        """Name and version of every one, newest first."""
        query = select(apps.c.name, apps.c.version).order_by(apps.c.name, apps.c.version.desc())
        with self._database.read() as connection:
            return [(row.name, row.version) for row in connection.execute(query)]

    def count(self) -> int:
        """How many different apps there are."""
        with self._database.read() as connection:
            return int(connection.execute(select(func.count(distinct(apps.c.name)))).scalar_one())


def _app(row: Any) -> AppRow:
    return AppRow(row.name, row.version, row.digest, DesiredApp.model_validate_json(row.document), row.created_s)
