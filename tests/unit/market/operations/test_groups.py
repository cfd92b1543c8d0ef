"""What is left of a group that has ended."""

from __future__ import annotations

import pytest

from parity_market.operations import groups, money, reports, tasks
from parity_market.operations.steps import load_task
from parity_market.testing import Bench, final_report, fl_submission
from parity_protocol.task import TaskState


@pytest.mark.parametrize("how", ["cancelled", "failed"])
async def test_a_part_rejected_after_its_group_has_ended_is_not_done_again(bench: Bench, how: str) -> None:
    submission = fl_submission(parts=2)
    made = await bench.submit(submission)
    part = made.task_ids[0]
    lease = await bench.lease("ada", part)
    taken = await bench.report("ada", final_report("ada", lease, order_hash=submission.order_hash))
    assert taken.task_state == "verifying"

    if how == "cancelled":
        await bench.store.write(lambda tx: tasks.cancel(tx, bench.market, made.id, submission.creator, bench.now))
    else:
        await bench.store.write(lambda tx: groups.fail(tx, bench.market, made.id, "a part is lost", bench.now))
    await bench.store.write(lambda tx: reports.reject(tx, bench.market, part, int(lease.fence), "garbage", bench.now))

    found = await bench.store.read(lambda tx: load_task(tx, part))
    assert found.state is TaskState.NOT_VERIFIED
    view = await bench.store.read(lambda tx: money.account_reply(tx, bench.market, submission.creator))
    assert view.reserved == 0
