"""What nodes refuse by their operators' policies: told to both sides, and not offered again and again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from parity_market.domain.dispatch import NodeView, check_fit, needs_of
from parity_market.operations import nodes
from parity_market.operations.context import Market
from parity_market.operations.steps import load_task
from parity_market.refusals import MAX_REFUSERS, RETRY_S, OwnRefusals, shared_rule
from parity_market.scheduler import Scheduler
from parity_market.store import SqliteStore
from parity_market.testing import CHAIN_KEY, SPENDER, Bench, capability, command_submission, new_node
from parity_market.testing.database import open_empty
from parity_protocol.api.leases import OfferRefusal
from parity_protocol.capability import AnnouncedPolicy, Gpu
from parity_protocol.policy import Denial
from parity_protocol.task import TaskKind, parse_spec
from parity_protocol.testing.clock import FakeClock

TOKEN = 10**18
HEARTBEAT = timedelta(seconds=10)
OLD, NEW = "1" * 64, "2" * 64


class World(Bench):
    """A bench whose signals go to a real scheduler on a fake clock."""

    def __init__(self, store: SqliteStore, clock: FakeClock) -> None:
        super().__init__(store)
        self.clock = clock
        self.now = clock.now()
        ttl = timedelta(seconds=30)
        self.scheduler = Scheduler(
            store, clock, lease_ttl=ttl, heartbeat=HEARTBEAT, min_bond=TOKEN, chain=CHAIN_KEY, spender=SPENDER
        )
        self.market = Market(chain=CHAIN_KEY, spender=SPENDER, signals=self.scheduler, min_bond=TOKEN, lease_ttl=ttl)

    async def arrive(self, name: str, **offers: Any) -> str:
        await self.enrol(name, bond=TOKEN)
        node = new_node(name, offers=capability(**offers))
        row = await self.store.write(lambda tx: nodes.enrol(tx, node, self.now, heartbeat=HEARTBEAT))
        self.scheduler.presence.enrolled(row, bond=TOKEN)
        return node.node_id

    async def poll(self, node_id: str) -> list[str]:
        return [offer.task.id for offer in await self.scheduler.poll(node_id, 4, 0)]

    def refuse(self, node_id: str, *task_ids: str | None, rule: str = "policy.images", policy: str = OLD) -> None:
        refusals = [OfferRefusal(task_id=task_id, rule=rule, message="not on the list") for task_id in task_ids]
        self.scheduler.refused(node_id, policy, refusals)

    def rules_of(self, node_id: str) -> dict[str, int]:
        return {refusal.rule: refusal.count for refusal in self.scheduler.why_no_work(node_id).refusals}


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    store = await open_empty(tmp_path / "market.db")
    found = World(store, FakeClock())
    await found.open()
    await found.scheduler.load()
    yield found
    await store.close()


async def test_what_a_node_refused_is_not_offered_to_it_again_under_the_same_policy(world: World) -> None:
    ada = await world.arrive("ada")
    reply = await world.submit(command_submission())
    assert await world.poll(ada) == [reply.id]

    world.refuse(ada, reply.id)
    again = await world.poll(ada)
    await world.clock.advance(timedelta(hours=1))
    world.scheduler.presence.heard(ada)

    assert again == []
    assert await world.poll(ada) == []
    world.scheduler.refused(ada, NEW, ())
    assert await world.poll(ada) == [reply.id]


async def test_a_refused_task_is_for_others_at_once(world: World) -> None:
    ada, bob = await world.arrive("ada"), await world.arrive("bob")
    reply = await world.submit(command_submission())
    await world.poll(ada)
    polling = asyncio.ensure_future(world.poll(bob))
    assert await polling == []  # it is reserved for ada

    world.refuse(ada, reply.id)

    assert await world.poll(bob) == [reply.id]
    assert world.clock.monotonic() == 0, "it must not wait for the reservation"


async def test_no_node_can_end_the_reservation_of_another(world: World) -> None:
    ada, bob = await world.arrive("ada"), await world.arrive("bob")
    reply = await world.submit(command_submission())
    await world.poll(ada)

    world.refuse(bob, reply.id)

    assert await world.poll(await world.arrive("eve")) == []


@pytest.mark.parametrize("rule", ["disk", "disk.full", "disk.inputs_do_not_fit", "disk.results_do_not_fit"])
async def test_what_does_not_fit_on_a_nodes_disk_is_told_to_both_sides(world: World, rule: str) -> None:
    ada = await world.arrive("ada")
    reply = await world.submit(command_submission())
    await world.poll(ada)

    world.refuse(ada, reply.id, rule=rule)

    assert world.rules_of(ada) == {rule: 1}
    task = await world.store.read(lambda tx: load_task(tx, reply.id))
    assert [refusal.rule for refusal in world.scheduler.why_pending(task).refusals] == [rule]


@pytest.mark.parametrize("rule", ["memory", "disk.inputs_do_not_fit", "policy.hours"])
async def test_what_passes_is_offered_again_after_a_while(world: World, rule: str) -> None:
    ada = await world.arrive("ada")
    reply = await world.submit(command_submission())
    await world.poll(ada)
    world.refuse(ada, reply.id, rule=rule)
    assert await world.poll(ada) == []

    await world.clock.advance(timedelta(seconds=RETRY_S))

    assert await world.poll(ada) == [reply.id]


async def test_a_refusal_is_told_to_the_operator_and_to_the_submitter(world: World) -> None:
    ada = await world.arrive("ada")
    reply = await world.submit(command_submission())
    await world.poll(ada)

    world.refuse(ada, reply.id, rule="policy.deny.miners")
    world.refuse(ada, reply.id)
    world.refuse(ada, None, rule="policy.hours")
    await world.poll(ada)
    row = await world.store.read(lambda tx: load_task(tx, reply.id))
    why = world.scheduler.why_pending(row)

    assert world.rules_of(ada) == {"policy.deny.miners": 1, "policy.hours": 1, "policy.images": 1}
    assert {refusal.rule for refusal in why.refusals} == {"policy.deny", "policy.images"}
    assert (why.nodes_fit, why.nodes_seen) == (0, 1)


async def test_many_refused_tasks_hide_no_other_kind(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("parity_market.scheduler._WITHHELD_A_LOOK", 2)
    ada = await world.arrive("ada")
    refused = [(await world.submit(command_submission())).id for _ in range(3)]
    world.refuse(ada, *refused)

    other = await world.submit(command_submission(resources={"cpus": 2}))

    assert await world.poll(ada) == [other.id]


@pytest.mark.parametrize(
    ("rule", "shown"),
    [
        ("policy.images", "policy.images"),
        ("policy.deny.secret-name", "policy.deny"),
        ("policy.invented", "other"),
        ("invented", "other"),
        ("disk.inputs_do_not_fit", "disk.inputs_do_not_fit"),
        ("memory.invented", "other"),
    ],
)
def test_submitters_see_no_names_that_a_node_invents(rule: str, shown: str) -> None:
    assert shared_rule(Denial(rule, "x")).rule == shown


def test_so_many_refusers_of_a_task_are_remembered_and_no_more() -> None:
    refusals = OwnRefusals()

    for number in range(MAX_REFUSERS + 10):
        refusals.add(Denial("policy.images", ""), node_id=str(number), policy=OLD, now=0.0)

    known = [number for number in range(MAX_REFUSERS + 10) if refusals.of(str(number), policy=OLD, now=1.0)]
    assert known == list(range(10, MAX_REFUSERS + 10))


def test_a_passing_reason_does_not_shorten_a_lasting_one() -> None:
    refusals = OwnRefusals()

    refusals.add(Denial("policy.images", ""), node_id="a", policy=OLD, now=0.0)
    refusals.add(Denial("memory", ""), node_id="a", policy=OLD, now=0.0)

    assert refusals.of("a", policy=OLD, now=1e9) is not None


ANNOUNCED: dict[str, Any] = {"digest": OLD, "kinds": frozenset({TaskKind.COMMAND}), "egress": False}


@pytest.mark.parametrize(
    ("policy", "spec", "rule"),
    [
        ({}, {}, None),
        ({"kinds": frozenset()}, {}, "policy.kinds"),
        ({"is_open": False}, {}, "policy.hours"),
        ({}, {"egress": {"domains": ["pypi.org"]}}, "policy.domains"),
        ({"egress": True}, {"egress": {"domains": ["pypi.org"]}}, None),
        ({"max_wall_time_s": 59.0}, {"budgets": {"wall_time_s": 60}}, "policy.max_wall_time_s"),
        ({"max_memory_bytes": 1 << 20}, {}, "policy.max_memory_bytes"),
        ({"max_cpus": 0.5}, {}, "policy.max_cpus"),
        ({"max_gpus": 0}, {"resources": {"gpus": 1}}, "policy.max_gpus"),
        ({"min_reward": 101}, {}, "policy.min_reward"),
        ({"min_reward_per_hour": 400}, {"budgets": {"wall_time_s": 901}}, "policy.min_reward_per_hour"),
        ({"min_reward_per_hour": 400}, {"budgets": {"wall_time_s": 900}}, None),
    ],
)
def test_an_announced_policy_spares_hopeless_offers(
    policy: dict[str, Any], spec: dict[str, Any], rule: str | None
) -> None:
    offers = capability(policy=AnnouncedPolicy(**ANNOUNCED | policy), gpus=(Gpu(name="g", memory_bytes=1),))
    wanted = needs_of(parse_spec(json.dumps({"type": "command", "command": ["true"], **spec})), reward=100)
    node = NodeView(
        node_id="n", capability=offers, capability_age_s=0.0, free_slots=1, draining=False, bond=0, min_bond=0
    )

    denial = check_fit(wanted, node)

    assert (denial.rule if denial else None) == rule
