"""Each statement of the demo's summary can fail, and then so does the command."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from parity_cli.demo import plan
from parity_cli.demo.audit import LEAST_LONG_MS, money_statements, work_statements
from parity_cli.demo.summary import ForestScores, LinearScores, NodeLine, Statement, Summary, TaskLine

if TYPE_CHECKING:
    from .conftest import Parity
else:
    Parity = Any

TOKEN = 10**18

TASKS = (
    TaskLine("forest", "t1", "federated_learning", "completed", "n1", 1, TOKEN, TOKEN, True, 900),
    TaskLine(plan.DELAYED, "t2", "federated_learning", "completed", "n2", 2, 2 * TOKEN, 2 * TOKEN, True, LEAST_LONG_MS),
)
NODES = (
    NodeLine("alder", "n1", "0x1", plan.STAKE, TOKEN, TOKEN, True, ("forest",)),
    NodeLine("birch", "n2", "0x2", plan.STAKE, 2 * TOKEN, 2 * TOKEN, False, (plan.DELAYED,)),
)

FAULTS: dict[str, tuple[str, Callable[[], tuple[TaskLine, ...]], Callable[[], tuple[NodeLine, ...]]]] = {
    "a task is not done": (
        "tasks are completed",
        lambda: (replace(TASKS[0], state="failed"), TASKS[1]),
        lambda: NODES,
    ),
    "a receipt is no proof": ("receipt", lambda: (replace(TASKS[0], receipt_valid=False), TASKS[1]), lambda: NODES),
    "a first attempt": ("second attempt", lambda: (TASKS[0], replace(TASKS[1], attempts=1)), lambda: NODES),
    "the killed node did it": (
        "second attempt",
        lambda: TASKS,
        lambda: (replace(NODES[0], killed=False), replace(NODES[1], killed=True)),
    ),
    "it was short": ("it ran for", lambda: (TASKS[0], replace(TASKS[1], wall_ms=LEAST_LONG_MS - 1)), lambda: NODES),
    "a bond is missing": ("at stake", lambda: TASKS, lambda: (replace(NODES[0], stake=0), NODES[1])),
    "a reward is not paid": ("rewards are paid", lambda: (replace(TASKS[0], paid=0), TASKS[1]), lambda: NODES),
    "the chain has less": ("on chain", lambda: TASKS, lambda: (NODES[0], replace(NODES[1], earned_on_chain=TOKEN))),
    "nobody was killed": ("was killed", lambda: TASKS, lambda: (replace(NODES[0], killed=False), NODES[1])),
}


def all_of(tasks: tuple[TaskLine, ...], nodes: tuple[NodeLine, ...]) -> list[Statement]:
    return [*work_statements(tasks, nodes), *money_statements(tasks, nodes)]


def test_statements_hold_when_everything_is_as_said() -> None:
    assert [one for one in all_of(TASKS, NODES) if not one.holds] == []


@pytest.mark.parametrize("name", FAULTS)
def test_statement_that_is_not_so_does_not_hold(name: str) -> None:
    words, tasks, nodes = FAULTS[name]

    assert any(words in one.text for one in all_of(tasks(), nodes()) if not one.holds)


@pytest.mark.parametrize(("holds", "status"), [(True, 0), (False, 1)])
def test_exit_status_is_1_if_a_statement_does_not_hold(
    parity: Parity, monkeypatch: pytest.MonkeyPatch, holds: bool, status: int
) -> None:
    scores = ForestScores(0.96, 0.96, 0.93, 0.94), LinearScores(0.45, 0.46)
    summary = Summary(50.0, TASKS, NODES, *scores, (Statement("water is wet", holds, "it is dry"),))
    stack = SimpleNamespace(deployment=SimpleNamespace(symbol="PDEV"), folder="", rpc_url="http://127.0.0.1:1")
    stack.join = SimpleNamespace(url="http://127.0.0.1:2")

    def run_demo(console: object, *, keep: bool, told: Callable[[Summary, Any], None]) -> Summary:
        told(summary, SimpleNamespace(stack=stack))
        return summary

    monkeypatch.setattr("parity_cli.demo.run.run_demo", run_demo)

    done = parity("demo", "--json")

    assert done.code == status
    assert done.json["ok"] is holds
    assert ("does not hold: water is wet: it is dry" in done.err) is not holds
