"""When an executor is tried, and when what was found is believed."""

from __future__ import annotations

from datetime import timedelta

import anyio

from parity_node.executors.trial import Trial
from parity_protocol.capability import ExecutorState
from parity_protocol.testing.clock import FakeClock

BROKEN, FINE = ExecutorState(available=False, reason="no sandbox"), ExecutorState(available=True)


class Machine:
    """Answers trial runs, and counts them."""

    def __init__(self, *answers: ExecutorState) -> None:
        self.answers = list(answers)
        self.runs = 0

    async def run(self) -> ExecutorState:
        self.runs += 1
        await anyio.lowlevel.checkpoint()
        return self.answers.pop(0)


async def test_success_is_tried_once_however_many_ask_at_once(clock: FakeClock) -> None:
    machine = Machine(FINE)
    trial = Trial(machine.run, clock=clock, retry_s=30)
    found: list[ExecutorState] = []

    async with anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(lambda: _note(trial, found))
    await clock.advance(timedelta(days=1))

    assert [await trial.outcome(), *found] == [FINE] * 6
    assert machine.runs == 1


async def test_failure_counts_for_its_time_and_is_tried_again_after_it(clock: FakeClock) -> None:
    machine = Machine(BROKEN, BROKEN, FINE)
    trial = Trial(machine.run, clock=clock, retry_s=30)

    assert await trial.outcome() == BROKEN
    await clock.advance(timedelta(seconds=29))
    assert (await trial.outcome(), machine.runs) == (BROKEN, 1)
    await clock.advance(timedelta(seconds=1))
    assert (await trial.outcome(), machine.runs) == (BROKEN, 2)
    await clock.advance(timedelta(seconds=30))
    assert (await trial.outcome(), machine.runs) == (FINE, 3)


async def _note(trial: Trial, found: list[ExecutorState]) -> None:
    found.append(await trial.outcome())
