"""Taking a report once, and what follows from it: acceptance with pay, a retry, or the end."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime

from parity_market.domain.dispatch import Needs
from parity_market.domain.leases import task_view
from parity_market.domain.reputation import counts_against
from parity_market.domain.verification import VERIFIED_INLINE, CheckedReport, check_proof
from parity_market.operations.blobs import add_ref, hand_over, put_small, size_from_node
from parity_market.operations.context import Market
from parity_market.operations.settling import Share, earn, release_reserve
from parity_market.operations.steps import (
    end_lease,
    free,
    load_task,
    newest_lease,
    read_names,
    step,
)
from parity_market.store import sql
from parity_market.store.base import ReadTx, Tx
from parity_market.store.rows import EarningRow, LeaseRow, ReceiptRow, ReportRow, TaskRow, to_us
from parity_protocol.api.leases import ReportItem
from parity_protocol.api.problem import problem_of
from parity_protocol.errors import (
    BadField,
    Blame,
    Conflict,
    FailureReason,
    Internal,
    InvalidTransition,
    ParityError,
    StaleFence,
    Untrusted,
)
from parity_protocol.ids import Fence, NodeId
from parity_protocol.lease import ReportDecision, decide_report
from parity_protocol.report import Outcome, Report, ReportKind
from parity_protocol.task import GroupState, TaskEvent, TaskKind, TaskState

__all__ = ["accept", "reject", "take", "verify_later", "waiting_for_verification"]

_PAY_EXECUTION = "execution"
_UNPROCESSABLE = 422
_MAX_PROGRESS = 256  # reports of one lease: each is kept
_OUR_FAULT = 500


def take(tx: Tx, market: Market, checked: CheckedReport, now: datetime) -> ReportItem:
    """Take a report: store it once, and move its task.

    A repetition with the same content is answered as the first was and changes nothing. Anything that is refused
    (another content, an old fence, a proof that does not hold) changes nothing either.

    Returns:
        200 taken, now or before; 409 stale, cancelled or another content; 422 the proof does not hold.
    """
    report = checked.report
    try:
        state = _take(tx, market, checked, now)
    except ParityError as exc:  # each was raised before anything was written
        if exc.status >= _OUR_FAULT:
            raise
        status = _UNPROCESSABLE if isinstance(exc, Untrusted) else exc.status
        return ReportItem(id=report.id, status=status, problem=problem_of(exc))
    return ReportItem(id=report.id, status=200, task_state=str(state))


def _take(tx: Tx, market: Market, checked: CheckedReport, now: datetime) -> TaskState:
    report, node_id = checked.report, checked.node_id
    is_final = report.kind is ReportKind.FINAL
    known = (
        tx.one(sql.REPORT_FINAL, lease_id=report.lease_id, fence=report.fence)
        if is_final
        else tx.one(sql.REPORT, lease_id=report.lease_id, fence=report.fence, kind=str(report.kind), seq=report.seq)
    )
    if known is not None and known.digest != checked.digest:
        raise Conflict("another report of this lease with other content was taken before")
    task = load_task(tx, report.task_id)
    lease = newest_lease(tx, task)
    decision = decide_report(
        task_view(task, lease), node_id=NodeId(node_id), fence=Fence(report.fence), already_taken=known is not None
    )
    if decision is ReportDecision.DUPLICATE:
        return task.state
    if lease is None or lease.id != report.lease_id:
        raise StaleFence(f"lease {report.lease_id} of task {task.id} is not current")
    if not is_final:
        if report.seq >= _MAX_PROGRESS:
            raise BadField(f"a lease takes {_MAX_PROGRESS} progress reports, this is number {report.seq}", field="seq")
        _store(tx, checked, now)
        return task.state
    if report.outcome is Outcome.FAILED:
        _store(tx, checked, now)
        return _fail(tx, market, task, lease, report, node_id, to_us(now))
    node = tx.one(sql.NODE, id=node_id)
    if node is None:
        raise StaleFence(f"node {node_id} is not enrolled")
    check_proof(
        checked,
        operator=node.operator,
        order_hash=task.order_hash,
        manifest_hash=lease.manifest_hash,
        stored_size=size_from_node(tx, report.result_cid or "", node_id) if checked.inline is None else None,
        granted_s=lease.granted_us / 1e6,
        now_s=now.timestamp(),
    )
    _store(tx, checked, now)
    return _succeed(tx, market, task, lease, checked, now)


def _store(tx: Tx, checked: CheckedReport, now: datetime) -> None:
    report = checked.report
    tx.insert(
        sql.REPORT_INSERT,
        ReportRow(
            lease_id=report.lease_id,
            fence=report.fence,
            kind=str(report.kind),
            seq=report.seq,
            task_id=report.task_id,
            node_id=checked.node_id,
            digest=checked.digest,
            doc=report.model_dump_json(),
            received_us=to_us(now),
        ),
    )


def _succeed(
    tx: Tx, market: Market, task: TaskRow, lease: LeaseRow, checked: CheckedReport, now: datetime
) -> TaskState:
    report, receipt, now_us = checked.report, checked.receipt, to_us(now)
    assert receipt is not None
    assert checked.signer is not None
    assert report.result_cid is not None
    assert report.result_size is not None
    tx.insert(
        sql.RECEIPT_INSERT,
        ReceiptRow(
            task_id=task.id,
            fence=lease.fence,
            node_id=checked.node_id,
            operator=checked.signer,
            digest=checked.receipt_digest,
            manifest_hash=lease.manifest_hash,
            doc=receipt.model_dump_json(),
            received_us=now_us,
        ),
    )
    if checked.inline is not None:
        put_small(tx, report.result_cid, checked.inline)
    add_ref(
        tx, report.result_cid, task.creator, visibility="private", size=report.result_size, task_id=task.id, now=now
    )
    if checked.inline is None:
        hand_over(tx, report.result_cid, checked.node_id)
    if lease.live:
        end_lease(tx, market, lease, "reported", now_us=now_us)
    is_simple = TaskKind(task.kind) in VERIFIED_INLINE
    events = [(TaskEvent.REPORT, "")]
    if is_simple:
        events.append((TaskEvent.ACCEPT, ""))
    changed = step(
        tx,
        task,
        events,
        sql.TASK_REPORTED,
        now_us=now_us,
        node_id=checked.node_id,
        completed_us=now_us if is_simple else None,
        result_cid=report.result_cid,
        result_size=report.result_size,
        exit_code=report.exit_code,
        message=report.message,
        usage_doc=report.usage.model_dump_json(),
        metrics_doc=json.dumps(report.metrics) if report.metrics else "{}",
        failure=None,
        started_us=task.started_us or lease.granted_us,  # the message that says it may have been lost
    )
    if is_simple:
        _pay(tx, market, changed, checked.node_id, checked.receipt_digest, now_us)
    tx.after_commit(lambda: market.signals.task_gone(task.id))
    tx.after_commit(lambda: market.signals.task_changed(task.id))
    return changed.state


def _pay(
    tx: Tx,
    market: Market,
    task: TaskRow,
    node_id: str,
    digest: str,
    now_us: int,
    *,
    earned: int | None = None,
    others: Sequence[Share] = (),
) -> None:
    """Turn a task's reserve, or ``earned`` of it, into its solver's earning, in the step that completes it."""
    amount = task.reward if earned is None else min(earned, task.reward)
    release_reserve(tx, market, task, earned=amount + sum(share.amount for share in others))
    tx.insert(
        sql.EARNING_INSERT,
        EarningRow(
            0, market.chain, task.id, node_id, _PAY_EXECUTION, task.creator, market.spender, amount, digest, now_us,
            None, None,
        )[1:],
    )  # fmt: skip
    earn(tx, market, task, others, now_us=now_us)
    tx.run(sql.NODE_COMPLETED, key_id=node_id)


def _fail(
    tx: Tx, market: Market, task: TaskRow, lease: LeaseRow, report: Report, node_id: str, now_us: int
) -> TaskState:
    reason = report.failure or FailureReason.NODE_FAULT
    blame = reason.blame
    if counts_against(blame):
        tx.run(sql.NODE_FAILED, key_id=node_id)
    if lease.live:
        end_lease(tx, market, lease, f"failed: {reason}", now_us=now_us)
    if task.state is TaskState.PENDING:
        return task.state  # it was given back when the lease lapsed: the attempt is over already
    event = TaskEvent.NODE_FAULT if blame is Blame.NODE else TaskEvent.RELEASE
    if blame is Blame.TASK:
        event = _fault_event(market, task, node_id)
    return free(
        tx,
        market,
        task,
        event,
        now_us=now_us,
        node_id=node_id,
        detail=report.message or f"the execution failed: {reason}",
        failure=str(reason),
        exit_code=report.exit_code,
        exclude=blame in (Blame.NODE, Blame.TASK),
        fault=blame is Blame.TASK,
    ).state


def _fault_event(market: Market, task: TaskRow, node_id: str) -> TaskEvent:
    """One node's word does not end a task while another could try: it may be lying (ADR 0003)."""
    confirmed = bool(read_names(task.faults_doc) - {node_id})
    excluded = read_names(task.excluded_doc) | {node_id}
    if confirmed or not market.signals.other_can_run(Needs.from_doc(task.needs_doc), excluded):
        return TaskEvent.TASK_FAULT
    return TaskEvent.UNCONFIRMED_FAULT


