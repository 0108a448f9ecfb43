"""The tables, dialect-neutral: SQLite and PostgreSQL get the same columns, keys and meanings.

Documents (labels, cards, manifests) are JSON text: they are read and written whole, never searched inside, so neither
database's own JSON type would buy anything. The migrations build these tables; a test compares both.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# SQLite gives AUTOINCREMENT (ids rise and are never used twice) only to a column whose type is exactly INTEGER.
Id = BigInteger().with_variant(Integer(), "sqlite")

devices = Table(
    "devices",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("labels", Text, nullable=False),
    Column("info", Text, nullable=False),
    Column("joined_s", Float, nullable=False),
    Column("revoked_s", Float),
    # Its Python distributions, apart from `info`: long, and asked for only where an app is deployed.
    Column("packages", Text, nullable=False, server_default="{}"),
)

# Every certificate a device ever got. The broker lets in whoever shows one that is neither superseded nor revoked.
certificates = Table(
    "certificates",
    metadata,
    # Hexadecimal, as X.509 prints it.
    Column("serial", String(64), primary_key=True),
    Column("device", String(64), nullable=False),
    # SHA-256 of the public key (SubjectPublicKeyInfo), hex.
    Column("key_hash", String(64), nullable=False),
    Column("issued_s", Float, nullable=False),
    Column("expires_s", Float, nullable=False),
    # When the device first showed it; with that all others of the device are superseded, older ones and siblings.
    Column("used_s", Float),
    # When another certificate of the device was first used: from then on this one is refused.
    Column("superseded_s", Float),
    Column("revoked_s", Float),
    # The fingerprint of who issued it: a cloud that comes with another authority's keys is told so.
    Column("authority", String(64)),
    Index("ix_certificates_device", "device"),
)

# What a device should run, and what it last said it runs: apart from `devices`, because these change all the time.
desired = Table(
    "desired",
    metadata,
    Column("device", String(64), primary_key=True),
    Column("version", BigInteger, nullable=False),
    Column("document", Text, nullable=False),
)
reported = Table(
    "reported",
    metadata,
    Column("device", String(64), primary_key=True),
    Column("seen_s", Float, nullable=False),
    Column("document", Text, nullable=False),
)

_not_bulk = text("kind NOT IN ('result', 'metric')")
events = Table(
    "events",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=True),
    Column("device", String(64), nullable=False),
    Column("stream", String(64), nullable=False),
    Column("sequence", BigInteger, nullable=False),
    Column("kind", String(16), nullable=False),
    Column("app", String(64), nullable=False),
    Column("time_s", Float, nullable=False),
    Column("received_s", Float, nullable=False),
    Column("data", Text, nullable=False),
    Column("media", String(200)),
    # The body, in the object store.
    Column("sha256", String(64)),
    Column("size_bytes", BigInteger, nullable=False, server_default="0"),
    # Exactly once stands on this key alone: (device, stream, sequence) is unique for ever.
    UniqueConstraint("device", "stream", "sequence"),
    Index("ix_events_device_id", "device", "id"),
    # Alerts and samples are few among many results: a small index finds them.
    Index("ix_events_kind_id", "kind", "id", sqlite_where=_not_bulk, postgresql_where=_not_bulk),
    sqlite_autoincrement=True,
)

# What each outbox delivered, kept in the same transaction as the events: the bookkeeping behind "exactly once".
streams = Table(
    "streams",
    metadata,
    Column("device", String(64), primary_key=True),
    Column("stream", String(64), primary_key=True),
    Column("stored", BigInteger, nullable=False),
    Column("duplicates", BigInteger, nullable=False),
    Column("first_sequence", BigInteger, nullable=False),
    Column("last_sequence", BigInteger, nullable=False),
)

# Stored events by kind, kept in the same transaction too: what a dashboard asks every few seconds must not scan.
totals = Table(
    "totals",
    metadata,
    Column("kind", String(16), primary_key=True),
    Column("stored", BigInteger, nullable=False),
)

samples = Table(
    "samples",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=True),
    Column("device", String(64), nullable=False),
    Column("stream", String(64), nullable=False),
    Column("sequence", BigInteger, nullable=False),
    Column("app", String(64), nullable=False),
    Column("time_s", Float, nullable=False),
    Column("received_s", Float, nullable=False),
    Column("data", Text, nullable=False),
    Column("media", String(200)),
    Column("sha256", String(64), nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("label", Text),
    Column("labelled_by", String(200)),
    Column("labelled_s", Float),
    UniqueConstraint("device", "stream", "sequence"),
    Index("ix_samples_device_id", "device", "id"),
    Index("ix_samples_app_id", "app", "id"),
    sqlite_autoincrement=True,
)

models = Table(
    "models",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("digest", String(64), nullable=False),
    Column("card", Text, nullable=False),
    Column("manifest", Text, nullable=False),
    # Where it comes from: recipe, parent version, samples, measured accuracy … whatever made it says.
    Column("lineage", Text, nullable=False),
    Column("created_s", Float, nullable=False),
    UniqueConstraint("name", "digest"),
)

apps = Table(
    "apps",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("digest", String(64), nullable=False),
    Column("document", Text, nullable=False),
    Column("created_s", Float, nullable=False),
    UniqueConstraint("name", "digest"),
)

deployments = Table(
    "deployments",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=True),
    Column("app", String(64), nullable=False),
    # NULL: take the app away from the selected devices.
    Column("version", Integer),
    Column("selector", Text, nullable=False),
    Column("created_s", Float, nullable=False),
    Index("ix_deployments_app_id", "app", "id"),
    sqlite_autoincrement=True,
)

tokens = Table(
    "tokens",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("secret_hash", String(64), nullable=False),
    Column("labels", Text, nullable=False),
    Column("uses", Integer, nullable=False),
    Column("uses_left", Integer, nullable=False),
    Column("created_s", Float, nullable=False),
    Column("expires_s", Float, nullable=False),
)

admins = Table(
    "admins",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("name", String(200), nullable=False),
    Column("secret_hash", String(64), nullable=False),
    Column("created_s", Float, nullable=False),
    Column("revoked", Boolean, nullable=False, server_default=text("false")),
    # Whose it is (a user's name); NULL: of the machine that the cloud runs on, which may do everything.
    Column("owner", String(64)),
    # Permissions, as JSON; NULL: all that its owner has.
    Column("scopes", Text),
    Column("expires_s", Float),
    # Made by signing in; a page or a command line of its owner, which ends with the owner's password.
    Column("session", Boolean, nullable=False, server_default=text("false")),
    Index("ix_admins_owner", "owner"),
)

users = Table(
    "users",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("role", String(16), nullable=False),
    # argon2id, with its parameters and salt inside.
    Column("password_hash", Text, nullable=False),
    Column("created_s", Float, nullable=False),
    Column("disabled", Boolean, nullable=False, server_default=text("false")),
)

# Every change, by whom. Triggers refuse to change or delete a row, and each row holds the digest of the one before.
# Ids have no gaps.
audit = Table(
    "audit",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("time_s", Float, nullable=False),
    # `user:NAME`, `token:ID`, `device:ID`, `rollout:ID` …
    Column("actor", String(200), nullable=False),
    # `device.revoke`, `deploy` …
    Column("action", String(64), nullable=False),
    Column("target", String(400), nullable=False),
    Column("detail", Text, nullable=False),
    Column("previous", String(64), nullable=False),
    Column("digest", String(64), nullable=False),
)
# Where the audit log ends: one row, changed with each that is added, so that rows cut off its end are missed.
audit_head = Table(
    "audit_head",
    metadata,
    Column("one", Integer, primary_key=True, autoincrement=False),
    Column("id", BigInteger, nullable=False),
    Column("digest", String(64), nullable=False),
)

# Signed update metadata (TUF), as it is served: one row for each version of each role, never changed.
signed = Table(
    "signed",
    metadata,
    Column("role", String(64), primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("document", Text, nullable=False),
    Column("expires_s", Float, nullable=False),
    Column("created_s", Float, nullable=False),
)

# A name that points to a version of a model: `stable`, `canary`. Moves are in the audit log.
channels = Table(
    "channels",
    metadata,
    Column("model", String(64), primary_key=True),
    Column("channel", String(64), primary_key=True),
    Column("version", Integer, nullable=False),
    Column("moved_s", Float, nullable=False),
)

# What apps need and nobody should read: sealed with a key that is not in this database.
secrets = Table(
    "secrets",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("sealed", Text, nullable=False),
    # Devices that match it may have it.
    Column("selector", Text, nullable=False),
    Column("version", Integer, nullable=False),
    Column("changed_s", Float, nullable=False),
)

# A deployment that goes by stages (`schema/rollout.py`); the same id as its deployment.
rollouts = Table(
    "rollouts",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("app", String(64), nullable=False),
    Column("version", Integer, nullable=False),
    Column("state", String(16), nullable=False),
    # The stage it is in, from 1, and since when; what the gates said last.
    Column("stage", Integer, nullable=False),
    Column("stage_s", Float, nullable=False),
    Column("plan", Text, nullable=False),
    Column("verdict", Text, nullable=False),
    Column("reason", Text, nullable=False),
    # Rises with each change: of two controllers that decide at once, one wins.
    Column("revision", Integer, nullable=False),
    Column("created_s", Float, nullable=False),
    Column("ended_s", Float),
    Index("ix_rollouts_state", "state"),
)
rollout_devices = Table(
    "rollout_devices",
    metadata,
    Column("rollout", BigInteger, primary_key=True, autoincrement=False),
    Column("device", String(64), primary_key=True),
    Column("stage", Integer, nullable=False),
    Column("outcome", String(16), nullable=False),
    Column("reached_s", Float),
    Column("ended_s", Float),
    Column("attempt", Integer, nullable=False, server_default="0"),
    Column("reason", Text, nullable=False),
    Column("evidence", Text, nullable=False),
)
