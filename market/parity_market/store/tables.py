"""The tables. Every statement about them is in ``sql.py``."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from parity_protocol.task import TaskState

__all__ = ["TokenText", "metadata"]

_TOKEN_DIGITS = 29  # of 2**96 - 1


class TokenText(sa.types.TypeDecorator[int]):
    """A token amount as fixed-width decimal text: it sorts like a number, and 10 tokens overflow SQLite's integers."""

    impl = sa.String(_TOKEN_DIGITS)
    cache_ok = True

    def process_bind_param(self, value: int | None, dialect: sa.Dialect) -> str | None:  # noqa: ARG002  # SQLAlchemy's signature
        """Return the column's text."""
        if value is None:
            return None
        if value < 0:
            raise ValueError(f"a token amount cannot be negative, got {value}")
        return str(value).zfill(_TOKEN_DIGITS)

    def process_result_value(self, value: Any | None, dialect: sa.Dialect) -> int | None:  # noqa: ARG002  # SQLAlchemy's signature
        """Return the amount."""
        return None if value is None else int(value)


class StateText(sa.types.TypeDecorator[TaskState]):
    """A task's state."""

    impl = sa.String(16)
    cache_ok = True

    def process_bind_param(self, value: TaskState | None, dialect: sa.Dialect) -> str | None:  # noqa: ARG002  # SQLAlchemy's signature
        """Return the column's text."""
        return None if value is None else str(value)

    def process_result_value(self, value: Any | None, dialect: sa.Dialect) -> TaskState | None:  # noqa: ARG002  # SQLAlchemy's signature
        """Return the state."""
        return None if value is None else TaskState(value)


metadata = sa.MetaData()

_Time = sa.BigInteger  # microseconds since the epoch, UTC


def _table(name: str, *items: sa.schema.SchemaItem) -> sa.Table:
    """Make a table that SQLite stores in its primary key's order: one tree to write instead of two."""
    return sa.Table(name, metadata, *items, sqlite_with_rowid=False)


def _key(name: str, kind: Any = sa.Text) -> sa.Column[Any]:
    return sa.Column(name, kind, primary_key=True)


def _needed(name: str, kind: Any = sa.Text) -> sa.Column[Any]:
    return sa.Column(name, kind, nullable=False)


def _maybe(name: str, kind: Any = sa.Text) -> sa.Column[Any]:
    return sa.Column(name, kind, nullable=True)


market_meta = _table("market_meta", _key("key"), _needed("value"))

submission = _table(
    "submission",
    _key("id"),
    _needed("creator"),
    _needed("nonce"),
    _needed("kind"),
    _needed("parts", sa.Integer),
    _needed("reward", TokenText),
    _needed("order_hash"),
    _needed("order_doc"),
    _needed("spec"),
    _needed("created_us", _Time),
    sa.UniqueConstraint("creator", "nonce", name="submission_nonce"),
)

task = _table(
    "task",
    _key("id"),
    sa.Column("submission_id", sa.Text, sa.ForeignKey("submission.id"), nullable=False),
    _maybe("group_id"),
    _needed("part", sa.Integer),
    _needed("parts", sa.Integer),
    _needed("kind"),
    _needed("creator"),
    _needed("title"),
    _needed("reward", TokenText),
    _needed("order_hash"),
    _needed("needs_doc"),
    _needed("state", StateText),
    _needed("seq", sa.Integer),
    _needed("fence", sa.Integer),
    _needed("attempts", sa.Integer),
    _needed("max_attempts", sa.Integer),
    _maybe("last_node"),
    _needed("excluded_doc"),
    _needed("faults_doc"),
    _needed("verify_attempts", sa.Integer),
    _needed("deadline_us", _Time),
    _needed("created_us", _Time),
    _needed("updated_us", _Time),
    _maybe("started_us", _Time),
    _maybe("completed_us", _Time),
    _maybe("result_cid"),
    _maybe("result_size", sa.BigInteger),
    _maybe("failure"),
    _needed("message"),
    _maybe("exit_code", sa.BigInteger),
    _needed("usage_doc"),
    _needed("metrics_doc"),
)
sa.Index("task_by_creator", task.c.creator, task.c.id)
sa.Index(
    "task_by_group",
    task.c.group_id,
    task.c.part,
    sqlite_where=task.c.group_id.is_not(None),
    postgresql_where=task.c.group_id.is_not(None),
)
_LIVE = sa.text("state IN ('pending', 'leased', 'running', 'verifying')")
sa.Index("task_live", task.c.state, task.c.deadline_us, sqlite_where=_LIVE, postgresql_where=_LIVE)

task_count = _table("task_count", _key("state", StateText), _needed("count", sa.BigInteger))  # of final states

