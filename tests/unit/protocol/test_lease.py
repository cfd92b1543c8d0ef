"""The pure lease decisions, one by one and under random histories."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parity_protocol.errors import ClaimRefused, LeaseConflict, ParityError, StaleFence, TaskCancelled
from parity_protocol.ids import ClaimId, Fence, LeaseId, NodeId, TaskId
from parity_protocol.lease import (
    LEASE_MARGIN,
    MAX_HAND_BACKS,
    Lease,
    ReportDecision,
    TaskView,
    attempts_after_release,
    decide_claim,
    decide_renew,
    decide_report,
    local_deadline,
)
from parity_protocol.task import TaskState

NOW = datetime(2026, 1, 1, tzinfo=UTC)
TTL = timedelta(seconds=30)
ADA, BOB = NodeId("a" * 64), NodeId("b" * 64)
TASK = TaskId("00000000-0000-4000-8000-000000000001")
_S = TaskState


def view(**changes: object) -> TaskView:
    fresh = TaskView(TASK, _S.PENDING, Fence(0), 0, 3, None, None)
    return replace(fresh, **changes)  # type: ignore[arg-type]


def claim(
    task: TaskView, node: NodeId = ADA, claim_id: str = "c1", *, manifest: str = "m1", now: datetime = NOW
) -> tuple[Lease, bool]:
    decision = decide_claim(
        task,
        node_id=node,
        claim_id=ClaimId(claim_id),
        manifest_hash=manifest,
        lease_id=LeaseId(f"lease of {claim_id}"),
        ttl=TTL,
        now=now,
    )
    return decision.lease, decision.is_new


def leased(state: TaskState = _S.LEASED, *, now: datetime = NOW) -> TaskView:
    lease, _ = claim(view(), now=now)
    return view(state=state, fence=lease.fence, attempts=1, lease=lease, last_holder=ADA)


def test_a_claim_of_a_pending_task_gives_the_next_fence() -> None:
    lease, is_new = claim(view(fence=Fence(4), attempts=1))

    assert is_new
    assert (lease.fence, lease.node_id, lease.expires_at) == (5, ADA, NOW + TTL)


def test_the_same_claim_again_gives_the_same_lease() -> None:
    task = leased()

    lease, is_new = claim(task, now=NOW + timedelta(seconds=29))

    assert not is_new
    assert lease == task.lease


@pytest.mark.parametrize(("node", "claim_id"), [(ADA, "c2"), (BOB, "c1"), (BOB, "c2")])
def test_any_other_claim_of_a_held_task_conflicts(node: NodeId, claim_id: str) -> None:
    with pytest.raises(LeaseConflict):
        claim(leased(), node, claim_id)


def test_the_same_claim_with_another_manifest_is_refused() -> None:
    with pytest.raises(ClaimRefused, match="manifest"):
        claim(leased(), manifest="m2")


def test_a_lapsed_lease_is_not_resumed_by_its_claim() -> None:
    with pytest.raises(LeaseConflict):
        claim(leased(), now=NOW + TTL)


def test_a_claim_after_the_deadline_is_refused() -> None:
    task = view(deadline=NOW)

    assert claim(task, now=NOW)[1]
    with pytest.raises(ClaimRefused, match="deadline"):
        claim(task, now=NOW + timedelta(microseconds=1))


def test_a_claim_beyond_the_attempts_is_refused() -> None:
    with pytest.raises(ClaimRefused, match="attempts"):
        claim(view(attempts=3))


@pytest.mark.parametrize("state", [state for state in TaskState if state is not _S.PENDING])
def test_only_a_pending_task_can_be_claimed(state: TaskState) -> None:
    expected = TaskCancelled if state is _S.CANCELLED else LeaseConflict

    with pytest.raises(expected):
        claim(view(state=state))


def test_a_renewal_counts_from_now() -> None:
    task = leased()
    assert task.lease is not None

    renewed = decide_renew(
        task, node_id=ADA, lease_id=task.lease.lease_id, fence=Fence(1), now=NOW + timedelta(seconds=10)
    )

    assert renewed == replace(task.lease, expires_at=NOW + timedelta(seconds=10) + TTL)


def test_a_lapsed_lease_that_nobody_took_is_renewed() -> None:
    task = leased()
    assert task.lease is not None
    late = NOW + 10 * TTL

    assert (
        decide_renew(task, node_id=ADA, lease_id=task.lease.lease_id, fence=Fence(1), now=late).expires_at == late + TTL
    )


@pytest.mark.parametrize(
    ("node", "lease_id", "fence"), [(BOB, "lease of c1", 1), (ADA, "lease of c2", 1), (ADA, "lease of c1", 2)]
)
def test_a_renewal_that_is_not_the_holders_is_stale(node: NodeId, lease_id: str, fence: int) -> None:
    with pytest.raises(StaleFence):
        decide_renew(leased(), node_id=node, lease_id=LeaseId(lease_id), fence=Fence(fence), now=NOW)


def test_a_renewal_of_a_cancelled_task_says_so() -> None:
    with pytest.raises(TaskCancelled):
        decide_renew(leased(_S.CANCELLED), node_id=ADA, lease_id=LeaseId("lease of c1"), fence=Fence(1), now=NOW)


@pytest.mark.parametrize("state", [_S.PENDING, _S.LEASED, _S.RUNNING])
def test_the_current_fence_may_report_even_after_its_lease_lapsed(state: TaskState) -> None:
    task = replace(leased(state), lease=None)

    assert decide_report(task, node_id=ADA, fence=Fence(1), already_taken=False) is ReportDecision.VERIFY


@pytest.mark.parametrize("state", list(TaskState))
def test_a_report_that_was_taken_is_a_duplicate_in_every_state(state: TaskState) -> None:
    task = view(state=state, fence=Fence(7), last_holder=BOB)

    assert decide_report(task, node_id=ADA, fence=Fence(1), already_taken=True) is ReportDecision.DUPLICATE


@pytest.mark.parametrize(("node", "fence"), [(ADA, 1), (ADA, 3), (BOB, 2)])
def test_a_report_under_another_fence_or_node_is_stale(node: NodeId, fence: int) -> None:
    task = view(state=_S.LEASED, fence=Fence(2), last_holder=ADA)

    with pytest.raises(StaleFence):
        decide_report(task, node_id=node, fence=Fence(fence), already_taken=False)


@pytest.mark.parametrize("state", [_S.VERIFYING, _S.COMPLETED, _S.FAILED, _S.NOT_VERIFIED])
def test_a_second_report_of_an_ended_attempt_is_stale(state: TaskState) -> None:
    with pytest.raises(StaleFence):
        decide_report(leased(state), node_id=ADA, fence=Fence(1), already_taken=False)


def test_a_report_after_the_cancel_is_told_so() -> None:
    with pytest.raises(TaskCancelled):
        decide_report(leased(_S.CANCELLED), node_id=ADA, fence=Fence(1), already_taken=False)


@pytest.mark.parametrize(
    ("state", "hand_backs", "used"),
    [(_S.LEASED, 0, 0), (_S.LEASED, MAX_HAND_BACKS - 1, 0), (_S.LEASED, MAX_HAND_BACKS, 1), (_S.RUNNING, 0, 1)],
)
def test_a_lease_given_back_with_nothing_started_is_no_attempt_so_many_times(
    state: TaskState, hand_backs: int, used: int
) -> None:
    assert attempts_after_release(leased(state), hand_backs=hand_backs) == used


@given(sent=st.floats(0, 1e9), ttl=st.floats(0.01, 86_400))
def test_the_node_stops_before_the_market_may_give_the_task_away(sent: float, ttl: float) -> None:
    """The market starts counting when it grants, which is after the node sent its request."""
    stop = local_deadline(sent, ttl)

    assert sent < stop < sent + ttl
    assert sent + ttl - stop <= LEASE_MARGIN.total_seconds() + 1e-6


@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from([ADA, BOB]), st.sampled_from(["claim", "renew", "lose", "give back"]), st.integers(0, 40)
        ),
        max_size=40,
    )
)
def test_fences_only_grow_and_two_nodes_never_hold_a_task_at_once(
    steps: list[tuple[NodeId, str, int]],
) -> None:
    task, now, fences, hand_backs = view(max_attempts=100), NOW, [0], 0
    held: dict[NodeId, Lease] = {}
    for number, (node, action, seconds) in enumerate(steps):
        now += timedelta(seconds=seconds)
        try:
            if action == "claim":
                lease, is_new = claim(task, node, f"c{number}", now=now)
                assert is_new
                fences.append(int(lease.fence))
                held[node] = lease
                task = replace(
                    task, state=_S.LEASED, fence=lease.fence, attempts=task.attempts + 1, lease=lease, last_holder=node
                )
            elif action == "renew" and node in held:
                lease = decide_renew(task, node_id=node, lease_id=held[node].lease_id, fence=held[node].fence, now=now)
                held[node] = lease
                task = replace(task, lease=lease)
            elif action == "lose" and task.lease is not None and task.lease.expires_at <= now:
                task = replace(task, state=_S.PENDING, lease=None)
            elif action == "give back" and node in held:
                decide_renew(task, node_id=node, lease_id=held[node].lease_id, fence=held[node].fence, now=now)
                used = attempts_after_release(task, hand_backs=hand_backs)
                task, hand_backs = replace(task, state=_S.PENDING, lease=None, attempts=used), hand_backs + 1
                del held[node]
        except ParityError:
            pass
        live = [lease.node_id for lease in held.values() if lease.expires_at > now]
        assert len(live) <= 1
        assert task.attempts >= len(fences) - 1 - MAX_HAND_BACKS
    assert fences == sorted(set(fences))
