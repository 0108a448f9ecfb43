"""Alembic's entry: runs the revisions on the connection (and in the transaction) that `Database` hands over."""

from __future__ import annotations

from alembic import context

from marram.store.tables import metadata

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=metadata, render_as_batch=True)
context.run_migrations()
