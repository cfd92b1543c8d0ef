"""Leases: exclusive, time-limited, fenced; and the pure decisions about them (design §6).

Every claim of a task increments its fence. Whoever writes about a task names the fence it holds, and anything but the
current one is refused, so a node that lost its lease can never overwrite the work of the next (Kleppmann, "How to do
distributed locking", 2016).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Annotated

from pydantic import Field, StringConstraints

from parity_protocol.errors import ClaimRefused, LeaseConflict, StaleFence, TaskCancelled
from parity_protocol.ids import ClaimId, Fence, LeaseId, NodeId, TaskId, WireNodeId, WireSha256, WireUuid
from parity_protocol.task import FINAL_STATES, TaskState
from parity_protocol.wire import SignedDocument

__all__ = [
    "LEASE_MARGIN",
    "LEASE_TYPE",
    "MAX_HAND_BACKS",
    "ClaimDecision",
    "Lease",
    "LeaseDocument",
    "ReportDecision",
    "TaskView",
    "attempts_after_release",
    "decide_claim",
    "decide_renew",
    "decide_report",
    "local_deadline",
]

LEASE_TYPE = "lease+jws"
LEASE_MARGIN = timedelta(seconds=1)  # the node stops this long before the market may give the task away
MAX_HAND_BACKS = 8  # of one task, by whomever, that cost it no attempt


class LeaseDocument(SignedDocument):
    """The payload of a lease's JWS. It carries ``ttl_s``, never a wall-clock end: clocks differ, durations do not."""

    iss: Annotated[str, StringConstraints(max_length=128)]
    aud: WireNodeId
    sub: WireUuid
    jti: WireUuid  # lease id
    iat: int
    nbf: int
    exp: int  # of this document as proof; the lease itself ends by renewals
    fence: int = Field(ge=1)
    claim_id: WireUuid
    manifest_hash: WireSha256
    ttl_s: float = Field(gt=0, le=86_400)


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease as the market keeps it."""

    lease_id: LeaseId
    task_id: TaskId
    node_id: NodeId
    claim_id: ClaimId
    fence: Fence
    manifest_hash: str
    ttl: timedelta
    expires_at: datetime  # UTC, the market's clock


@dataclass(frozen=True, slots=True)
class TaskView:
    """What the decisions need to know of a task."""

    task_id: TaskId
    state: TaskState
    fence: Fence  # of the newest claim; 0 before the first
    attempts: int
    max_attempts: int
    lease: Lease | None  # live, or lapsed and not yet reaped; None when PENDING and in a final state
    deadline: datetime | None
    last_holder: NodeId | None = None  # node of the newest claim; None when it gave that back with nothing started


@dataclass(frozen=True, slots=True)
class ClaimDecision:
    """The lease that a claim gives, and whether this claim made it."""

    lease: Lease
    is_new: bool


class ReportDecision(StrEnum):
    """What a final report does."""

    VERIFY = "verify"  # take it and verify
    DUPLICATE = "duplicate"  # it was taken before; answer as then


def decide_claim(
    task: TaskView,
    *,
    node_id: NodeId,
    claim_id: ClaimId,
    manifest_hash: str,
    lease_id: LeaseId,
    ttl: timedelta,
    now: datetime,
) -> ClaimDecision:
    """Give ``node_id`` the exclusive right to run a pending task.

    Repeating a claim with the same ``claim_id`` returns the same lease, so a lost response is safe to retry.

    Args:
        lease_id: Used if the claim makes a new lease.
        now: Current time, UTC; expiry is decided once per request.

    Returns:
        A lease whose fence is greater than every earlier fence of this task when it is new.

    Raises:
        LeaseConflict: Another claim holds the task, or it is past claiming.
        TaskCancelled: The task was cancelled.
        ClaimRefused: The deadline has passed, or the attempts are used up.
    """
    held = task.lease
    if held is not None and held.claim_id == claim_id and held.node_id == node_id:
        if held.manifest_hash != manifest_hash:
            raise ClaimRefused("this claim was made with another manifest")
        if held.expires_at > now:
            return ClaimDecision(held, is_new=False)
    if task.state is TaskState.CANCELLED:
        raise TaskCancelled(f"task {task.task_id} was cancelled")
    if task.state is not TaskState.PENDING:
        raise LeaseConflict(f"task {task.task_id} is {task.state}, not pending")
    if task.deadline is not None and now > task.deadline:
        raise ClaimRefused(f"the deadline of task {task.task_id} has passed")
    if task.attempts >= task.max_attempts:
        raise ClaimRefused(f"task {task.task_id} has used its {task.max_attempts} attempts")
    lease = Lease(
        lease_id=lease_id,
        task_id=task.task_id,
        node_id=node_id,
        claim_id=claim_id,
        fence=Fence(task.fence + 1),
        manifest_hash=manifest_hash,
        ttl=ttl,
        expires_at=now + ttl,
    )
    return ClaimDecision(lease, is_new=True)


def decide_renew(task: TaskView, *, node_id: NodeId, lease_id: LeaseId, fence: Fence, now: datetime) -> Lease:
    """Extend a lease to ``now`` + ttl.

    A lease that has lapsed but was neither reaped nor claimed again is renewed: nobody else has the task.

    Raises:
        TaskCancelled: The task was cancelled; the node stops at once.
        StaleFence: The lease is no longer this node's.
    """
    if task.state is TaskState.CANCELLED:
        raise TaskCancelled(f"task {task.task_id} was cancelled")
    held = task.lease
    if held is None or held.lease_id != lease_id or held.fence != fence or held.node_id != node_id:
        raise StaleFence(f"lease {lease_id} with fence {fence} of task {task.task_id} is not current")
    return replace(held, expires_at=now + held.ttl)


def attempts_after_release(task: TaskView, *, hand_backs: int) -> int:
    """Return how many attempts ``task`` has used when its lease is given back.

    A lease under which nothing was started is no attempt: a node that drains, or took more than it has room for, costs
    the submitter nothing. After ``MAX_HAND_BACKS`` it is one all the same, else nodes in league could pass a task round
    without an end.

    Args:
        task: As it was under the lease.
        hand_backs: How many earlier leases of this task were given back with nothing started.
    """
    is_free = task.state is TaskState.LEASED and hand_backs < MAX_HAND_BACKS
    return task.attempts - 1 if is_free else task.attempts


def decide_report(task: TaskView, *, node_id: NodeId, fence: Fence, already_taken: bool) -> ReportDecision:
    """Decide whether a final report may move its task.

    Args:
        already_taken: A final report with this (lease, fence) is stored.

    Raises:
        TaskCancelled: The cancel came first.
        StaleFence: The task was claimed again since, this node never held that fence, or it gave the lease back with
            nothing started.
    """
    if already_taken:
        return ReportDecision.DUPLICATE
    if task.state is TaskState.CANCELLED:
        raise TaskCancelled(f"task {task.task_id} was cancelled")
    if fence != task.fence or task.last_holder != node_id:
        raise StaleFence(f"fence {fence} of task {task.task_id} is not this node's current one")
    if task.state in FINAL_STATES or task.state is TaskState.VERIFYING:
        raise StaleFence(f"task {task.task_id} is {task.state}: its report was already taken")
    return ReportDecision.VERIFY


def local_deadline(sent_at: float, ttl_s: float, *, margin: timedelta = LEASE_MARGIN) -> float:
    """Return when the node must have stopped, on the clock that ``sent_at`` was read from.

    Counting from the moment the request was *sent* is what makes it safe: the market started its own count later.

    Args:
        sent_at: ``Clock.monotonic()`` just before the claim or renewal was sent.
        ttl_s: What the answer said.
    """
    return sent_at + ttl_s - min(margin.total_seconds(), ttl_s / 4)
