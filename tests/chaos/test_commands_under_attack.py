"""A sample of the campaigns of ``scripts/chaos``: bombs, hostile trees, and a node that is killed with commands running."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.figures import Figure
from campaigns import bombs, crashes, trees

pytestmark = [pytest.mark.service("bubblewrap"), pytest.mark.serial, pytest.mark.timeout(120)]


def missed(figures: list[Figure]) -> list[str]:
    return [
        f"{each.name}: {each.shown()} ({each.note})" for each in figures if each.value is None or each.is_met is False
    ]


async def test_bombs_fail_their_task_with_the_right_reason_and_harm_nothing_else() -> None:
    assert missed(await bombs.run(quick=True)) == []


async def test_hostile_trees_are_gone_within_two_seconds_of_their_deadline() -> None:
    assert missed(await trees.run(quick=True)) == []


async def test_commands_end_exactly_once_and_leave_nothing_when_the_node_is_killed() -> None:
    assert missed(await crashes.run(quick=True)) == []
