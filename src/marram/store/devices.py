"""Devices: who joined, their labels and certificates; each as a whole `Device`, with what it should and does run."""

from __future__ import annotations

import builtins
import time
from typing import Any

from sqlalchemy import ColumnElement, delete, func, insert, select, update

from marram.schema.device import REPORT_INTERVAL_S, Desired, Device, DeviceInfo, DeviceState
from marram.schema.errors import Conflict, MarramError, Missing, Threat, Untrusted
from marram.schema.ids import matches
from marram.store.audit import unchanged
from marram.store.certificates import CertificateRow, add_certificate, revoke_certificates
from marram.store.database import Database
from marram.store.documents import dump, load, read_report
from marram.store.tables import desired, devices, reported
from marram.store.tokens import use_token

# So many report intervals without a word, and a device counts as offline.
_SILENT_INTERVALS = 3


class Devices:
    """The table of devices."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, device: str, labels: dict[str, str], info: DeviceInfo, now_s: float | None = None) -> None:
        """A new device. Raises Conflict where the name is taken."""
        row = {
            "id": device,
            "labels": dump(labels),
            **_told(info),
            "joined_s": time.time() if now_s is None else now_s,
        }
        try:
            with self._database.write() as connection:
                connection.execute(insert(devices), row)
        except Conflict as error:
            raise taken(device) from error

    def enrol(self, token: str, certificate: CertificateRow, labels: dict[str, str], info: DeviceInfo) -> bool:
        """A new device with its first certificate, for one use of a join token: all three or none.

        False where the token has no use left, or is over: of two who race for the last use one gets it. Raises Conflict
        where the name is taken, Untrusted (REVOKED) where it is that of a revoked device.
        """
        row = {
            "id": certificate.device,
            "labels": dump(labels),
            **_told(info),
            "joined_s": certificate.issued_s,
        }
        try:
            with self._database.write() as connection:
                if not use_token(connection, token, certificate.issued_s):
                    unchanged()
                    return False
                connection.execute(insert(devices), row)
                add_certificate(connection, certificate)
        except Conflict as error:
            raise self.taken(certificate.device) from error
        return True

    def taken(self, device: str) -> MarramError:
        """Why the name `device` cannot be had: Conflict, or Untrusted where it is that of a revoked device."""
        with self._database.read() as connection:
            revoked_s = connection.execute(select(devices.c.revoked_s).where(devices.c.id == device)).scalar()
        if revoked_s is None:
            return taken(device)
        return Untrusted(
            f'the device "{device}" was revoked',
            threat=Threat.REVOKED,
            hint=f"Choose another --name; an operator can free this one: marram device remove {device}",
        )

    def revoke(self, device: str, now_s: float | None = None) -> None:
        """From now on none of its certificates is good, and its name is kept from others. Raises Missing."""
        now_s = time.time() if now_s is None else now_s
        with self._database.write() as connection:
            known = devices.c.id == device
            if connection.execute(update(devices).where(known).values(revoked_s=now_s)).rowcount == 0:
                raise Missing(f'no device "{device}"', hint="`marram device list` shows all.")
            revoke_certificates(connection, device, now_s)

    def get(self, device: str, now_s: float | None = None) -> Device:
        """Raises Missing."""
        found = _select(self._database, devices.c.id == device, now_s)
        if not found:
            raise Missing(f'no device "{device}"', hint="`marram device list` shows all.")
        return found[0]

    def list(self, selector: dict[str, str] | None = None, now_s: float | None = None) -> list[Device]:
        """Every device whose labels have all pairs of `selector`, by name."""
        return [d for d in _select(self._database, None, now_s) if matches(selector or {}, d.labels)]

    def exists(self, device: str) -> bool:
        with self._database.read() as connection:
            return connection.execute(select(devices.c.id).where(devices.c.id == device)).first() is not None

    def labels(self) -> dict[str, dict[str, str]]:
        """The labels of every device, by its name."""
        with self._database.read() as connection:
            return {row.id: load(row.labels) for row in connection.execute(select(devices.c.id, devices.c.labels))}

    def admissible(self) -> set[str]:
        """The devices that were neither removed nor revoked."""
        with self._database.read() as connection:
            return {row.id for row in connection.execute(select(devices.c.id).where(devices.c.revoked_s.is_(None)))}

    def set_info(self, device: str, info: DeviceInfo) -> None:
        """What the device now says of itself; nothing is written where it said so before."""
        said = _told(info)
        with self._database.read() as connection:
            query = select(devices.c.info, devices.c.packages).where(devices.c.id == device)
            if connection.execute(query).tuples().first() == tuple(said.values()):
                return
        with self._database.write() as connection:
            unchanged()  # a device says it of itself
            connection.execute(update(devices).where(devices.c.id == device).values(said))

    def platforms(self, selector: dict[str, str]) -> builtins.list[DeviceInfo]:
        """What the devices that match say of themselves, with what is installed on each (not in `Device.info`)."""
        query = select(devices.c.labels, devices.c.info, devices.c.packages).order_by(devices.c.id)
        with self._database.read() as connection:
            return [
                DeviceInfo.model_validate_json(row.info).model_copy(update={"packages": load(row.packages)})
                for row in connection.execute(query)
                if matches(selector, load(row.labels))
            ]

    def labels_of(self, device: str) -> dict[str, str] | None:
        """None where there is no such device."""
        with self._database.read() as connection:
            text = connection.execute(select(devices.c.labels).where(devices.c.id == device)).scalar()
        return None if text is None else load(text)

    def set_labels(self, device: str, labels: dict[str, str]) -> None:
        """Raises Missing."""
        with self._database.write() as connection:
            changed = connection.execute(update(devices).where(devices.c.id == device).values(labels=dump(labels)))
            if changed.rowcount == 0:
                raise Missing(f'no device "{device}"', hint="`marram device list` shows all.")

    def remove(self, device: str) -> None:
        """Forget a device and its states; its events and samples stay. Raises Missing."""
        with self._database.write() as connection:
            if connection.execute(delete(devices).where(devices.c.id == device)).rowcount == 0:
                raise Missing(f'no device "{device}"', hint="`marram device list` shows all.")
            # Kept, so that whoever comes with one is told why it is no good, whoever has the name by then.
            revoke_certificates(connection, device, time.time())
            connection.execute(delete(desired).where(desired.c.device == device))
            connection.execute(delete(reported).where(reported.c.device == device))

    def count(self) -> int:
        with self._database.read() as connection:
            return int(connection.execute(select(func.count()).select_from(devices)).scalar_one())


def _told(info: DeviceInfo) -> dict[str, str]:
    """What a device says of itself, as its row keeps it: apart from the rest what only the choice of wheels reads."""
    return {"info": info.model_copy(update={"packages": {}}).model_dump_json(), "packages": dump(info.packages)}


def taken(device: str) -> Conflict:
    """What is wrong with a name that another device has."""
    return Conflict(
        f'a device named "{device}" exists already',
        hint=f"Choose another --name, or remove the old one: marram device remove {device}",
    )


def device_state(seen_s: float | None, now_s: float) -> DeviceState:
    """Whether the cloud hears a device, from when it last did. A clock that jumped back counts as hearing it."""
    if seen_s is None:
        return DeviceState.NEW
    return DeviceState.ONLINE if now_s - seen_s < _SILENT_INTERVALS * REPORT_INTERVAL_S else DeviceState.OFFLINE


def _device(row: Any, now_s: float) -> Device:
    return Device(
        id=row.id,
        labels=load(row.labels),
        info=DeviceInfo.model_validate_json(row.info),
        state=device_state(row.seen_s, now_s),
        joined_s=row.joined_s,
        revoked_s=row.revoked_s,
        seen_s=row.seen_s,
        desired=Desired() if row.desired is None else Desired.model_validate_json(row.desired),
        reported=read_report(row.reported),
    )


def _select(database: Database, condition: ColumnElement[bool] | None, now_s: float | None) -> list[Device]:
    now_s = time.time() if now_s is None else now_s
    query = (
        select(
            devices.c.id,
            devices.c.labels,
            devices.c.info,
            devices.c.joined_s,
            devices.c.revoked_s,
            desired.c.document.label("desired"),
            reported.c.document.label("reported"),
            reported.c.seen_s,
        )
        .select_from(
            devices.outerjoin(desired, desired.c.device == devices.c.id).outerjoin(
                reported, reported.c.device == devices.c.id
            )
        )
        .order_by(devices.c.id)
    )
    if condition is not None:
        query = query.where(condition)
    with database.read() as connection:
        return [_device(row, now_s) for row in connection.execute(query)]
