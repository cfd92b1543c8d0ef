"""A lease given back with nothing started costs a task no attempt, and nobody can pass a task round for ever."""

from __future__ import annotations

from parity_market.operations import leases, views
from parity_market.testing import Bench, command_submission, final_report, new_node
from parity_protocol.api.leases import ReleaseItem, StartItem
from parity_protocol.errors import FailureReason, ParityError
from parity_protocol.lease import MAX_HAND_BACKS, Lease


async def give_back(bench: Bench, name: str, lease: Lease, reason: FailureReason = FailureReason.DRAINED) -> None:
    item = ReleaseItem(task_id=lease.task_id, lease_id=lease.lease_id, fence=lease.fence, reason=str(reason))
    node_id = new_node(name).node_id
    answers = await bench.store.write(lambda tx: leases.release(tx, bench.market, node_id, [item], bench.now))
    assert answers == [None]


async def start(bench: Bench, name: str, lease: Lease) -> None:
    item = StartItem(task_id=lease.task_id, lease_id=lease.lease_id, fence=lease.fence, started_at=1.0)
    node_id = new_node(name).node_id
    answers = await bench.store.write(lambda tx: leases.start(tx, bench.market, node_id, [item], bench.now))
    assert answers == [None]


async def standing(bench: Bench, task_id: str) -> tuple[str, int]:
    """Return a task's state and how many attempts it has used."""
    task = await bench.store.read(lambda tx: views.task(tx, task_id))
    return task.state, task.attempts


async def test_task_with_one_attempt_goes_on_after_its_lease_was_given_back_unstarted(bench: Bench) -> None:
    new = command_submission(max_attempts=1)
    task_id = (await bench.submit(new)).id

    await give_back(bench, "ada", await bench.lease("ada", task_id))

    assert await standing(bench, task_id) == ("pending", 0)
    lease = await bench.lease("bob", task_id)
    answer = await bench.report("bob", final_report("bob", lease, order_hash=new.order_hash))
    assert answer.task_state == "completed"
    assert await standing(bench, task_id) == ("completed", 1)


async def test_what_was_started_and_given_back_is_an_attempt(bench: Bench) -> None:
    task_id = (await bench.submit(command_submission(max_attempts=1))).id
    lease = await bench.lease("ada", task_id)
    await start(bench, "ada", lease)

    await give_back(bench, "ada", lease)

    assert await standing(bench, task_id) == ("failed", 1)


async def test_a_lapsed_lease_is_an_attempt_although_nothing_was_started(bench: Bench) -> None:
    task_id = (await bench.submit(command_submission(max_attempts=1))).id
    lease = await bench.lease("ada", task_id)

    await bench.store.write(lambda tx: leases.reap(tx, bench.market, lease.expires_at))

    assert await standing(bench, task_id) == ("failed", 1)


async def test_a_node_that_takes_and_gives_back_twice_is_left_out_while_another_could_have_the_task(
    bench: Bench,
) -> None:
    bench.signals.others = True
    task_id = (await bench.submit(command_submission(max_attempts=1))).id
    for _ in range(2):
        await give_back(bench, "ada", await bench.lease("ada", task_id))

    refused = await bench.claim("ada", task_id)

    assert isinstance(refused, ParityError)
    assert refused.code == "claim_refused"
    assert isinstance(await bench.claim("bob", task_id), Lease)


async def test_hand_backs_count_as_attempts_after_the_eighth_so_that_nobody_passes_a_task_round_for_ever(
    bench: Bench,
) -> None:
    task_id = (await bench.submit(command_submission(max_attempts=2))).id
    for number in range(MAX_HAND_BACKS):
        name = ("ada", "bob")[number % 2]
        await give_back(bench, name, await bench.lease(name, task_id))
        assert await standing(bench, task_id) == ("pending", 0)

    ends = []
    for name in ("ada", "bob"):
        await give_back(bench, name, await bench.lease(name, task_id))
        ends.append(await standing(bench, task_id))

    assert ends == [("pending", 1), ("failed", 2)]


async def test_who_gave_a_lease_back_unstarted_reports_nothing_under_it(bench: Bench) -> None:
    new = command_submission()
    task_id = (await bench.submit(new)).id
    lease = await bench.lease("ada", task_id)
    await give_back(bench, "ada", lease)

    answer = await bench.report("ada", final_report("ada", lease, order_hash=new.order_hash))

    assert answer.status == 409
    assert await standing(bench, task_id) == ("pending", 0)


async def test_a_node_that_blames_itself_costs_no_attempt_and_does_not_get_the_task_again(bench: Bench) -> None:
    task_id = (await bench.submit(command_submission(max_attempts=1))).id

    await give_back(bench, "ada", await bench.lease("ada", task_id), FailureReason.DISK_FULL)

    assert await standing(bench, task_id) == ("pending", 0)
    assert isinstance(await bench.claim("ada", task_id), ParityError)
    assert isinstance(await bench.claim("bob", task_id), Lease)
