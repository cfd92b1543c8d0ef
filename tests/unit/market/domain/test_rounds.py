"""When an open round closes, waits or fails, decided from rows."""

from __future__ import annotations

from typing import Any

import pytest

from parity_fl.rounds_config import RoundsConfig
from parity_market.domain.rounds import Decision, UpdateState, Verdict, decide, setup_rules
from parity_market.store.rows import FlUpdateRow, TaskRow
from parity_protocol.task import TaskState

DEADLINE_US = 1_000_000


def task(part: int, state: TaskState = TaskState.RUNNING, fence: int = 1) -> TaskRow:
    fields: dict[str, Any] = dict.fromkeys(TaskRow._fields)
    return TaskRow(**{**fields, "part": part, "state": state, "fence": fence})


def update(part: int, state: UpdateState = UpdateState.RECEIVED, fence: int = 1) -> FlUpdateRow:
    fields: dict[str, Any] = dict.fromkeys(FlUpdateRow._fields)
    return FlUpdateRow(**{**fields, "part": part, "state": state, "fence": fence})


def verdict(
    updates: list[FlUpdateRow], tasks: list[TaskRow] | None = None, *, quorum: int = 2, now_us: int = 0
) -> Verdict:
    config = RoundsConfig(total_rounds=5, min_available_clients=2, quorum=quorum)
    shown = tasks or [task(part) for part in range(3)]
    return decide(config, cohort=range(3), updates=updates, tasks=shown, deadline_us=DEADLINE_US, now_us=now_us)


@pytest.mark.parametrize(
    ("states", "needed"),
    [
        ([], 4),
        ([(0, UpdateState.RECEIVED, 1)], 4),
        ([(0, UpdateState.REJECTED, 1)], 3),
        ([(0, UpdateState.REJECTED, 1), (0, UpdateState.RECEIVED, 2)], 4),  # the next holder's answer is good
        ([(part, UpdateState.REJECTED, 1) for part in range(3)], 2),
    ],
)
def test_parts_that_agree_need_all_but_the_refused_and_never_fewer_than_the_quorum(
    states: list[tuple[int, UpdateState, int]], needed: int
) -> None:
    config = RoundsConfig(total_rounds=5, min_available_clients=2, quorum=2, fraction=0.5)

    found = setup_rules(config, range(4), [update(*one) for one in states])

    assert (found.quorum, found.min_available_clients, found.fraction) == (needed, 4, 1.0)


def test_a_round_with_a_quorum_does_not_wait_for_a_holder_whose_update_was_rejected() -> None:
    sent = [update(0), update(1), update(2, UpdateState.REJECTED)]

    assert verdict(sent).decision is Decision.CLOSE


def test_a_round_with_a_quorum_waits_for_who_has_not_sent_yet() -> None:
    assert verdict([update(0), update(1)]).decision is Decision.WAIT
    assert verdict([update(0), update(1, UpdateState.REJECTED)], quorum=1).decision is Decision.WAIT


@pytest.mark.parametrize(
    "heir", [task(2, fence=2), task(2, TaskState.PENDING)], ids=["somebody took over", "nobody has it"]
)
def test_a_round_waits_for_who_takes_over_a_part_after_a_rejected_update(heir: TaskRow) -> None:
    sent = [update(0), update(1), update(2, UpdateState.REJECTED)]

    assert verdict(sent, [task(0), task(1), heir]).decision is Decision.WAIT


def test_without_a_quorum_a_round_says_whom_it_waits_for_and_fails_at_its_deadline() -> None:
    sent = [update(0), update(1), update(2, UpdateState.REJECTED)]

    waiting = verdict(sent, quorum=3)
    late = verdict(sent, quorum=3, now_us=DEADLINE_US)

    assert waiting == Verdict(Decision.WAIT, "waits for somebody to take over parts 2: their updates were rejected")
    assert late.decision is Decision.FAIL
    assert "missing parts 2" in late.reason


def test_a_round_fails_at_once_when_lost_parts_leave_no_quorum() -> None:
    found = verdict([update(0)], [task(0), task(1, TaskState.FAILED), task(2, TaskState.CANCELLED)])

    assert found == Verdict(Decision.FAIL, "only 1 of 2 needed updates can come: lost parts 1, 2")
