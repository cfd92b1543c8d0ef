"""A sample of the container campaigns of ``scripts/chaos``: bombs, trees that will not end, a node that is killed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.figures import Figure
from campaigns import containers
from parity_node.testing.dockerd import PrivateDockerd

pytestmark = [
    pytest.mark.service("docker", "busybox"),
    pytest.mark.root,
    pytest.mark.serial,
    pytest.mark.timeout(180),
]


@pytest.fixture(scope="module")
def engine() -> Iterator[PrivateDockerd]:
    with containers.open_engine() as found:
        yield found


def missed(figures: list[Figure]) -> list[str]:
    return [
        f"{each.name}: {each.shown()} ({each.note})" for each in figures if each.value is None or each.is_met is False
    ]


async def test_bombs_fail_their_task_with_the_right_reason_and_harm_nothing_else(engine: PrivateDockerd) -> None:
    assert missed(await containers.bombs(engine, quick=True)) == []


async def test_hostile_trees_are_gone_within_two_seconds_of_their_deadline(engine: PrivateDockerd) -> None:
    assert missed(await containers.trees(engine, quick=True)) == []


async def test_containers_run_once_and_leave_nothing_when_the_node_is_killed(engine: PrivateDockerd) -> None:
    assert missed(await containers.crashes(engine, quick=True)) == []