# -- what is verified outside the writer --------------------------------------------------------------------------------


def waiting_for_verification(tx: ReadTx, *, after: str = "", limit: int = 64) -> list[TaskRow]:
    """Return tasks in VERIFYING by id, from after ``after``."""
    return tx.all(sql.TASKS_IN_STATE, state=TaskState.VERIFYING, after=after, limit=limit)


def _verifying(tx: ReadTx, task_id: str, fence: int) -> TaskRow:
    task = load_task(tx, task_id)
    if task.state is not TaskState.VERIFYING or task.fence != fence:
        raise InvalidTransition(f"task {task_id} is {task.state} with fence {task.fence}, not verifying fence {fence}")
    return task


def accept(
    tx: Tx,
    market: Market,
    task_id: str,
    fence: int,
    now: datetime,
    *,
    metrics: Mapping[str, float] | None = None,
    earned: int | None = None,
    others: Sequence[Share] = (),
) -> TaskRow:
    """Complete a task whose result was verified, and earn its solver the reward, in one step.

    Args:
        metrics: What verification measured, added to the report's.
        earned: Base units of the reward that it is worth; None is all. The rest is its creator's again.
        others: What those have earned who held it before.

    Raises:
        InvalidTransition: It is not verifying this fence's result (any more).
    """
    task = _verifying(tx, task_id, fence)
    receipt = tx.one(sql.RECEIPT, task_id=task_id, fence=fence)
    if receipt is None:
        raise Internal(f"task {task_id} is verifying without a receipt")
    now_us = to_us(now)
    changed = step(
        tx,
        task,
        [(TaskEvent.ACCEPT, "")],
        sql.TASK_REPORTED,
        now_us=now_us,
        node_id=receipt.node_id,
        completed_us=now_us,
        result_cid=task.result_cid,
        result_size=task.result_size,
        exit_code=task.exit_code,
        message=task.message,
        usage_doc=task.usage_doc,
        metrics_doc=json.dumps({**json.loads(task.metrics_doc), **(metrics or {})}),
        failure=None,
        started_us=task.started_us,
    )
    _pay(tx, market, changed, receipt.node_id, receipt.digest, now_us, earned=earned, others=others)
    tx.after_commit(lambda: market.signals.task_gone(task_id))
    tx.after_commit(lambda: market.signals.task_changed(task_id))
    return changed


