"""The end of a group: merged, or given up with everything in it that has not been done."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial

from parity_market.operations.blobs import add_ref
from parity_market.operations.context import Market
from parity_market.operations.settling import release_unfinished
from parity_market.operations.steps import end_lease, newest_lease, step
from parity_market.store import sql, sql_blobs
from parity_market.store.base import ReadTx, Tx
from parity_market.store.rows import GroupRow, TaskRow, to_us
from parity_protocol.errors import NotFound
from parity_protocol.task import GroupPolicy, GroupState, TaskEvent, TaskGroup, TaskKind, TaskState, parse_spec

__all__ = ["Group", "complete", "fail", "is_kept_by_owner", "load", "running"]

_OPEN = frozenset({TaskState.PENDING, TaskState.LEASED, TaskState.RUNNING})


@dataclass(frozen=True, slots=True)
class Group:
    """A group as it is stored, with its tasks."""

    value: TaskGroup
    row: GroupRow
    tasks: tuple[TaskRow, ...]  # by part


def load(tx: ReadTx, group_id: str) -> Group:
    """Return a group.

    Raises:
        NotFound: There is none with this id.
    """
    row, submission = tx.one(sql.GROUP, id=group_id), tx.one(sql.SUBMISSION, id=group_id)
    if row is None or submission is None:
        raise NotFound(f"there is no group {group_id}")
    policy = GroupPolicy(parts=row.parts, needed=row.parts)  # every part of a session is needed
    value = TaskGroup(
        row.id, TaskKind(row.kind), parse_spec(submission.spec), policy, GroupState(row.state), row.result_cid
    )
    return Group(value, row, tuple(tx.all(sql.TASKS_OF_GROUP, group_id=group_id)))


def running(tx: ReadTx, *, after: str = "", limit: int = 64) -> list[GroupRow]:
    """Return groups that have not ended by id, from after ``after``."""
    return tx.all(sql.GROUPS_IN_STATE, state=GroupState.RUNNING, after=after, limit=limit)


def complete(
    tx: Tx, market: Market, group_id: str, *, cid: str, size: int, metrics: Mapping[str, object], now: datetime
) -> bool:
    """End a group with its merged result, which its creator alone may read; returns False when it had ended before.

    Parts that are still open had no share in it, and are cancelled.
    """
    row = tx.one(sql.GROUP, id=group_id)
    if row is None or row.state != GroupState.RUNNING:
        return False
    _cancel_open(tx, market, group_id, "the session has ended without this part", now)
    add_ref(tx, cid, row.creator, visibility="private", size=size, now=now)
    _end(tx, market, group_id, GroupState.COMPLETED, cid=cid, metrics=metrics, message="", now=now)
    return True


def fail(tx: Tx, market: Market, group_id: str, reason: str, now: datetime) -> bool:
    """End a group without a result and cancel its open tasks; returns False when it had ended before.

    What has been done is paid, and so is what is being verified now if it is accepted.
    """
    row = tx.one(sql.GROUP, id=group_id)
    if row is None or row.state != GroupState.RUNNING:
        return False
    _cancel_open(tx, market, group_id, f"the session has failed: {reason}", now)
    _end(tx, market, group_id, GroupState.FAILED, cid=None, metrics={}, message=reason, now=now)
    return True


def _cancel_open(tx: Tx, market: Market, group_id: str, detail: str, now: datetime) -> None:
    """Cancel what has not been reported; of it only rounds that were done are paid."""
    now_us = to_us(now)
    for task in tx.all(sql.TASKS_OF_GROUP, group_id=group_id):
        if task.state not in _OPEN:
            continue
        lease = newest_lease(tx, task)
        holder = lease.node_id if lease is not None and lease.live else None
        step(
            tx,
            task,
            [(TaskEvent.CANCEL, detail)],
            sql.TASK_STEP,
            now_us=now_us,
            node_id=holder,
        )
        if lease is not None and lease.live:
            end_lease(tx, market, lease, "cancelled", now_us=now_us)
        release_unfinished(tx, market, task, now_us=now_us)
        tx.after_commit(partial(market.signals.task_gone, task.id))
        tx.after_commit(partial(market.signals.task_changed, task.id))


def _end(
    tx: Tx,
    market: Market,
    group_id: str,
    state: GroupState,
    *,
    cid: str | None,
    metrics: Mapping[str, object],
    message: str,
    now: datetime,
) -> None:
    tx.run(
        sql.GROUP_ENDED,
        key_id=group_id,
        state=state,
        result_cid=cid,
        metrics_doc=json.dumps(metrics, separators=(",", ":")),
        message=message,
        completed_us=to_us(now),
    )
    tx.after_commit(partial(market.signals.task_changed, group_id))


def is_kept_by_owner(tx: ReadTx, cid: str) -> bool:
    """Return whether somebody has pinned a blob."""
    return any(ref.pinned for ref in tx.all(sql_blobs.BLOB_REFS, cid=cid))
