"""Who waits for a task's end is woken by it, and by nothing before."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from parity_market.followers import end_of
from parity_market.operations.context import Market
from parity_market.scheduler import Scheduler
from parity_market.testing import CHAIN_KEY, SPENDER, Bench, command_submission, final_report
from parity_market.testing.database import open_empty
from parity_protocol.testing.clock import FakeClock

TOKEN = 10**18


@pytest.fixture
def woken() -> list[str]:
    return []


async def test_only_the_last_step_of_a_task_wakes_who_waits_for_its_end(tmp_path: Path, woken: list[str]) -> None:
    store = await open_empty(tmp_path / "market.db")
    clock = FakeClock()
    scheduler = Scheduler(
        store,
        clock,
        lease_ttl=timedelta(seconds=30),
        heartbeat=timedelta(seconds=10),
        min_bond=TOKEN,
        chain=CHAIN_KEY,
        spender=SPENDER,
    )
    bench = Bench(store)
    bench.now = clock.now()
    bench.market = Market(chain=CHAIN_KEY, spender=SPENDER, signals=scheduler, min_bond=TOKEN)
    scheduler.followers.changed = woken.append  # type: ignore[method-assign]  # a recorder
    await bench.open()
    await bench.enrol("ada", bond=TOKEN)

    submission = command_submission()
    task_id = (await bench.submit(submission)).id
    lease = await bench.lease("ada", task_id)
    assert woken.count(end_of(task_id)) == 0
    await bench.report("ada", final_report("ada", lease, order_hash=submission.order_hash, at=bench.now))

    assert woken.count(end_of(task_id)) == 1
    assert woken.count(task_id) >= 2
    await store.close()
