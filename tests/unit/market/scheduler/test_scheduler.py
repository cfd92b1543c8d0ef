"""Who gets which task, when, and in words why not."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from parity_market import scheduler as scheduler_module
from parity_market.domain.dispatch import Needs, NodeView, check_fit, needs_of
from parity_market.operations import leases, nodes
from parity_market.operations.context import Market
from parity_market.operations.leases import Offer
from parity_market.operations.steps import load_task
from parity_market.scheduler import RESERVATION_S, Scheduler
from parity_market.store import SqliteStore
from parity_market.testing import CHAIN_KEY, SPENDER, Bench, capability, command_submission, fl_submission, new_node
from parity_market.testing.database import open_empty
from parity_protocol.capability import Capability
from parity_protocol.errors import NotFound
from parity_protocol.lease import Lease
from parity_protocol.policy import Denial
from parity_protocol.task import TaskKind
from parity_protocol.testing.clock import FakeClock

TOKEN = 10**18
HEARTBEAT = timedelta(seconds=10)
TTL = timedelta(seconds=30)


class World(Bench):
    """A bench whose signals go to a real scheduler on a fake clock."""

    def __init__(self, store: SqliteStore, clock: FakeClock) -> None:
        super().__init__(store)
        self.clock = clock
        self.now = clock.now()
        self.scheduler = Scheduler(
            store, clock, lease_ttl=TTL, heartbeat=HEARTBEAT, min_bond=TOKEN, chain=CHAIN_KEY, spender=SPENDER
        )
        self.market = Market(chain=CHAIN_KEY, spender=SPENDER, signals=self.scheduler, min_bond=TOKEN, lease_ttl=TTL)

    async def arrive(self, name: str, *, offers: Capability | None = None, bond: int = TOKEN) -> str:
        await self.enrol(name, bond=bond)
        node = new_node(name, offers=offers)
        row = await self.store.write(lambda tx: nodes.enrol(tx, node, self.now, heartbeat=HEARTBEAT))
        self.scheduler.presence.enrolled(row, bond=bond)
        return node.node_id

    async def pass_time(self, seconds: float) -> None:
        """Let time pass in the steps in which a market looks."""
        while seconds > 0:
            step = min(seconds, 0.1)
            await self.clock.advance(timedelta(seconds=step))
            self.now = self.clock.now()
            await self.scheduler.tick()
            seconds -= step
        await settle()

    async def poll(self, node_id: str, slots: int = 1, wait_s: float = 0) -> list[str]:
        return ids(await self.scheduler.poll(node_id, slots, wait_s))


def ids(offers: list[Offer]) -> list[str]:
    return [offer.task.id for offer in offers]


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def until_done(polling: asyncio.Future[list[str]]) -> list[str]:
    return await asyncio.wait_for(polling, 5)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    store = await open_empty(tmp_path / "market.db")
    found = World(store, FakeClock())
    await found.open()
    await found.scheduler.load()
    yield found
    await store.close()


async def test_a_task_submitted_before_any_node_exists_is_offered_to_the_first_poll(world: World) -> None:
    reply = await world.submit(command_submission())

    ada = await world.arrive("ada")

    assert await world.poll(ada) == [reply.id]


async def test_a_waiting_poll_is_woken_by_a_submission(world: World) -> None:
    ada = await world.arrive("ada")
    polling = asyncio.ensure_future(world.poll(ada, wait_s=20))
    await settle()
    assert not polling.done()

    reply = await world.submit(command_submission())

    assert await until_done(polling) == [reply.id]
    assert world.clock.monotonic() == 0, "it must not need the clock"


async def test_an_offer_has_what_a_manifest_is_made_of(world: World) -> None:
    ada = await world.arrive("ada")
    new = command_submission(title="first")
    await world.submit(new)

    (offer,) = await world.scheduler.poll(ada, 1, 0)

    assert offer.submission.spec == new.spec_text
    assert offer.submission.order_hash == new.order_hash
    assert offer.task.title == "first"


async def test_a_poll_ends_empty_when_its_time_is_over(world: World) -> None:
    ada = await world.arrive("ada")
    polling = asyncio.ensure_future(world.poll(ada, wait_s=2))

    await world.pass_time(1.8)
    still_waiting = not polling.done()
    await world.pass_time(0.4)

    assert still_waiting
    assert await until_done(polling) == []


async def test_a_poll_gets_the_oldest_tasks_and_no_more_than_its_slots(world: World) -> None:
    ada = await world.arrive("ada")
    made = [(await world.submit(command_submission())).id for _ in range(5)]

    assert await world.poll(ada, slots=2) == made[:2]
    assert await world.poll(ada, slots=8) == made[2:]
    assert await world.poll(ada, slots=8) == []


async def test_waiting_nodes_share_what_comes_at_once(world: World) -> None:
    names = ["ada", "bob"]
    polls = [asyncio.ensure_future(world.poll(await world.arrive(name), slots=8, wait_s=20)) for name in names]
    await settle()

    await world.submit(fl_submission(parts=8))
    got = [await until_done(poll) for poll in polls]

    assert [len(part) for part in got] == [4, 4]
    assert not set(got[0]) & set(got[1])


async def test_a_reservation_that_is_not_claimed_goes_to_another_node_after_two_seconds(world: World) -> None:
    ada, bob = await world.arrive("ada"), await world.arrive("bob")
    reply = await world.submit(command_submission())
    assert await world.poll(ada) == [reply.id]
    polling = asyncio.ensure_future(world.poll(bob, wait_s=20))

    await world.pass_time(RESERVATION_S - 0.3)
    kept = not polling.done()
    await world.pass_time(0.5)

    assert kept
    assert await until_done(polling) == [reply.id]


async def test_a_claimed_task_is_offered_to_nobody(world: World) -> None:
    ada, bob = await world.arrive("ada"), await world.arrive("bob")
    reply = await world.submit(command_submission())
    await world.poll(ada)

    await world.lease("ada", reply.id)
    await world.pass_time(RESERVATION_S + 0.2)

    assert await world.poll(bob) == []


async def test_a_caller_that_goes_away_gives_its_offers_back(world: World) -> None:
    ada, bob = await world.arrive("ada"), await world.arrive("bob")
    polling = asyncio.ensure_future(world.poll(ada, wait_s=20))
    await settle()
    reply = await world.submit(command_submission())
    polling.cancel()
    await asyncio.gather(polling, return_exceptions=True)

    assert await world.poll(bob) == [reply.id]


async def test_a_new_poll_of_a_node_ends_its_earlier_one(world: World) -> None:
    ada = await world.arrive("ada")
    lost = asyncio.ensure_future(world.poll(ada, wait_s=20))
    await settle()
    alive = asyncio.ensure_future(world.poll(ada, wait_s=20))
    await settle()

    reply = await world.submit(command_submission())

    assert await until_done(lost) == []
    assert await until_done(alive) == [reply.id]


async def test_a_node_that_can_do_more_now_gets_what_waited_for_it(world: World) -> None:
    ada = await world.arrive("ada", offers=capability(kinds=frozenset({TaskKind.LLM})))
    polling = asyncio.ensure_future(world.poll(ada, wait_s=20))
    await settle()
    reply = await world.submit(command_submission())
    await settle()
    refused = not polling.done()

    world.scheduler.presence.heard(ada, capability=capability())
    world.scheduler.node_changed(ada)

    assert refused
    assert await until_done(polling) == [reply.id]


async def test_a_thousand_kinds_of_tasks_are_compared_with_a_node_once_each(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada = await world.arrive("ada", offers=capability(memory_bytes=1 << 30))
    compared = Counter[str]()

    def count(needs: Needs, node: NodeView) -> Denial | None:
        compared[needs.to_doc()] += 1
        return check_fit(needs, node)

    monkeypatch.setattr("parity_market.scheduler.check_fit", count)
    for number in range(50):
        await world.submit(command_submission(reward=0, resources={"memory_bytes": (2 << 30) + number}))
    for _ in range(5):
        assert await world.poll(ada) == []

    assert set(compared.values()) == {1}
    assert len(compared) == 50


async def test_a_task_that_comes_back_wakes_a_waiting_node(world: World) -> None:
    ada, bob = await world.arrive("ada"), await world.arrive("bob")
    reply = await world.submit(command_submission())
    await world.poll(ada)
    await world.lease("ada", reply.id)
    polling = asyncio.ensure_future(world.poll(bob, wait_s=20))
    await settle()

    world.now += TTL
    await world.store.write(lambda tx: leases.reap(tx, world.market, world.now))

    assert await until_done(polling) == [reply.id]


async def test_a_node_that_lost_its_lease_waits_for_others_for_one_lease_time(world: World) -> None:
    ada, bob = await world.arrive("ada"), await world.arrive("bob")
    reply = await world.submit(command_submission())
    await world.poll(ada)
    await world.lease("ada", reply.id)
    await world.store.write(lambda tx: leases.reap(tx, world.market, world.now + TTL))

    first = await world.poll(ada)
    await world.pass_time(9)
    world.scheduler.presence.heard(bob)
    await world.pass_time(9)
    for node in (ada, bob):
        world.scheduler.presence.heard(node)
    await world.pass_time(13)

    assert first == []
    assert await world.poll(ada) == [reply.id]


async def test_the_only_node_gets_its_lost_task_back_at_once(world: World) -> None:
    ada = await world.arrive("ada")
    reply = await world.submit(command_submission())
    await world.poll(ada)
    await world.lease("ada", reply.id)

    await world.store.write(lambda tx: leases.reap(tx, world.market, world.now + TTL))

    assert await world.poll(ada) == [reply.id]


async def test_steady_submission_does_not_starve_dispatch(world: World) -> None:
    ada = await world.arrive("ada")
    delays = []
    for _ in range(200):  # 20 a second for 10 s, an idle node
        polling = asyncio.ensure_future(world.poll(ada, slots=4, wait_s=20))
        await settle()
        reply = await world.submit(command_submission(reward=1))
        before = world.clock.monotonic()
        assert await until_done(polling) == [reply.id]
        delays.append(world.clock.monotonic() - before)
        await world.lease("ada", reply.id)
        await world.pass_time(0.05)
        world.scheduler.presence.heard(ada)

    assert max(delays) == 0


async def test_a_hundred_tasks_over_two_nodes_are_leased_once_each_and_fairly(world: World) -> None:
    names = ("ada", "bob")
    node_ids = {name: await world.arrive(name) for name in names}
    made = [
        reply.id for reply in await asyncio.gather(*(world.submit(command_submission(reward=1)) for _ in range(100)))
    ]
    leased: list[str] = []
    by_node: Counter[str] = Counter()

    async def work(name: str) -> None:
        while True:
            offered = await world.poll(node_ids[name], slots=4)
            if not offered:
                return
            for task_id in offered:
                assert isinstance(await world.claim(name, task_id), Lease)
                leased.append(task_id)
                by_node[name] += 1

    await asyncio.gather(*(work(name) for name in names))

    assert sorted(leased) == sorted(made)
    assert min(by_node.values()) >= 40, by_node


async def test_what_is_pending_at_start_up_is_offered(world: World) -> None:
    reply = await world.submit(command_submission())
    ada = await world.arrive("ada")
    again = World(world.store, world.clock)  # type: ignore[arg-type]  # the same SQLite store

    await again.scheduler.load()

    assert await again.poll(ada) == [reply.id]


async def test_a_task_that_no_signal_brought_is_found_within_a_second(world: World) -> None:
    ada = await world.arrive("ada")
    polling = asyncio.ensure_future(world.poll(ada, wait_s=20))
    await settle()
    deaf = Bench(world.store)
    reply = await deaf.submit(command_submission())

    await world.pass_time(1.2)

    assert await until_done(polling) == [reply.id]


async def test_an_unknown_node_cannot_poll(world: World) -> None:
    with pytest.raises(NotFound):
        await world.poll("f" * 64)


@pytest.mark.parametrize(
    ("rule", "offers", "spec"),
    [
        ("kind", capability(kinds=frozenset({TaskKind.LLM})), {}),
        ("memory", capability(memory_bytes=1 << 20), {}),
        ("cpus", capability(cpus=0.5), {}),
        ("disk", capability(disk_free_bytes=1), {}),
        ("version", capability(), {"requires": {"min_node_version": "9.0.0"}}),
        ("isolation", capability(), {"requires": {"isolation": "vm"}}),
    ],
)
async def test_each_refusal_is_said_to_both_sides(
    world: World, rule: str, offers: Capability, spec: dict[str, object]
) -> None:
    ada = await world.arrive("ada", offers=offers)
    reply = await world.submit(command_submission(**spec))

    offered = await world.poll(ada)
    row = await world.store.read(lambda tx: load_task(tx, reply.id))
    why_task, why_node = world.scheduler.why_pending(row), world.scheduler.why_no_work(ada)

    assert offered == []
    assert [refusal.rule for refusal in why_task.refusals] == [rule]
    assert why_task.refusals[0].last_node == ada
    assert (why_task.nodes_seen, why_task.nodes_fit) == (1, 0)
    assert [refusal.rule for refusal in why_node.refusals] == [rule]
    assert why_node.refusals[0].last_task == reply.id
    assert why_node.refusals[0].message in why_task.summary


async def test_too_little_stake_is_a_refusal_until_the_chain_says_otherwise(world: World) -> None:
    ada = await world.arrive("ada", bond=TOKEN - 1)
    reply = await world.submit(command_submission())
    polling = asyncio.ensure_future(world.poll(ada, wait_s=20))
    await settle()
    refused = [refusal.rule for refusal in world.scheduler.why_no_work(ada).refusals]

    world.scheduler.node_changed(ada, bond=TOKEN)

    assert refused == ["stake"]
    assert await until_done(polling) == [reply.id]


async def test_a_draining_node_gets_nothing_and_says_why(world: World) -> None:
    ada = await world.arrive("ada")
    world.scheduler.presence.heard(ada, draining=True)
    await world.submit(command_submission())

    assert await world.poll(ada) == []
    assert [refusal.rule for refusal in world.scheduler.why_no_work(ada).refusals] == ["draining"]


async def test_without_any_node_the_reason_says_so(world: World) -> None:
    reply = await world.submit(command_submission())
    row = await world.store.read(lambda tx: load_task(tx, reply.id))

    why = world.scheduler.why_pending(row)

    assert (why.nodes_seen, why.refusals) == (0, ())
    assert "no node is online" in why.summary


async def test_silent_nodes_count_as_offline(world: World) -> None:
    await world.arrive("ada")
    assert len(list(world.scheduler.presence.online())) == 1

    await world.pass_time(31)

    assert list(world.scheduler.presence.online()) == []


async def test_a_follower_is_woken_by_the_next_event(world: World) -> None:
    reply = await world.submit(command_submission())

    async def read() -> int:
        return (await world.store.read(lambda tx: load_task(tx, reply.id))).seq

    following = asyncio.ensure_future(world.scheduler.followers.until(reply.id, read, lambda seq: seq > 1, wait_s=20))
    await settle()
    waiting = not following.done()
    await world.arrive("ada")
    await world.lease("ada", reply.id)

    assert waiting
    assert await asyncio.wait_for(following, 5) == 2
    assert len(world.scheduler.followers) == 0


async def test_a_follower_gets_what_there_is_when_its_time_is_over(world: World) -> None:
    reply = await world.submit(command_submission())

    async def read() -> int:
        return (await world.store.read(lambda tx: load_task(tx, reply.id))).seq

    following = asyncio.ensure_future(world.scheduler.followers.until(reply.id, read, lambda seq: seq > 1, wait_s=3))
    await world.pass_time(3.3)

    assert await asyncio.wait_for(following, 5) == 1


async def test_just_after_a_start_silent_nodes_count_as_possible_witnesses(world: World) -> None:
    ada, bob = await world.arrive("ada"), await world.arrive("bob")
    await world.clock.advance(timedelta(minutes=10))
    restarted = World(world.store, world.clock)  # type: ignore[arg-type]  # the same SQLite store
    await restarted.scheduler.load()
    wanted = needs_of(command_submission().spec)
    restarted.scheduler.presence.heard(ada)

    at_first = restarted.scheduler.other_can_run(wanted, {ada})
    alone = restarted.scheduler.other_can_run(wanted, {ada, bob})
    await restarted.pass_time(31)
    later = restarted.scheduler.other_can_run(wanted, {ada})

    assert (at_first, alone, later) == (True, False, False)


async def test_live_leases_are_counted_per_node(world: World) -> None:
    ada = await world.arrive("ada")
    first, second = [(await world.submit(command_submission())).id for _ in range(2)]
    await world.lease("ada", first)
    await world.lease("ada", second)
    node = world.scheduler.presence.get(ada)
    assert node is not None
    held = node.running

    await world.store.write(lambda tx: leases.reap(tx, world.market, world.now + TTL))

    assert (held, node.running) == (2, 0)


async def test_a_market_that_stops_answers_every_poll_at_once(world: World) -> None:
    alder = await world.arrive("alder")
    polling = asyncio.ensure_future(world.poll(alder, wait_s=20))
    await settle()

    world.scheduler.close()

    assert await asyncio.wait_for(polling, 5) == []
    assert await asyncio.wait_for(world.poll(alder, wait_s=20), 5) == []


async def test_tasks_that_each_need_something_else_do_not_hold_up_the_others(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared = Counter[str]()

    def counting(needs: Needs, view: NodeView) -> Denial | None:
        compared[view.node_id] += 1
        return check_fit(needs, view)

    monkeypatch.setattr(scheduler_module, "check_fit", counting)
    monkeypatch.setattr(scheduler_module, "_COMPARISONS_A_TURN", 8)
    for number in range(30):
        await world.submit(command_submission(resources={"memory_bytes": (1 << 43) + number}))
    ada = await world.arrive("ada")
    polling = asyncio.ensure_future(world.poll(ada, wait_s=60))
    await settle()
    assert compared == {ada: 30}, "each once, a few at every turn"

    for _ in range(10):
        world.scheduler.node_changed(ada)
        await settle()
    assert compared == {ada: 30}

    wanted = await world.submit(command_submission())
    assert await until_done(polling) == [wanted.id]
    assert compared == {ada: 31}


async def test_a_task_that_comes_back_to_an_emptied_kind_of_need_is_found(world: World) -> None:
    reply = await world.submit(command_submission())
    ada = await world.arrive("ada")
    assert await world.poll(ada) == [reply.id]
    bob = await world.arrive("bob")
    polling = asyncio.ensure_future(world.poll(bob, wait_s=60))
    await settle()

    await world.pass_time(2.2)

    assert await until_done(polling) == [reply.id]


async def test_offers_ahead_are_kept_for_a_moment_only_and_end_no_poll_of_the_same_node(world: World) -> None:
    ada = await world.arrive("ada")
    polling = asyncio.ensure_future(world.poll(ada, wait_s=20))
    await settle()
    assert await world.scheduler.ahead(ada, 1) == []
    first, second = await world.submit(command_submission()), await world.submit(command_submission())
    assert await until_done(polling) == [first.id]

    assert ids(await world.scheduler.ahead(ada, 8)) == [second.id]

    bob = await world.arrive("bob")
    assert await world.poll(bob) == []
    await world.pass_time(scheduler_module.AHEAD_S + 0.1)
    assert await world.poll(bob) == [second.id]


async def test_only_what_others_have_no_slots_for_is_offered_ahead(world: World) -> None:
    ada = await world.arrive("ada")
    await world.arrive("bob", offers=capability(slots=2))
    tasks = [(await world.submit(command_submission())).id for _ in range(2)]
    assert await world.scheduler.ahead(ada, 8) == []

    tasks += [(await world.submit(command_submission())).id for _ in range(3)]

    assert ids(await world.scheduler.ahead(ada, 8)) == tasks[:3]


async def test_who_waits_for_other_work_keeps_nothing_back_and_who_works_has_an_equal_share(world: World) -> None:
    ada = await world.arrive("ada")
    await world.arrive("bob", offers=capability(slots=1))
    await world.lease("bob", (await world.submit(command_submission())).id)
    other = await world.arrive("cyd", offers=capability(kinds={TaskKind.FEDERATED_LEARNING}))
    polling = asyncio.ensure_future(world.poll(other, wait_s=20))
    await settle()

    tasks = [(await world.submit(command_submission())).id for _ in range(5)]

    assert ids(await world.scheduler.ahead(ada, 8)) == tasks[:2]  # as many as bob may have, of those that halve
    await world.pass_time(20.1)
    assert await until_done(polling) == []


async def test_a_market_that_closes_offers_nothing_ahead(world: World) -> None:
    ada = await world.arrive("ada")
    await world.submit(command_submission())
    world.scheduler.close()
    assert await world.scheduler.ahead(ada, 1) == []
