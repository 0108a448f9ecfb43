"""SQL and objects: the only places where the cloud remembers anything.

`open_store(url)` gives a `Store`: one attribute a noun (`store.devices`, `store.events` …), the same for SQLite and
PostgreSQL. `Objects(url)` keeps bytes by their SHA-256, in a folder or in S3. Everything here is synchronous and safe
from any thread; callers on an event loop use `asyncio.to_thread`. A database or bucket that is away raises Retryable.
"""

from __future__ import annotations

from marram.store.admins import AdminRow, Admins, Held
from marram.store.apps import AppRow, Apps
from marram.store.audit import Audit, AuditFilter, AuditRow, Verified, acting_as, actor, auditing, noted, unchanged
from marram.store.certificates import CertificateRow, Certificates, check_standing
from marram.store.database import Database
from marram.store.deployments import DeploymentRow, Deployments
from marram.store.devices import Devices, taken
from marram.store.events import Counts, EventFilter, Events, StoredEvent, StreamCount, Totals
from marram.store.models import ModelRow, Models
from marram.store.objects import Body, Objects
from marram.store.rollouts import OPEN, RolloutRow, Rollouts, Standing
from marram.store.samples import Sample, SampleFilter, Samples
from marram.store.secrets import SecretRow, Secrets
from marram.store.states import Sighting, States
from marram.store.store import Store, open_store
from marram.store.tokens import TokenRow, Tokens
from marram.store.users import UserRow, Users

__all__ = [
    "OPEN",
    "AdminRow",
    "Admins",
    "AppRow",
    "Apps",
    "Audit",
    "AuditFilter",
    "AuditRow",
    "Body",
    "CertificateRow",
    "Certificates",
    "Counts",
    "Database",
    "DeploymentRow",
    "Deployments",
    "Devices",
    "EventFilter",
    "Events",
    "Held",
    "ModelRow",
    "Models",
    "Objects",
    "RolloutRow",
    "Rollouts",
    "Sample",
    "SampleFilter",
    "Samples",
    "SecretRow",
    "Secrets",
    "Sighting",
    "Standing",
    "States",
    "Store",
    "StoredEvent",
    "StreamCount",
    "TokenRow",
    "Tokens",
    "Totals",
    "UserRow",
    "Users",
    "Verified",
    "acting_as",
    "actor",
    "auditing",
    "check_standing",
    "noted",
    "open_store",
    "taken",
    "unchanged",
]
