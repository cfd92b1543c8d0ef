"""Every statement of the market. Operations name them; nothing else writes SQL."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import sqlalchemy as sa
from sqlalchemy.sql import ClauseElement

from parity_market.store import rows
from parity_market.store import tables as t
from parity_market.store.statements import Command, Query, upsert

R = TypeVar("R", bound=NamedTuple)

LIVE_STATES = sa.text("task.state IN ('pending', 'leased', 'running', 'verifying')")  # as the partial index says it
_LEASE_LIVE = sa.text("lease.live = 1")
MAX_PAGE = 200  # rows of one page


def _bind(name: str, kind: Any = sa.Text) -> sa.BindParameter[Any]:
    return sa.bindparam(name, type_=kind() if isinstance(kind, type) else kind, required=True)


def _int(name: str) -> sa.BindParameter[Any]:
    return _bind(name, sa.BigInteger)


def _select(row: type[R], table: sa.Table) -> sa.Select[Any]:
    return sa.select(*(table.c[field] for field in row._fields))


def _rows(row: type[R], table: sa.Table, refine: Callable[[sa.Select[Any]], sa.Select[Any]]) -> Query[R]:
    make: Callable[[Sequence[Any]], R] = row._make
    return Query(refine(_select(row, table)), make)


def _where(row: type[R], table: sa.Table, *columns: str) -> Query[R]:
    return _rows(row, table, lambda s: s.where(*(table.c[name] == _bind(name, table.c[name].type) for name in columns)))


def _scalar(statement: ClauseElement) -> Query[Any]:
    return Query(statement, lambda values: values[0])


def _insert(table: sa.Table, *, without: Sequence[str] = ()) -> Command:
    names = [column.name for column in table.columns if column.name not in without]
    return Command(sa.insert(table).values({name: sa.bindparam(name, required=True) for name in names}))


def _update(table: sa.Table, where: Sequence[str], *changed: str) -> Command:
    """Set ``changed`` where the key columns equal the parameters ``key_<name>``."""
    statement = sa.update(table)
    for name in where:
        statement = statement.where(table.c[name] == _bind(f"key_{name}", table.c[name].type))
    return Command(
        statement.values({name: sa.bindparam(name, required=True, type_=table.c[name].type) for name in changed})
    )


# -- market_meta -------------------------------------------------------------------------------------------------

META = _scalar(sa.select(t.market_meta.c.value).where(t.market_meta.c.key == _bind("key")))
META_PUT = upsert(t.market_meta, keys=["key"], update=["value"])

# -- submissions, tasks, groups, events ---------------------------------------------------------------------------

SUBMISSION = _where(rows.SubmissionRow, t.submission, "id")
SUBMISSION_BY_NONCE = _where(rows.SubmissionRow, t.submission, "creator", "nonce")
SUBMISSION_INSERT = _insert(t.submission)

TASK = _where(rows.TaskRow, t.task, "id")
TASK_INSERT = _insert(t.task)
TASK_OWNER = _scalar(sa.select(t.task.c.creator).where(t.task.c.id == _bind("id")))
TASKS_OF_GROUP = _rows(
    rows.TaskRow, t.task, lambda s: s.where(t.task.c.group_id == _bind("group_id")).order_by(t.task.c.part)
)
TASKS_OF_CREATOR = _rows(
    rows.TaskRow,
    t.task,
    lambda s: (
        s.where(t.task.c.creator == _bind("creator"), t.task.c.id < _bind("before"))
        .order_by(t.task.c.id.desc())
        .limit(_int("limit"))
    ),
)
TASKS_BEFORE = _rows(
    rows.TaskRow,
    t.task,
    lambda s: s.where(t.task.c.id < _bind("before")).order_by(t.task.c.id.desc()).limit(_int("limit")),
)
TASKS_IN_STATE = _rows(
    rows.TaskRow,
    t.task,
    lambda s: (
        s.where(t.task.c.state == _bind("state"), LIVE_STATES, t.task.c.id > _bind("after"))
        .order_by(t.task.c.id)
        .limit(_int("limit"))
    ),
)
TASKS_PAST_DEADLINE = _rows(
    rows.TaskRow,
    t.task,
    lambda s: (
        s.where(t.task.c.state == _bind("state"), LIVE_STATES, t.task.c.deadline_us < _int("now_us"))
        .order_by(t.task.c.deadline_us)
        .limit(_int("limit"))
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
    .where(t.task_count.c.state == _bind("key_state", t.task_count.c.state.type))
    .values(count=t.task_count.c.count + 1)
)
TASK_COUNT_INSERT = _insert(t.task_count)

# One update per step of a task's life: only what that step changes is written.
_STEP = ("state", "seq", "updated_us")
TASK_STEP = _update(t.task, ["id"], *_STEP)
TASK_CLAIMED = _update(t.task, ["id"], *_STEP, "fence", "attempts", "last_node")
TASK_STARTED = _update(t.task, ["id"], *_STEP, "started_us")
TASK_REPORTED = _update(
    t.task, ["id"], *_STEP, "completed_us", "result_cid", "result_size", "exit_code", "message", "usage_doc",
    "metrics_doc", "failure", "started_us",
)  # fmt: skip
TASK_FREED = _update(
    t.task, ["id"], *_STEP, "completed_us", "failure", "message", "exit_code", "excluded_doc", "faults_doc",
    "result_cid", "result_size",
)  # fmt: skip
TASK_VERIFY_RETRY = _update(t.task, ["id"], *_STEP, "verify_attempts")

GROUP = _where(rows.GroupRow, t.task_group, "id")
GROUP_INSERT = _insert(t.task_group)
GROUPS_IN_STATE = _rows(
    rows.GroupRow,
    t.task_group,
    lambda s: (
        s.where(t.task_group.c.state == _bind("state"), t.task_group.c.id > _bind("after"))
        .order_by(t.task_group.c.id)
        .limit(_int("limit"))
    ),
)
GROUP_ENDED = _update(t.task_group, ["id"], "state", "result_cid", "metrics_doc", "message", "completed_us")

EVENT_INSERT = _insert(t.task_event)
EVENTS = _rows(
    rows.EventRow,
    t.task_event,
    lambda s: (
        s.where(t.task_event.c.task_id == _bind("task_id"), t.task_event.c.seq > _int("after"))
        .order_by(t.task_event.c.seq)
        .limit(_int("limit"))
    ),
)

# -- leases -----------------------------------------------------------------------------------------------------

LEASE = _where(rows.LeaseRow, t.lease, "task_id", "fence")
LEASES_OF_TASK = _rows(
    rows.LeaseRow, t.lease, lambda s: s.where(t.lease.c.task_id == _bind("task_id")).order_by(t.lease.c.fence)
)
LEASE_INSERT = _insert(t.lease)
LEASE_RENEWED = _update(t.lease, ["task_id", "fence"], "expires_us")
LEASE_STARTED = _update(t.lease, ["task_id", "fence"], "started_us")
LEASE_ENDED = _update(t.lease, ["task_id", "fence"], "live", "ended_us", "end_reason")
LEASES_EXPIRED = _rows(
    rows.LeaseRow,
    t.lease,
    lambda s: (
        s.where(_LEASE_LIVE, t.lease.c.expires_us <= _int("now_us")).order_by(t.lease.c.expires_us).limit(_int("limit"))
    ),
)
LEASES_OF_NODE = _rows(
    rows.LeaseRow,
    t.lease,
    lambda s: (
        s.where(_LEASE_LIVE, t.lease.c.node_id == _bind("node_id")).order_by(t.lease.c.task_id).limit(_int("limit"))
    ),
)
LEASES_EXTEND = Command(
    sa.update(t.lease)
    .where(_LEASE_LIVE, t.lease.c.expires_us < _int("until_us"))
    .values(expires_us=sa.bindparam("new_until_us", type_=sa.BigInteger, required=True))
)
LEASES_LIVE_COUNT = _scalar(sa.select(sa.func.count()).select_from(t.lease).where(_LEASE_LIVE))
NEXT_EXPIRY = _scalar(sa.select(sa.func.min(t.lease.c.expires_us)).where(_LEASE_LIVE))

LOG_INSERT = upsert(t.log_chunk, keys=["task_id", "fence", "offset"], update=[])
LOG_CHUNK_OVERHEAD = 64  # bytes that a chunk counts for beside its text, so that many tiny ones end too
LOG_CUT_OFFSET = -1  # of the empty chunk that says: more came than is kept
_of_attempt = sa.and_(t.log_chunk.c.task_id == _bind("task_id"), t.log_chunk.c.fence == _int("fence"))
LOG_SIZE = _scalar(
    sa.select(sa.func.coalesce(sa.func.sum(t.log_chunk.c.size + LOG_CHUNK_OVERHEAD), 0)).where(_of_attempt)
)
LOG_CUT = _scalar(sa.select(sa.literal_column("1")).where(_of_attempt, t.log_chunk.c.offset == LOG_CUT_OFFSET))
LOG_CHUNKS = _rows(
    rows.LogChunkRow,
    t.log_chunk,
    lambda s: (
        s.where(
            t.log_chunk.c.task_id == _bind("task_id"),
            t.log_chunk.c.fence == _int("fence"),
            t.log_chunk.c.offset + t.log_chunk.c.size > _int("after"),
        )
        .order_by(t.log_chunk.c.offset)
        .limit(_int("limit"))
    ),
)

# -- reports, receipts --------------------------------------------------------------------------------------------

REPORT = _where(rows.ReportRow, t.report, "lease_id", "fence", "kind", "seq")
REPORT_FINAL = _rows(
    rows.ReportRow,
    t.report,
    lambda s: s.where(
        t.report.c.lease_id == _bind("lease_id"), t.report.c.fence == _int("fence"), sa.text("report.kind = 'final'")
    ),
)
REPORT_INSERT = _insert(t.report)
RECEIPT = _where(rows.ReceiptRow, t.receipt, "task_id", "fence")
RECEIPT_INSERT = _insert(t.receipt)

# -- money ---------------------------------------------------------------------------------------------------------

EARNING_INSERT = _insert(t.earning, without=["id"])
EARNING_OF_TASK = _rows(
    rows.EarningRow, t.earning, lambda s: s.where(t.earning.c.task_id == _bind("task_id")).order_by(t.earning.c.id)
)
EARNINGS_NEW = _rows(
    rows.EarningRow,
    t.earning,
    lambda s: (
        s.where(t.earning.c.chain == _bind("chain"), sa.text("earning.voucher_count IS NULL"))
        .order_by(t.earning.c.id)
        .limit(_int("limit"))
    ),
)
EARNINGS_OF_SOLVER = _rows(
    rows.EarningRow,
    t.earning,
    lambda s: (
        s.where(t.earning.c.solver == _bind("solver"), t.earning.c.id < _int("before"))
        .order_by(t.earning.c.id.desc())
        .limit(_int("limit"))
    ),
)
EARNINGS_UNVOUCHERED_OF_SOLVER = _rows(
    rows.EarningRow,
    t.earning,
    lambda s: s.where(
        t.earning.c.solver == _bind("solver"),
        t.earning.c.chain == _bind("chain"),
        sa.text("earning.voucher_count IS NULL"),
    ),
)
EARNING_VOUCHERED = _update(t.earning, ["id"], "voucher_count", "cumulative")

VOUCHER_INSERT = _insert(t.voucher)
VOUCHER_NEWEST = _rows(
    rows.VoucherRow,
    t.voucher,
    lambda s: (
        s.where(
            *(t.voucher.c[name] == _bind(name) for name in ("chain", "creator", "spender", "solver")),
        )
        .order_by(t.voucher.c.number.desc())
        .limit(1)
    ),
)
VOUCHER_NEWEST_SIGNED = _rows(
    rows.VoucherRow,
    t.voucher,
    lambda s: (
        s.where(
            *(t.voucher.c[name] == _bind(name) for name in ("chain", "creator", "spender", "solver")),
            t.voucher.c.signature.is_not(None),
        )
        .order_by(t.voucher.c.number.desc())
        .limit(1)
    ),
)
VOUCHERS_UNSIGNED = _rows(
    rows.VoucherRow,
    t.voucher,
    lambda s: s.where(sa.text("voucher.signature IS NULL")).order_by(t.voucher.c.created_us).limit(_int("limit")),
)
VOUCHER_SIGNED = Command(
    sa.update(t.voucher)
    .where(
        *(t.voucher.c[name] == _bind(f"key_{name}") for name in ("chain", "creator", "spender", "solver")),
        t.voucher.c.number == _int("key_number"),
        t.voucher.c.signature.is_(None),
    )
    .values(signature=sa.bindparam("signature", type_=sa.Text, required=True))
)
VOUCHERS_SUPERSEDED_DELETE = Command(
    sa.delete(t.voucher).where(
        *(t.voucher.c[name] == _bind(f"key_{name}") for name in ("chain", "creator", "spender", "solver")),
        t.voucher.c.number < _int("key_number"),
    )
)
_VOUCHER_KEY = ("chain", "creator", "spender", "solver")
VOUCHER_SOLVERS: Query[str] = _scalar(
    sa.select(t.voucher.c.solver)
    .where(*(t.voucher.c[name] == _bind(name) for name in ("chain", "creator", "spender")))
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
    return _select(rows.VoucherRow, t.voucher), t.voucher.join(newest, on)


def _vouchers_of_solver(*among: sa.ColumnElement[bool]) -> Query[rows.VoucherRow]:
    select, joined = _newest_vouchers(t.voucher.c.solver == _bind("solver"), *among)
    order = [t.voucher.c[name] for name in ("creator", "spender")]
    return Query(select.select_from(joined).order_by(*order).limit(_int("limit")), rows.VoucherRow._make)


def _vouchers_unpaid() -> Query[rows.VoucherRow]:
    select, joined = _newest_vouchers(t.voucher.c.chain == _bind("chain"), t.voucher.c.signature.is_not(None))
    ledger = sa.and_(*(t.voucher.c[name] == t.chain_paid.c[name] for name in _VOUCHER_KEY))
    # Fixed-width text compares as the amounts do.
    unpaid = sa.or_(t.chain_paid.c.paid.is_(None), t.chain_paid.c.paid < t.voucher.c.cumulative)
    statement = select.select_from(joined.outerjoin(t.chain_paid, ledger)).where(unpaid)
    return Query(statement.order_by(t.voucher.c.created_us).limit(_int("limit")), rows.VoucherRow._make)


VOUCHERS_OF_SOLVER = _vouchers_of_solver(t.voucher.c.signature.is_not(None))
VOUCHERS_NEWEST_OF_SOLVER = _vouchers_of_solver()
VOUCHERS_UNPAID = _vouchers_unpaid()

TX_INSERT = _insert(t.chain_tx)
TX_LAST_NONCE = _scalar(
    sa.select(sa.func.max(t.chain_tx.c.nonce)).where(
        t.chain_tx.c.chain == _bind("chain"), t.chain_tx.c.sender == _bind("sender")
    )
)
TX = _where(rows.ChainTxRow, t.chain_tx, "chain", "sender", "nonce")
TXS_IN_STATE = _rows(
    rows.ChainTxRow,
    t.chain_tx,
    lambda s: (
        s.where(t.chain_tx.c.chain == _bind("chain"), t.chain_tx.c.state == _bind("state"))
        .order_by(t.chain_tx.c.nonce)
        .limit(_int("limit"))
    ),
)
TXS_FROM = _rows(
    rows.ChainTxRow,
    t.chain_tx,
    lambda s: (
        s.where(
            t.chain_tx.c.chain == _bind("chain"),
            t.chain_tx.c.sender == _bind("sender"),
            t.chain_tx.c.nonce >= _int("nonce"),
        )
        .order_by(t.chain_tx.c.nonce)
        .limit(_int("limit"))
    ),
)
TX_MARKED = _update(t.chain_tx, ["chain", "sender", "nonce"], "state", "block", "updated_us")

CHAIN_ACCOUNT = _where(rows.ChainAccountRow, t.chain_account, "chain", "account")
CHAIN_ACCOUNT_PUT = upsert(
    t.chain_account, keys=["chain", "account"], update=["bond", "operator", "opened", "block", "seen_us"]
)
CHAIN_ESCROW = _where(rows.ChainEscrowRow, t.chain_escrow, "chain", "creator", "spender")
CHAIN_ESCROW_PUT = upsert(
    t.chain_escrow,
    keys=["chain", "creator", "spender"],
    update=["escrow", "releasing", "redeemed", "block", "seen_us"],
)
CHAIN_ESCROW_CREATORS: Query[str] = _scalar(
    sa.select(t.chain_escrow.c.creator).where(
        t.chain_escrow.c.chain == _bind("chain"), t.chain_escrow.c.spender == _bind("spender")
    )
)
CHAIN_ESCROW_COUNT = _scalar(
    sa.select(sa.func.count())
    .select_from(t.chain_escrow)
    .where(t.chain_escrow.c.chain == _bind("chain"), t.chain_escrow.c.spender == _bind("spender"))
)
CHAIN_PAID = _where(rows.ChainPaidRow, t.chain_paid, "chain", "creator", "spender", "solver")
CHAIN_PAID_PUT = upsert(
    t.chain_paid, keys=["chain", "creator", "spender", "solver"], update=["paid", "block", "tx_hash"]
)
ACCOUNT = _where(rows.AccountRow, t.account, "chain", "creator")
ACCOUNT_PUT = upsert(t.account, keys=["chain", "creator"], update=["reserved", "earned"])
ACCOUNTS = _rows(rows.AccountRow, t.account, lambda s: s.where(t.account.c.chain == _bind("chain")))

# -- nodes ---------------------------------------------------------------------------------------------------------

NODE = _where(rows.NodeRow, t.node, "id")
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
NODES = _rows(
    rows.NodeRow, t.node, lambda s: s.where(t.node.c.id > _bind("after")).order_by(t.node.c.id).limit(_int("limit"))
)
NODE_SEEN = _update(t.node, ["id"], "last_seen_us", "draining", "online")
NODE_CAPABILITY = _update(t.node, ["id"], "capability_doc", "capability_us")
NODE_COMPLETED = Command(
    sa.update(t.node).where(t.node.c.id == _bind("key_id")).values(completed=t.node.c.completed + 1)
)
NODE_FAILED = Command(sa.update(t.node).where(t.node.c.id == _bind("key_id")).values(failed=t.node.c.failed + 1))
NODE_IDS: Query[str] = _scalar(sa.select(t.node.c.id))

# -- blobs, sessions ------------------------------------------------------------------------------------------------

BLOB_REF_PUT = upsert(t.blob_ref, keys=["cid", "owner", "task_id"], update=[])
BLOB_REFS = _rows(
    rows.BlobRefRow,
    t.blob_ref,
    lambda s: s.where(t.blob_ref.c.cid == _bind("cid")).order_by(t.blob_ref.c.created_us, t.blob_ref.c.owner),
)
BLOB_REF = _where(rows.BlobRefRow, t.blob_ref, "cid", "owner", "task_id")
BLOB_PUBLISH = _update(t.blob_ref, ["cid", "owner"], "visibility")
BLOB_PIN = _update(t.blob_ref, ["cid", "owner"], "pinned")
BLOB_REF_DELETE = Command(
    sa.delete(t.blob_ref).where(
        t.blob_ref.c.cid == _bind("cid"),
        t.blob_ref.c.owner == _bind("owner"),
        t.blob_ref.c.task_id == sa.literal_column("''"),
    )
)
BLOBS_OF_OWNER = _rows(
    rows.BlobRefRow,
    t.blob_ref,
    lambda s: (
        s.where(
            t.blob_ref.c.owner == _bind("owner"),
            t.blob_ref.c.task_id == sa.literal_column("''"),
            t.blob_ref.c.cid > _bind("after"),
        )
        .order_by(t.blob_ref.c.cid)
        .limit(_int("limit"))
    ),
)
BLOB_NEEDED_BY = _scalar(
    sa.select(t.task.c.id)
    .select_from(t.blob_ref.join(t.task, t.blob_ref.c.task_id == t.task.c.id))
    .where(t.blob_ref.c.cid == _bind("cid"), t.blob_ref.c.owner == _bind("owner"), LIVE_STATES)
    .limit(1)
)
# A reference holds content if somebody stored it, a task brought it, or a task that has not ended reads it.
BLOB_HELD = _scalar(
    sa.select(sa.literal_column("1"))
    .select_from(t.blob_ref.outerjoin(t.task, t.blob_ref.c.task_id == t.task.c.id))
    .where(
        t.blob_ref.c.cid == _bind("cid"),
        sa.or_(t.task.c.id.is_(None), t.task.c.result_cid == t.blob_ref.c.cid, LIVE_STATES),
    )
    .limit(1)
)
BLOB_BYTES_OF_OWNER = _scalar(
    sa.select(sa.func.coalesce(sa.func.sum(t.blob_ref.c.size), 0)).where(
        t.blob_ref.c.owner == _bind("owner"), t.blob_ref.c.task_id == sa.literal_column("''")
    )
)
BLOB_INPUT_OF_LIVE_LEASE = _scalar(
    sa.select(sa.literal_column("1"))
    .select_from(t.blob_ref.join(t.lease, t.blob_ref.c.task_id == t.lease.c.task_id))
    .where(t.blob_ref.c.cid == _bind("cid"), t.lease.c.node_id == _bind("node_id"), _LEASE_LIVE)
    .limit(1)
)
SMALL_BLOB = _scalar(sa.select(t.small_blob.c.data).where(t.small_blob.c.cid == _bind("cid")))
SMALL_BLOB_PUT = upsert(t.small_blob, keys=["cid"], update=[])

SESSION = _where(rows.SessionRow, t.session, "id")
SESSION_INSERT = _insert(t.session)
SESSION_DELETE = Command(sa.delete(t.session).where(t.session.c.id == _bind("id")))
SESSIONS_EXPIRED_DELETE = Command(sa.delete(t.session).where(t.session.c.expires_us <= _int("now_us")))
NONCE_USED = upsert(t.siwe_nonce, keys=["nonce"], update=[])
NONCES_EXPIRED_DELETE = Command(sa.delete(t.siwe_nonce).where(t.siwe_nonce.c.expires_us <= _int("now_us")))
