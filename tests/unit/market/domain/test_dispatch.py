"""Which node may run which task."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parity_market.domain.dispatch import Needs, NodeView, check_fit, needs_of
from parity_market.testing import capability
from parity_protocol.capability import MAX_CAPABILITY_AGE_S, ExecutorState
from parity_protocol.task import IsolationTier, TaskKind, parse_spec


def view(**changes: Any) -> NodeView:
    given_ = {"capability": capability(), "capability_age_s": 0.0, "free_slots": 1, "draining": False, "bond": 1}
    return NodeView(node_id="n", min_bond=1, **{**given_, **changes})


def needs(**spec: Any) -> Needs:
    return needs_of(parse_spec(json.dumps({"type": "command", "command": ["true"], **spec})))


def rule_of(wanted: Needs, node: NodeView) -> str | None:
    denial = check_fit(wanted, node)
    return None if denial is None else denial.rule


def test_a_node_that_has_everything_fits() -> None:
    assert rule_of(needs(), view()) is None


@pytest.mark.parametrize(
    ("node", "rule"),
    [
        (view(bond=0), "stake"),
        (view(draining=True), "draining"),
        (view(capability_age_s=MAX_CAPABILITY_AGE_S + 1), "capability"),
        (view(capability=capability(kinds=frozenset())), "kind"),
    ],
)
def test_a_nodes_own_state_can_keep_it_from_everything(node: NodeView, rule: str) -> None:
    assert rule_of(needs(), node) == rule


def test_an_executor_that_is_unavailable_says_why() -> None:
    offers = capability(executors={TaskKind.COMMAND: ExecutorState(available=False, reason="user namespaces are off")})

    denial = check_fit(needs(), view(capability=offers))

    assert denial is not None
    assert "user namespaces are off" in denial.message


@given(tier=st.sampled_from(list(IsolationTier)), proven=st.sampled_from(list(IsolationTier)))
def test_only_a_proven_isolation_at_least_as_strong_fits(tier: IsolationTier, proven: IsolationTier) -> None:
    offers = capability(executors={TaskKind.COMMAND: ExecutorState(available=True, isolation=proven)})

    fits = rule_of(needs(requires={"isolation": str(tier)}), view(capability=offers)) is None

    assert fits == (proven.rank >= tier.rank)


@given(memory=st.integers(16 << 20, 1 << 44), has=st.integers(0, 1 << 44))
def test_memory_is_compared_to_the_byte(memory: int, has: int) -> None:
    found = rule_of(needs(resources={"memory_bytes": memory}), view(capability=capability(memory_bytes=has)))

    assert found == (None if has >= memory else "memory")


@pytest.mark.parametrize(("least", "fits"), [("0.0.9", True), ("0.1.0", True), ("0.1.1", False), ("0.10.0", False)])
def test_versions_compare_as_numbers(least: str, fits: bool) -> None:
    assert (rule_of(needs(requires={"min_node_version": least}), view()) is None) == fits


def test_models_must_be_there() -> None:
    fl = needs_of(parse_spec(json.dumps({"type": "federated_learning", "model_type": "random_forest"})))
    llm = needs_of(parse_spec(json.dumps({"type": "llm", "model": "tiny", "prompt": "hi"})))
    offers = capability(model_types=("linear_regression",), models=("tiny",))

    assert rule_of(fl, view(capability=offers)) == "model_type"
    assert rule_of(llm, view(capability=offers)) is None
    assert rule_of(llm, view()) == "model"


def test_data_sets_of_operators_must_be_there() -> None:
    inputs = [{"kind": "shard", "name": name, "shard": name} for name in ("mnist", "logs")]
    both = needs(inputs=inputs)

    assert rule_of(both, view(capability=capability(shards=("logs", "mnist", "other")))) is None
    assert rule_of(both, view(capability=capability(shards=("logs",)))) == "shards"
    assert rule_of(Needs.from_doc(both.to_doc()), view()) == "shards"


def test_needs_noted_before_there_were_data_sets_are_read() -> None:
    document = json.loads(needs().to_doc())
    del document["shards"]

    assert Needs.from_doc(json.dumps(document)).shards == ()


@given(
    kind=st.sampled_from(list(TaskKind)),
    isolation=st.sampled_from(list(IsolationTier)),
    cpus=st.floats(0.1, 1024),
    memory=st.integers(0, 1 << 44),
    model=st.text(max_size=20),
)
def test_needs_survive_their_document(
    kind: TaskKind, isolation: IsolationTier, cpus: float, memory: int, model: str
) -> None:
    wanted = Needs(kind, isolation, cpus, memory, 0, "1.2.3", model)

    assert Needs.from_doc(wanted.to_doc()) == wanted


def test_a_session_that_flower_carries_goes_to_nodes_that_have_it() -> None:
    spec = {"type": "federated_learning", "engine": "flower", "model_type": "neural_network"}
    wanted = needs_of(parse_spec(json.dumps(spec)))
    offers = view().capability
    able = {TaskKind.FEDERATED_LEARNING: ExecutorState(available=True, isolation=IsolationTier.BWRAP)}
    without = offers.model_copy(update={"executors": able, "model_types": ("neural_network",)})

    denial = check_fit(wanted, view(capability=without))

    assert denial is not None
    assert (denial.rule, "parity fl engine install flower" in denial.message) == ("engine", True)
    assert check_fit(wanted, view(capability=without.model_copy(update={"engines": ("flower",)}))) is None
    assert Needs.from_doc(wanted.to_doc()) == wanted
