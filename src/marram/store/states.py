"""What each device should run (desired) and what it last said it runs (reported)."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Select, select

from marram.schema.device import Desired, DesiredApp, DeviceState, Reported
from marram.store.database import Database
from marram.store.devices import device_state
from marram.store.documents import load, read_report
from marram.store.tables import desired, devices, reported
from marram.store.upsert import upsert

# Other writers wait for a transaction; each costs a flush of the disk.
_A_TRANSACTION = 500


@dataclass(frozen=True, slots=True)
class Sighting:
    """One device, as cheaply as it can be read for a whole fleet; `said` is its last report, as plain JSON.

    A report was a valid `Reported` when it was stored, by this version of Marram or an older one.
    """

    device: str
    labels: dict[str, str]
    info: dict[str, Any]
    state: DeviceState
    seen_s: float | None
    revoked_s: float | None
    said: dict[str, Any] | None


class States:
    """The tables of desired and reported states."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def desired(self, device: str) -> Desired:
        """What the device should run; version 0 and nothing where nothing was ever set."""
        with self._database.read() as connection:
            document = connection.execute(select(desired.c.document).where(desired.c.device == device)).scalar()
        return Desired() if document is None else Desired.model_validate_json(document)

    def all_desired(self) -> dict[str, Desired]:
        """The desired state of every device that has one."""
        query = select(desired.c.device, desired.c.document)
        with self._database.read() as connection:
            return {row.device: Desired.model_validate_json(row.document) for row in connection.execute(query)}

    def desire(self, device: str, apps: list[DesiredApp], attempts: dict[str, int] | None = None) -> Desired | None:
        """Set what a device should run; returns the new state, or None where it is that already (or no such device).

        The version rises by one with each change, inside the transaction, so two who decide at once cannot both win.
        """
        with self._database.write() as connection:
            self._database.order_ids(connection)
            return _desire(connection, device, apps, attempts or {})

    def desire_many(self, wanted: Mapping[str, tuple[list[DesiredApp], dict[str, int]]]) -> list[str]:
        """`desire` for many devices, some hundred to a transaction; returns those whose state changed."""
        changed: list[str] = []
        todo = list(wanted.items())
        for begin in range(0, len(todo), _A_TRANSACTION):
            with self._database.write() as connection:
                self._database.order_ids(connection)
                for device, (apps, attempts) in todo[begin : begin + _A_TRANSACTION]:
                    if _desire(connection, device, apps, attempts) is not None:
                        changed.append(device)
        return changed

    def desired_versions(self) -> dict[str, int]:
        """The version of the desired state of every device that has one: what changed since is known by it."""
        with self._database.read() as connection:
            return {row.device: row.version for row in connection.execute(select(desired.c.device, desired.c.version))}

    def desired_texts(self) -> dict[str, str]:
        """The desired state of every device that has one, unread: the document, as `desire` wrote it.

        Comparing texts is what makes a look over ten thousand devices cheap.
        """
        with self._database.read() as connection:
            return {
                row.device: row.document for row in connection.execute(select(desired.c.device, desired.c.document))
            }

    def sightings(self, device: str | None = None, now_s: float | None = None) -> list[Sighting]:
        """Every device (or one) with its last report, by name."""
        now_s = time.time() if now_s is None else now_s
        query: Select[Any] = (
            select(
                devices.c.id,
                devices.c.labels,
                devices.c.info,
                devices.c.revoked_s,
                reported.c.seen_s,
                reported.c.document,
            )
            .select_from(devices.outerjoin(reported, reported.c.device == devices.c.id))
            .order_by(devices.c.id)
        )
        query = query if device is None else query.where(devices.c.id == device)
        with self._database.read() as connection:
            return [
                Sighting(
                    row.id,
                    load(row.labels),
                    load(row.info),
                    device_state(row.seen_s, now_s),
                    row.seen_s,
                    row.revoked_s,
                    None if row.document is None else load(row.document),
                )
                for row in connection.execute(query)
            ]

    def report(self, device: str, state: Reported, now_s: float | None = None) -> None:
        """Keep what a device says of itself, and that it was heard just now (the cloud's clock)."""
        row = {
            "device": device,
            "seen_s": time.time() if now_s is None else now_s,
            "document": state.model_dump_json(),
        }
        with self._database.write() as connection:
            upsert(connection, reported, row)

    def reported(self, device: str) -> Reported | None:
        with self._database.read() as connection:
            document = connection.execute(select(reported.c.document).where(reported.c.device == device)).scalar()
        return read_report(document)


def _desire(connection: Connection, device: str, apps: list[DesiredApp], attempts: dict[str, int]) -> Desired | None:
    document = connection.execute(select(desired.c.document).where(desired.c.device == device)).scalar()
    old = Desired() if document is None else Desired.model_validate_json(document)
    if not connection.execute(select(devices.c.id).where(devices.c.id == device)).first():
        return None
    same = old.apps == apps and old.attempts == attempts
    new = Desired(version=old.version if same else old.version + 1, apps=apps, attempts=attempts)
    text = new.model_dump_json()
    # Also where only the way it is written changed: whoever compares texts then finds it the same.
    if text != document and not (document is None and same):
        upsert(connection, desired, {"device": device, "version": new.version, "document": text})
    return None if same else new
