"""Model versions as rows; what makes one valid, and which version a content gets, is the registry's business."""

from __future__ import annotations

import builtins
import time
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import delete, func, insert, select

from marram.schema.errors import Missing
from marram.schema.model import Manifest, ModelCard
from marram.store.audit import noted, unchanged
from marram.store.database import Database
from marram.store.documents import dump, load
from marram.store.tables import channels, models
from marram.store.upsert import upsert


@dataclass(frozen=True, slots=True)
class ModelRow:
    """One registered model version: its card, its files by content, the digest of that list, where it comes from."""

    name: str
    version: int
    digest: str
    card: ModelCard
    manifest: Manifest
    lineage: dict[str, Any] = field(default_factory=dict)
    created_s: float = 0.0


class Models:
    """The table of model versions."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, row: ModelRow) -> ModelRow:
        """Raises Conflict where the version, or the same content under another version, is there already."""
        row = (
            row
            if row.created_s
            else ModelRow(row.name, row.version, row.digest, row.card, row.manifest, row.lineage, time.time())
        )
        with self._database.write() as connection:
            noted(version=row.version, digest=row.digest)
            connection.execute(
                insert(models),
                {
                    "name": row.name,
                    "version": row.version,
                    "digest": row.digest,
                    "card": row.card.model_dump_json(),
                    "manifest": row.manifest.model_dump_json(),
                    "lineage": dump(row.lineage),
                    "created_s": row.created_s,
                },
            )
        return row

    def get(self, name: str, version: int | None = None) -> ModelRow | None:
        """One version, the newest where `version` is None; None where there is none."""
        query = select(models).where(models.c.name == name)
        query = (
            query.order_by(models.c.version.desc()).limit(1)
            if version is None
            else query.where(models.c.version == version)
        )
        with self._database.read() as connection:
            row = connection.execute(query).first()
        return None if row is None else _model(row)

    def by_digest(self, name: str, digest: str) -> ModelRow | None:
        query = select(models).where(models.c.name == name, models.c.digest == digest)
        with self._database.read() as connection:
            row = connection.execute(query).first()
        return None if row is None else _model(row)

    def list(self, name: str | None = None) -> list[ModelRow]:
        """Every version (of one name), by name, newest first."""
        query = select(models).order_by(models.c.name, models.c.version.desc())
        if name is not None:
            query = query.where(models.c.name == name)
        with self._database.read() as connection:
            return [_model(row) for row in connection.execute(query)]

    def versions(self) -> builtins.list[tuple[str, int]]:
        """Name and version of every one, newest first."""
        query = select(models.c.name, models.c.version).order_by(models.c.name, models.c.version.desc())
        with self._database.read() as connection:
            return [(row.name, row.version) for row in connection.execute(query)]

    # ------------------------------------------------------------ channels

    def channels(self, name: str | None = None) -> dict[tuple[str, str], int]:
        """(model, channel) -> version, of one model or of all."""
        query = select(channels)
        if name is not None:
            query = query.where(channels.c.model == name)
        with self._database.read() as connection:
            return {(row.model, row.channel): row.version for row in connection.execute(query)}

    def move(self, name: str, channel: str, version: int | None) -> int | None:
        """Have the channel point to `version`, or to nothing (None); returns what it pointed to before.

        Raises Missing where there is no such version: both are looked at in one transaction.
        """
        here = (channels.c.model == name) & (channels.c.channel == channel)
        with self._database.write() as connection:
            before = connection.execute(select(channels.c.version).where(here)).scalar()
            noted(before=before)
            if version is None:
                connection.execute(delete(channels).where(here))
            else:
                known = select(models.c.version).where(models.c.name == name, models.c.version == version)
                if connection.execute(known).first() is None:
                    raise Missing(f"{name} has no version {version}", hint="`marram model list` shows all.")
                row = {"model": name, "channel": channel, "version": version, "moved_s": time.time()}
                upsert(connection, channels, row)
            if before == version:
                unchanged()
            return None if before is None else int(before)

    def count(self) -> int:
        with self._database.read() as connection:
            return int(connection.execute(select(func.count()).select_from(models)).scalar_one())


def _model(row: Any) -> ModelRow:
    return ModelRow(
        row.name,
        row.version,
        row.digest,
        ModelCard.model_validate_json(row.card),
        Manifest.model_validate_json(row.manifest),
        load(row.lineage),
        row.created_s,
    )
