"""May this task run here: every rule alone, on a manifest that a real market would sign."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from parity_fl.engines.flower import bundle_digest
from parity_node.admission import Committed, admit, limits_of
from parity_node.testing.market import MarketSimulator, command_spec
from parity_protocol.capability import Capability, ExecutorState
from parity_protocol.manifest import VerifiedManifest, verify_manifest
from parity_protocol.policy import Policy
from parity_protocol.task import IsolationTier, TaskKind
from parity_protocol.testing.clock import FakeClock

NODE = "a" * 64
GIB = 1 << 30


def capability(**changes: object) -> Capability:
    values: dict[str, object] = {
        "node_version": "1.2.3",
        "executors": {TaskKind.COMMAND: ExecutorState(available=True, isolation=IsolationTier.BWRAP)},
        "slots": 2,
        "cpus": 2.0,
        "memory_bytes": 4 * GIB,
        "disk_free_bytes": 10 * GIB,
        "measured_at": 0.0,
    }
    return Capability(**(values | changes))  # type: ignore[arg-type]


async def manifest(clock: FakeClock, spec: str, reward: int = 1_000) -> VerifiedManifest:
    market = MarketSimulator(clock)
    task = market.offer(spec, reward=reward)
    token = market._manifest(task, NODE)
    return verify_manifest(
        token,
        {market.manifest_key.public_key.thumbprint(): market.manifest_key.public_key},
        issuer=market.thumbprint,
        node_id=NODE,  # type: ignore[arg-type]
        chain=market.chain,
        node_version="1.2.3",
        now=clock.now(),
    )


def rules(verified: VerifiedManifest, **changes: object) -> set[str]:
    values: dict[str, object] = {
        "policy": Policy(),
        "capability": capability(),
        "committed": Committed(),
        "now": datetime(2026, 1, 1, tzinfo=UTC),
    }
    return {denial.rule for denial in admit(verified, **(values | changes))}  # type: ignore[arg-type]


async def test_task_that_fits_is_admitted(clock: FakeClock) -> None:
    assert rules(await manifest(clock, command_spec("true"))) == set()


@pytest.mark.parametrize(
    ("spec", "changes", "rule"),
    [
        ({}, {"capability": capability(executors={})}, "executor"),
        (
            {},
            {"capability": capability(executors={TaskKind.COMMAND: ExecutorState(available=False, reason="no bwrap")})},
            "executor",
        ),
        ({"requires": {"isolation": "docker"}}, {}, "isolation"),
        ({"requires": {"min_node_version": "1.3.0"}}, {}, "version"),
        ({"resources": {"cpus": 3}}, {}, "cpus"),
        ({"resources": {"memory_bytes": 5 * GIB}}, {}, "memory"),
        ({"resources": {"memory_bytes": 2 * GIB}}, {"committed": Committed(memory_bytes=3 * GIB)}, "memory"),
        ({}, {"now": datetime(2026, 2, 1, tzinfo=UTC)}, "deadline"),
        ({}, {"policy": Policy(kinds=frozenset({TaskKind.LLM}))}, "policy.kinds"),
        ({"budgets": {"wall_time_s": 61}}, {"policy": Policy(max_wall_time_s=60)}, "policy.max_wall_time_s"),
        ({}, {"policy": Policy(min_reward=1_001)}, "policy.min_reward"),
        ({}, {"policy": Policy(creators=frozenset({"0x" + "1" * 40}))}, "policy.creators"),
    ],
)
async def test_one_thing_too_much_is_one_denial(
    clock: FakeClock, spec: dict[str, object], changes: dict[str, object], rule: str
) -> None:
    assert rules(await manifest(clock, command_spec("true", **spec)), **changes) == {rule}


async def test_limits_are_the_least_of_task_policy_and_machine(clock: FakeClock) -> None:
    verified = await manifest(clock, command_spec("true", resources={"cpus": 2, "memory_bytes": GIB}))

    limits = limits_of(verified.spec, Policy(max_wall_time_s=60, max_cpus=1.5), capability(memory_bytes=GIB // 2))

    assert (limits.wall_time_s, limits.cpus, limits.memory_bytes) == (60, 1.5, GIB // 2)


async def test_a_flower_app_of_somebody_else_runs_only_where_the_policy_lists_it(clock: FakeClock) -> None:
    verified = await manifest(clock, command_spec("true"))

    def with_app(digest: str) -> VerifiedManifest:
        plan = {"flower": {"bundle_sha256": digest}}
        return replace(verified, manifest=verified.manifest.model_copy(update={"plan": plan}))

    other = "b" * 64
    assert rules(with_app(bundle_digest())) == set()
    assert rules(with_app(other)) == {"policy.bundles"}
    assert rules(with_app(other), policy=Policy(bundles=frozenset({frozenset({other})}))) == set()
