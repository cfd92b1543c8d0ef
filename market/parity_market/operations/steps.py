"""One step of a task's life: the transition, its events, the row, the money bound to it, and who is told."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from parity_market.domain.dispatch import Needs
from parity_market.operations.context import Market
from parity_market.operations.settling import release_unfinished
from parity_market.store import sql
from parity_market.store.base import ReadTx, Tx
from parity_market.store.rows import EventRow, LeaseRow, TaskRow
from parity_market.store.statements import Command
from parity_protocol.errors import NotFound
from parity_protocol.task import FINAL_STATES, TaskEvent, TaskState, advance

__all__ = ["end_lease", "free", "load_task", "newest_lease", "read_names", "step", "with_name"]


_TRIES_OF_ONE_NODE = 2


def load_task(tx: ReadTx, task_id: str) -> TaskRow:
    """Return a task.

    Raises:
        NotFound: There is none with this id.
    """
    task = tx.one(sql.TASK, id=task_id)
    if task is None:
        raise NotFound(f"there is no task {task_id}")
    return task


def newest_lease(tx: ReadTx, task: TaskRow) -> LeaseRow | None:
    """Return the lease with the task's newest fence, or None before the first claim."""
    return tx.one(sql.LEASE, task_id=task.id, fence=task.fence) if task.fence else None


def step(
    tx: Tx,
    task: TaskRow,
    events: Sequence[tuple[TaskEvent, str]],
    command: Command,
    *,
    now_us: int,
    node_id: str | None,
    **changes: Any,
) -> TaskRow:
    """Move ``task`` by ``events`` (each with its detail) and write what changes; return the new row.

    Args:
        command: Updates ``state``, ``seq``, ``updated_us`` and exactly ``changes``.

    Raises:
        InvalidTransition: The state does not take an event; nothing was written.
    """
    state, seq, fence = task.state, task.seq, changes.get("fence", task.fence)
    made = []
    for event, detail in events:
        state = advance(state, event)
        seq += 1
        made.append(EventRow(task.id, seq, str(event), str(state), now_us, node_id, fence, detail))
    if len(made) == 1:
        tx.insert(sql.EVENT_INSERT, made[0])
    else:
        tx.insert_many(sql.EVENT_INSERT, made)
    tx.run(command, key_id=task.id, state=state, seq=seq, updated_us=now_us, **changes)
    if state in FINAL_STATES and not tx.run(sql.TASK_COUNTED, key_state=state):
        tx.insert(sql.TASK_COUNT_INSERT, (state, 1))
    return task._replace(state=state, seq=seq, updated_us=now_us, **changes)


def end_lease(tx: Tx, market: Market, lease: LeaseRow, reason: str, *, now_us: int) -> None:
    """Close a live lease; its node has a slot more."""
    tx.run(
        sql.LEASE_ENDED, key_task_id=lease.task_id, key_fence=lease.fence, live=0, ended_us=now_us, end_reason=reason
    )
    tx.after_commit(lambda: market.signals.lease_ended(lease.task_id, lease.node_id))


def free(
    tx: Tx,
    market: Market,
    task: TaskRow,
    event: TaskEvent,
    *,
    now_us: int,
    node_id: str | None,
    detail: str,
    failure: str | None = None,
    exit_code: int | None = None,
    exclude: bool = False,
    fault: bool = False,
    attempts: int | None = None,
) -> TaskRow:
    """Give a task back after an attempt that brought nothing, or end it when its attempts are used up.

    Args:
        event: Leads to PENDING (``lease_lost``, ``release``, ``node_fault``, ``unconfirmed_fault``, ``reject``) or to a
            final state.
        detail: In words, for the event and the task's message.
        failure: A ``FailureReason``; None keeps the last one.
        exclude: ``node_id`` may not have it again; so it is after its second attempt at it in any case, whatever it
            says of them, while another node could run it: one node must not use up all attempts of somebody's task.
        fault: ``node_id`` said that the task itself is at fault.
        attempts: How many it has used with this one; None when this one counts.
    """
    used = task.attempts if attempts is None else attempts
    events = [(event, detail)]
    state = advance(task.state, event)
    exclude = exclude or (state is TaskState.PENDING and node_id is not None and _is_futile(tx, market, task, node_id))
    if state is TaskState.PENDING and used >= task.max_attempts:
        events.append((TaskEvent.ATTEMPTS_EXHAUSTED, f"all {task.max_attempts} attempts are used up"))
        state = TaskState.FAILED
    is_final = state in FINAL_STATES
    changed = step(
        tx,
        task,
        events,
        sql.TASK_FREED,
        now_us=now_us,
        node_id=node_id,
        completed_us=now_us if is_final else None,
        failure=failure if failure is not None else task.failure,
        message=detail,
        exit_code=exit_code if exit_code is not None else task.exit_code,
        excluded_doc=with_name(task.excluded_doc, node_id) if exclude else task.excluded_doc,
        faults_doc=with_name(task.faults_doc, node_id) if fault else task.faults_doc,
        result_cid=None,
        result_size=None,
        attempts=used,
    )
    if is_final:
        release_unfinished(tx, market, task, now_us=now_us)
        tx.after_commit(lambda: market.signals.task_gone(task.id))
    else:
        tx.after_commit(lambda: market.signals.task_pending(changed))
    tx.after_commit(lambda: market.signals.task_changed(task.id))
    return changed


def _is_futile(tx: ReadTx, market: Market, task: TaskRow, node_id: str) -> bool:
    """Return whether a node has had this task twice for nothing and another could have it."""
    had = (
        sum(lease.node_id == node_id for lease in tx.all(sql.LEASES_OF_TASK, task_id=task.id)) if task.fence > 1 else 0
    )
    if had < _TRIES_OF_ONE_NODE:
        return False
    return market.signals.other_can_run(Needs.from_doc(task.needs_doc), read_names(task.excluded_doc) | {node_id})


def read_names(doc: str) -> frozenset[str]:
    """Return the names in a JSON array column."""
    return frozenset(json.loads(doc)) if len(doc) > 2 else frozenset()  # "[]"


def with_name(doc: str, name: str | None) -> str:
    """Return a JSON array column with ``name`` in it."""
    names = read_names(doc)
    return doc if name is None or name in names else json.dumps(sorted({*names, name}))
