"""What each device should run (desired) and what it last said it runs (reported)."""

from __future__ import annotations

import time

from sqlalchemy import select

from marram.schema.device import Desired, DesiredApp, Reported
from marram.store.database import Database
from marram.store.tables import desired, devices, reported
from marram.store.upsert import upsert


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

    def desire(self, device: str, apps: list[DesiredApp]) -> Desired | None:
        """Set what a device should run; returns the new state, or None where it is that already (or no such device).

        The version rises by one with each change, inside the transaction, so two who decide at once cannot both win.
        """
        with self._database.write() as connection:
            self._database.order_ids(connection)
            document = connection.execute(select(desired.c.document).where(desired.c.device == device)).scalar()
            old = Desired() if document is None else Desired.model_validate_json(document)
            if old.apps == apps or not connection.execute(select(devices.c.id).where(devices.c.id == device)).first():
                return None
            new = Desired(version=old.version + 1, apps=apps)
            upsert(connection, desired, {"device": device, "version": new.version, "document": new.model_dump_json()})
            return new

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
        return None if document is None else Reported.model_validate_json(document)
