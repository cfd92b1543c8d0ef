"""Policies only narrow (MF8): whatever one of them refuses, every intersection with it refuses too."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from parity_protocol.policy import Policy, check_policy, intersect
from parity_protocol.task import MAX_DATASET_BYTES, TaskKind, input_bytes, parse_spec

CREATORS = ["0x" + digit * 40 for digit in "abc"]

policies = st.builds(
    Policy,
    kinds=st.frozensets(st.sampled_from(TaskKind)),
    max_wall_time_s=st.none() | st.floats(min_value=1, max_value=2_000),
    max_memory_bytes=st.none() | st.integers(1 << 24, 1 << 31),
    max_cpus=st.none() | st.floats(min_value=0.5, max_value=4),
    max_input_bytes=st.none() | st.integers(0, 1 << 32),
    min_reward=st.integers(0, 10),
    creators=st.none() | st.frozensets(st.sampled_from(CREATORS)),
)
specs = st.builds(
    lambda kind, wall, memory, cpus, sizes: parse_spec(
        json.dumps(
            {
                **kind,
                "budgets": {"wall_time_s": wall},
                "resources": {"memory_bytes": memory, "cpus": cpus},
                "inputs": [
                    {"kind": "cid", "name": f"i{n}", "cid": "bafy", "max_bytes": size} for n, size in enumerate(sizes)
                ],
            }
        )
    ),
    st.sampled_from(
        [
            {"type": "command", "command": ["true"]},
            {"type": "docker", "image": "x"},
            {"type": "llm", "model": "m", "prompt": "p"},
            {"type": "federated_learning", "dataset_cid": "bafydata"},
        ]
    ),
    st.floats(min_value=1, max_value=2_000),
    st.integers(1 << 24, 1 << 31),
    st.floats(min_value=0.5, max_value=4),
    st.lists(st.integers(1, 1 << 31), max_size=2),
)


def refused(policy: Policy, spec: Any, reward: int, creator: str) -> set[str]:
    return {denial.rule for denial in check_policy(policy, spec, reward=reward, creator=creator)}


@given(one=policies, other=policies, spec=specs, reward=st.integers(0, 12), creator=st.sampled_from(CREATORS))
def test_the_intersection_refuses_exactly_what_either_refuses(
    one: Policy, other: Policy, spec: Any, reward: int, creator: str
) -> None:
    both = refused(intersect(one, other), spec, reward, creator)

    assert both == refused(one, spec, reward, creator) | refused(other, spec, reward, creator)


@given(one=policies, other=policies, third=policies)
def test_the_order_of_policies_does_not_matter(one: Policy, other: Policy, third: Policy) -> None:
    assert intersect(one, other, third) == intersect(third, intersect(other, one)) == intersect(other, third, one, one)


def test_no_policy_is_no_limit() -> None:
    assert intersect() == Policy()


@pytest.mark.parametrize("field", ["allow_all", "maxWallTime", "network", "max_gpus"])
def test_an_unknown_field_denies(field: str) -> None:
    with pytest.raises(ValidationError, match=field):
        Policy.model_validate_json(json.dumps({field: 1}))


@pytest.mark.parametrize(
    ("inputs", "counted"),
    [
        ([], MAX_DATASET_BYTES),
        ([{"kind": "cid", "cid": "bafydata", "max_bytes": 1_000}], 1_000),
        ([{"kind": "cid", "cid": "bafyother", "max_bytes": 1_000}], MAX_DATASET_BYTES + 1_000),
        ([{"kind": "https", "url": "https://x/", "sha256": "0" * 64, "size": 7}], MAX_DATASET_BYTES + 7),
        ([{"kind": "shard", "shard": "mine"}], MAX_DATASET_BYTES),
    ],
)
def test_a_sessions_data_set_is_input_too(inputs: list[dict[str, Any]], counted: int) -> None:
    spec = parse_spec(json.dumps({"type": "federated_learning", "dataset_cid": "bafydata", "inputs": inputs}))

    assert input_bytes(spec) == counted
    assert refused(Policy(max_input_bytes=counted), spec, 0, CREATORS[0]) == set()
    assert refused(Policy(max_input_bytes=counted - 1), spec, 0, CREATORS[0]) == {"policy.max_input_bytes"}