task_group = _table(
    "task_group",
    _key("id"),
    _needed("kind"),
    _needed("creator"),
    _needed("state"),
    _needed("reward", TokenText),
    _needed("parts", sa.Integer),
    _maybe("plan_doc"),
    _maybe("result_cid"),
    _needed("metrics_doc"),
    _needed("message"),
    _needed("created_us", _Time),
    _maybe("completed_us", _Time),
)
sa.Index("task_group_by_state", task_group.c.state, task_group.c.id)

lease = _table(
    "lease",
    sa.Column("task_id", sa.Text, sa.ForeignKey("task.id"), primary_key=True),
    _key("fence", sa.Integer),
    _needed("id"),
    _needed("node_id"),
    _needed("claim_id"),
    _needed("jti"),
    _needed("manifest_hash"),
    _needed("ttl_us", sa.BigInteger),
    _needed("expires_us", _Time),
    _needed("live", sa.SmallInteger),
    _needed("granted_us", _Time),
    _maybe("started_us", _Time),
    _maybe("ended_us", _Time),
    _needed("end_reason"),
)
_LEASE_LIVE = sa.text("live = 1")
sa.Index("lease_live", lease.c.expires_us, sqlite_where=_LEASE_LIVE, postgresql_where=_LEASE_LIVE)
sa.Index("lease_of_node", lease.c.node_id, sqlite_where=_LEASE_LIVE, postgresql_where=_LEASE_LIVE)

task_event = _table(
    "task_event",
    _key("task_id"),
    _key("seq", sa.Integer),
    _needed("event"),
    _needed("state"),
    _needed("at_us", _Time),
    _maybe("node_id"),
    _needed("fence", sa.Integer),
    _needed("detail"),
)

report = _table(
    "report",
    _key("lease_id"),
    _key("fence", sa.Integer),
    _key("kind"),
    _key("seq", sa.Integer),
    _needed("task_id"),
    _needed("node_id"),
    _needed("digest"),
    _needed("doc"),
    _needed("received_us", _Time),
)
_FINAL = sa.text("kind = 'final'")
sa.Index(
    "report_one_final", report.c.lease_id, report.c.fence, unique=True, sqlite_where=_FINAL, postgresql_where=_FINAL
)

receipt = _table(
    "receipt",
    _key("task_id"),
    _key("fence", sa.Integer),
    _needed("node_id"),
    _needed("operator"),
    _needed("digest"),
    _needed("manifest_hash"),
    _needed("doc"),
    _needed("received_us", _Time),
)

earning = sa.Table(
    "earning",
    metadata,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    _needed("chain"),
    _needed("task_id"),
    _needed("solver"),
    _needed("kind"),
    _needed("creator"),
    _needed("spender"),
    _needed("amount", TokenText),
    _needed("receipt_digest"),
    _needed("earned_us", _Time),
    _maybe("voucher_count", sa.BigInteger),
    _maybe("cumulative", TokenText),
    sa.UniqueConstraint("task_id", "solver", "kind", name="earning_once"),
    sqlite_autoincrement=True,
)
sa.Index("earning_of_solver", earning.c.solver, earning.c.id)
_UNVOUCHERED = sa.text("voucher_count IS NULL")
sa.Index("earning_new", earning.c.chain, earning.c.id, sqlite_where=_UNVOUCHERED, postgresql_where=_UNVOUCHERED)

voucher = _table(
    "voucher",
    _key("chain"),
    _key("creator"),
    _key("spender"),
    _key("solver"),
    _key("number", sa.BigInteger),
    _needed("cumulative", TokenText),
    _needed("receipts_head"),
    _maybe("signature"),
    _needed("created_us", _Time),
)
sa.Index("voucher_of_solver", voucher.c.solver)
_UNSIGNED = sa.text("signature IS NULL")
sa.Index("voucher_unsigned", voucher.c.created_us, sqlite_where=_UNSIGNED, postgresql_where=_UNSIGNED)

# Two equal columns, so that SQLite prefers it to ``earning_of_solver``, which is long.
sa.Index(
    "earning_new_of_solver",
    earning.c.solver,
    earning.c.chain,
    sqlite_where=_UNVOUCHERED,
    postgresql_where=_UNVOUCHERED,
)

chain_tx = _table(
    "chain_tx",
    _key("chain"),
    _key("sender"),
    _key("nonce", sa.BigInteger),
    _needed("raw", sa.LargeBinary),
    _needed("hash"),
    _needed("purpose"),
    _needed("doc"),
    _needed("state"),
    _maybe("block", sa.BigInteger),
    _needed("created_us", _Time),
    _needed("updated_us", _Time),
)

