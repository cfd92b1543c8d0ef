"""What cannot stand beside a privacy switch is refused in words, and what can is told its price."""

from __future__ import annotations

from typing import Any

import pytest

from parity_fl.privacy.combinations import WAIVED, session_privacy
from parity_fl.privacy.config import PrivacyConfig, default_threshold, fewest_shares, read_privacy
from parity_fl.rounds_config import RoundsConfig, cohort_of, is_in_rounds, read_session_rounds, session_strategy
from parity_protocol.errors import BadField, Internal

DP: dict[str, Any] = {"differential_privacy": True, "noise_multiplier": 1.0, "l2_norm_clip": 1.0}
SECURE: dict[str, Any] = {"secure_aggregation": True}


def check(privacy: dict[str, Any], *, parts: int = 9, **members: Any) -> list[str]:
    session = {
        "model_type": "neural_network",
        "data_mode": "sharded",
        "holdout_fraction": 0.2,
        "total_rounds": 3,
        **members,
        "privacy": privacy,
    }
    rounds = strategy = None
    if is_in_rounds(session):
        rounds = read_session_rounds(session, parts=parts)
        strategy, _ = session_strategy(session, rounds, partition_strategy="random")
    return session_privacy(session, parts=parts, rounds=rounds, strategy=strategy)[1]


@pytest.mark.parametrize(
    ("privacy", "members", "said"),
    [
        (DP, {"data_mode": "partitioned"}, "needs data_mode sharded"),
        (SECURE, {"data_mode": "partitioned"}, "needs data_mode sharded"),
        (DP, {"strategy_config": {"strategy": "Krum"}}, "needs a rule that is a mean .* under Krum one update decides"),
        (DP, {"strategy_config": {"strategy": "FedMedian"}}, "needs a rule that is a mean"),
        (DP, {"strategy_config": {"weighting": "samples"}}, "needs weighting uniform"),
        (DP, {"strategy_config": {"pre_aggregation": "nnm", "num_malicious": 1}}, "excludes pre_aggregation nnm"),
        (DP, {"strategy_config": {"clip": "median"}}, "excludes clip median"),
        (
            DP,
            {"rounds_config": {"contribution": "leave_one_out"}, "eval_cid": "bafy"},
            "allows no score of a single part",
        ),
        (DP, {"rounds_config": {"fraction": 0.5}}, "needs fraction 1, got 0.5: who is asked follows from a seed"),
        (DP, {"rounds_config": {"over_selection": 0.5}}, "needs over_selection 0"),
        (DP, {"model_type": "random_forest", "total_rounds": 1}, "a forest has none"),
        (
            DP,
            {"model_type": "linear_regression", "model_config": {"solver": "exact"}, "total_rounds": 1},
            "the exact solver has none",
        ),
        (SECURE, {"strategy_config": {"strategy": "Krum"}}, "Krum compares single updates"),
        (SECURE, {"strategy_config": {"strategy": "Bulyan"}}, "Bulyan compares single updates"),
        (SECURE, {"strategy_config": {"strategy": "FedTrimmedAvg"}}, "FedTrimmedAvg compares single updates"),
        (SECURE, {"strategy_config": {"strategy": "FedMedian"}}, "FedMedian compares single updates"),
        (SECURE, {"strategy_config": {"pre_aggregation": "nnm", "num_malicious": 1}}, "excludes pre_aggregation nnm"),
        (SECURE, {"rounds_config": {"contribution": "leave_one_out"}, "eval_cid": "bafy"}, "no update to leave out"),
        (SECURE, {"rounds_config": {"update_format": "fp16"}}, "update_format fp16 cannot be added up"),
        (SECURE, {"rounds_config": {"update_format": "int8"}}, "update_format int8 cannot be added up"),
        (SECURE, {"rounds_config": {"fraction": 0.9, "quorum": 7}}, "needs fraction 1 and over_selection 0"),
        (SECURE, {"rounds_config": {"quorum": 6}}, "threshold 7 parts: quorum must be at least that, got 6"),
        (
            SECURE,
            {"model_type": "random_forest", "model_config": {"mode": "union"}, "total_rounds": 1},
            "mode union hands over whole trees",
        ),
        (
            SECURE,
            {"model_type": "random_forest", "model_config": {"mode": "leaf_refit"}, "total_rounds": 1},
            "mode leaf_refit hands over",
        ),
        (
            SECURE,
            {
                "model_type": "linear_regression",
                "model_config": {"solver": "exact", "standardize": False},
                "total_rounds": 1,
            },
            "of an exact line needs standardize",
        ),
        ({**SECURE, "threshold": 4}, {}, "threshold must be from 5 to 9 for 9 parts, got 4"),
        ({**SECURE, **DP}, {"rounds_config": {"sampling": "poisson"}}, "exclude each other"),
        ({}, {"rounds_config": {"sampling": "poisson"}}, "sampling poisson is for differential_privacy"),
    ],
)
def test_an_impossible_combination_is_refused_in_words(
    privacy: dict[str, Any], members: dict[str, Any], said: str
) -> None:
    with pytest.raises(BadField, match=said):
        check(privacy, **members)


def test_a_sum_of_two_is_refused() -> None:
    with pytest.raises(BadField, match="needs 3 to 256 parts, got 2: of a sum of two each knows the other's"):
        check(SECURE, parts=2)


