"""What the tables hold, one named tuple per table; field order is column order.

Times are integer microseconds since the epoch, UTC (``*_us``); token amounts are integer base units; ``*_doc`` is JSON
text. Tuples, because a market reads thousands of rows a second and a tuple costs least.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from parity_protocol.task import TaskState

__all__ = [
    "AccountRow",
    "BlobRefRow",
    "ChainAccountRow",
    "ChainEscrowRow",
    "ChainPaidRow",
    "ChainTxRow",
    "EarningRow",
    "EventRow",
    "FlRoundRow",
    "FlSessionRow",
    "FlSmallFileRow",
    "FlUpdateRow",
    "GroupRow",
    "LeaseRow",
    "LegacyDeviceRow",
    "LogChunkRow",
    "NodeRow",
    "OldSessionRow",
    "ReceiptRow",
    "ReportRow",
    "SessionRow",
    "SmallBlobRow",
    "SubmissionRow",
    "TaskRow",
    "VoucherRow",
    "from_us",
    "maybe_time",
    "to_us",
]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def to_us(time: datetime) -> int:
    """Return ``time`` as microseconds since the epoch, exactly."""
    return (time - _EPOCH) // _MICROSECOND


def from_us(micros: int) -> datetime:
    """Return the UTC time of a column."""
    return _EPOCH + timedelta(microseconds=micros)


def maybe_time(micros: int | None) -> datetime | None:
    """Return the UTC time of a column that may be empty."""
    return None if micros is None else from_us(micros)


class SubmissionRow(NamedTuple):
    """What a submitter sent, unchanged for ever: the spec's exact text and the signed order."""

    id: str  # the group's id when the spec makes several tasks, else the task's
    creator: str
    nonce: str  # of the order; unique per creator
    kind: str
    parts: int
    reward: int
    order_hash: str
    order_doc: str
    spec: str
    created_us: int


class TaskRow(NamedTuple):
    """One task, as far as it changes or is compared on the hot path."""

    id: str
    submission_id: str
    group_id: str | None
    part: int
    parts: int
    kind: str
    creator: str
    title: str
    reward: int
    order_hash: str
    needs_doc: str  # domain.dispatch.Needs
    state: TaskState
    seq: int  # of the newest event
    fence: int
    attempts: int
    max_attempts: int
    last_node: str | None  # that claimed last
    excluded_doc: str  # node ids that may not have it again, JSON array
    faults_doc: str  # node ids that said the task itself is at fault, JSON array
    verify_attempts: int
    deadline_us: int
    created_us: int
    updated_us: int
    started_us: int | None
    completed_us: int | None
    result_cid: str | None
    result_size: int | None
    failure: str | None
    message: str
    exit_code: int | None
    usage_doc: str
    metrics_doc: str


class FlSessionRow(NamedTuple):
    """A federated session that trains in rounds; it begins with its first model."""

    group_id: str
    state: str  # running | paused | stopping | done
    round: int  # the open one, from 1; after the last it stays
    phase: int  # within the round, from 0
    total_rounds: int
    deadline_us: int | None  # of the open round; None while it is paused or too few nodes are there
    settings_doc: str  # RoundsSettings and what to tell people about them
    message: str  # what it waits for, or why it was stopped
    created_us: int
    updated_us: int


class FlRoundRow(NamedTuple):
    """One round, or one phase of it."""

    group_id: str
    round: int
    phase: int
    state: str  # open | closing | closed
    base_hash: str  # hex sha256 of the model file that nodes start from
    base_size: int  # bytes
    cohort_doc: str  # parts that are asked, in ascending order
    metrics_doc: str  # scores after it closed
    opened_us: int
    closed_us: int | None
    asks: str = "train"  # what a part does in it; see ``RoundStep``


class FlShardRow(NamedTuple):
    """Where one part's data of a sharded session lie, for that part's node alone."""

    group_id: str
    part: int
    sealed: str  # JSON text, whose hash the spec signs


class FlUpdateRow(NamedTuple):
    """One part's contribution to one round; its bytes lie in a file."""

    group_id: str
    round: int
    phase: int
    part: int
    fence: int
    node_id: str
    base_hash: str
    sha256: str
    size: int  # bytes
    state: str  # received | chosen | accepted | rejected | late
    reason: str
    metrics_doc: str  # what the node says of itself, and its contribution
    received_us: int


class FlSmallFileRow(NamedTuple):
    """A small file of a session that trains in rounds; ``name`` is its path in the session's folder."""

    group_id: str
    name: str
    data: bytes


class GroupRow(NamedTuple):
    """What several tasks belong to."""

    id: str
    kind: str
    creator: str
    state: str  # running | completed | failed | cancelled
    reward: int
    parts: int
    plan_doc: str | None
    result_cid: str | None
    metrics_doc: str
    message: str
    created_us: int
    completed_us: int | None


