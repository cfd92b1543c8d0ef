"""First schema.

Revision ID: 0001
Revises: nothing
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create every table."""
    op.create_table(
        "account",
        sa.Column("chain", sa.Text(), nullable=False),
        sa.Column("creator", sa.Text(), nullable=False),
        sa.Column("reserved", sa.String(29), nullable=False),
        sa.Column("earned", sa.String(29), nullable=False),
        sa.PrimaryKeyConstraint("chain", "creator"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "blob_ref",
        sa.Column("cid", sa.Text(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("task_id", sa.Text(), nullable=False),
        sa.Column("visibility", sa.Text(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("pinned", sa.SmallInteger(), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("cid", "owner", "task_id"),
        sqlite_with_rowid=False,
    )
    op.create_index("blob_ref_of_owner", "blob_ref", ["owner"], unique=False)
    op.create_table(
        "chain_account",
        sa.Column("chain", sa.Text(), nullable=False),
        sa.Column("account", sa.Text(), nullable=False),
        sa.Column("bond", sa.String(29), nullable=False),
        sa.Column("operator", sa.Text(), nullable=False),
        sa.Column("opened", sa.SmallInteger(), nullable=False),
        sa.Column("block", sa.BigInteger(), nullable=False),
        sa.Column("seen_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("chain", "account"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "chain_escrow",
        sa.Column("chain", sa.Text(), nullable=False),
        sa.Column("creator", sa.Text(), nullable=False),
        sa.Column("spender", sa.Text(), nullable=False),
        sa.Column("escrow", sa.String(29), nullable=False),
        sa.Column("releasing", sa.String(29), nullable=False),
        sa.Column("redeemed", sa.String(29), nullable=False),
        sa.Column("block", sa.BigInteger(), nullable=False),
        sa.Column("seen_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("chain", "creator", "spender"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "chain_paid",
        sa.Column("chain", sa.Text(), nullable=False),
        sa.Column("creator", sa.Text(), nullable=False),
        sa.Column("spender", sa.Text(), nullable=False),
        sa.Column("solver", sa.Text(), nullable=False),
        sa.Column("paid", sa.String(29), nullable=False),
        sa.Column("block", sa.BigInteger(), nullable=False),
        sa.Column("tx_hash", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("chain", "creator", "spender", "solver"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "chain_tx",
        sa.Column("chain", sa.Text(), nullable=False),
        sa.Column("sender", sa.Text(), nullable=False),
        sa.Column("nonce", sa.BigInteger(), nullable=False),
        sa.Column("raw", sa.LargeBinary(), nullable=False),
        sa.Column("hash", sa.Text(), nullable=False),
        sa.Column("purpose", sa.Text(), nullable=False),
        sa.Column("doc", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("block", sa.BigInteger(), nullable=True),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.Column("updated_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("chain", "sender", "nonce"),
        sqlite_with_rowid=False,
    )
    op.create_index("chain_tx_by_state", "chain_tx", ["chain", "state", "nonce"], unique=False)
    op.create_table(
        "earning",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("chain", sa.Text(), nullable=False),
        sa.Column("task_id", sa.Text(), nullable=False),
        sa.Column("solver", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("creator", sa.Text(), nullable=False),
        sa.Column("spender", sa.Text(), nullable=False),
        sa.Column("amount", sa.String(29), nullable=False),
        sa.Column("receipt_digest", sa.Text(), nullable=False),
        sa.Column("earned_us", sa.BigInteger(), nullable=False),
        sa.Column("voucher_count", sa.BigInteger(), nullable=True),
        sa.Column("cumulative", sa.String(29), nullable=True),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("task_id", "solver", "kind", name="earning_once"),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "earning_new",
        "earning",
        ["chain", "id"],
        unique=False,
        sqlite_where=sa.text("voucher_count IS NULL"),
        postgresql_where=sa.text("voucher_count IS NULL"),
    )
    op.create_index(
        "earning_new_of_solver",
        "earning",
        ["solver", "chain"],
        unique=False,
        sqlite_where=sa.text("voucher_count IS NULL"),
        postgresql_where=sa.text("voucher_count IS NULL"),
    )
    op.create_index("earning_of_solver", "earning", ["solver", "id"], unique=False)
    op.create_table(
        "log_chunk",
        sa.Column("task_id", sa.Text(), nullable=False),
        sa.Column("fence", sa.Integer(), nullable=False),
        sa.Column("offset", sa.BigInteger(), nullable=False),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("task_id", "fence", "offset"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "market_meta",
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("key"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "node",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("device_key", sa.Text(), nullable=False),
        sa.Column("operator", sa.Text(), nullable=False),
        sa.Column("instance", sa.Text(), nullable=False),
        sa.Column("hostname", sa.Text(), nullable=False),
        sa.Column("capability_doc", sa.Text(), nullable=False),
        sa.Column("capability_us", sa.BigInteger(), nullable=False),
        sa.Column("draining", sa.SmallInteger(), nullable=False),
        sa.Column("online", sa.SmallInteger(), nullable=False),
        sa.Column("enrolled_us", sa.BigInteger(), nullable=False),
        sa.Column("last_seen_us", sa.BigInteger(), nullable=False),
        sa.Column("completed", sa.BigInteger(), nullable=False),
        sa.Column("failed", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "receipt",
        sa.Column("task_id", sa.Text(), nullable=False),
        sa.Column("fence", sa.Integer(), nullable=False),
        sa.Column("node_id", sa.Text(), nullable=False),
        sa.Column("operator", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("manifest_hash", sa.Text(), nullable=False),
        sa.Column("doc", sa.Text(), nullable=False),
        sa.Column("received_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("task_id", "fence"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "report",
        sa.Column("lease_id", sa.Text(), nullable=False),
        sa.Column("fence", sa.Integer(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("task_id", sa.Text(), nullable=False),
        sa.Column("node_id", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("doc", sa.Text(), nullable=False),
        sa.Column("received_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("lease_id", "fence", "kind", "seq"),
        sqlite_with_rowid=False,
    )
    op.create_index(
        "report_one_final",
        "report",
        ["lease_id", "fence"],
        unique=True,
        sqlite_where=sa.text("kind = 'final'"),
        postgresql_where=sa.text("kind = 'final'"),
    )
    op.create_table(
        "session",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("account", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.Column("expires_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sqlite_with_rowid=False,
    )
    op.create_index("session_by_expiry", "session", ["expires_us"], unique=False)
    op.create_table(
        "siwe_nonce",
        sa.Column("nonce", sa.Text(), nullable=False),
        sa.Column("expires_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("nonce"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "small_blob",
        sa.Column("cid", sa.Text(), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("cid"),
    )
    op.create_table(
        "submission",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("creator", sa.Text(), nullable=False),
        sa.Column("nonce", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("parts", sa.Integer(), nullable=False),
        sa.Column("reward", sa.String(29), nullable=False),
        sa.Column("order_hash", sa.Text(), nullable=False),
        sa.Column("order_doc", sa.Text(), nullable=False),
        sa.Column("spec", sa.Text(), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("creator", "nonce", name="submission_nonce"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "task_count",
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("state"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "task_event",
        sa.Column("task_id", sa.Text(), nullable=False),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("event", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("at_us", sa.BigInteger(), nullable=False),
        sa.Column("node_id", sa.Text(), nullable=True),
        sa.Column("fence", sa.Integer(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("task_id", "seq"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "task_group",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("creator", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("reward", sa.String(29), nullable=False),
        sa.Column("parts", sa.Integer(), nullable=False),
        sa.Column("plan_doc", sa.Text(), nullable=True),
        sa.Column("result_cid", sa.Text(), nullable=True),
        sa.Column("metrics_doc", sa.Text(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.Column("completed_us", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
        sqlite_with_rowid=False,
    )
    op.create_index("task_group_by_state", "task_group", ["state", "id"], unique=False)
    op.create_table(
        "voucher",
        sa.Column("chain", sa.Text(), nullable=False),
        sa.Column("creator", sa.Text(), nullable=False),
        sa.Column("spender", sa.Text(), nullable=False),
        sa.Column("solver", sa.Text(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("cumulative", sa.String(29), nullable=False),
        sa.Column("receipts_head", sa.Text(), nullable=False),
        sa.Column("signature", sa.Text(), nullable=True),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("chain", "creator", "spender", "solver", "number"),
        sqlite_with_rowid=False,
    )
    op.create_index("voucher_of_solver", "voucher", ["solver"], unique=False)
    op.create_index(
        "voucher_unsigned",
        "voucher",
        ["created_us"],
        unique=False,
        sqlite_where=sa.text("signature IS NULL"),
        postgresql_where=sa.text("signature IS NULL"),
    )
    op.create_table(
        "task",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("submission_id", sa.Text(), nullable=False),
        sa.Column("group_id", sa.Text(), nullable=True),
        sa.Column("part", sa.Integer(), nullable=False),
        sa.Column("parts", sa.Integer(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("creator", sa.Text(), nullable=False),
        sa.Column("title", sa.Text(), nullable=False),
        sa.Column("reward", sa.String(29), nullable=False),
        sa.Column("order_hash", sa.Text(), nullable=False),
        sa.Column("needs_doc", sa.Text(), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("fence", sa.Integer(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("max_attempts", sa.Integer(), nullable=False),
        sa.Column("last_node", sa.Text(), nullable=True),
        sa.Column("excluded_doc", sa.Text(), nullable=False),
        sa.Column("faults_doc", sa.Text(), nullable=False),
        sa.Column("verify_attempts", sa.Integer(), nullable=False),
        sa.Column("deadline_us", sa.BigInteger(), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.Column("updated_us", sa.BigInteger(), nullable=False),
        sa.Column("started_us", sa.BigInteger(), nullable=True),
        sa.Column("completed_us", sa.BigInteger(), nullable=True),
        sa.Column("result_cid", sa.Text(), nullable=True),
        sa.Column("result_size", sa.BigInteger(), nullable=True),
        sa.Column("failure", sa.Text(), nullable=True),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("exit_code", sa.BigInteger(), nullable=True),
        sa.Column("usage_doc", sa.Text(), nullable=False),
        sa.Column("metrics_doc", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["submission_id"],
            ["submission.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sqlite_with_rowid=False,
    )
    op.create_index("task_by_creator", "task", ["creator", "id"], unique=False)
    op.create_index(
        "task_by_group",
        "task",
        ["group_id", "part"],
        unique=False,
        sqlite_where=sa.text("group_id IS NOT NULL"),
        postgresql_where=sa.text("group_id IS NOT NULL"),
    )
    op.create_index(
        "task_live",
        "task",
        ["state", "deadline_us"],
        unique=False,
        sqlite_where=sa.text("state IN ('pending', 'leased', 'running', 'verifying')"),
        postgresql_where=sa.text("state IN ('pending', 'leased', 'running', 'verifying')"),
    )
    op.create_table(
        "lease",
        sa.Column("task_id", sa.Text(), nullable=False),
        sa.Column("fence", sa.Integer(), nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("node_id", sa.Text(), nullable=False),
        sa.Column("claim_id", sa.Text(), nullable=False),
        sa.Column("jti", sa.Text(), nullable=False),
        sa.Column("manifest_hash", sa.Text(), nullable=False),
        sa.Column("ttl_us", sa.BigInteger(), nullable=False),
        sa.Column("expires_us", sa.BigInteger(), nullable=False),
        sa.Column("live", sa.SmallInteger(), nullable=False),
        sa.Column("granted_us", sa.BigInteger(), nullable=False),
        sa.Column("started_us", sa.BigInteger(), nullable=True),
        sa.Column("ended_us", sa.BigInteger(), nullable=True),
        sa.Column("end_reason", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["task_id"],
            ["task.id"],
        ),
        sa.PrimaryKeyConstraint("task_id", "fence"),
        sqlite_with_rowid=False,
    )
    op.create_index(
        "lease_live",
        "lease",
        ["expires_us"],
        unique=False,
        sqlite_where=sa.text("live = 1"),
        postgresql_where=sa.text("live = 1"),
    )
    op.create_index(
        "lease_of_node",
        "lease",
        ["node_id"],
        unique=False,
        sqlite_where=sa.text("live = 1"),
        postgresql_where=sa.text("live = 1"),
    )
