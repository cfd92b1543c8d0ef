"""From rows to the pure lease decisions of ``parity_protocol.lease``, and back."""

from __future__ import annotations

from datetime import timedelta

from parity_market.store.rows import LeaseRow, TaskRow, from_us
from parity_protocol.ids import ClaimId, Fence, LeaseId, NodeId, TaskId
from parity_protocol.lease import Lease, TaskView

__all__ = ["RELEASED", "is_handed_back", "lease_of", "task_view"]

RELEASED = "released: "  # begins the end reason of a lease that its node gave back


def lease_of(row: LeaseRow) -> Lease:
    """Return a stored lease."""
    return Lease(
        lease_id=LeaseId(row.id),
        task_id=TaskId(row.task_id),
        node_id=NodeId(row.node_id),
        claim_id=ClaimId(row.claim_id),
        fence=Fence(row.fence),
        manifest_hash=row.manifest_hash,
        ttl=timedelta(microseconds=row.ttl_us),
        expires_at=from_us(row.expires_us),
    )


def is_handed_back(lease: LeaseRow) -> bool:
    """Return whether a node gave the lease back with nothing started."""
    return lease.started_us is None and lease.end_reason.startswith(RELEASED)


def task_view(task: TaskRow, lease: LeaseRow | None) -> TaskView:
    """Return what the decisions need.

    Args:
        lease: The one with the task's newest fence; None before the first claim.
    """
    is_given_up = lease is not None and is_handed_back(lease)
    return TaskView(
        task_id=TaskId(task.id),
        state=task.state,
        fence=Fence(task.fence),
        attempts=task.attempts,
        max_attempts=task.max_attempts,
        lease=lease_of(lease) if lease is not None and lease.live else None,
        deadline=from_us(task.deadline_us),
        last_holder=NodeId(task.last_node) if task.last_node is not None and not is_given_up else None,
    )
