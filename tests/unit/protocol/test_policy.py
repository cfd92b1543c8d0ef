"""Policies only narrow (MF8): whatever one of them refuses, every intersection with it refuses too; deny wins."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from parity_protocol.isolation import IsolationTier
from parity_protocol.policy import DenyRule, Policy, check_bundle, check_policy, intersect, least_tier, policy_digest
from parity_protocol.task import MAX_DATASET_BYTES, TaskKind, input_bytes, parse_spec

CREATORS = ["0x" + digit * 40 for digit in "abc"]
NOON = datetime(2026, 1, 7, 12, 0, tzinfo=UTC)  # a Wednesday
DIGEST = "sha256:" + "0" * 64

SPECS: list[dict[str, Any]] = [
    {"type": "command", "command": ["true"]},
    {"type": "command", "command": "ls", "shell": True, "egress": {"domains": ["pypi.org", "*.example.org:8443"]}},
    {"type": "command", "command": ["/bin/bash"], "output": {"max_bytes": 4_000}, "max_output_bytes": 1_000},
    {"type": "docker", "image": "debian:12", "resources": {"gpus": 1, "pids": 64, "disk_bytes": 1 << 30}},
    {"type": "docker", "image": f"ghcr.io/me/tool@{DIGEST}", "egress": {"domains": ["pypi.org"], "max_bytes": 10}},
    {"type": "docker", "image": "debian:12", "image_tar": {"kind": "cid", "cid": "bafyimage"}},
    {"type": "llm", "model": "llama3", "prompt": "p"},
    {"type": "federated_learning", "dataset_cid": "bafydata"},
]


def clauses(*lists: list[str]) -> st.SearchStrategy[frozenset[frozenset[str]]]:
    return st.frozensets(st.sampled_from([frozenset(one) for one in lists]), max_size=2)


deny_rules = st.sampled_from(
    [
        DenyRule(name="images", images=frozenset({"debian"})),
        DenyRule(name="miners", images=frozenset({"*tool*"}), creators=frozenset({CREATORS[0]})),
        DenyRule(name="nets", domains=frozenset({"www.example.org", "pypi.org"})),
        DenyRule(name="kind", kinds=frozenset({TaskKind.LLM})),
    ]
)
policies = st.builds(
    Policy,
    kinds=st.sampled_from([frozenset(TaskKind), frozenset({TaskKind.COMMAND, TaskKind.DOCKER})]),
    images=clauses([], ["debian:12"], ["ghcr.io/me/*", "tar:*"], ["*"]),
    registries=clauses(["docker.io"], ["tar", "ghcr.io"]),
    digest_only=st.booleans(),
    programs=clauses(["true"], ["/bin/*", "true"]),
    shell=st.booleans(),
    domains=clauses([], ["pypi.org"], ["*:*"]),
    models=clauses(["llama*"], ["other"]),
    sources=st.frozensets(st.sampled_from(["cid", "https", "shard"])),
    creators=st.none() | st.frozensets(st.sampled_from(CREATORS)),
    hours=clauses(["wed 11:00-13:00"], ["sat,sun"]),
    max_wall_time_s=st.none() | st.floats(min_value=1, max_value=2_000),
    max_memory_bytes=st.none() | st.integers(1 << 24, 1 << 31),
    max_cpus=st.none() | st.floats(min_value=0.5, max_value=4),
    max_pids=st.none() | st.integers(1, 256),
    max_disk_bytes=st.none() | st.integers(0, 1 << 31),
    max_gpus=st.none() | st.integers(0, 1),
    max_input_bytes=st.none() | st.integers(0, 1 << 32),
    max_output_bytes=st.none() | st.integers(0, 1 << 21),
    max_egress_bytes=st.none() | st.integers(0, 1 << 27),
    max_cache_bytes=st.none() | st.integers(0, 1 << 27),
    min_reward=st.integers(0, 10),
    min_reward_per_hour=st.integers(0, 10_000),
    isolation=st.dictionaries(st.sampled_from(TaskKind), st.sampled_from(IsolationTier)),
    deny=st.frozensets(deny_rules, max_size=2),
)
specs = st.builds(
    lambda kind, wall, memory, cpus, sizes: parse_spec(
        json.dumps(
            {
                **kind,
                "budgets": {"wall_time_s": wall},
                "resources": {**kind.get("resources", {}), "memory_bytes": memory, "cpus": cpus},
                "inputs": [
                    {"kind": "cid", "name": f"i{n}", "cid": "bafy", "max_bytes": size} for n, size in enumerate(sizes)
                ],
            }
        )
    ),
    st.sampled_from(SPECS),
    st.floats(min_value=1, max_value=2_000),
    st.integers(1 << 24, 1 << 31),
    st.floats(min_value=0.5, max_value=4),
    st.lists(st.integers(1, 1 << 31), max_size=2),
)
tiers = st.sampled_from(IsolationTier)


def refused(
    policy: Policy,
    spec: Any,
    reward: int = 0,
    creator: str = CREATORS[0],
    tier: IsolationTier = IsolationTier.BWRAP,
    now: datetime = NOON,
) -> set[str]:
    denials = check_policy(policy, spec, reward=reward, creator=creator, tier=tier, now=now)
    return {denial.rule for denial in denials}


def spec_of(base: dict[str, Any], **changes: Any) -> Any:
    return parse_spec(json.dumps(base | changes))


@given(
    one=policies, other=policies, spec=specs, reward=st.integers(0, 12), creator=st.sampled_from(CREATORS), tier=tiers
)
def test_the_intersection_refuses_exactly_what_either_refuses(
    one: Policy, other: Policy, spec: Any, reward: int, creator: str, tier: IsolationTier
) -> None:
    both = refused(intersect(one, other), spec, reward, creator, tier)

    assert both == refused(one, spec, reward, creator, tier) | refused(other, spec, reward, creator, tier)


@given(one=policies, other=policies, third=policies)
def test_the_order_of_policies_does_not_matter(one: Policy, other: Policy, third: Policy) -> None:
    joined = intersect(one, other, third)

    assert joined == intersect(third, intersect(other, one)) == intersect(other, third, one, one)
    assert policy_digest(joined) == policy_digest(intersect(third, other, one))


@given(policy=policies)
def test_a_policy_is_the_same_after_its_journey(policy: Policy) -> None:
    read = Policy.model_validate_json(policy.model_dump_json())

    assert read == policy
    assert policy_digest(read) == policy_digest(policy)


@given(policy=policies, rule=deny_rules, spec=specs)
def test_no_list_allows_what_a_rule_denies(policy: Policy, rule: DenyRule, spec: Any) -> None:
    denied = refused(Policy(deny=frozenset({rule})), spec)

    assert denied <= refused(intersect(policy, Policy(deny=frozenset({rule}))), spec)


def test_no_policy_is_no_limit() -> None:
    assert intersect() == Policy()
    for spec in SPECS:
        assert refused(Policy(), spec_of(spec), tier=IsolationTier.NONE) == set()


@pytest.mark.parametrize("field", ["allow_all", "maxWallTime", "network", "max_gpu", "egress"])
def test_an_unknown_field_denies(field: str) -> None:
    with pytest.raises(ValidationError, match=field):
        Policy.model_validate_json(json.dumps({field: 1}))


def test_a_rule_that_denies_nothing_or_more_than_it_knows_is_refused() -> None:
    with pytest.raises(ValidationError, match="must say what"):
        DenyRule.model_validate_json('{"name": "all"}')
    with pytest.raises(ValidationError, match="image"):
        DenyRule.model_validate_json('{"name": "typo", "kinds": ["llm"], "image": ["x"]}')


@pytest.mark.parametrize(
    ("policy", "spec", "rule"),
    [
        (Policy(images=frozenset({frozenset({"alpine"})})), SPECS[3], "policy.images"),
        (Policy(images=frozenset({frozenset()})), SPECS[3], "policy.images"),
        (Policy(registries=frozenset({frozenset({"ghcr.io"})})), SPECS[3], "policy.registries"),
        (Policy(registries=frozenset({frozenset({"docker.io"})})), SPECS[5], "policy.registries"),
        (Policy(digest_only=True), SPECS[3], "policy.digest_only"),
        (Policy(programs=frozenset({frozenset({"false"})})), SPECS[0], "policy.programs"),
        (Policy(shell=False), SPECS[1], "policy.shell"),
        (Policy(shell=False), SPECS[2], "policy.shell"),
        (Policy(domains=frozenset({frozenset({"pypi.org"})})), SPECS[1], "policy.domains"),
        (Policy(domains=frozenset({frozenset()})), SPECS[4], "policy.domains"),
        (Policy(max_egress_bytes=9), SPECS[4], "policy.max_egress_bytes"),
        (Policy(models=frozenset({frozenset({"qwen*"})})), SPECS[6], "policy.models"),
        (Policy(sources=frozenset({"shard"})), SPECS[5], "policy.sources"),
        (Policy(sources=frozenset({"https"})), SPECS[7], "policy.sources"),
        (Policy(max_pids=63), SPECS[3], "policy.max_pids"),
        (Policy(max_disk_bytes=(1 << 30) - 1), SPECS[3], "policy.max_disk_bytes"),
        (Policy(max_gpus=0), SPECS[3], "policy.max_gpus"),
        (Policy(max_output_bytes=4_999), SPECS[2], "policy.max_output_bytes"),
        (Policy(isolation={TaskKind.DOCKER: IsolationTier.GVISOR}), SPECS[3], "policy.isolation"),
        (Policy(hours=frozenset({frozenset({"sat,sun"})})), SPECS[0], "policy.hours"),
        (Policy(min_reward=1), SPECS[0], "policy.min_reward"),
        (Policy(min_reward_per_hour=1), SPECS[0], "policy.min_reward_per_hour"),
        (Policy(deny=frozenset({DenyRule(name="x", images=frozenset({"deb*"}))})), SPECS[5], "policy.deny.x"),
        (Policy(deny=frozenset({DenyRule(name="x", programs=frozenset({"bash"}))})), SPECS[2], "policy.deny.x"),
        (Policy(deny=frozenset({DenyRule(name="x", models=frozenset({"ll*"}))})), SPECS[6], "policy.deny.x"),
        (Policy(deny=frozenset({DenyRule(name="x", registries=frozenset({"ghcr*"}))})), SPECS[4], "policy.deny.x"),
        (Policy(deny=frozenset({DenyRule(name="x", sources=frozenset({"cid"}))})), SPECS[7], "policy.deny.x"),
    ],
)
def test_each_rule_refuses_by_its_own_name(policy: Policy, spec: dict[str, Any], rule: str) -> None:
    assert refused(policy, spec_of(spec), tier=IsolationTier.DOCKER) == {rule}


def test_a_rule_denies_only_when_all_that_it_says_is_true() -> None:
    rule = DenyRule(name="both", images=frozenset({"debian"}), creators=frozenset({CREATORS[1]}))
    policy = Policy(deny=frozenset({rule}))

    assert refused(policy, spec_of(SPECS[3]), creator=CREATORS[1]) == {"policy.deny.both"}
    assert refused(policy, spec_of(SPECS[3]), creator=CREATORS[0]) == set()
    assert refused(policy, spec_of(SPECS[0]), creator=CREATORS[1]) == set()


def test_the_price_of_an_hour_is_compared_exactly() -> None:
    policy = Policy(min_reward_per_hour=10**18 + 1)
    hour = spec_of(SPECS[0], budgets={"wall_time_s": 3600})

    assert refused(policy, hour, reward=10**18) == {"policy.min_reward_per_hour"}
    assert refused(policy, hour, reward=10**18 + 1) == set()


def test_a_task_runs_in_the_strongest_tier_that_anybody_asks_for() -> None:
    policy = Policy(isolation={TaskKind.COMMAND: IsolationTier.BWRAP})

    assert least_tier(policy, spec_of(SPECS[0])) is IsolationTier.BWRAP
    assert least_tier(policy, spec_of(SPECS[0], requires={"isolation": "vm"})) is IsolationTier.VM
    assert least_tier(policy, spec_of(SPECS[3])) is IsolationTier.NONE


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
    assert refused(Policy(max_input_bytes=counted), spec) == set()
    assert refused(Policy(max_input_bytes=counted - 1), spec) == {"policy.max_input_bytes"}


OWN, OTHER = "a" * 64, "b" * 64


@pytest.mark.parametrize(
    ("policy", "digest", "is_allowed"),
    [
        (Policy(), OWN, True),
        (Policy(), OTHER, False),
        (Policy(bundles=frozenset({frozenset({OTHER})})), OTHER, True),
        (Policy(bundles=frozenset({frozenset({OTHER})})), OWN, True),
        (Policy(bundles=frozenset({frozenset({"*"})})), OTHER, True),
        (Policy(bundles=frozenset({frozenset({OTHER}), frozenset({"c" * 64})})), OTHER, False),
        (Policy(bundles=frozenset({frozenset()})), OTHER, False),
    ],
)
def test_only_the_nodes_own_flower_app_runs_unless_every_list_has_another(
    policy: Policy, digest: str, is_allowed: bool
) -> None:
    denial = check_bundle(policy, digest, own=OWN)

    assert (denial is None) is is_allowed
    assert denial is None or denial.rule == "policy.bundles"
