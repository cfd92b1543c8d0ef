"""A round under secure aggregation gives what the rule gives on single updates, whoever drops out, and hides them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import pytest

from parity_fl.aggregate import Aggregated, Update, make_strategy
from parity_fl.averaging import Refused
from parity_fl.models.base import Weights
from parity_fl.privacy.config import PrivacyConfig, read_privacy
from parity_fl.privacy.dp import NoiseSetup
from parity_fl.privacy.secagg import PHASES
from parity_fl.privacy.secagg_messages import absent
from parity_fl.privacy.secure_mean import (
    MAX_FAILED_SUMS,
    SecureMean,
    SecureStep,
    full_weight,
    rule_state,
    state_of_rule,
)
from parity_fl.privacy.secure_part import SumPart, SumTerms, update_part
from parity_fl.strategy import StrategyConfig, read_strategy
from parity_protocol.errors import BadDocument

SHAPES = {"b": (3,), "w": (40, 5)}
ROWS = {0: 100, 1: 40, 2: 250, 3: 90, 4: 130, 5: 7}
SECURE = read_privacy({"secure_aggregation": True, "threshold": 4})


def model(seed: int = 0) -> Weights:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}


def deltas(scale: float = 0.01, seed: int = 5) -> dict[int, Weights]:
    rng = np.random.default_rng(seed)
    return {
        part: {name: (scale * rng.normal(size=shape)).astype(np.float32) for name, shape in SHAPES.items()}
        for part in ROWS
    }


def server(
    strategy: StrategyConfig | str = "FedAvg", privacy: PrivacyConfig = SECURE, private: NoiseSetup | None = None
) -> SecureMean:
    rule = read_strategy(strategy) if isinstance(strategy, str) else strategy
    return SecureMean(
        rule,
        privacy,
        session_id="s",
        parts=len(ROWS),
        rows=ROWS.__getitem__,
        heaviest=max(ROWS.values()),
        private=private,
    )


def nodes(
    terms: SumTerms, base: Weights, updates: dict[int, Weights], privacy: PrivacyConfig = SECURE, seed: int = 1
) -> dict[int, SumPart]:
    rng = np.random.default_rng(seed)
    return {
        part: update_part(
            privacy,
            terms,
            base,
            updates[part],
            session_id="s",
            parts=len(ROWS),
            part=part,
            rows=rows,
            randomness=rng.bytes,
        )
        for part, rows in ROWS.items()
    }


def round_of(
    made: SecureMean | Any,
    base: Weights,
    updates: dict[int, Weights],
    state: bytes | None = None,
    gone: dict[str, Collection[int]] | None = None,
    privacy: PrivacyConfig = SECURE,
) -> SecureStep | Refused:
    """Run a round; ``made`` is called for a market of its own in every phase when it is a function."""
    make = (lambda: made) if isinstance(made, SecureMean) else made
    parts = nodes(make().terms(state), base, updates, privacy)
    answers = {part: node.keys() for part, node in parts.items()}
    request, phase = b"", 0
    while True:
        left = {part: body for part, body in answers.items() if part not in (gone or {}).get(PHASES[phase], ())}
        step = make().reduce(base, request, state, {part: body.__bytes__ for part, body in left.items()})
        if isinstance(step, Refused) or step.weights is not None:
            return step
        request, state, phase = step.request, step.state, phase + 1
        answers = {part: parts[part].answer(request) for part in step.accepted}


def plain(strategy: str, base: Weights, updates: dict[int, Weights], parts: Collection[int]) -> Aggregated:
    rule = make_strategy(read_strategy(strategy))
    chosen = [Update(part, float(ROWS[part]), updates[part]) for part in sorted(parts)]
    return rule.aggregate(base, lambda: iter(chosen), len(chosen))


def assert_close(found: Weights | None, expected: Weights, tolerance: float = 1e-6) -> None:
    assert found is not None
    assert max(float(np.abs(found[name] - expected[name]).max()) for name in expected) < tolerance


@pytest.mark.parametrize("strategy", ["FedAvg", "FedProx"])
def test_the_model_is_that_of_the_rule_on_single_updates(strategy: str) -> None:
    base, updates = model(), deltas()

    step = round_of(server(strategy), base, updates)

    assert isinstance(step, SecureStep)
    assert_close(step.weights, plain(strategy, base, updates, ROWS).weights)
    assert step.metrics["summed"] == 6


@pytest.mark.parametrize("strategy", ["FedAdam", "FedAvgM", "FedYogi"])
def test_moments_go_on_from_round_to_round(strategy: str) -> None:
    base, state = model(), None
    rule = make_strategy(read_strategy(strategy))
    expected = base
    for number in range(3):
        updates = deltas(0.1, number)
        chosen = [Update(part, float(ROWS[part]), updates[part]) for part in ROWS]
        expected = rule.aggregate(expected, lambda: iter(chosen), len(chosen)).weights  # noqa: B023 - used at once
        step = round_of(server(strategy), base, updates, state)
        assert isinstance(step, SecureStep)
        assert step.weights is not None
        base, state = step.weights, step.state

    assert_close(base, expected, 1e-4)


@pytest.mark.parametrize("phase", PHASES)
def test_who_drops_out_is_missing_in_the_mean_only_without_a_masked_vector(phase: str) -> None:
    base, updates = model(), deltas()

    step = round_of(server(), base, updates, gone={phase: [1, 4]})

    assert isinstance(step, SecureStep)
    inside = set(ROWS) if phase in {"confirm", "unmask"} else set(ROWS) - {1, 4}
    assert_close(step.weights, plain("FedAvg", base, updates, inside).weights)


def test_too_few_keys_refuse_the_round_with_a_reason() -> None:
    step = round_of(server(), model(), deltas(), gone={"keys": [0, 1, 4]})

    assert isinstance(step, Refused)
    assert "3 of 6 parts are left in the secure sum's phase keys, 4 are needed; nothing was revealed" in step.reason


@pytest.mark.parametrize("phase", PHASES[1:])
def test_a_sum_that_cannot_be_opened_begins_anew_a_few_times(phase: str) -> None:
    base, updates, state = model(), deltas(), None
    for attempt in range(MAX_FAILED_SUMS):
        failed = round_of(server("FedAdam"), base, updates, state, gone={phase: [0, 1, 4]})
        assert isinstance(failed, SecureStep)
        assert failed.restarts
        assert failed.weights is not None
        assert all((failed.weights[name] == base[name]).all() for name in SHAPES)
        assert server().terms(failed.state).number == attempt + 1  # another sum: nothing of the last one fits it
        state = failed.state

    done = round_of(server("FedAdam"), base, updates, state)
    refused = round_of(server("FedAdam"), base, updates, state, gone={phase: [0, 1, 4]})

    assert isinstance(done, SecureStep)
    assert_close(done.weights, plain("FedAdam", base, updates, ROWS).weights, 1e-4)
    assert isinstance(refused, Refused)
    assert f"left in the secure sum's phase {phase}, 4 are needed; nothing was revealed" in refused.reason


def test_a_market_that_is_killed_between_all_phases_makes_the_same_model() -> None:
    base, updates = model(), deltas()

    once, again = round_of(server("FedAdam"), base, updates), round_of(lambda: server("FedAdam"), base, updates)

    assert isinstance(once, SecureStep)
    assert isinstance(again, SecureStep)
    assert once.weights is not None
    assert again.weights is not None
    assert all((once.weights[name] == again.weights[name]).all() for name in SHAPES)
    assert once.state == again.state


def test_updates_are_clipped_at_the_node() -> None:
    base, updates = model(), deltas()
    updates[2] = {name: tensor * np.float32(1e6) for name, tensor in updates[2].items()}
    privacy = read_privacy({"secure_aggregation": True, "threshold": 4, "l2_norm_clip": 0.05})

    step = round_of(server(privacy=privacy), base, updates, privacy=privacy)

    expected = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    for part, delta in updates.items():
        norm = np.sqrt(sum(float(np.square(one.astype(np.float64)).sum()) for one in delta.values()))
        for name, tensor in delta.items():
            expected[name] += tensor.astype(np.float64) * min(1.0, 0.05 / norm) * ROWS[part] / sum(ROWS.values())
    assert isinstance(step, SecureStep)
    assert_close(step.weights, {name: (base[name] + expected[name]).astype(np.float32) for name in SHAPES})


@pytest.mark.parametrize("poison", [np.nan, np.inf])
@pytest.mark.parametrize("clip", [{}, {"l2_norm_clip": 1.0}])
def test_a_node_never_sends_what_is_not_finite(poison: float, clip: dict[str, float]) -> None:
    base, updates = model(), deltas()
    updates[2]["w"][0, 0] = poison
    privacy = read_privacy({"secure_aggregation": True, "threshold": 4, **clip})

    step = round_of(server(privacy=privacy), base, updates, privacy=privacy)

    assert isinstance(step, SecureStep)
    assert step.weights is not None
    assert all(np.isfinite(tensor).all() for tensor in step.weights.values())
    assert float(np.abs(step.weights["b"] - base["b"]).max()) < 0.1


def test_with_noise_the_clip_norm_adapts_and_epsilon_is_told() -> None:
    privacy = read_privacy(
        {
            "secure_aggregation": True,
            "differential_privacy": True,
            "adaptive": True,
            "noise_multiplier": 1e-3,
            "count_stddev": 1e-2,
            "l2_norm_clip": 0.01,
            "threshold": 4,
        }
    )
    private = NoiseSetup(privacy, 6.0, bytes(range(32)))
    make = server("FedAvg", privacy, private)
    base, updates, state = model(), deltas(), None

    clips = []
    for _ in range(3):
        step = round_of(make, base, updates, state, privacy=privacy)
        assert isinstance(step, SecureStep)
        state = step.state
        clips.append(step.metrics["clip_norm"])

    longer = np.exp(0.2 * 0.5)  # nobody is below: b = 0, so C grows by exp(η γ)
    assert clips == pytest.approx([0.01, 0.01 * longer, 0.01 * longer**2], rel=1e-3)
    assert step.metrics["epsilon"] > 0
    assert set(rule_state(step.state)) >= {"privacy.clip", "privacy.rdp"}


def test_noise_under_a_mask_is_that_of_single_updates() -> None:
    privacy = read_privacy(
        {
            "secure_aggregation": True,
            "differential_privacy": True,
            "noise_multiplier": 1e-6,
            "l2_norm_clip": 0.05,
            "threshold": 4,
        }
    )
    private = NoiseSetup(privacy, 6.0, bytes(range(32)))
    base, updates = model(), deltas()

    step = round_of(server("FedAvg", privacy, private), base, updates, privacy=privacy)

    chosen = [Update(part, 1.0, updates[part]) for part in ROWS]
    expected = private.rule(read_strategy("FedAvg")).aggregate(base, lambda: iter(chosen), len(chosen))
    assert isinstance(step, SecureStep)
    assert_close(step.weights, expected.weights)


def test_a_node_that_lost_its_keys_or_is_asked_nonsense_says_so() -> None:
    base = model()
    node = nodes(server().terms(None), base, deltas())[0]

    assert b"absent" in node.answer(absent("x"))
    with pytest.raises(BadDocument):
        SumTerms.from_dict({"number": 0, "clip": -1.0})


@pytest.mark.parametrize(
    "raw",
    [
        None,
        {},
        {"number": "1"},
        {"number": 1, "more": 2},
        {"number": 1, "full_weight": 0},
        {"number": 1, "clip": 1e-300},
        {"number": 1, "clip": 1e300},
        {"number": True},
        {"number": 1, "clip": None},
    ],
)
def test_terms_of_something_else_are_refused(raw: object) -> None:
    with pytest.raises(BadDocument):
        SumTerms.from_dict(raw)


def test_terms_are_read_back_equal() -> None:
    terms = SumTerms(3, 0.5, 64.0)

    assert SumTerms.from_dict(terms.to_dict()) == terms


def test_how_many_rows_the_largest_part_has_is_told_as_a_power_of_two() -> None:
    assert [full_weight(rows) for rows in (0.5, 1, 3, 250, 256)] == [1, 1, 4, 256, 256]


def test_what_a_checkpoint_holds_of_a_state_is_enough_to_go_on() -> None:
    base, updates = model(), deltas()
    first = round_of(server("FedAdam"), base, updates)
    assert isinstance(first, SecureStep)
    assert first.weights is not None

    straight = round_of(server("FedAdam"), first.weights, updates, first.state)
    resumed = round_of(server("FedAdam"), first.weights, updates, state_of_rule(rule_state(first.state)))

    assert isinstance(straight, SecureStep)
    assert isinstance(resumed, SecureStep)
    assert straight.weights is not None
    assert_close(resumed.weights, straight.weights, 1e-12)


def test_a_state_of_something_else_is_refused() -> None:
    with pytest.raises(BadDocument):
        server().reduce(model(), b"", b"", {})