def reject(tx: Tx, market: Market, task_id: str, fence: int, reason: str, now: datetime) -> TaskRow:
    """Refuse a result: the task goes to another node, or is NOT_VERIFIED when nobody else should try.

    Raises:
        InvalidTransition: It is not verifying this fence's result (any more).
    """
    task = _verifying(tx, task_id, fence)
    if task.last_node is not None:
        tx.run(sql.NODE_FAILED, key_id=task.last_node)
    return free(
        tx,
        market,
        task,
        TaskEvent.REJECT if task.attempts < task.max_attempts and _is_wanted(tx, task) else TaskEvent.REJECT_FINAL,
        now_us=to_us(now),
        node_id=task.last_node,
        detail=reason,
        failure=str(FailureReason.NODE_FAULT),
        exclude=True,
    )


def _is_wanted(tx: ReadTx, task: TaskRow) -> bool:
    """Return whether anybody would use the result: a part of a group that has ended would be paid for nothing."""
    group = None if task.group_id is None else tx.one(sql.GROUP, id=task.group_id)
    return group is None or group.state == GroupState.RUNNING


def verify_later(tx: Tx, market: Market, task_id: str, fence: int, reason: str, now: datetime) -> TaskRow:
    """Note that verification could not be done now; after ``Market.max_verify_attempts`` the task fails by our fault.

    Raises:
        InvalidTransition: It is not verifying this fence's result (any more).
    """
    task = _verifying(tx, task_id, fence)
    now_us = to_us(now)
    if task.verify_attempts + 1 >= market.max_verify_attempts:
        detail = f"the market could not verify the result: {reason}"
        return free(
            tx,
            market,
            task,
            TaskEvent.VERIFY_ABANDONED,
            now_us=now_us,
            node_id=None,
            detail=detail,
            failure=str(FailureReason.DEPENDENCY_UNAVAILABLE),
        )
    return step(
        tx,
        task,
        [(TaskEvent.VERIFY_TIMEOUT, reason)],
        sql.TASK_VERIFY_RETRY,
        now_us=now_us,
        node_id=None,
        verify_attempts=task.verify_attempts + 1,
    )
