"""A node killed with SIGKILL at each named point, against a real market and chain: each task is done and paid once."""

from __future__ import annotations

from collections import Counter

import anyio.to_thread
import pytest

from parity_cli.testing.town import REWARD, Town
from parity_node.crashpoints import CRASHPOINTS

pytestmark = [pytest.mark.serial, pytest.mark.timeout(60)]

TASKS = 3
SPECIAL = {"result.uploaded": "file:40000:0.05"}  # only a result that is too large for a report is uploaded
ELSEWHERE = {"recovery.decided", "release.sent"}  # on another path than a task's own; see test_node_crash_points


@pytest.mark.parametrize("point", [point for point in CRASHPOINTS if point not in ELSEWHERE])
async def test_node_killed_at_a_named_point_has_each_task_done_and_paid_once(town: Town, point: str) -> None:
    [node] = town.nodes
    script = SPECIAL.get(point, "file:2:0.05")
    before = await town.credit(node)
    task_ids = await town.submit(TASKS, spec={"type": "command", "command": ["true"], "max_attempts": 5})

    town.launch(node, script=script, PARITY_CRASHPOINT=f"{point}:2", RUNNER_SLOTS="1")
    assert node.process is not None
    node.process.may_end = True
    killed_with = await anyio.to_thread.run_sync(node.process.process.wait, 20)
    await town.start(node, script=script, RUNNER_SLOTS="1")
    tasks = await town.ended(task_ids)
    await town.paid(task_ids)

    assert killed_with == -9
    assert [task.state for task in tasks] == ["completed"] * TASKS
    for task in tasks:
        events = Counter(event.event for event in await town.events(task.id))
        assert (events["report"], events["accept"]) == (1, 1)
    assert await town.credit(node) - before == TASKS * REWARD
