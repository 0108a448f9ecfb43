"""Deployments: an app version for every device a selector matches, or (version None) the app taken away from them."""

from __future__ import annotations

import time
from dataclasses import dataclass

from sqlalchemy import insert, select

from marram.store.audit import noted
from marram.store.database import Database
from marram.store.documents import dump, load
from marram.store.tables import deployments


@dataclass(frozen=True, slots=True)
class DeploymentRow:
    """One decision of a person. For one device and app name, the matching one with the highest `id` holds."""

    id: int
    app: str
    version: int | None
    selector: dict[str, str]
    created_s: float


class Deployments:
    """The table of deployments; rows are only ever added, so it is also the history."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, app: str, version: int | None, selector: dict[str, str], now_s: float | None = None) -> DeploymentRow:
        created_s = time.time() if now_s is None else now_s
        with self._database.write() as connection:
            self._database.order_ids(connection)
            row = {"app": app, "version": version, "selector": dump(selector), "created_s": created_s}
            key = connection.execute(insert(deployments).values(**row)).inserted_primary_key
            assert key is not None
            noted(deployment=int(key[0]), version=version)
            return DeploymentRow(int(key[0]), app, version, selector, created_s)

    def list(self, app: str | None = None) -> list[DeploymentRow]:
        """Every deployment (of one app), newest first."""
        query = select(deployments).order_by(deployments.c.id.desc())
        if app is not None:
            query = query.where(deployments.c.app == app)
        with self._database.read() as connection:
            return [
                DeploymentRow(row.id, row.app, row.version, load(row.selector), row.created_s)
                for row in connection.execute(query)
            ]
