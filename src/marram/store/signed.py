"""Signed update metadata as rows: documents are added, never changed, and of two who add one version, one wins.

What is in them is none of its business: who may sign what, `trust/repository.py` knows and every device checks.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from sqlalchemy import delete, insert, select

from marram.schema.signed import ROOT, SignedDocument
from marram.store.database import Database
from marram.store.tables import signed

# A device in the middle of a refresh may ask for one that is no longer the newest.
_KEPT = 16


class Signed:
    """The table of signed documents."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def newest(self, role: str) -> SignedDocument | None:
        """The document of `role` with the highest version."""
        query = select(signed).where(signed.c.role == role).order_by(signed.c.version.desc()).limit(1)
        with self._database.read() as connection:
            row = connection.execute(query).first()
        return None if row is None else SignedDocument(row.role, row.version, row.document.encode(), row.expires_s)

    def get(self, role: str, version: int) -> SignedDocument | None:
        """One version of `role`."""
        if version >= 2**31:
            return None
        query = select(signed).where(signed.c.role == role, signed.c.version == version)
        with self._database.read() as connection:
            row = connection.execute(query).first()
        return None if row is None else SignedDocument(row.role, row.version, row.document.encode(), row.expires_s)

    def add(self, documents: Sequence[SignedDocument], now_s: float | None = None) -> None:
        """Add all of `documents`, or none: raises Conflict where somebody else added one of these versions first.

        Old ones that no device can still need are dropped, but never a root: each device goes through all of them.
        """
        created_s = time.time() if now_s is None else now_s
        with self._database.write() as connection:
            for document in documents:
                connection.execute(
                    insert(signed),
                    {
                        "role": document.role,
                        "version": document.version,
                        "document": document.content.decode(),
                        "expires_s": document.expires_s,
                        "created_s": created_s,
                    },
                )
                if document.role != ROOT:
                    of_role = signed.c.role == document.role
                    versions = select(signed.c.version).where(of_role).order_by(signed.c.version.desc())
                    oldest = connection.execute(versions.offset(_KEPT - 1).limit(1)).scalar()
                    if oldest is not None:
                        connection.execute(delete(signed).where(of_role, signed.c.version < oldest))