class LeaseRow(NamedTuple):
    """One claim of a task, live or ended."""

    task_id: str
    fence: int
    id: str
    node_id: str
    claim_id: str
    jti: str  # of the manifest that was claimed with
    manifest_hash: str
    ttl_us: int
    expires_us: int
    live: int  # 1 | 0
    granted_us: int
    started_us: int | None
    ended_us: int | None
    end_reason: str


class EventRow(NamedTuple):
    """One step of a task's life; never changed."""

    task_id: str
    seq: int
    event: str
    state: str
    at_us: int
    node_id: str | None
    fence: int
    detail: str


class ReportRow(NamedTuple):
    """One report as it was taken; never changed."""

    lease_id: str
    fence: int
    kind: str
    seq: int
    task_id: str
    node_id: str
    digest: str  # hex sha256 of the whole content
    doc: str
    received_us: int


class ReceiptRow(NamedTuple):
    """A checked receipt."""

    task_id: str
    fence: int
    node_id: str
    operator: str
    digest: str  # 0x and 64 hex digits
    manifest_hash: str
    doc: str
    received_us: int


class EarningRow(NamedTuple):
    """What one accepted task is worth to one solver."""

    id: int
    chain: str
    task_id: str
    solver: str
    kind: str
    creator: str
    spender: str
    amount: int
    receipt_digest: str
    earned_us: int
    voucher_count: int | None  # of the voucher that first covers it
    cumulative: int | None  # the voucher's total up to and including this earning


class VoucherRow(NamedTuple):
    """Everything owed by a creator to a solver so far; ``signature`` is None until the loop has signed it."""

    chain: str
    creator: str
    spender: str
    solver: str
    number: int  # the voucher's count of receipts
    cumulative: int
    receipts_head: str  # 0x and 64 hex digits
    signature: str | None
    created_us: int


class ChainTxRow(NamedTuple):
    """One transaction of the market, committed before it is broadcast and re-sent verbatim."""

    chain: str
    sender: str
    nonce: int
    raw: bytes
    hash: str
    purpose: str
    doc: str
    state: str  # signed | sent | mined | failed
    block: int | None
    created_us: int
    updated_us: int


class ChainAccountRow(NamedTuple):
    """A vault account as the follower saw it last."""

    chain: str
    account: str
    bond: int
    operator: str
    opened: int  # 1 when the account exists on chain
    block: int
    seen_us: int


class ChainEscrowRow(NamedTuple):
    """What a creator has set aside for a spender, as the follower saw it last."""

    chain: str
    creator: str
    spender: str
    escrow: int  # on chain, releases included
    releasing: int
    redeemed: int  # sum of what the vault has paid to solvers on these vouchers
    block: int
    seen_us: int


class ChainPaidRow(NamedTuple):
    """What the vault has paid on vouchers of one creator, spender and solver."""

    chain: str
    creator: str
    spender: str
    solver: str
    paid: int
    block: int
    tx_hash: str | None


class AccountRow(NamedTuple):
    """What this market has bound of a creator's escrow."""

    chain: str
    creator: str
    reserved: int  # rewards of tasks that are not final
    earned: int  # rewards of accepted tasks, ever


class NodeRow(NamedTuple):
    """An enrolled node."""

    id: str
    device_key: str
    operator: str
    instance: str
    hostname: str
    capability_doc: str
    capability_us: int
    draining: int
    online: int  # 0 after a graceful stop
    enrolled_us: int
    last_seen_us: int
    completed: int
    failed: int


class BlobRefRow(NamedTuple):
    """Who may read a blob, and why it is kept."""

    cid: str
    owner: str
    task_id: str  # empty when it belongs to no task
    visibility: str  # public | private
    size: int
    pinned: int
    created_us: int


class SmallBlobRow(NamedTuple):
    """A result small enough to lie in the database."""

    cid: str
    data: bytes


class SessionRow(NamedTuple):
    """A submitter's signed-in key."""

    id: str
    account: str
    key: str  # raw Ed25519 public key, base64url
    created_us: int
    expires_us: int


class LogChunkRow(NamedTuple):
    """Text of one execution at its byte offset."""

    task_id: str
    fence: int
    offset: int
    size: int  # bytes of the text in UTF-8
    text: str


class LegacyDeviceRow(NamedTuple):
    """A device of the old network: a name that anybody can say, and the wallet that came with it first."""

    id: str
    wallet: str
    first_seen_us: int
    last_seen_us: int


class OldSessionRow(NamedTuple):
    """A session as the old network's program described it; once it is started, a group has the same id."""

    id: str
    creator: str  # an account, or ``legacy:`` and the address that was named
    state: str  # pending | started
    doc: str  # the program's own JSON
    created_us: int
    updated_us: int
