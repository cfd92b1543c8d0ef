"""Submitting and cancelling tasks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial

from parity_blobs.cid import Cid
from parity_blobs.spec_cids import cids_of_spec
from parity_market.domain.dispatch import needs_of
from parity_market.domain.escrow import check_escrow
from parity_market.operations.blobs import link_inputs
from parity_market.operations.context import Market
from parity_market.operations.money import escrow_view
from parity_market.operations.settling import release_unfinished
from parity_market.operations.steps import end_lease, load_task, newest_lease, step
from parity_market.store import sql, sql_rounds
from parity_market.store.base import ReadTx, Tx
from parity_market.store.rows import AccountRow, EventRow, FlShardRow, GroupRow, SubmissionRow, TaskRow, from_us, to_us
from parity_protocol.api.tasks import CancelReply, SubmitReply
from parity_protocol.errors import BadField, Conflict, InvalidTransition, NotFound
from parity_protocol.order import Order
from parity_protocol.task import (
    FINAL_STATES,
    CidInput,
    CommandSpec,
    DockerSpec,
    FederatedLearningSpec,
    GroupState,
    HttpsInput,
    LlmSpec,
    ShardInput,
    TaskEvent,
    TaskState,
    parts_of,
    share_of,
)
from parity_protocol.wire import JsonObject

__all__ = ["NO_ORDER", "UNORDERED_LIFE", "NewSubmission", "cancel", "check_money", "link_data", "owner_of", "submit"]

NO_ORDER = "{}"  # in place of one
UNORDERED_LIFE = timedelta(days=7)  # of a session without an order
_LAST_SECOND = 253_402_300_799  # of the year 9999: a later deadline is none
_CANCELLABLE = frozenset({TaskState.PENDING, TaskState.LEASED, TaskState.RUNNING})


@dataclass(frozen=True, slots=True)
class NewSubmission:
    """What a submitter sent, after ``check_order``, with what the market computed for it outside the writer."""

    creator: str
    spec_text: str
    spec: CommandSpec | DockerSpec | LlmSpec | FederatedLearningSpec
    order: Order | None  # None: nobody consented to pay, so nothing is, and only devices of the old network take part
    order_hash: str  # 0x and 64 hex digits
    reward: int  # base units, for everything the spec becomes
    plan: JsonObject | None = None  # of a group: partition plan
    shards: tuple[str, ...] = ()  # of a sharded session: each part's sealed source, as it was signed
    sources: tuple[CidInput | HttpsInput | ShardInput, ...] = ()  # the same, read
    id: str | None = None  # what it is known by; None makes one

    def __post_init__(self) -> None:
        if self.order is None and (self.reward or self.id is None or not isinstance(self.spec, FederatedLearningSpec)):
            raise BadField("only an unpaid session that has an id may do without an order", field="order")

    @property
    def nonce(self) -> str:
        """What makes the submission the same when it comes again."""
        return f"without an order {self.id}" if self.order is None else self.order.nonce

    def deadline_us(self, now: datetime) -> int:
        """Return until when its tasks may begin, microseconds since the epoch."""
        if self.order is None:
            return to_us(now + UNORDERED_LIFE)
        return min(self.order.deadline, _LAST_SECOND) * 1_000_000


def check_money(tx: ReadTx, market: Market, creator: str, reward: int, now: datetime) -> None:
    """Refuse a reward that could not be bound now; nothing is.

    Raises:
        EscrowTooLow: The free escrow does not cover it.
        ChainUnavailable: What the escrow is was not confirmed for too long.
    """
    if reward:
        check_escrow(escrow_view(tx, market, creator, now), reward, creator=creator)


def submit(tx: Tx, market: Market, new: NewSubmission, now: datetime) -> SubmitReply:
    """Store a submission and the tasks that it becomes, and bind its reward.

    The same creator and order nonce again return what the first made, without a second look at the escrow.

    Raises:
        Conflict: The nonce was used for another spec or reward.
        EscrowTooLow: The free escrow does not cover the reward.
        ChainUnavailable: What the escrow is was not confirmed for too long.
        BadField: The spec's parts are not acceptable.
    """
    known = tx.one(sql.SUBMISSION_BY_NONCE, creator=new.creator, nonce=new.nonce)
    if known is not None:
        if known.order_hash != new.order_hash or known.reward != new.reward or known.spec != new.spec_text:
            raise Conflict("this order's nonce was used for another spec or reward", field="order.nonce")
        return _reply_of(tx, known)
    parts = parts_of(new.spec)
    if parts > 1 and not isinstance(new.spec, FederatedLearningSpec):
        raise BadField("only federated learning has parts", field="spec.type")
    if new.reward:
        view = escrow_view(tx, market, new.creator, now)
        check_escrow(view, new.reward, creator=new.creator)
        tx.insert(sql.ACCOUNT_PUT, AccountRow(market.chain, new.creator, view.reserved + new.reward, view.earned))
    now_us = to_us(now)
    is_group = isinstance(new.spec, FederatedLearningSpec)
    root = new.id or market.make_id()
    tx.insert(
        sql.SUBMISSION_INSERT,
        SubmissionRow(
            id=root,
            creator=new.creator,
            nonce=new.nonce,
            kind=new.spec.type,
            parts=parts,
            reward=new.reward,
            order_hash=new.order_hash,
            order_doc=NO_ORDER if new.order is None else new.order.model_dump_json(),
            spec=new.spec_text,
            created_us=now_us,
        ),
    )
    if is_group:
        plan = None if new.plan is None else json.dumps(new.plan, separators=(",", ":"))
        tx.insert(
            sql.GROUP_INSERT,
            GroupRow(
                root,
                new.spec.type,
                new.creator,
                GroupState.RUNNING,
                new.reward,
                parts,
                plan,
                None,
                "{}",
                "",
                now_us,
                None,
            ),
        )
    tasks = _make_tasks(market, new, root, parts, is_group=is_group, now_us=now_us)
    tx.insert_many(sql.TASK_INSERT, tasks)
    tx.insert_many(
        sql.EVENT_INSERT, [EventRow(task.id, 1, "submit", str(task.state), now_us, None, 0, "") for task in tasks]
    )
    tx.insert_many(
        sql_rounds.FL_SHARD_INSERT, [FlShardRow(root, part, sealed) for part, sealed in enumerate(new.shards)]
    )
    link_data(tx, new, [task.id for task in tasks], now)
    for task in tasks:
        tx.after_commit(partial(market.signals.task_pending, task))
    return SubmitReply(
        id=root, kind="group" if is_group else "task", task_ids=tuple(task.id for task in tasks), created=True
    )


def _make_tasks(
    market: Market, new: NewSubmission, root: str, parts: int, *, is_group: bool, now_us: int
) -> list[TaskRow]:
    needs = [
        replace(needs_of(spec, reward=new.reward // parts), legacy=new.order is None).to_doc()
        for spec in _specs_of(new)
    ]
    deadline_us = new.deadline_us(from_us(now_us))
    return [
        TaskRow(
            id=market.make_id() if is_group else root,
            submission_id=root,
            group_id=root if is_group else None,
            part=part,
            parts=parts,
            kind=new.spec.type,
            creator=new.creator,
            title=new.spec.title,
            reward=share_of(new.reward, part, parts),
            order_hash=new.order_hash,
            needs_doc=needs[min(part, len(needs) - 1)],
            state=TaskState.PENDING,
            seq=1,
            fence=0,
            attempts=0,
            max_attempts=new.spec.max_attempts,
            last_node=None,
            excluded_doc="[]",
            faults_doc="[]",
            verify_attempts=0,
            deadline_us=deadline_us,
            created_us=now_us,
            updated_us=now_us,
            started_us=None,
            completed_us=None,
            result_cid=None,
            result_size=None,
            failure=None,
            message="",
            exit_code=None,
            usage_doc="{}",
            metrics_doc="{}",
        )
        for part in range(parts)
    ]


def _specs_of(new: NewSubmission) -> list[CommandSpec | DockerSpec | LlmSpec | FederatedLearningSpec]:
    """Return what the tasks' nodes are given: one for all, or of a sharded session one for each part."""
    return [new.spec.model_copy(update={"inputs": (source,)}) for source in new.sources] or [new.spec]


