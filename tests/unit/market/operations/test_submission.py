"""Submitting: money first, once, and for ever; cancelling; what submitters see."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from parity_market.operations import leases, money, tasks, views
from parity_market.testing import CHAIN_KEY, Bench, command_submission, fl_submission
from parity_protocol.api.tasks import SubmitReply
from parity_protocol.errors import (
    ChainUnavailable,
    ConfigInvalid,
    Conflict,
    EscrowTooLow,
    InvalidTransition,
    NotFound,
)
from parity_protocol.testing.keys import deterministic_evm_key

TOKEN = 10**18
CREATOR = deterministic_evm_key("creator").address


async def test_a_reward_beyond_the_free_escrow_is_refused_with_the_numbers(bench: Bench) -> None:
    await bench.fund("creator", 10 * TOKEN)
    await bench.submit(command_submission(reward=7 * TOKEN))

    with pytest.raises(EscrowTooLow, match=r"only 3 are free \(7 reserved, 0 owed, 0 being released\)"):
        await bench.submit(command_submission(reward=3 * TOKEN + 1))

    assert (await bench.submit(command_submission(reward=3 * TOKEN))).created


async def test_of_many_submissions_at_once_only_as_many_as_are_covered_are_taken(bench: Bench) -> None:
    await bench.fund("creator", 10)

    answers = await asyncio.gather(
        *(bench.submit(command_submission(reward=1)) for _ in range(40)), return_exceptions=True
    )

    assert sum(isinstance(answer, SubmitReply) for answer in answers) == 10
    assert sum(isinstance(answer, EscrowTooLow) for answer in answers) == 30


async def test_money_that_is_being_released_cannot_be_promised(bench: Bench) -> None:
    await bench.fund("creator", 10, releasing=8)

    with pytest.raises(EscrowTooLow):
        await bench.submit(command_submission(reward=3))
    assert (await bench.submit(command_submission(reward=2))).created


async def test_an_unfunded_creator_can_only_promise_nothing(bench: Bench) -> None:
    with pytest.raises(EscrowTooLow):
        await bench.submit(command_submission(reward=1, creator="stranger"))

    assert (await bench.submit(command_submission(reward=0, creator="stranger"))).created


async def test_a_view_of_the_chain_that_is_too_old_promises_nothing(bench: Bench) -> None:
    bench.now += timedelta(minutes=9)
    await bench.submit(command_submission(deadline=bench.now + timedelta(days=1)))
    bench.now += timedelta(minutes=2)

    with pytest.raises(ChainUnavailable, match="660 s ago"):
        await bench.submit(command_submission(deadline=bench.now + timedelta(days=1)))


async def test_the_same_nonce_with_another_spec_or_reward_conflicts(bench: Bench) -> None:
    await bench.submit(command_submission(nonce=7_000_001, reward=5))

    with pytest.raises(Conflict, match="nonce"):
        await bench.submit(command_submission(nonce=7_000_001, reward=6))
    with pytest.raises(Conflict, match="nonce"):
        await bench.submit(command_submission(nonce=7_000_001, reward=5, title="other"))


async def test_nonces_of_two_creators_do_not_meet(bench: Bench) -> None:
    first = await bench.submit(command_submission(nonce=7_000_002, reward=0))
    second = await bench.submit(command_submission(nonce=7_000_002, reward=0, creator="other"))

    assert second.created
    assert first.id != second.id


async def test_a_session_becomes_one_task_for_each_part_with_exact_shares(bench: Bench) -> None:
    reply = await bench.submit(fl_submission(parts=3, reward=100))

    group = await bench.store.read(lambda tx: views.group(tx, reply.id))

    assert reply.kind == "group"
    assert [task.part for task in group.tasks] == [0, 1, 2]
    assert [task.reward for task in group.tasks] == [34, 33, 33]
    assert (group.state, group.reward) == ("running", 100)


async def test_cancelling_a_group_cancels_its_open_tasks_and_frees_their_money(bench: Bench) -> None:
    reply = await bench.submit(fl_submission(parts=3, reward=90))
    await bench.lease("ada", reply.task_ids[1])

    answer = await bench.store.write(lambda tx: tasks.cancel(tx, bench.market, reply.id, CREATOR, bench.now))
    account = await bench.store.read(lambda tx: money.account_reply(tx, bench.market, CREATOR))
    group = await bench.store.read(lambda tx: views.group(tx, reply.id))

    assert set(answer.cancelled) == set(reply.task_ids)
    assert account.reserved == 0
    assert group.state == "cancelled"
    assert {task.state for task in group.tasks} == {"cancelled"}
    assert bench.signals.ended[-1][0] == reply.task_ids[1]


async def test_only_the_creator_can_cancel_and_a_stranger_learns_nothing(bench: Bench) -> None:
    reply = await bench.submit(command_submission())
    stranger = deterministic_evm_key("stranger").address

    with pytest.raises(NotFound):
        await bench.store.write(lambda tx: tasks.cancel(tx, bench.market, reply.id, stranger, bench.now))
    with pytest.raises(NotFound):
        await bench.store.write(lambda tx: tasks.cancel(tx, bench.market, "nothing", CREATOR, bench.now))


async def test_a_task_that_failed_cannot_be_cancelled(bench: Bench) -> None:
    reply = await bench.submit(command_submission(deadline=bench.now + timedelta(seconds=5)))
    bench.now += timedelta(seconds=6)
    await bench.store.write(lambda tx: leases.reap(tx, bench.market, bench.now))

    with pytest.raises(InvalidTransition):
        await bench.store.write(lambda tx: tasks.cancel(tx, bench.market, reply.id, CREATOR, bench.now))
    found = await bench.store.read(lambda tx: views.task(tx, reply.id))
    assert (found.status, "deadline passed" in found.message) == ("failed", True)


async def test_tasks_are_listed_newest_first_page_by_page(bench: Bench) -> None:
    made = [(await bench.submit(command_submission(reward=1))).id for _ in range(5)]
    await bench.submit(command_submission(reward=0, creator="other"))

    seen: list[str] = []
    cursor: str | None = None
    while True:
        page = await bench.store.read(lambda tx, at=cursor: views.tasks(tx, creator=CREATOR, before=at, limit=2))  # type: ignore[misc]
        seen += [task.id for task in page.tasks]
        cursor = page.next_cursor
        if cursor is None:
            break

    assert seen == made[::-1]


async def test_everybodys_tasks_are_listed_without_a_creator(bench: Bench) -> None:
    await bench.submit(command_submission())
    await bench.submit(command_submission(reward=0, creator="other"))

    page = await bench.store.read(lambda tx: views.tasks(tx, creator=None))

    assert len(page.tasks) == 2


async def test_events_tell_the_life_of_a_task(bench: Bench) -> None:
    reply = await bench.submit(command_submission())
    lease = await bench.lease("ada", reply.id)

    found = await bench.store.read(lambda tx: views.events(tx, reply.id))
    later = await bench.store.read(lambda tx: views.events(tx, reply.id, after_seq=1))

    assert [(event.event, event.state, event.fence) for event in found.events] == [
        ("submit", "pending", 0),
        ("claim", "leased", 1),
    ]
    assert [event.node_id for event in later.events] == [lease.node_id]


async def test_the_database_is_tied_to_one_chain(bench: Bench) -> None:
    with pytest.raises(ConfigInvalid, match=CHAIN_KEY):
        await bench.store.write(
            lambda tx: money.pin_chain(tx, chain_id=1, genesis="0x" + "00" * 32, vault="0x" + "11" * 20)
        )


async def test_a_long_deadline_is_kept_within_what_dates_can_say(bench: Bench) -> None:
    new = command_submission(reward=0)
    far = new.order.model_copy(update={"deadline": 2**62})

    reply = await bench.submit(tasks.NewSubmission(new.creator, new.spec_text, new.spec, far, new.order_hash, 0))

    found = await bench.store.read(lambda tx: views.task(tx, reply.id))
    assert found.deadline is not None
    assert found.deadline.year == 9999
