"""Alembic's entry: migrations run on the connection that ``store.migrate`` opened."""

from __future__ import annotations

from alembic import context

from parity_market.store.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