def link_data(tx: Tx, new: NewSubmission, task_ids: Sequence[str], now: datetime) -> None:
    """Let nodes read the data that their tasks name, of a sharded session each its own part's alone."""
    cids = cids_of_spec(new.spec)
    if cids and not new.sources:
        link_inputs(tx, new.creator, cids, task_ids, now)
    for source, task_id in zip(new.sources, task_ids, strict=bool(new.sources)):
        if isinstance(source, CidInput):
            link_inputs(tx, new.creator, [Cid.parse(source.cid)], [task_id], now)


def _reply_of(tx: ReadTx, known: SubmissionRow) -> SubmitReply:
    group = tx.all(sql.TASKS_OF_GROUP, group_id=known.id)
    if group:
        return SubmitReply(id=known.id, kind="group", task_ids=tuple(task.id for task in group), created=False)
    return SubmitReply(id=known.id, kind="task", task_ids=(known.id,), created=False)


def owner_of(tx: ReadTx, root_id: str) -> str:
    """Return the creator of a task or group.

    Raises:
        NotFound: There is neither with this id.
    """
    owner: str | None = tx.one(sql.TASK_OWNER, id=root_id)
    if owner is None:
        group = tx.one(sql.GROUP, id=root_id)
        if group is None:
            raise NotFound(f"there is no task {root_id}")
        owner = group.creator
    return owner


