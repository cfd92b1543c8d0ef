"""A group's state follows from its members'."""

from __future__ import annotations

from itertools import product

import pytest

from parity_protocol.errors import BadField
from parity_protocol.task import FINAL_STATES, GroupPolicy, GroupState, TaskGroup, TaskKind, TaskState, parse_spec

SPEC = parse_spec('{"type":"command","command":["true"]}')
DONE, LOST, OPEN = TaskState.COMPLETED, TaskState.FAILED, TaskState.RUNNING


def group(parts: int, needed: int, state: GroupState = GroupState.RUNNING) -> TaskGroup:
    return TaskGroup("id", TaskKind.COMMAND, SPEC, GroupPolicy(parts, needed), state)


@pytest.mark.parametrize(
    ("needed", "members", "due"),
    [
        (2, (DONE, DONE), GroupState.COMPLETED),
        (2, (DONE, OPEN), GroupState.RUNNING),
        (2, (LOST, OPEN), GroupState.FAILED),
        (1, (LOST, OPEN), GroupState.RUNNING),
        (1, (LOST, DONE), GroupState.COMPLETED),
        (1, (DONE, OPEN), GroupState.RUNNING),
        (1, (LOST, LOST), GroupState.FAILED),
    ],
)
def test_a_group_ends_when_its_members_allow_it(needed: int, members: tuple[TaskState, ...], due: GroupState) -> None:
    assert group(2, needed).due(members) is due


@pytest.mark.parametrize("state", [found for found in GroupState if found is not GroupState.RUNNING])
def test_a_group_that_has_ended_stays_as_it_is(state: GroupState) -> None:
    assert group(2, 2, state).due((DONE, DONE)) is state


def test_a_group_that_needs_all_ends_exactly_when_one_is_lost_or_all_are_done() -> None:
    for members in product(TaskState, repeat=2):
        lost = any(state in FINAL_STATES - {DONE} for state in members)
        done = all(state is DONE for state in members)
        expected = GroupState.FAILED if lost else GroupState.COMPLETED if done else GroupState.RUNNING
        assert group(2, 2).due(members) is expected


@pytest.mark.parametrize(("parts", "needed"), [(2, 0), (2, 3), (0, 0)])
def test_a_policy_that_cannot_be_met_is_refused(parts: int, needed: int) -> None:
    with pytest.raises(BadField, match="cannot need"):
        GroupPolicy(parts, needed)