@pytest.mark.parametrize("strategy", ["FedAvg", "FedProx", "FedAdam"])
@pytest.mark.parametrize("privacy", [DP, SECURE, {**DP, **SECURE}])
def test_the_means_work_with_both_switches(strategy: str, privacy: dict[str, Any]) -> None:
    warnings = check(privacy, strategy_config={"strategy": strategy})

    assert (WAIVED in warnings) == bool(privacy.get("secure_aggregation"))


@pytest.mark.parametrize(
    "members",
    [
        {"model_type": "random_forest", "model_config": {"mode": "histogram"}, "total_rounds": 1},
        {"model_type": "linear_regression", "model_config": {"solver": "exact"}, "total_rounds": 1},
    ],
)
def test_what_is_made_of_sums_works_with_secure_aggregation(members: dict[str, Any]) -> None:
    assert WAIVED in check(SECURE, **members)


def test_what_differential_privacy_does_not_cover_is_told() -> None:
    told = " | ".join(check({**DP, "delta": 0.5}))

    assert "hold-out rows are told without noise" in told
    assert "delta 0.5 is not below 1 / 9 parts" in told
    assert "the market itself sees every update" in told
    assert "hold-out" not in " | ".join(check(DP, eval_cid="bafy"))


def test_a_fraction_counts_when_parts_are_drawn_by_secret_coins() -> None:
    check(DP, rounds_config={"fraction": 0.5, "sampling": "poisson"})


def test_a_threshold_under_two_thirds_says_whom_it_withstands() -> None:
    told = " | ".join(check({**SECURE, "threshold": 5}))

    assert "threshold 5 of 9 holds against a malicious market only while fewer than 1 nodes work with it; 7" in told
    assert "malicious market only" not in " | ".join(check(SECURE))


@pytest.mark.parametrize(
    ("raw", "field"),
    [
        ({"noise_multiplier": 1.0}, "privacy.noise_multiplier"),  # believes to be protected
        ({"l2_norm_clip": 1.0}, "privacy.l2_norm_clip"),
        ({"threshold": 3}, "privacy.threshold"),
        ({"differential_privacy": True, "l2_norm_clip": 1.0}, "privacy.noise_multiplier"),
        ({"differential_privacy": True, "noise_multiplier": 1.0}, "privacy.l2_norm_clip"),
        ({**DP, "noise_multiplier": 0}, "privacy.noise_multiplier"),
        ({**DP, "noise_multiplier": True}, "privacy.noise_multiplier"),
        ({**DP, "delta": 1.0}, "privacy.delta"),
        ({**DP, "target_quantile": 0.5}, "privacy.target_quantile"),
        ({**DP, "epsilon": 1.0}, "privacy.epsilon"),
        ({**DP, "clipping_range": 2.0}, "privacy.clipping_range"),
        ({**SECURE, "l2_norm_clip": 1.0, "clipping_range": 2.0}, "privacy.clipping_range"),
        ({"differential_privacy": "yes"}, "privacy.differential_privacy"),
    ],
)
def test_a_wrong_member_is_named(raw: dict[str, Any], field: str) -> None:
    with pytest.raises(BadField) as caught:
        read_privacy(raw)

    assert caught.value.field == field


def test_what_clients_of_the_parity_network_send_is_read() -> None:
    off = {"differential_privacy": False, "noise_multiplier": 0, "l2_norm_clip": 0, "secure_aggregation": False}

    assert read_privacy(off) == PrivacyConfig()
    assert read_privacy({**off, "noise_multiplier": 1.1, "l2_norm_clip": 1.0}) == PrivacyConfig()
    assert read_privacy({**DP, "secure_aggregation": False}).noise == 1.0


@pytest.mark.parametrize("raw", [DP, SECURE, {**DP, "adaptive": True, "count_stddev": 3.0}, {}])
def test_a_config_is_read_back_equal(raw: dict[str, Any]) -> None:
    config = read_privacy(raw)

    assert read_privacy(config.to_dict() or None) == config


@pytest.mark.parametrize("parts", range(3, 40))
def test_thresholds_keep_the_bounds_of_the_paper(parts: int) -> None:
    assert 2 * fewest_shares(parts) > parts
    assert 3 * default_threshold(parts) > 2 * parts
    assert default_threshold(parts) <= parts


def test_secure_sessions_send_whole_numbers_and_need_their_threshold_by_default() -> None:
    config = read_session_rounds({"total_rounds": 1, "privacy": SECURE}, parts=9)

    assert (config.update_format, config.quorum) == ("fp32", 7)


def test_coins_draw_each_part_by_itself() -> None:
    config = RoundsConfig(1, 1, 1, fraction=0.25, sampling="poisson")
    coins = iter([bytes([63]) + bytes(7), bytes([64]) + bytes(7), bytes(8), b"\xff" * 8])

    assert cohort_of(config, parts=4, seed="00" * 32, number=1, coins=lambda _: next(coins)) == (0, 2)


def test_coins_are_never_made_from_the_seed() -> None:
    with pytest.raises(Internal):
        cohort_of(RoundsConfig(1, 1, 1, fraction=0.5, sampling="poisson"), parts=4, seed="00" * 32, number=1)


@pytest.mark.parametrize("name", ["noise_multiplier", "l2_norm_clip"])
@pytest.mark.parametrize("value", [0.0, -1.0, 1e-300, 1e300])
def test_a_number_with_which_the_noise_would_overflow_is_refused_by_name(name: str, value: float) -> None:
    noisy = {"differential_privacy": True, "noise_multiplier": 1.0, "l2_norm_clip": 1.0, name: value}
    with pytest.raises(BadField, match=f"{name} must be at least 1e-12 and at most"):
        read_privacy(noisy)
