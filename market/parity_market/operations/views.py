"""What people and programs see of tasks: rows as the API's replies. Ownership is the caller's to check."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence

from parity_market.operations.blobs import small_blob
from parity_market.operations.steps import load_task
from parity_market.operations.vouchers import Paid, earnings_of_task, payout_of_task
from parity_market.store import sql
from parity_market.store.base import ReadTx
from parity_market.store.rows import GroupRow, LogChunkRow, SubmissionRow, TaskRow, from_us, maybe_time
from parity_protocol.api.tasks import (
    EventReply,
    EventsReply,
    GroupReply,
    GroupRowReply,
    GroupsReply,
    LogsReply,
    ProofReply,
    ResultReply,
    RewardReply,
    TaskReply,
    TasksReply,
    TaskStatusReply,
)
from parity_protocol.errors import Internal, NotFound
from parity_protocol.order import Order
from parity_protocol.receipt import Receipt
from parity_protocol.task import FINAL_STATES, TaskState, public_state

__all__ = ["counts", "events", "group", "groups", "logs", "proof", "result", "reward", "status", "task", "tasks"]

MAX_EVENTS = 1_000
MAX_LOG_CHUNKS = 64  # of one answer
_LAST = "g"  # sorts after every id

Unfunded = Mapping[Paid, str] | None


def task(tx: ReadTx, task_id: str, unfunded: Unfunded = None) -> TaskReply:
    """Return a task.

    Raises:
        NotFound: There is none with this id.
    """
    return _task_reply(tx, load_task(tx, task_id), {}, unfunded)


def tasks(
    tx: ReadTx, *, creator: str | None, before: str | None = None, limit: int = 50, unfunded: Unfunded = None
) -> TasksReply:
    """Return tasks, newest first.

    Args:
        creator: Only of this submitter; None of all.
        before: Cursor of the last page.
        limit: 1 to 200.
    """
    limit = max(1, min(limit, sql.MAX_PAGE))
    cursor = before or _LAST
    if creator is None:
        found = tx.all(sql.TASKS_BEFORE, before=cursor, limit=limit + 1)
    else:
        found = tx.all(sql.TASKS_OF_CREATOR, creator=creator, before=cursor, limit=limit + 1)
    shown = found[:limit]
    known: dict[str, SubmissionRow] = {}
    return TasksReply(
        tasks=tuple(_task_reply(tx, row, known, unfunded) for row in shown),
        next_cursor=shown[-1].id if len(found) > limit else None,
    )


def group(tx: ReadTx, group_id: str, unfunded: Unfunded = None) -> GroupReply:
    """Return a group with its tasks.

    Raises:
        NotFound: There is none with this id.
    """
    row = tx.one(sql.GROUP, id=group_id)
    if row is None:
        raise NotFound(f"there is no group {group_id}")
    return _group_reply(tx, row, unfunded)


def groups(tx: ReadTx, *, creator: str, before: str | None = None, limit: int = 50) -> GroupsReply:
    """Return a submitter's groups without their tasks, newest first.

    Args:
        before: Cursor of the last page.
        limit: 1 to 200.
    """
    limit = max(1, min(limit, sql.MAX_PAGE))
    found = tx.all(sql.GROUPS_OF_ANY_KIND, creator=creator, before=before or _LAST, limit=limit + 1)
    shown = found[:limit]
    return GroupsReply(
        groups=tuple(_group_row(row) for row in shown),
        next_cursor=shown[-1].id if len(found) > limit else None,
    )


def _group_row(row: GroupRow) -> GroupRowReply:
    return GroupRowReply(
        id=row.id,
        kind=row.kind,
        state=row.state,
        reward=row.reward,
        parts=row.parts,
        created_at=from_us(row.created_us),
        completed_at=maybe_time(row.completed_us),
        message=row.message,
    )


def _group_reply(tx: ReadTx, row: GroupRow, unfunded: Unfunded) -> GroupReply:
    known: dict[str, SubmissionRow] = {}
    return GroupReply(
        id=row.id,
        kind=row.kind,
        state=row.state,
        creator_address=row.creator,
        reward=row.reward,
        created_at=from_us(row.created_us),
        completed_at=maybe_time(row.completed_us),
        tasks=tuple(_task_reply(tx, found, known, unfunded) for found in tx.all(sql.TASKS_OF_GROUP, group_id=row.id)),
        plan=None if row.plan_doc is None else json.loads(row.plan_doc),
        result_cid=row.result_cid,
        metrics=json.loads(row.metrics_doc),
        message=row.message,
    )


def _task_reply(tx: ReadTx, row: TaskRow, known: dict[str, SubmissionRow], unfunded: Unfunded) -> TaskReply:
    submission = known.get(row.submission_id) or _submission(tx, row)
    known[row.submission_id] = submission
    spec = json.loads(submission.spec)
    return TaskReply(
        id=row.id,
        group_id=row.group_id,
        part=row.part,
        parts=row.parts,
        title=row.title,
        description=spec.get("description", ""),
        type=row.kind,
        status=public_state(row.state),
        state=str(row.state),
        spec=spec,
        reward=row.reward,
        creator_address=row.creator,
        runner_id=row.last_node,
        attempts=row.attempts,
        max_attempts=row.max_attempts,
        fence=row.fence,
        created_at=from_us(row.created_us),
        updated_at=from_us(row.updated_us),
        started_at=maybe_time(row.started_us),
        completed_at=maybe_time(row.completed_us),
        deadline=from_us(row.deadline_us),
        result_cid=row.result_cid,
        failure=row.failure,
        message=row.message,
        exit_code=row.exit_code,
        usage=json.loads(row.usage_doc),
        metrics=json.loads(row.metrics_doc),
        payout=payout_of_task(tx, row.id, unfunded) if row.state is TaskState.COMPLETED else None,
    )


def _submission(tx: ReadTx, row: TaskRow) -> SubmissionRow:
    found = tx.one(sql.SUBMISSION, id=row.submission_id)
    if found is None:
        raise Internal(f"task {row.id} has no submission")
    return found


def status(tx: ReadTx, task_id: str) -> TaskStatusReply:
    """Return where a task is.

    Raises:
        NotFound: There is none with this id.
    """
    row = load_task(tx, task_id)
    return TaskStatusReply(
        id=row.id,
        status=public_state(row.state),
        state=str(row.state),
        seq=row.seq,
        attempts=row.attempts,
        runner_id=row.last_node,
        result_cid=row.result_cid,
        failure=row.failure,
        message=row.message,
    )


def events(tx: ReadTx, task_id: str, *, after_seq: int = 0) -> EventsReply:
    """Return a task's life, oldest first.

    Raises:
        NotFound: There is none with this id.
    """
    load_task(tx, task_id)
    return EventsReply(
        id=task_id,
        events=tuple(
            EventReply(
                seq=row.seq,
                event=row.event,
                state=row.state,
                at=from_us(row.at_us),
                node_id=row.node_id,
                fence=row.fence,
                detail=row.detail,
            )
            for row in tx.all(sql.EVENTS, task_id=task_id, after=after_seq, limit=MAX_EVENTS)
        ),
    )


def result(tx: ReadTx, task_id: str) -> ResultReply:
    """Return what a task has brought so far; a completed one has its CID, and the bytes when they are few.

    Raises:
        NotFound: There is none with this id.
    """
    row = load_task(tx, task_id)
    data = small_blob(tx, row.result_cid) if row.result_cid is not None else None
    return ResultReply(
        task_id=row.id,
        state=str(row.state),
        cid=row.result_cid,
        size=row.result_size,
        inline=None if data is None else base64.b64encode(data).decode(),
        exit_code=row.exit_code,
        output=None if data is None else _text(data),
        metrics=json.loads(row.metrics_doc),
        failure=row.failure,
        message=row.message,
        node_id=row.last_node,
    )


def _text(data: bytes) -> str | None:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return None


def logs(tx: ReadTx, task_id: str, *, offset: int = 0) -> LogsReply:
    """Return text of the newest attempt from a byte offset on; text that never came is skipped.

    Raises:
        NotFound: There is none with this id.
    """
    row = load_task(tx, task_id)
    chunks: Sequence[LogChunkRow] = ()
    is_cut = False
    if row.fence:
        chunks = tx.all(sql.LOG_CHUNKS, task_id=task_id, fence=row.fence, after=offset, limit=MAX_LOG_CHUNKS)
        is_cut = bool(tx.one(sql.LOG_CUT, task_id=task_id, fence=row.fence))
    parts, at = [], offset
    for chunk in chunks:
        start = max(chunk.offset, at)
        parts.append(chunk.text.encode()[start - chunk.offset :])
        at = chunk.offset + chunk.size
    is_done = row.state in FINAL_STATES or row.state is TaskState.VERIFYING
    return LogsReply(
        task_id=task_id,
        attempt=row.attempts,
        offset=offset,
        next_offset=at,
        text=b"".join(parts).decode("utf-8", errors="replace"),
        done=is_done and len(chunks) < MAX_LOG_CHUNKS,
        truncated=is_cut,
    )


def reward(tx: ReadTx, task_id: str, unfunded: Unfunded = None) -> RewardReply:
    """Return a task's reward and where it is.

    Raises:
        NotFound: There is none with this id.
    """
    row = load_task(tx, task_id)
    return RewardReply(
        task_id=task_id,
        reward=row.reward,
        payout=payout_of_task(tx, task_id, unfunded),
        earnings=earnings_of_task(tx, task_id, unfunded),
    )


def proof(tx: ReadTx, task_id: str) -> ProofReply:
    """Return everything that checks a task's receipt without the market.

    Raises:
        NotFound: There is no such task, or it has no accepted result.
    """
    row = load_task(tx, task_id)
    receipt = tx.one(sql.RECEIPT, task_id=task_id, fence=row.fence) if row.state is TaskState.COMPLETED else None
    if receipt is None or row.result_cid is None:
        raise NotFound(f"task {task_id} has no accepted result yet")
    submission = _submission(tx, row)
    earning = tx.one(sql.EARNING_OF_TASK, task_id=task_id)
    return ProofReply(
        task_id=task_id,
        receipt=Receipt.model_validate_json(receipt.doc),
        order=Order.model_validate_json(submission.order_doc),
        spec=submission.spec,
        manifest_hash="0x" + receipt.manifest_hash,
        result_cid=row.result_cid,
        operator=receipt.operator,
        node_id=receipt.node_id,
        fence=receipt.fence,
        voucher_count=None if earning is None else earning.voucher_count,
    )


def counts(tx: ReadTx) -> tuple[dict[str, int], int]:
    """Return how many tasks are in each state, and how many leases are live; final states are counted as they come."""
    found = [*tx.all(sql.TASK_COUNTS_LIVE), *tx.all(sql.TASK_COUNTS_FINAL)]
    return dict(found), tx.one(sql.LEASES_LIVE_COUNT) or 0
