"""Sharded federated sessions: each part's sealed source, and what a phase asks.

Revision ID: 0003
Revises: 0002
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add the table of shards and the column."""
    op.create_table(
        "fl_shard",
        sa.Column("group_id", sa.Text(), nullable=False),
        sa.Column("part", sa.Integer(), nullable=False),
        sa.Column("sealed", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("group_id", "part"),
        sqlite_with_rowid=False,
    )
    op.add_column("fl_round", sa.Column("asks", sa.Text(), nullable=False, server_default="train"))