def cancel(
    tx: Tx, market: Market, root_id: str, creator: str, now: datetime, *, why: str = "cancelled by its submitter"
) -> CancelReply:
    """Cancel a task, or a group with everything in it; a task of a group takes its group along.

    Repeating it changes nothing. A task that is being verified or has ended stays as it is.

    Args:
        why: What people are told.

    Raises:
        NotFound: There is no such task or group of this creator.
        InvalidTransition: It has ended otherwise, or its result is being verified.
    """
    group = tx.one(sql.GROUP, id=root_id)
    if group is None:
        task = load_task(tx, root_id)
        if task.group_id is not None:
            group = tx.one(sql.GROUP, id=task.group_id)
    if (group.creator if group is not None else task.creator) != creator:
        raise NotFound(f"there is no task {root_id}")
    tasks = tx.all(sql.TASKS_OF_GROUP, group_id=group.id) if group is not None else [task]
    now_us = to_us(now)
    open_tasks = [task for task in tasks if task.state in _CANCELLABLE]
    if not open_tasks and not any(task.state is TaskState.CANCELLED for task in tasks):
        state = tasks[0].state
        raise InvalidTransition(f"{root_id} is {state}: it cannot be cancelled any more")
    cancelled = [_cancel_one(tx, market, task, now_us, why) for task in open_tasks]
    if group is not None and group.state == "running":
        tx.run(
            sql.GROUP_ENDED,
            key_id=group.id,
            state="cancelled",
            result_cid=None,
            metrics_doc="{}",
            message=why,
            completed_us=now_us,
        )
    ended = all(task.state in FINAL_STATES for task in tasks if task not in open_tasks)
    return CancelReply(id=root_id, state="cancelled" if ended else "cancelling", cancelled=tuple(cancelled))


def _cancel_one(tx: Tx, market: Market, task: TaskRow, now_us: int, why: str) -> str:
    lease = newest_lease(tx, task)
    step(
        tx,
        task,
        [(TaskEvent.CANCEL, why)],
        sql.TASK_STEP,
        now_us=now_us,
        node_id=lease.node_id if lease is not None and lease.live else None,
    )
    if lease is not None and lease.live:
        end_lease(tx, market, lease, "cancelled", now_us=now_us)
    release_unfinished(tx, market, task, now_us=now_us)
    tx.after_commit(lambda: market.signals.task_gone(task.id))
    tx.after_commit(lambda: market.signals.task_changed(task.id))
    return task.id
