"""Every statement of the market but those about blobs (``sql_blobs``). Operations name them; nothing else writes SQL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from parity_market.store import rows
from parity_market.store import tables as t
from parity_market.store.builders import bind, find, insert, scalar, select_row, select_rows, update, whole
from parity_market.store.statements import Command, Query, upsert

LIVE_STATES = sa.text("task.state IN ('pending', 'leased', 'running', 'verifying')")  # as the partial index says it
LEASE_LIVE = sa.text("lease.live = 1")
MAX_PAGE = 200  # rows of one page


# -- market_meta -------------------------------------------------------------------------------------------------

META = scalar(sa.select(t.market_meta.c.value).where(t.market_meta.c.key == bind("key")))
META_PUT = upsert(t.market_meta, keys=["key"], update=["value"])

# -- submissions, tasks, groups, events ---------------------------------------------------------------------------

SUBMISSION = find(rows.SubmissionRow, t.submission, "id")
SUBMISSION_BY_NONCE = find(rows.SubmissionRow, t.submission, "creator", "nonce")
SUBMISSION_INSERT = insert(t.submission)

TASK = find(rows.TaskRow, t.task, "id")
TASK_INSERT = insert(t.task)
TASK_OWNER = scalar(sa.select(t.task.c.creator).where(t.task.c.id == bind("id")))
TASKS_OF_GROUP = select_rows(
    rows.TaskRow, t.task, lambda s: s.where(t.task.c.group_id == bind("group_id")).order_by(t.task.c.part)
)
TASKS_OF_CREATOR = select_rows(
    rows.TaskRow,
    t.task,
    lambda s: (
        s.where(t.task.c.creator == bind("creator"), t.task.c.id < bind("before"))
        .order_by(t.task.c.id.desc())
        .limit(whole("limit"))
    ),
)
TASKS_BEFORE = select_rows(
    rows.TaskRow,
    t.task,
    lambda s: s.where(t.task.c.id < bind("before")).order_by(t.task.c.id.desc()).limit(whole("limit")),
)
TASKS_IN_STATE = select_rows(
    rows.TaskRow,
    t.task,
    lambda s: (
        s.where(t.task.c.state == bind("state"), LIVE_STATES, t.task.c.id > bind("after"))
        .order_by(t.task.c.id)
        .limit(whole("limit"))
    ),
)
TASKS_PAST_DEADLINE = select_rows(
    rows.TaskRow,
    t.task,
    lambda s: (
        s.where(t.task.c.state == bind("state"), LIVE_STATES, t.task.c.deadline_us < whole("now_us"))
        .order_by(t.task.c.deadline_us)
        .limit(whole("limit"))
    ),
)


def _counted(values: Sequence[Any]) -> tuple[str, int]:
    return str(values[0]), int(values[1])


# Answered by the partial index: the cost does not grow with history.
TASK_COUNTS_LIVE: Query[tuple[str, int]] = Query(
    sa.select(t.task.c.state, sa.func.count()).where(LIVE_STATES).group_by(t.task.c.state), _counted
)
TASK_COUNTS_FINAL: Query[tuple[str, int]] = Query(sa.select(t.task_count.c.state, t.task_count.c.count), _counted)
TASK_COUNTED = Command(
    sa.update(t.task_count)
    .where(t.task_count.c.state == bind("key_state", t.task_count.c.state.type))
    .values(count=t.task_count.c.count + 1)
)
TASK_COUNT_INSERT = insert(t.task_count)

# One update per step of a task's life: only what that step changes is written.
_STEP = ("state", "seq", "updated_us")
TASK_STEP = update(t.task, ["id"], *_STEP)
TASK_CLAIMED = update(t.task, ["id"], *_STEP, "fence", "attempts", "last_node")
TASK_STARTED = update(t.task, ["id"], *_STEP, "started_us")
TASK_REPORTED = update(
    t.task, ["id"], *_STEP, "completed_us", "result_cid", "result_size", "exit_code", "message", "usage_doc",
    "metrics_doc", "failure", "started_us",
)  # fmt: skip
TASK_FREED = update(
    t.task, ["id"], *_STEP, "completed_us", "failure", "message", "exit_code", "excluded_doc", "faults_doc",
    "result_cid", "result_size", "attempts",
)  # fmt: skip
TASK_VERIFY_RETRY = update(t.task, ["id"], *_STEP, "verify_attempts")

GROUP = find(rows.GroupRow, t.task_group, "id")
GROUPS_OF_CREATOR = select_rows(
    rows.GroupRow,
    t.task_group,
    lambda s: (
        s.where(
            t.task_group.c.creator == bind("creator"),
            t.task_group.c.kind == bind("kind"),
            t.task_group.c.id < bind("before"),
        )
        .order_by(t.task_group.c.id.desc())
        .limit(whole("limit"))
    ),
)
GROUPS_OF_ANY_KIND = select_rows(
    rows.GroupRow,
    t.task_group,
    lambda s: (
        s.where(t.task_group.c.creator == bind("creator"), t.task_group.c.id < bind("before"))
        .order_by(t.task_group.c.id.desc())
        .limit(whole("limit"))
    ),
)
GROUP_INSERT = insert(t.task_group)
GROUPS_IN_STATE = select_rows(
    rows.GroupRow,
    t.task_group,
    lambda s: (
        s.where(t.task_group.c.state == bind("state"), t.task_group.c.id > bind("after"))
        .order_by(t.task_group.c.id)
        .limit(whole("limit"))
    ),
)
GROUP_ENDED = update(t.task_group, ["id"], "state", "result_cid", "metrics_doc", "message", "completed_us")

EVENT_INSERT = insert(t.task_event)
EVENTS = select_rows(
    rows.EventRow,
    t.task_event,
    lambda s: (
        s.where(t.task_event.c.task_id == bind("task_id"), t.task_event.c.seq > whole("after"))
        .order_by(t.task_event.c.seq)
        .limit(whole("limit"))
    ),
)

# -- leases -----------------------------------------------------------------------------------------------------

LEASE = find(rows.LeaseRow, t.lease, "task_id", "fence")
LEASES_OF_TASK = select_rows(
    rows.LeaseRow, t.lease, lambda s: s.where(t.lease.c.task_id == bind("task_id")).order_by(t.lease.c.fence)
)
LEASE_INSERT = insert(t.lease)
LEASE_RENEWED = update(t.lease, ["task_id", "fence"], "expires_us")
LEASE_STARTED = update(t.lease, ["task_id", "fence"], "started_us")
LEASE_ENDED = update(t.lease, ["task_id", "fence"], "live", "ended_us", "end_reason")
LEASES_EXPIRED = select_rows(
    rows.LeaseRow,
    t.lease,
    lambda s: (
        s.where(LEASE_LIVE, t.lease.c.expires_us <= whole("now_us"))
        .order_by(t.lease.c.expires_us)
        .limit(whole("limit"))
    ),
)
LEASES_OF_NODE = select_rows(
    rows.LeaseRow,
    t.lease,
    lambda s: (
        s.where(LEASE_LIVE, t.lease.c.node_id == bind("node_id")).order_by(t.lease.c.task_id).limit(whole("limit"))
    ),
)
LEASES_EXTEND = Command(
    sa.update(t.lease)
    .where(LEASE_LIVE, t.lease.c.expires_us < whole("until_us"))
    .values(expires_us=sa.bindparam("new_until_us", type_=sa.BigInteger, required=True))
)
LEASES_LIVE_COUNT = scalar(sa.select(sa.func.count()).select_from(t.lease).where(LEASE_LIVE))
NEXT_EXPIRY = scalar(sa.select(sa.func.min(t.lease.c.expires_us)).where(LEASE_LIVE))

LOG_INSERT = upsert(t.log_chunk, keys=["task_id", "fence", "offset"], update=[])
LOG_CHUNK_OVERHEAD = 64  # bytes that a chunk counts for beside its text, so that many tiny ones end too
LOG_CUT_OFFSET = -1  # of the empty chunk that says: more came than is kept
_of_attempt = sa.and_(t.log_chunk.c.task_id == bind("task_id"), t.log_chunk.c.fence == whole("fence"))
LOG_SIZE = scalar(
    sa.select(sa.func.coalesce(sa.func.sum(t.log_chunk.c.size + LOG_CHUNK_OVERHEAD), 0)).where(_of_attempt)
)
LOG_CUT = scalar(sa.select(sa.literal_column("1")).where(_of_attempt, t.log_chunk.c.offset == LOG_CUT_OFFSET))
LOG_CHUNKS = select_rows(
    rows.LogChunkRow,
    t.log_chunk,
    lambda s: (
        s.where(
            t.log_chunk.c.task_id == bind("task_id"),
            t.log_chunk.c.fence == whole("fence"),
            t.log_chunk.c.offset + t.log_chunk.c.size > whole("after"),
        )
        .order_by(t.log_chunk.c.offset)
        .limit(whole("limit"))
    ),
)

# -- reports, receipts --------------------------------------------------------------------------------------------

REPORT = find(rows.ReportRow, t.report, "lease_id", "fence", "kind", "seq")
REPORT_FINAL = select_rows(
    rows.ReportRow,
    t.report,
    lambda s: s.where(
        t.report.c.lease_id == bind("lease_id"), t.report.c.fence == whole("fence"), sa.text("report.kind = 'final'")
    ),
)
REPORT_INSERT = insert(t.report)
RECEIPT = find(rows.ReceiptRow, t.receipt, "task_id", "fence")
RECEIPT_INSERT = insert(t.receipt)

# -- money ---------------------------------------------------------------------------------------------------------

EARNING_INSERT = insert(t.earning, without=["id"])
EARNING_OF_TASK = select_rows(
    rows.EarningRow, t.earning, lambda s: s.where(t.earning.c.task_id == bind("task_id")).order_by(t.earning.c.id)
)
EARNINGS_NEW = select_rows(
    rows.EarningRow,
    t.earning,
    lambda s: (
        s.where(t.earning.c.chain == bind("chain"), sa.text("earning.voucher_count IS NULL"))
        .order_by(t.earning.c.id)
        .limit(whole("limit"))
    ),
)
EARNINGS_OF_SOLVER = select_rows(
    rows.EarningRow,
    t.earning,
    lambda s: (
        s.where(t.earning.c.solver == bind("solver"), t.earning.c.id < whole("before"))
        .order_by(t.earning.c.id.desc())
        .limit(whole("limit"))
    ),
)
EARNINGS_UNVOUCHERED_OF_SOLVER = select_rows(
    rows.EarningRow,
    t.earning,
    lambda s: s.where(
        t.earning.c.solver == bind("solver"),
        t.earning.c.chain == bind("chain"),
        sa.text("earning.voucher_count IS NULL"),
    ),
)
EARNING_VOUCHERED = update(t.earning, ["id"], "voucher_count", "cumulative")

VOUCHER_INSERT = insert(t.voucher)
VOUCHER_NEWEST = select_rows(
    rows.VoucherRow,
    t.voucher,
    lambda s: (
        s.where(
            *(t.voucher.c[name] == bind(name) for name in ("chain", "creator", "spender", "solver")),
        )
        .order_by(t.voucher.c.number.desc())
        .limit(1)
    ),
)
VOUCHER_NEWEST_SIGNED = select_rows(
    rows.VoucherRow,
    t.voucher,
    lambda s: (
        s.where(
            *(t.voucher.c[name] == bind(name) for name in ("chain", "creator", "spender", "solver")),
            t.voucher.c.signature.is_not(None),
        )
        .order_by(t.voucher.c.number.desc())
        .limit(1)
    ),
)
VOUCHERS_UNSIGNED = select_rows(
    rows.VoucherRow,
    t.voucher,
    lambda s: s.where(sa.text("voucher.signature IS NULL")).order_by(t.voucher.c.created_us).limit(whole("limit")),
)
VOUCHER_SIGNED = Command(
    sa.update(t.voucher)
    .where(
        *(t.voucher.c[name] == bind(f"key_{name}") for name in ("chain", "creator", "spender", "solver")),
        t.voucher.c.number == whole("key_number"),
        t.voucher.c.signature.is_(None),
    )
    .values(signature=sa.bindparam("signature", type_=sa.Text, required=True))
)
VOUCHERS_SUPERSEDED_DELETE = Command(
    sa.delete(t.voucher).where(
        *(t.voucher.c[name] == bind(f"key_{name}") for name in ("chain", "creator", "spender", "solver")),
        t.voucher.c.number < whole("key_number"),
    )
)
_VOUCHER_KEY = ("chain", "creator", "spender", "solver")
VOUCHER_SOLVERS: Query[str] = scalar(
    sa.select(t.voucher.c.solver)
    .where(*(t.voucher.c[name] == bind(name) for name in ("chain", "creator", "spender")))
    .distinct()
)


def _newest_vouchers(*among: sa.ColumnElement[bool]) -> tuple[sa.Select[Any], sa.Join]:
    """Select the highest count of each (chain, creator, spender, solver) among the vouchers that fulfil ``among``."""
    newest = (
        sa.select(*(t.voucher.c[name] for name in _VOUCHER_KEY), sa.func.max(t.voucher.c.number).label("number"))
        .where(*among)
        .group_by(*(t.voucher.c[name] for name in _VOUCHER_KEY))
        .subquery("newest")
    )
    on = sa.and_(*(t.voucher.c[name] == newest.c[name] for name in (*_VOUCHER_KEY, "number")))
    return select_row(rows.VoucherRow, t.voucher), t.voucher.join(newest, on)


def _vouchers_of_solver(*among: sa.ColumnElement[bool]) -> Query[rows.VoucherRow]:
    select, joined = _newest_vouchers(t.voucher.c.solver == bind("solver"), *among)
    order = [t.voucher.c[name] for name in ("creator", "spender")]
    return Query(select.select_from(joined).order_by(*order).limit(whole("limit")), rows.VoucherRow._make)


def _vouchers_unpaid() -> Query[rows.VoucherRow]:
    select, joined = _newest_vouchers(t.voucher.c.chain == bind("chain"), t.voucher.c.signature.is_not(None))
    ledger = sa.and_(*(t.voucher.c[name] == t.chain_paid.c[name] for name in _VOUCHER_KEY))
    # Fixed-width text compares as the amounts do.
    unpaid = sa.or_(t.chain_paid.c.paid.is_(None), t.chain_paid.c.paid < t.voucher.c.cumulative)
    statement = select.select_from(joined.outerjoin(t.chain_paid, ledger)).where(unpaid)
    return Query(statement.order_by(t.voucher.c.created_us).limit(whole("limit")), rows.VoucherRow._make)


VOUCHERS_OF_SOLVER = _vouchers_of_solver(t.voucher.c.signature.is_not(None))
VOUCHERS_NEWEST_OF_SOLVER = _vouchers_of_solver()
VOUCHERS_UNPAID = _vouchers_unpaid()

TX_INSERT = insert(t.chain_tx)
TX_LAST_NONCE = scalar(
    sa.select(sa.func.max(t.chain_tx.c.nonce)).where(
        t.chain_tx.c.chain == bind("chain"), t.chain_tx.c.sender == bind("sender")
    )
)
TX = find(rows.ChainTxRow, t.chain_tx, "chain", "sender", "nonce")
TXS_IN_STATE = select_rows(
    rows.ChainTxRow,
    t.chain_tx,
    lambda s: (
        s.where(t.chain_tx.c.chain == bind("chain"), t.chain_tx.c.state == bind("state"))
        .order_by(t.chain_tx.c.nonce)
        .limit(whole("limit"))
    ),
)
TXS_FROM = select_rows(
    rows.ChainTxRow,
    t.chain_tx,
    lambda s: (
        s.where(
            t.chain_tx.c.chain == bind("chain"),
            t.chain_tx.c.sender == bind("sender"),
            t.chain_tx.c.nonce >= whole("nonce"),
        )
        .order_by(t.chain_tx.c.nonce)
        .limit(whole("limit"))
    ),
)
TX_MARKED = update(t.chain_tx, ["chain", "sender", "nonce"], "state", "block", "updated_us")

CHAIN_ACCOUNT = find(rows.ChainAccountRow, t.chain_account, "chain", "account")
CHAIN_ACCOUNT_PUT = upsert(
    t.chain_account, keys=["chain", "account"], update=["bond", "operator", "opened", "block", "seen_us"]
)
CHAIN_ESCROW = find(rows.ChainEscrowRow, t.chain_escrow, "chain", "creator", "spender")
CHAIN_ESCROW_PUT = upsert(
    t.chain_escrow,
    keys=["chain", "creator", "spender"],
    update=["escrow", "releasing", "redeemed", "block", "seen_us"],
)
CHAIN_ESCROW_CREATORS: Query[str] = scalar(
    sa.select(t.chain_escrow.c.creator).where(
        t.chain_escrow.c.chain == bind("chain"), t.chain_escrow.c.spender == bind("spender")
    )
)
CHAIN_ESCROW_COUNT = scalar(
    sa.select(sa.func.count())
    .select_from(t.chain_escrow)
    .where(t.chain_escrow.c.chain == bind("chain"), t.chain_escrow.c.spender == bind("spender"))
)
CHAIN_PAID = find(rows.ChainPaidRow, t.chain_paid, "chain", "creator", "spender", "solver")
CHAIN_PAID_PUT = upsert(
    t.chain_paid, keys=["chain", "creator", "spender", "solver"], update=["paid", "block", "tx_hash"]
)
ACCOUNT = find(rows.AccountRow, t.account, "chain", "creator")
ACCOUNT_PUT = upsert(t.account, keys=["chain", "creator"], update=["reserved", "earned"])
ACCOUNTS = select_rows(rows.AccountRow, t.account, lambda s: s.where(t.account.c.chain == bind("chain")))

# -- nodes ---------------------------------------------------------------------------------------------------------

NODE = find(rows.NodeRow, t.node, "id")
NODE_PUT = upsert(
    t.node,
    keys=["id"],
    update=[
        "operator",
        "instance",
        "hostname",
        "capability_doc",
        "capability_us",
        "draining",
        "online",
        "last_seen_us",
    ],
)
NODES = select_rows(
    rows.NodeRow, t.node, lambda s: s.where(t.node.c.id > bind("after")).order_by(t.node.c.id).limit(whole("limit"))
)
NODE_SEEN = update(t.node, ["id"], "last_seen_us", "draining", "online")
NODE_CAPABILITY = update(t.node, ["id"], "capability_doc", "capability_us")
NODE_COMPLETED = Command(
    sa.update(t.node).where(t.node.c.id == bind("key_id")).values(completed=t.node.c.completed + 1)
)
NODE_FAILED = Command(sa.update(t.node).where(t.node.c.id == bind("key_id")).values(failed=t.node.c.failed + 1))
NODE_IDS: Query[str] = scalar(sa.select(t.node.c.id))

# -- sessions -------------------------------------------------------------------------------------------------------

SESSION = find(rows.SessionRow, t.session, "id")
SESSION_INSERT = insert(t.session)
SESSION_DELETE = Command(sa.delete(t.session).where(t.session.c.id == bind("id")))
SESSIONS_EXPIRED_DELETE = Command(sa.delete(t.session).where(t.session.c.expires_us <= whole("now_us")))
NONCE_USED = upsert(t.siwe_nonce, keys=["nonce"], update=[])
NONCES_EXPIRED_DELETE = Command(sa.delete(t.siwe_nonce).where(t.siwe_nonce.c.expires_us <= whole("now_us")))