sa.Index("chain_tx_by_state", chain_tx.c.chain, chain_tx.c.state, chain_tx.c.nonce)

chain_account = _table(
    "chain_account",
    _key("chain"),
    _key("account"),
    _needed("bond", TokenText),
    _needed("operator"),
    _needed("opened", sa.SmallInteger),
    _needed("block", sa.BigInteger),
    _needed("seen_us", _Time),
)

chain_escrow = _table(
    "chain_escrow",
    _key("chain"),
    _key("creator"),
    _key("spender"),
    _needed("escrow", TokenText),
    _needed("releasing", TokenText),
    _needed("redeemed", TokenText),
    _needed("block", sa.BigInteger),
    _needed("seen_us", _Time),
)

chain_paid = _table(
    "chain_paid",
    _key("chain"),
    _key("creator"),
    _key("spender"),
    _key("solver"),
    _needed("paid", TokenText),
    _needed("block", sa.BigInteger),
    _maybe("tx_hash"),
)

account = _table(
    "account",
    _key("chain"),
    _key("creator"),
    _needed("reserved", TokenText),
    _needed("earned", TokenText),
)

node = _table(
    "node",
    _key("id"),
    _needed("device_key"),
    _needed("operator"),
    _needed("instance"),
    _needed("hostname"),
    _needed("capability_doc"),
    _needed("capability_us", _Time),
    _needed("draining", sa.SmallInteger),
    _needed("online", sa.SmallInteger),
    _needed("enrolled_us", _Time),
    _needed("last_seen_us", _Time),
    _needed("completed", sa.BigInteger),
    _needed("failed", sa.BigInteger),
)

blob_ref = _table(
    "blob_ref",
    _key("cid"),
    _key("owner"),
    _key("task_id"),
    _needed("visibility"),
    _needed("size", sa.BigInteger),
    _needed("pinned", sa.SmallInteger),
    _needed("created_us", _Time),
)
sa.Index("blob_ref_of_owner", blob_ref.c.owner)

small_blob = sa.Table("small_blob", metadata, _key("cid"), _needed("data", sa.LargeBinary))

session = _table(
    "session",
    _key("id"),
    _needed("account"),
    _needed("key"),
    _needed("created_us", _Time),
    _needed("expires_us", _Time),
)
sa.Index("session_by_expiry", session.c.expires_us)

siwe_nonce = _table("siwe_nonce", _key("nonce"), _needed("expires_us", _Time))

fl_session = _table(
    "fl_session",
    _key("group_id"),
    _needed("state"),
    _needed("round", sa.Integer),
    _needed("phase", sa.Integer),
    _needed("total_rounds", sa.Integer),
    _maybe("deadline_us", _Time),
    _needed("settings_doc"),
    _needed("message"),
    _needed("created_us", _Time),
    _needed("updated_us", _Time),
)

fl_round = _table(
    "fl_round",
    _key("group_id"),
    _key("round", sa.Integer),
    _key("phase", sa.Integer),
    _needed("state"),
    _needed("base_hash"),
    _needed("base_size", sa.BigInteger),
    _needed("cohort_doc"),
    _needed("metrics_doc"),
    _needed("opened_us", _Time),
    _maybe("closed_us", _Time),
    _needed("asks"),
)

fl_shard = _table("fl_shard", _key("group_id"), _key("part", sa.Integer), _needed("sealed"))

fl_update = _table(
    "fl_update",
    _key("group_id"),
    _key("round", sa.Integer),
    _key("phase", sa.Integer),
    _key("part", sa.Integer),
    _key("fence", sa.Integer),
    _needed("node_id"),
    _needed("base_hash"),
    _needed("sha256"),
    _needed("size", sa.BigInteger),
    _needed("state"),
    _needed("reason"),
    _needed("metrics_doc"),
    _needed("received_us", _Time),
)

fl_small_file = sa.Table("fl_small_file", metadata, _key("group_id"), _key("name"), _needed("data", sa.LargeBinary))

legacy_device = _table(
    "legacy_device",
    _key("id"),
    _needed("wallet"),
    _needed("first_seen_us", _Time),
    _needed("last_seen_us", _Time),
)

old_session = _table(
    "old_session",
    _key("id"),
    _needed("creator"),
    _needed("state"),
    _needed("doc"),
    _needed("created_us", _Time),
    _needed("updated_us", _Time),
)
sa.Index("old_session_of_creator", old_session.c.creator, old_session.c.id)
sa.Index("old_session_by_state", old_session.c.state, old_session.c.created_us)

log_chunk = _table(
    "log_chunk",
    _key("task_id"),
    _key("fence", sa.Integer),
    _key("offset", sa.BigInteger),
    _needed("size", sa.Integer),
    _needed("text"),
)
