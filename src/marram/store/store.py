"""The store: every noun over one database."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from marram.store.admins import Admins
from marram.store.apps import Apps
from marram.store.audit import Audit
from marram.store.certificates import Certificates
from marram.store.database import Database
from marram.store.deployments import Deployments
from marram.store.devices import Devices
from marram.store.events import Events
from marram.store.models import Models
from marram.store.rollouts import Rollouts
from marram.store.samples import Samples
from marram.store.secrets import Secrets
from marram.store.signed import Signed
from marram.store.states import States
from marram.store.tokens import Tokens
from marram.store.users import Users


@dataclass(frozen=True, slots=True)
class Store:
    """`open_store` makes one. Safe from any thread."""

    database: Database
    devices: Devices
    certificates: Certificates
    states: States
    events: Events
    samples: Samples
    secrets: Secrets
    models: Models
    apps: Apps
    deployments: Deployments
    rollouts: Rollouts
    signed: Signed
    tokens: Tokens
    admins: Admins
    users: Users
    audit: Audit

    def check(self) -> str:
        """Commit something real; the database's name and version. Raises as `Database.check`."""
        return self.database.check()

    def close(self) -> None:
        self.database.close()


def open_store(url: str | Path) -> Store:
    """Open (and where needed create or migrate) a database: a file's path, `sqlite:///…` or `postgresql://…`.

    Raises Invalid, Refused, Retryable as `Database` does.
    """
    database = Database(url)
    return Store(
        database=database,
        devices=Devices(database),
        certificates=Certificates(database),
        states=States(database),
        events=Events(database),
        samples=Samples(database),
        secrets=Secrets(database),
        models=Models(database),
        apps=Apps(database),
        deployments=Deployments(database),
        rollouts=Rollouts(database),
        signed=Signed(database),
        tokens=Tokens(database),
        admins=Admins(database),
        users=Users(database),
        audit=Audit(database),
    )
