"""The one state machine (design §6): its table, and a machine that walks it."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from parity_protocol.errors import InvalidTransition
from parity_protocol.task import (
    FINAL_STATES,
    MAX_PARTS,
    TRANSITIONS,
    TaskEvent,
    TaskState,
    advance,
    public_state,
    share_of,
)

STATES = st.sampled_from(list(TaskState))
EVENTS = st.sampled_from(list(TaskEvent))

DESIGN = """
pending     claim               leased
leased      start               running
leased      report              verifying
running     report              verifying
pending     report              verifying
verifying   accept              completed
leased      lease_lost          pending
leased      release             pending
leased      node_fault          pending
leased      unconfirmed_fault   pending
running     lease_lost          pending
running     release             pending
running     node_fault          pending
running     unconfirmed_fault   pending
leased      task_fault          failed
running     task_fault          failed
pending     attempts_exhausted  failed
pending     deadline            failed
verifying   reject              pending
verifying   reject_final        not_verified
verifying   verify_timeout      verifying
verifying   verify_abandoned    failed
pending     cancel              cancelled
leased      cancel              cancelled
running     cancel              cancelled
"""


def test_the_table_is_the_designs() -> None:
    written = {tuple(line.split()) for line in DESIGN.strip().splitlines()}

    assert {(str(state), str(event), str(after)) for (state, event), after in TRANSITIONS.items()} == written


@given(state=STATES, event=EVENTS)
def test_what_is_not_in_the_table_is_refused(state: TaskState, event: TaskEvent) -> None:
    if (state, event) in TRANSITIONS:
        assert advance(state, event) is TRANSITIONS[state, event]
    else:
        with pytest.raises(InvalidTransition):
            advance(state, event)


@pytest.mark.parametrize("state", sorted(FINAL_STATES))
@pytest.mark.parametrize("event", list(TaskEvent))
def test_a_final_state_takes_no_event(state: TaskState, event: TaskEvent) -> None:
    with pytest.raises(InvalidTransition):
        advance(state, event)


@pytest.mark.parametrize("state", list(TaskState))
def test_every_state_can_be_reached_and_every_open_one_can_end(state: TaskState) -> None:
    def reachable(start: TaskState) -> set[TaskState]:
        found, fresh = {start}, [start]
        while fresh:
            here = fresh.pop()
            for (before, _), after in TRANSITIONS.items():
                if before is here and after not in found:
                    found.add(after)
                    fresh.append(after)
        return found

    assert state in reachable(TaskState.PENDING)
    assert reachable(state) & FINAL_STATES


def test_only_a_verified_result_completes_a_task() -> None:
    ways = {(state, event) for (state, event), after in TRANSITIONS.items() if after is TaskState.COMPLETED}

    assert ways == {(TaskState.VERIFYING, TaskEvent.ACCEPT)}


def test_only_a_claim_leads_to_a_lease() -> None:
    ways = {event for (_, event), after in TRANSITIONS.items() if after is TaskState.LEASED}

    assert ways == {TaskEvent.CLAIM}


def test_the_public_words_are_the_parity_networks() -> None:
    shown = {state: public_state(state) for state in TaskState}

    assert set(shown.values()) == {"pending", "running", "completed", "failed", "not_verified", "cancelled"}
    assert shown[TaskState.LEASED] == "pending"
    assert shown[TaskState.VERIFYING] == "running"


class Walk(RuleBasedStateMachine):
    """Walks the table at random; counts that each event was taken at least once."""

    taken: Counter[TaskEvent] = Counter()

    def __init__(self) -> None:
        super().__init__()
        self.state = TaskState.PENDING
        self.claims = 0
        self.ends = 0

    @rule(data=st.data())
    def take_a_known_event(self, data: st.DataObject) -> None:
        possible = [event for (state, event) in TRANSITIONS if state is self.state]
        if not possible:
            self.state = TaskState.PENDING  # a new task
            self.claims = self.ends = 0
            return
        event = data.draw(st.sampled_from(possible))
        self.state = advance(self.state, event)
        Walk.taken[event] += 1
        self.claims += event is TaskEvent.CLAIM
        self.ends += self.state in FINAL_STATES

    @rule(event=EVENTS)
    def try_any_event(self, event: TaskEvent) -> None:
        before = self.state
        try:
            after = advance(before, event)
        except InvalidTransition:
            assert (before, event) not in TRANSITIONS
        else:
            assert TRANSITIONS[before, event] is after

    @invariant()
    def a_result_needs_a_claim(self) -> None:
        if self.state in (TaskState.LEASED, TaskState.RUNNING):
            assert self.claims

    @invariant()
    def a_task_ends_at_most_once(self) -> None:
        assert self.ends <= 1


def test_walks_take_every_event() -> None:
    Walk.taken.clear()

    for _ in range(5):
        run_state_machine_as_test(  # type: ignore[no-untyped-call]
            Walk, settings=settings(max_examples=40, stateful_step_count=60, derandomize=False)
        )
        if set(Walk.taken) == set(TaskEvent):
            break

    assert set(Walk.taken) == set(TaskEvent)


@given(reward=st.integers(0, 2**96 - 1), parts=st.integers(1, MAX_PARTS))
def test_shares_sum_to_the_reward_and_differ_by_at_most_one(reward: int, parts: int) -> None:
    shares = [share_of(reward, part, parts) for part in range(parts)]

    assert sum(shares) == reward
    assert max(shares) - min(shares) <= 1
    assert shares == sorted(shares, reverse=True)
