"""Identities, people, signed metadata, channels, secrets, rollouts.

Devices that joined before have no certificate: they join again. Revision 0002.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("devices") as devices:
        devices.add_column(sa.Column("revoked_s", sa.Float(), nullable=True))
        devices.add_column(sa.Column("packages", sa.Text(), server_default="{}", nullable=False))
        devices.drop_column("secret")
    with op.batch_alter_table("admins") as admins:
        admins.add_column(sa.Column("owner", sa.String(length=64), nullable=True))
        admins.add_column(sa.Column("scopes", sa.Text(), nullable=True))
        admins.add_column(sa.Column("expires_s", sa.Float(), nullable=True))
        admins.add_column(sa.Column("session", sa.Boolean(), server_default=sa.text("false"), nullable=False))
    op.create_index("ix_admins_owner", "admins", ["owner"], unique=False)
    op.create_table(
        "certificates",
        sa.Column("serial", sa.String(length=64), nullable=False),
        sa.Column("device", sa.String(length=64), nullable=False),
        sa.Column("key_hash", sa.String(length=64), nullable=False),
        sa.Column("issued_s", sa.Float(), nullable=False),
        sa.Column("expires_s", sa.Float(), nullable=False),
        sa.Column("used_s", sa.Float(), nullable=True),
        sa.Column("superseded_s", sa.Float(), nullable=True),
        sa.Column("revoked_s", sa.Float(), nullable=True),
        sa.Column("authority", sa.String(length=64), nullable=True),
        sa.PrimaryKeyConstraint("serial", name=op.f("pk_certificates")),
    )
    op.create_index("ix_certificates_device", "certificates", ["device"], unique=False)
    op.create_table(
        "users",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("password_hash", sa.Text(), nullable=False),
        sa.Column("created_s", sa.Float(), nullable=False),
        sa.Column("disabled", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_users")),
    )
    op.create_table(
        "audit",
        sa.Column("id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("time_s", sa.Float(), nullable=False),
        sa.Column("actor", sa.String(length=200), nullable=False),
        sa.Column("action", sa.String(length=64), nullable=False),
        sa.Column("target", sa.String(length=400), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("previous", sa.String(length=64), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit")),
    )
    op.create_table(
        "audit_head",
        sa.Column("one", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("id", sa.BigInteger(), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("one", name=op.f("pk_audit_head")),
    )
    _only_added_to("audit")
    _only_rises("audit_head")
    op.create_table(
        "signed",
        sa.Column("role", sa.String(length=64), nullable=False),
        sa.Column("version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.Column("expires_s", sa.Float(), nullable=False),
        sa.Column("created_s", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("role", "version", name=op.f("pk_signed")),
    )
    op.create_table(
        "channels",
        sa.Column("model", sa.String(length=64), nullable=False),
        sa.Column("channel", sa.String(length=64), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("moved_s", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("model", "channel", name=op.f("pk_channels")),
    )
    op.create_table(
        "secrets",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("sealed", sa.Text(), nullable=False),
        sa.Column("selector", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("changed_s", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_secrets")),
    )
    op.create_table(
        "rollouts",
        sa.Column("id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("app", sa.String(length=64), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("stage", sa.Integer(), nullable=False),
        sa.Column("stage_s", sa.Float(), nullable=False),
        sa.Column("plan", sa.Text(), nullable=False),
        sa.Column("verdict", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("created_s", sa.Float(), nullable=False),
        sa.Column("ended_s", sa.Float(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rollouts")),
    )
    op.create_index("ix_rollouts_state", "rollouts", ["state"], unique=False)
    op.create_table(
        "rollout_devices",
        sa.Column("rollout", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("device", sa.String(length=64), nullable=False),
        sa.Column("stage", sa.Integer(), nullable=False),
        sa.Column("outcome", sa.String(length=16), nullable=False),
        sa.Column("reached_s", sa.Float(), nullable=True),
        sa.Column("ended_s", sa.Float(), nullable=True),
        sa.Column("attempt", sa.Integer(), server_default="0", nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("evidence", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("rollout", "device", name=op.f("pk_rollout_devices")),
    )


def _only_added_to(table: str) -> None:
    """Triggers that refuse to change or delete a row of `table`, whoever asks with the cloud's own rights."""
    words = f"{table} is only ever added to"
    if op.get_bind().dialect.name == "sqlite":
        for verb in ("UPDATE", "DELETE"):
            _refuse_on_sqlite(table, verb, "", words)
        # INSERT OR REPLACE deletes the row that is there, and no trigger on DELETE hears of it.
        _refuse_on_sqlite(table, "INSERT", f"WHEN EXISTS (SELECT 1 FROM {table} WHERE id = NEW.id)", words)
        return
    _refuse_on_postgresql(table, "only_added_to", "UPDATE OR DELETE OR TRUNCATE", "STATEMENT", "", words)


def _only_rises(table: str) -> None:
    """Triggers for a table of one row with an `id`: the row never goes, and its id never falls."""
    words = f"{table} only ever rises"
    if op.get_bind().dialect.name == "sqlite":
        _refuse_on_sqlite(table, "DELETE", "", words)
        _refuse_on_sqlite(table, "UPDATE", "WHEN NEW.id <= OLD.id OR NEW.one <> OLD.one", words)
        # An upsert asks here too, with the new row: it may pass only where it rises.
        _refuse_on_sqlite(table, "INSERT", f"WHEN EXISTS (SELECT 1 FROM {table} WHERE id >= NEW.id)", words)
        return
    _refuse_on_postgresql(table, "stays", "DELETE OR TRUNCATE", "STATEMENT", "", words)
    _refuse_on_postgresql(table, "rises", "UPDATE", "ROW", "WHEN (NEW.id <= OLD.id OR NEW.one <> OLD.one)", words)


def _refuse_on_sqlite(table: str, verb: str, when: str, words: str) -> None:
    op.execute(
        f"CREATE TRIGGER {table}_no_{verb.lower()} BEFORE {verb} ON {table} {when} "
        f"BEGIN SELECT RAISE(ABORT, '{words}'); END"
    )


def _refuse_on_postgresql(table: str, name: str, verbs: str, each: str, when: str, words: str) -> None:
    op.execute(
        f"CREATE FUNCTION {table}_{name}() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN RAISE EXCEPTION '{words}'; END $$"
    )
    op.execute(
        f"CREATE TRIGGER {table}_{name} BEFORE {verbs} ON {table} "
        f"FOR EACH {each} {when} EXECUTE FUNCTION {table}_{name}()"
    )
