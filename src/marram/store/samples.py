"""Samples: the inputs devices found worth keeping, and what people say they show. The bytes lie in the object store."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import Select, func, select, update

from marram.schema.errors import Missing
from marram.store.database import Database
from marram.store.documents import load
from marram.store.tables import samples

_Query = TypeVar("_Query", bound=Select[Any])


@dataclass(frozen=True, slots=True)
class Sample:
    """One kept input: its body is the object `sha256`; `data` is what the device said (reason, result)."""

    id: int
    device: str
    app: str
    time_s: float
    received_s: float
    data: dict[str, Any]
    media: str | None
    sha256: str
    size_bytes: int
    label: str | None
    labelled_by: str | None
    labelled_s: float | None

    @property
    def reason(self) -> str:
        return str(self.data.get("reason", ""))


@dataclass(frozen=True, slots=True)
class SampleFilter:
    """Which samples: every field that is set must match. `labelled`: True only those with a label, False without."""

    device: str | None = None
    app: str | None = None
    label: str | None = None
    labelled: bool | None = None


class Samples:
    """The table of samples. Rows come with their events (`Events.append`)."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, sample: int) -> Sample:
        """Raises Missing."""
        with self._database.read() as connection:
            row = connection.execute(select(samples).where(samples.c.id == sample)).first()
        if row is None:
            raise _missing(sample)
        return _sample(row)

    def list(self, which: SampleFilter | None = None, limit: int = 1000, after_id: int = 0) -> list[Sample]:
        """Samples in the order of storing, from after `after_id`."""
        query = _where(select(samples).where(samples.c.id > after_id), which).order_by(samples.c.id).limit(limit)
        with self._database.read() as connection:
            return [_sample(row) for row in connection.execute(query)]

    def label(self, sample: int, label: str | None, by: str = "", now_s: float | None = None) -> Sample:
        """Say what a sample shows (None takes it back), and who says so. Raises Missing."""
        values = {
            "label": label,
            "labelled_by": by if label is not None else None,
            "labelled_s": (time.time() if now_s is None else now_s) if label is not None else None,
        }
        with self._database.write() as connection:
            changed = connection.execute(update(samples).where(samples.c.id == sample).values(**values))
            if changed.rowcount == 0:
                raise _missing(sample)
        return self.get(sample)

    def count(self, which: SampleFilter | None = None) -> int:
        query = _where(select(func.count()).select_from(samples), which)
        with self._database.read() as connection:
            return int(connection.execute(query).scalar_one())


def _missing(sample: int) -> Missing:
    return Missing(f"no sample {sample}", hint="`marram sample list` shows all.")


def _where(query: _Query, which: SampleFilter | None) -> _Query:
    if which is None:
        return query
    if which.device is not None:
        query = query.where(samples.c.device == which.device)
    if which.app is not None:
        query = query.where(samples.c.app == which.app)
    if which.label is not None:
        query = query.where(samples.c.label == which.label)
    if which.labelled is not None:
        query = query.where(samples.c.label.is_not(None) if which.labelled else samples.c.label.is_(None))
    return query


def _sample(row: Any) -> Sample:
    return Sample(
        row.id,
        row.device,
        row.app,
        row.time_s,
        row.received_s,
        load(row.data),
        row.media,
        row.sha256,
        row.size_bytes,
        row.label,
        row.labelled_by,
        row.labelled_s,
    )
