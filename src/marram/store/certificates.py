"""Certificates that devices got: which of them still stand for their device.

Of one device only one line of certificates lives on: the first use of a certificate supersedes all its others, the one
it renewed and any sibling that a copy of the old identity fetched. Whoever comes with a superseded one has a copy, or
is the device whose copy was faster: either way somebody has to look, and nobody is let in quietly.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, delete, insert, select, update

from marram.schema.errors import Threat, Untrusted
from marram.schema.units import format_duration
from marram.store.database import Database
from marram.store.tables import certificates

# A device that asks again and again (its answers are lost, or it means harm) fills no database.
_MOST_WAITING = 8
_JOIN_AGAIN = "Join the device again: marram token create"


@dataclass(frozen=True, slots=True)
class CertificateRow:
    """One certificate of a device; times are Unix times."""

    serial: str
    device: str
    key_hash: str
    issued_s: float
    expires_s: float
    used_s: float | None = None
    superseded_s: float | None = None
    revoked_s: float | None = None
    authority: str | None = None  # fingerprint of who issued it


class Certificates:
    """The table of certificates."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, row: CertificateRow) -> None:
        """Of those that a device never used, only the latest stay. Raises Conflict (the serial number)."""
        with self._database.write() as connection:
            add_certificate(connection, row)
            waiting = (
                select(certificates.c.serial)
                .where(
                    certificates.c.device == row.device,
                    certificates.c.serial != row.serial,
                    certificates.c.used_s.is_(None),
                    certificates.c.superseded_s.is_(None),
                    certificates.c.revoked_s.is_(None),
                )
                .order_by(certificates.c.issued_s.desc(), certificates.c.serial)
            )
            for old in connection.execute(waiting).scalars().all()[_MOST_WAITING - 1 :]:
                connection.execute(delete(certificates).where(certificates.c.serial == old))

    def get(self, serial: str) -> CertificateRow | None:
        with self._database.read() as connection:
            row = connection.execute(select(certificates).where(certificates.c.serial == serial)).first()
        return None if row is None else _certificate(row)

    def of(self, device: str) -> list[CertificateRow]:
        """Of one device, newest first."""
        query = select(certificates).where(certificates.c.device == device)
        with self._database.read() as connection:
            rows = [_certificate(row) for row in connection.execute(query)]
        return sorted(rows, key=lambda row: row.issued_s, reverse=True)

    def any(self) -> bool:
        """Whether one was ever given out."""
        with self._database.read() as connection:
            return connection.execute(select(certificates.c.serial).limit(1)).first() is not None

    def authority(self) -> str | None:
        """The fingerprint of who issued the latest one; None where none was, or that is not known."""
        query = select(certificates.c.authority).where(certificates.c.authority.is_not(None))
        with self._database.read() as connection:
            return connection.execute(query.order_by(certificates.c.issued_s.desc()).limit(1)).scalar()

    def holders(self, key_hash: str) -> set[str]:
        """The devices that ever had a certificate for this key."""
        with self._database.read() as connection:
            query = select(certificates.c.device).where(certificates.c.key_hash == key_hash)
            return {row.device for row in connection.execute(query)}

    def use(self, serial: str, now_s: float | None = None) -> CertificateRow | None:
        """A device shows this certificate: its first use supersedes every other one of the device.

        Returns the row as it then is; ask `check_standing` of it. None: never issued here.
        """
        now_s = time.time() if now_s is None else now_s
        found = self.get(serial)
        if found is None or found.used_s is not None or found.superseded_s is not None or found.revoked_s is not None:
            return found
        with self._database.write() as connection:
            first = connection.execute(
                update(certificates)
                .where(
                    certificates.c.serial == serial,
                    certificates.c.used_s.is_(None),
                    certificates.c.superseded_s.is_(None),
                    certificates.c.revoked_s.is_(None),
                )
                .values(used_s=now_s)
            )
            if first.rowcount == 1:
                connection.execute(
                    update(certificates)
                    .where(
                        certificates.c.device == found.device,
                        certificates.c.serial != serial,
                        certificates.c.superseded_s.is_(None),
                    )
                    .values(superseded_s=now_s)
                )
        return self.get(serial)


def check_standing(
    row: CertificateRow | None, now_s: float, *, device: str | None = None, grace_s: float = 0.0
) -> CertificateRow:
    """That a certificate shown now stands for its device (`device`, where that is known otherwise).

    `grace_s`: for so long after its end it is still taken, as when it is to be renewed. Raises Untrusted: OTHER_CLOUD
    (never issued here), NOT_YOURS, REVOKED, CLONED (superseded), EXPIRED.
    """
    if row is None:
        raise Untrusted("this cloud never issued the certificate", threat=Threat.OTHER_CLOUD, hint=_JOIN_AGAIN)
    if device is not None and row.device != device:
        raise Untrusted(f'the certificate is of "{row.device}"', where=device, threat=Threat.NOT_YOURS)
    if row.revoked_s is not None:
        # A moment, and not how long ago: the device repeats these words for as long as it is refused.
        when = datetime.fromtimestamp(row.revoked_s, UTC).strftime("%Y-%m-%d %H:%M UTC")
        raise Untrusted(f"it was revoked on {when}", where=row.device, threat=Threat.REVOKED, hint=_JOIN_AGAIN)
    if row.superseded_s is not None:
        raise Untrusted(
            "another certificate took this one's place: one of the two is a copy",
            where=row.device,
            threat=Threat.CLONED,
            hint="Find the copy, remove the device, and join it again: marram device remove.",
        )
    if now_s > row.expires_s + grace_s:
        ago = format_duration(now_s - row.expires_s)
        raise Untrusted(f"the certificate ended {ago} ago", where=row.device, threat=Threat.EXPIRED, hint=_JOIN_AGAIN)
    return row


def add_certificate(connection: Connection, row: CertificateRow) -> None:
    """Within a transaction of another noun."""
    connection.execute(
        insert(certificates),
        {
            "serial": row.serial,
            "device": row.device,
            "key_hash": row.key_hash,
            "issued_s": row.issued_s,
            "expires_s": row.expires_s,
            "authority": row.authority,
        },
    )


def revoke_certificates(connection: Connection, device: str, now_s: float) -> None:
    """All of a device; within a transaction of another noun."""
    connection.execute(
        update(certificates)
        .where(certificates.c.device == device, certificates.c.revoked_s.is_(None))
        .values(revoked_s=now_s)
    )


def _certificate(row: Any) -> CertificateRow:
    return CertificateRow(
        row.serial,
        row.device,
        row.key_hash,
        row.issued_s,
        row.expires_s,
        row.used_s,
        row.superseded_s,
        row.revoked_s,
        row.authority,
    )
