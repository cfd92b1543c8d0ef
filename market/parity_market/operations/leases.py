"""Claiming, renewing, starting and giving back; and taking back what nobody renewed (design §6)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

from parity_market.domain.leases import RELEASED, is_handed_back, task_view
from parity_market.operations.context import Market
from parity_market.operations.money import check_bond, is_covered
from parity_market.operations.nodes import check_instance
from parity_market.operations.steps import end_lease, free, load_task, newest_lease, read_names, step
from parity_market.store import sql, sql_rounds
from parity_market.store.base import ReadTx, Tx
from parity_market.store.rows import LeaseRow, LogChunkRow, SubmissionRow, TaskRow, from_us, to_us
from parity_protocol.api.leases import LogChunk, ReleaseItem, RenewItem, StartItem
from parity_protocol.errors import (
    Blame,
    ClaimRefused,
    FailureReason,
    LeaseConflict,
    ParityError,
    StaleFence,
    TaskCancelled,
)
from parity_protocol.ids import ClaimId, Fence, LeaseId, NodeId
from parity_protocol.lease import Lease, attempts_after_release, decide_claim, decide_renew
from parity_protocol.task import TaskEvent, TaskState, parse_spec

__all__ = [
    "ClaimRequest",
    "Offer",
    "append_logs",
    "claim",
    "extend_all_live",
    "next_expiry",
    "offers",
    "reap",
    "release",
    "renew",
    "start",
]

_MICROSECOND = timedelta(microseconds=1)
_MAX_SETUP = timedelta(hours=1)  # that fetching inputs, starting and uploading a result may take together


@dataclass(frozen=True, slots=True)
class ClaimRequest:
    """One claim whose manifest the market has verified as its own."""

    task_id: str
    claim_id: str
    jti: str
    manifest_hash: str  # hex sha256 of the manifest's compact JWS
    attempt: int  # that the manifest permits, from 1


@dataclass(frozen=True, slots=True)
class Offer:
    """Everything that a manifest is made of."""

    task: TaskRow
    submission: SubmissionRow
    plan_doc: str | None  # of its group, JSON text
    shard: str | None = None  # of a part of a sharded session: where its data lie, sealed


def offers(tx: ReadTx, chain: str, spender: str, task_ids: Sequence[str]) -> list[Offer]:
    """Return those of ``task_ids`` that are pending and funded, with what their manifests need."""
    found = []
    covered: dict[str, bool] = {}
    submissions: dict[str, SubmissionRow | None] = {}
    plans: dict[str, str | None] = {}
    for task_id in task_ids:
        task = tx.one(sql.TASK, id=task_id)
        if task is None or task.state is not TaskState.PENDING:
            continue
        if task.reward:
            if task.creator not in covered:
                covered[task.creator] = is_covered(tx, chain, spender, task.creator)
            if not covered[task.creator]:
                continue
        if task.submission_id not in submissions:
            submissions[task.submission_id] = tx.one(sql.SUBMISSION, id=task.submission_id)
        submission = submissions[task.submission_id]
        if submission is None:
            continue
        plan = None
        if task.group_id is not None:
            if task.group_id not in plans:
                group = tx.one(sql.GROUP, id=task.group_id)
                plans[task.group_id] = None if group is None else group.plan_doc
            plan = plans[task.group_id]
        shard = (
            tx.one(sql_rounds.FL_SHARD, group_id=task.group_id, part=task.part) if task.group_id is not None else None
        )
        found.append(Offer(task, submission, plan, None if shard is None else shard.sealed))
    return found


def claim(
    tx: Tx, market: Market, node_id: str, instance: str, items: Sequence[ClaimRequest], now: datetime
) -> list[Lease | ParityError]:
    """Give ``node_id`` the tasks that it claims; the answers are in the order of the claims.

    Repeating a claim with its ``claim_id`` returns the same lease.

    Returns:
        For each claim its lease, or why not: ``LeaseConflict`` (another claim holds it), ``TaskCancelled``,
        ``ClaimRefused``, ``NotFound``.

    Raises:
        NotFound: The node is not enrolled.
        NodeInUse: Another machine with the same key is active.
        StakeTooLow: The node's bond is below the market's minimum.
        Forbidden: The chain names another operator for the node.
        ChainUnavailable: What its bond is was not confirmed for too long.
    """
    node = check_instance(tx, node_id, instance)
    check_bond(tx, market, node, now)
    answers: list[Lease | ParityError] = []
    for item in items:
        try:
            answers.append(_claim_one(tx, market, node_id, item, now))
        except ParityError as exc:  # each claim is decided before it writes, so a refused one left nothing
            answers.append(exc)
    return answers


def _claim_one(tx: Tx, market: Market, node_id: str, item: ClaimRequest, now: datetime) -> Lease:
    task = load_task(tx, item.task_id)
    held = newest_lease(tx, task)
    if task.fence:
        for earlier in tx.all(sql.LEASES_OF_TASK, task_id=task.id):
            is_same = earlier.claim_id == item.claim_id
            if earlier.jti == item.jti and not is_same:
                raise LeaseConflict("this manifest was claimed with before; poll for a fresh one")
            if is_same and (earlier.fence != task.fence or not earlier.live):
                raise LeaseConflict("the lease of this claim has ended")
    decision = decide_claim(
        task_view(task, held),
        node_id=NodeId(node_id),
        claim_id=ClaimId(item.claim_id),
        manifest_hash=item.manifest_hash,
        lease_id=LeaseId(market.make_id()),
        ttl=market.lease_ttl,
        now=now,
    )
    if not decision.is_new:
        return decision.lease
    if item.attempt != task.attempts + 1:
        # Else a node could collect manifests, one for each time that its reservation lapses, and use up all attempts
        # of somebody's task before another node is asked.
        raise ClaimRefused("the manifest is for an earlier attempt at this task; poll for a fresh one")
    if task.reward and not is_covered(tx, market.chain, market.spender, task.creator):
        raise ClaimRefused(f"the submitter of task {task.id} is taking back the money that would pay for it")
    if node_id in read_names(task.excluded_doc):
        raise ClaimRefused(f"task {task.id} may not go to this node again")
    lease, now_us = decision.lease, to_us(now)
    step(
        tx,
        task,
        [(TaskEvent.CLAIM, "")],
        sql.TASK_CLAIMED,
        now_us=now_us,
        node_id=node_id,
        fence=int(lease.fence),
        attempts=task.attempts + 1,
        last_node=node_id,
    )
    tx.insert(
        sql.LEASE_INSERT,
        LeaseRow(
            task_id=task.id,
            fence=lease.fence,
            id=lease.lease_id,
            node_id=node_id,
            claim_id=lease.claim_id,
            jti=item.jti,
            manifest_hash=lease.manifest_hash,
            ttl_us=lease.ttl // _MICROSECOND,
            expires_us=to_us(lease.expires_at),
            live=1,
            granted_us=now_us,
            started_us=None,
            ended_us=None,
            end_reason="",
        ),
    )
    tx.after_commit(lambda: market.signals.task_taken(task.id, node_id))
    tx.after_commit(lambda: market.signals.task_changed(task.id))
    return lease


def renew(tx: Tx, market: Market, node_id: str, items: Sequence[RenewItem], now: datetime) -> list[Lease | ParityError]:
    """Extend leases to ``now`` + ttl; each answer is the lease, or ``StaleFence`` or ``TaskCancelled``: stop the work."""
    del market  # the ttl is the lease's own
    answers: list[Lease | ParityError] = []
    for item in items:
        task = tx.one(sql.TASK, id=item.task_id)
        if task is None:
            answers.append(StaleFence(f"there is no task {item.task_id}"))
            continue
        held = newest_lease(tx, task)
        try:
            lease = decide_renew(
                task_view(task, held),
                node_id=NodeId(node_id),
                lease_id=LeaseId(item.lease_id),
                fence=Fence(item.fence),
                now=now,
            )
            if held is not None:
                _check_age(tx, task, held, now)
        except ParityError as exc:
            answers.append(exc)
            continue
        tx.run(sql.LEASE_RENEWED, key_task_id=task.id, key_fence=lease.fence, expires_us=to_us(lease.expires_at))
        answers.append(lease)
    return answers


def _check_age(tx: ReadTx, task: TaskRow, lease: LeaseRow, now: datetime) -> None:
    """Let nobody sit on a task by renewing its lease without an end.

    Raises:
        StaleFence: The execution must have ended long ago; the lease lapses, and the task goes to another node.
    """
    age = now - from_us(lease.granted_us)
    if age <= _MAX_SETUP:
        return
    submission = tx.one(sql.SUBMISSION, id=task.submission_id)
    if submission is None:
        return
    limit = _MAX_SETUP + timedelta(seconds=parse_spec(submission.spec).budgets.wall_time_s)
    if age > limit:
        raise StaleFence(
            f"lease {lease.id} is held for {age.total_seconds():.0f} s, {limit.total_seconds():.0f} are allowed"
        )


def _held(tx: ReadTx, node_id: str, item: RenewItem, *, may_have_ended: bool = False) -> tuple[TaskRow, LeaseRow]:
    """Return the task and the live lease that ``item`` names.

    Args:
        may_have_ended: The lease with the newest fence counts although it was reported or lapsed.

    Raises:
        TaskCancelled: The task was cancelled.
        StaleFence: The lease is not this node's current one.
    """
    task = tx.one(sql.TASK, id=item.task_id)
    lease = None if task is None else newest_lease(tx, task)
    if task is not None and task.state is TaskState.CANCELLED:
        raise TaskCancelled(f"task {item.task_id} was cancelled")
    current = (
        lease is not None
        and (lease.live or may_have_ended)
        and (lease.id, lease.fence, lease.node_id) == (item.lease_id, item.fence, node_id)
    )
    if task is None or lease is None or not current:
        raise StaleFence(f"lease {item.lease_id} with fence {item.fence} of task {item.task_id} is not current")
    return task, lease


def start(tx: Tx, market: Market, node_id: str, items: Sequence[StartItem], now: datetime) -> list[ParityError | None]:
    """Note that executions have started; None is a success, and so is a repetition."""
    answers: list[ParityError | None] = []
    now_us = to_us(now)
    for item in items:
        try:
            task, lease = _held(tx, node_id, item)
            if task.state is TaskState.LEASED:
                step(
                    tx,
                    task,
                    [(TaskEvent.START, "")],
                    sql.TASK_STARTED,
                    now_us=now_us,
                    node_id=node_id,
                    started_us=now_us,
                )
                tx.run(sql.LEASE_STARTED, key_task_id=task.id, key_fence=lease.fence, started_us=now_us)
                tx.after_commit(partial(market.signals.task_changed, task.id))
            answers.append(None)
        except ParityError as exc:
            answers.append(exc)
    return answers


def release(
    tx: Tx, market: Market, node_id: str, items: Sequence[ReleaseItem], now: datetime
) -> list[ParityError | None]:
    """Take leases back from a node that gives them up; None is a success.

    A node that blames itself does not get the task again; a draining one may. What was not started is no attempt, so
    often as ``attempts_after_release`` says; the node's own tries count all the same.
    """
    answers: list[ParityError | None] = []
    now_us = to_us(now)
    for item in items:
        try:
            task, lease = _held(tx, node_id, item)
        except ParityError as exc:
            answers.append(exc)
            continue
        reason = FailureReason.parse(item.reason, Blame.INTERRUPTED)
        hand_backs = sum(map(is_handed_back, tx.all(sql.LEASES_OF_TASK, task_id=task.id))) if task.fence > 1 else 0
        end_lease(tx, market, lease, f"{RELEASED}{reason}", now_us=now_us)
        free(
            tx,
            market,
            task,
            TaskEvent.RELEASE,
            now_us=now_us,
            node_id=node_id,
            detail=item.message or f"{RELEASED}{reason}",
            failure=str(reason),
            exclude=reason.blame in (Blame.NODE, Blame.TASK),
            attempts=attempts_after_release(task_view(task, lease), hand_backs=hand_backs),
        )
        answers.append(None)
    return answers


def append_logs(
    tx: Tx, market: Market, node_id: str, items: Sequence[LogChunk], now: datetime
) -> list[ParityError | None]:
    """Store text that executions printed; None is a success.

    A chunk at a known offset changes nothing; what is over ``Market.max_log_bytes`` of an attempt is dropped.
    """
    del now
    answers: list[ParityError | None] = []
    sizes: dict[tuple[str, int], int] = {}
    for item in items:
        try:
            _held(tx, node_id, item, may_have_ended=True)  # the last words may come after the report
        except ParityError as exc:
            answers.append(exc)
            continue
        key = (item.task_id, item.fence)
        if key not in sizes:
            sizes[key] = tx.one(sql.LOG_SIZE, task_id=item.task_id, fence=item.fence) or 0
        size = len(item.text.encode())
        charged = size + sql.LOG_CHUNK_OVERHEAD
        if not item.text:
            pass
        elif sizes[key] + charged > market.max_log_bytes:
            tx.insert(sql.LOG_INSERT, LogChunkRow(item.task_id, item.fence, sql.LOG_CUT_OFFSET, 0, ""))
        else:
            row = LogChunkRow(item.task_id, item.fence, item.offset, size, item.text)
            if tx.insert(sql.LOG_INSERT, row):
                sizes[key] += charged
                tx.after_commit(partial(market.signals.task_changed, item.task_id))
        answers.append(None)
    return answers


def reap(tx: Tx, market: Market, now: datetime, limit: int = 256) -> list[TaskRow]:
    """Take back tasks whose lease lapsed, and end pending ones whose deadline has passed.

    Returns:
        The changed tasks; call it again at once when there are ``limit``.
    """
    now_us = to_us(now)
    freed = []
    for lease in tx.all(sql.LEASES_EXPIRED, now_us=now_us, limit=limit):
        task = load_task(tx, lease.task_id)
        end_lease(tx, market, lease, "lease_lost", now_us=now_us)
        if task.fence == lease.fence and task.state in (TaskState.LEASED, TaskState.RUNNING):
            freed.append(
                free(
                    tx,
                    market,
                    task,
                    TaskEvent.LEASE_LOST,
                    now_us=now_us,
                    node_id=lease.node_id,
                    detail="the node did not renew its lease",
                    failure=str(FailureReason.LEASE_LOST),
                )
            )
    left = limit - len(freed)
    for task in tx.all(sql.TASKS_PAST_DEADLINE, state=TaskState.PENDING, now_us=now_us, limit=left) if left > 0 else []:
        detail = f"its deadline passed before a node could start it ({from_us(task.deadline_us):%Y-%m-%d %H:%M:%S} UTC)"
        freed.append(free(tx, market, task, TaskEvent.DEADLINE, now_us=now_us, node_id=None, detail=detail))
    return freed


def extend_all_live(tx: Tx, market: Market, now: datetime) -> int:
    """Give every live lease at least a whole ttl from now: nodes could not renew while the market was down.

    Call it at start-up, before the first ``reap``. Returns how many were extended.
    """
    until = to_us(now + market.lease_ttl)
    return tx.run(sql.LEASES_EXTEND, until_us=until, new_until_us=until)


def next_expiry(tx: ReadTx) -> datetime | None:
    """Return when the next live lease lapses unless it is renewed, or None when there is none."""
    found: int | None = tx.one(sql.NEXT_EXPIRY)
    return None if found is None else from_us(found)
