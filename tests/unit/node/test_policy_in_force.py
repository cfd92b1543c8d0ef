"""The operator's policy in a running node: it blocks before anything is fetched or claimed, and the market hears why."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from parity_node.admission import narrowed
from parity_node.folders import Folders
from parity_node.policy_file import POLICY_FILE
from parity_node.testing.market import MarketSimulator, command_spec
from parity_protocol.api.leases import MAX_REFUSED
from parity_protocol.errors import ConfigInvalid
from parity_protocol.isolation import IsolationTier
from parity_protocol.policy import Policy
from parity_protocol.task import TaskKind, parse_spec

if TYPE_CHECKING:
    from .conftest import NodeFactory
else:
    NodeFactory = Any

FETCHES = {"cid": {"kind": "cid", "cid": "bafydata", "max_bytes": 1_000}}


@pytest.fixture
def file(folders: Folders) -> Path:
    return folders.state / POLICY_FILE


def write(file: Path, text: str) -> None:
    file.write_text(text)


async def test_a_violation_blocks_before_anything_is_fetched_or_claimed(
    node: NodeFactory, market: MarketSimulator, file: Path
) -> None:
    write(file, '[allow]\nsources = []\n[[deny]]\nname = "no-true"\nprograms = ["true"]\n')

    async with node() as running:
        task = market.offer(json.dumps({"type": "command", "command": ["true"], "inputs": [FETCHES["cid"]]}))
        await running.until(lambda: len(market.refused) >= 2)

        assert "claim" not in market.calls
        assert running.executor.jobs == []
        assert {(refusal.task_id, refusal.rule) for refusal in market.refused} == {
            (task.id, "policy.sources"),
            (task.id, "policy.deny.no-true"),
        }


async def test_a_task_may_reach_no_host_unless_the_operator_named_it(
    node: NodeFactory, market: MarketSimulator, file: Path
) -> None:
    async with node() as running:
        market.offer(command_spec("true", egress={"domains": ["pypi.org"]}))
        await running.until(lambda: bool(market.refused))
        assert [refusal.rule for refusal in market.refused[:1]] == ["policy.domains"]

        write(file, '[allow]\ndomains = ["pypi.org"]\n')
        await running.until(lambda: "claim" in market.calls)


async def test_what_one_poll_cannot_hold_is_left_out(node: NodeFactory, market: MarketSimulator, file: Path) -> None:
    write(file, '[allow]\nprograms = ["nothing"]\n')

    async with node(runner_slots=200) as running:
        market.is_online = False
        for _ in range(MAX_REFUSED + 10):
            market.offer(command_spec("true"))
        market.come_back()
        await running.until(lambda: len(market.refused) >= MAX_REFUSED)

        assert len({refusal.task_id for refusal in market.refused[:MAX_REFUSED]}) == MAX_REFUSED
        assert {refusal.rule for refusal in market.refused} == {"policy.programs"}


async def test_an_edit_is_announced_and_counts_for_the_next_offer(
    node: NodeFactory, market: MarketSimulator, file: Path
) -> None:
    async with node() as running:
        before = running.agent.policy.digest
        write(file, '[price]\nmin_reward_per_hour = "1"\n')
        await running.pass_time(11)
        beats = [beat.capability.policy for beat in market.heartbeats if beat.capability is not None]

        market.offer(command_spec("true"), reward=1_000)
        await running.until(lambda: bool(market.refused))

        assert running.agent.policy.digest != before
        assert beats[-1] is not None
        assert (beats[-1].digest, beats[-1].min_reward_per_hour) == (running.agent.policy.digest, 10**18)
        assert market.refused[0].rule == "policy.min_reward_per_hour"
        assert market.policies == [before, running.agent.policy.digest]


async def test_a_broken_edit_changes_nothing_and_is_in_the_status(
    node: NodeFactory, market: MarketSimulator, file: Path
) -> None:
    write(file, '[allow]\nprograms = ["true"]\n')

    async with node() as running:
        write(file, "[allow]\nprogram = []\n")
        await running.pass_time(11)
        market.offer(command_spec("true"))
        await running.until(lambda: "claim" in market.calls)

        status = await running.agent.handle_control({"command": "status"})
        policy = await running.agent.handle_control({"command": "policy"})
        assert "stays in force" in status["policy"]["problem"]
        assert policy["digest"] == status["policy"]["digest"]
        assert b"parity_node_policy_outdated 1.0" in running.agent.metrics.render()


async def test_outside_its_hours_a_node_says_so_and_works_again_when_they_begin(
    node: NodeFactory, market: MarketSimulator, file: Path
) -> None:
    begins = market.clock.now() + timedelta(minutes=2)
    write(file, f'[allow]\nhours = ["{begins:%H:%M}-{begins + timedelta(hours=1):%H:%M}"]\n')

    async with node(runner_slots=1) as running:
        [enrolled] = market.nodes.values()
        assert enrolled.capability.policy is not None
        assert not enrolled.capability.policy.is_open
        market.offer(command_spec("true"))
        await running.until(lambda: bool(market.refused))
        assert market.refused[0].rule == "policy.hours"
        assert "claim" not in market.calls

        await running.until(lambda: "claim" in market.calls, within_s=150)

        assert market.heartbeats[-1].capability is None or market.heartbeats[-1].capability.policy is not None
        assert market.clock.now() >= begins


async def test_a_task_gets_graphics_processors_only_where_the_operator_granted_some(
    node: NodeFactory, market: MarketSimulator
) -> None:
    wants_one = command_spec("true", resources={"gpus": 1})

    async with node() as running:
        refused = market.offer(wants_one)
        await running.until(lambda: bool(market.refused))
        assert [refusal.rule for refusal in market.refused] == ["gpus"]
        market.cancel(refused)
    async with node(runner_docker_gpus=("0",)) as running:
        market.offer(wants_one)
        await running.until(lambda: "claim" in market.calls)


async def test_a_wrong_file_keeps_the_node_from_starting(node: NodeFactory, file: Path) -> None:
    write(file, "[alow]\n")

    with pytest.raises(ConfigInvalid, match="did you mean allow"):
        async with node():
            pass


def test_a_task_runs_in_the_isolation_that_the_operator_wants() -> None:
    spec = parse_spec(command_spec("true", requires={"isolation": "process"}))

    stronger = narrowed(spec, Policy(isolation={TaskKind.COMMAND: IsolationTier.BWRAP}))

    assert stronger.requires.isolation is IsolationTier.BWRAP
    assert narrowed(spec, Policy()) is spec
