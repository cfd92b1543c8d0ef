"""Unequal cuts: ``non_iid`` and ``label_skew``."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from parity_fl.fields import Section
from parity_fl.partition import assign, plan_partition
from parity_fl.partition_config import PARTITION_FIELDS, PartitionConfig, partition_config
from parity_fl.plan import PartitionPlan
from parity_fl.prng import Sha256Stream, derive_key
from parity_fl.skew import dirichlet_shares, skewed_counts
from parity_protocol.errors import BadField

SEED = "ab" * 32
GOLDEN = json.loads((Path(__file__).parents[2] / "vectors" / "fl" / "partitions.json").read_text())
GOLDEN_SEED = "5eed" * 16


def config_of(strategy="non_iid", *, parts=5, least=1, **more):
    if strategy == "non_iid":
        more.setdefault("alpha", 0.5)
    return PartitionConfig(strategy=strategy, min_samples=least, total_parts=parts, **more)


def golden_labels(kind):
    if kind == "class":
        return np.array([["a", "b", "c"][(i * i + i // 7) % 3] for i in range(300)])
    return np.array([float((i * 37) % 300) / 4 for i in range(300)])


@pytest.mark.parametrize(
    "case", GOLDEN, ids=[f"{c['strata']}-{i}-{c['config']['strategy']}" for i, c in enumerate(GOLDEN)]
)
def test_golden_assignment(case):
    config, _ = partition_config(Section(case["config"], "partition_config"))

    plan = plan_partition(
        config,
        golden_labels(case["strata"]),
        seed=GOLDEN_SEED,
        n_features=2,
        classification=case["strata"] == "class",
    )

    found = plan.to_dict()
    assert {name: found[name] for name in case if name not in {"strata", "config"}} == {
        name: value for name, value in case.items() if name not in {"strata", "config"}
    }


def test_the_golden_cases_have_redraws_repairs_and_neither():
    assert {(case["redraws"] > 0, case["moved"] > 0) for case in GOLDEN} >= {
        (False, False),
        (True, True),
        (False, True),
    }


@settings(max_examples=120, deadline=None)
@given(
    labels=st.lists(st.integers(0, 5), min_size=12, max_size=150).map(lambda each: np.array(each, dtype=np.float64)),
    strategy=st.sampled_from(["non_iid", "label_skew"]),
    alpha=st.sampled_from([1e-12, 0.05, 0.5, 1.0, 30.0, 1e15]),
    balanced=st.booleans(),
    parts=st.integers(1, 7),
    least=st.integers(1, 6),
    overlap=st.sampled_from([0.0, 0.3, 0.99]),
    holdout=st.sampled_from([0.0, 0.2]),
    classification=st.booleans(),
    seed=st.integers(0, 2**256 - 1).map("{:064x}".format),
)
def test_every_unequal_cut_is_sound(
    labels, strategy, alpha, balanced, parts, least, overlap, holdout, classification, seed
):
    skewed = strategy == "non_iid"
    config = PartitionConfig(
        strategy=strategy,
        min_samples=least,
        total_parts=parts,
        overlap_ratio=overlap,
        holdout_fraction=holdout,
        alpha=alpha if skewed else None,
        balanced=skewed and balanced,
    )
    try:
        plan = plan_partition(config, labels, seed=seed, n_features=2, classification=classification)
    except BadField:
        assume(False)  # too few rows for so many parts
    cut = assign(plan, labels)

    owned = [set(rows.tolist()) for rows in cut.parts]
    held = set(cut.holdout.tolist())
    assert held.isdisjoint(set().union(*owned))
    assert held | set().union(*owned) == set(range(len(labels)))
    assert [len(rows) for rows in cut.parts] == [plan.part_size(part) for part in range(parts)]
    assert min(sum(row) for row in plan.counts) >= least
    if overlap == 0 or parts == 1:
        assert sum(map(len, owned)) + len(held) == len(labels)
    if classification:
        for part, rows in enumerate(cut.parts):
            own = np.array(plan.counts[part]) + np.array(plan.overlap_counts[part])
            found = {name: int((labels[rows] == float(name)).sum()) for name in plan.class_names}
            assert found == dict(zip(plan.class_names, own.tolist(), strict=True))
    again = PartitionPlan.from_dict(json.loads(json.dumps(plan.to_dict())))
    assert again == plan
    assert assign(again, labels).digest() == plan.assignment_hash


# -- the draws -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.1, 0.5, 1.0, 4.0])
def test_shares_have_the_moments_of_a_dirichlet_distribution(alpha):
    parts, draws = 4, 1500
    raw = [
        dirichlet_shares(alpha, parts, Sha256Stream(derive_key("moments", i.to_bytes(4, "big")))) for i in range(draws)
    ]
    shares = np.array([[share / sum(each) for share in each] for each in raw])

    variance = (1 / parts) * (1 - 1 / parts) / (parts * alpha + 1)
    np.testing.assert_allclose(shares.mean(axis=0), 1 / parts, atol=5 * np.sqrt(variance / draws))
    np.testing.assert_allclose(shares.var(axis=0), variance, rtol=0.15)


def test_a_tiny_alpha_gives_all_of_a_class_to_one_part_and_never_nothing_to_all():
    for number in range(50):
        shares = dirichlet_shares(1e-9, 6, Sha256Stream(derive_key("tiny", number.to_bytes(4, "big"))))

        assert sorted(shares) == [0, 0, 0, 0, 0, 1 << 64]


def test_a_huge_alpha_shares_evenly():
    counts = np.array(skewed_counts(config_of(alpha=1e12, parts=4), [400, 40, 4], seed=SEED).counts)

    assert np.abs(counts - np.array([[100, 10, 1]])).max() <= 1


def test_balanced_parts_differ_less_in_size():
    sizes = [100] * 10

    def spread(balanced):
        drawn = [
            [sum(row) for row in skewed_counts(config_of(alpha=0.1, balanced=balanced), sizes, seed=f"{n:064x}").counts]
            for n in range(12)
        ]
        return float(np.mean([max(each) - min(each) for each in drawn]))

    assert spread(True) < 0.7 * spread(False)


def test_a_smaller_alpha_makes_classes_more_concentrated():
    def largest_share(alpha):
        counts = np.array(skewed_counts(config_of(alpha=alpha, parts=5), [200] * 20, seed=SEED).counts)
        return float((counts.max(axis=0) / 200).mean())

    assert largest_share(0.05) > largest_share(0.5) + 0.1 > largest_share(5) + 0.2


# -- repair --------------------------------------------------------------------------------------------------------


def test_a_cut_that_no_draw_satisfies_is_repaired_from_the_largest_part_and_says_so():
    found = skewed_counts(config_of(parts=10, least=9, alpha=0.1), [40, 40, 40], seed=SEED)

    assert found.redraws == 10
    assert found.moved > 0
    assert min(map(sum, found.counts)) >= 9
    assert np.array(found.counts).sum(axis=0).tolist() == [40, 40, 40]


def test_a_cut_that_is_good_at_once_is_left_as_it_was_drawn():
    found = skewed_counts(config_of(parts=2, least=1, alpha=10.0), [50, 50], seed=SEED)

    assert (found.redraws, found.moved) == (0, 0)


def test_exactly_enough_rows_are_dealt_evenly():
    found = skewed_counts(config_of(parts=6, least=5, alpha=0.1), [10, 10, 10], seed=SEED)

    assert [sum(row) for row in found.counts] == [5] * 6


def test_too_few_rows_are_refused_with_their_numbers():
    with pytest.raises(BadField) as caught:
        skewed_counts(config_of(parts=6, least=6), [10, 10, 10], seed=SEED)

    assert caught.value.field == "partition_config.min_samples"
    assert "30 rows to train on cannot give 6 parts 6 samples each" in caught.value.message


# -- label skew ----------------------------------------------------------------------------------------------------


def owned_classes(parts, classes, per_part):
    config = config_of("label_skew", parts=parts, classes_per_part=per_part)
    counts = skewed_counts(config, [parts * 4] * classes, seed=SEED).counts
    return [[c for c, count in enumerate(row) if count] for row in counts]


def test_part_i_owns_the_classes_from_i_on_cyclically():
    assert owned_classes(5, 5, 2) == [[0, 1], [1, 2], [2, 3], [3, 4], [0, 4]]


def test_few_parts_still_own_every_class():
    assert owned_classes(3, 10, 4) == [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8, 9]]


def test_without_a_number_a_part_owns_two_classes_or_as_many_as_are_needed():
    assert {len(each) for each in owned_classes(10, 10, None)} == {2}
    assert {len(each) for each in owned_classes(2, 10, None)} == {5}


def test_rows_of_a_class_are_split_evenly_among_its_owners():
    counts = skewed_counts(config_of("label_skew", parts=4, classes_per_part=1), [9, 9], seed=SEED).counts

    assert sorted(counts) == [(0, 4), (0, 5), (4, 0), (5, 0)]


def test_classes_without_an_owner_are_refused():
    with pytest.raises(
        BadField, match="classes_per_part must be at least 5, so that 2 parts own all 10 classes, got 3"
    ):
        skewed_counts(config_of("label_skew", parts=2, classes_per_part=3), [20] * 10, seed=SEED)


# -- settings ------------------------------------------------------------------------------------------------------


def read(**members):
    raw = {"min_samples": 5, "total_parts": 3, **members}
    return partition_config(Section.open(raw, "partition_config", PARTITION_FIELDS))[0]


@pytest.mark.parametrize("name", ["non_iid", "dirichlet", "Dirichlet"])
def test_non_iid_goes_by_two_names(name):
    assert read(strategy=name, alpha=0.3) == config_of("non_iid", least=5, parts=3, alpha=0.3)


@pytest.mark.parametrize(
    "members",
    [
        {"strategy": "random", "alpha": 0.5},
        {"strategy": "non_iid", "alpha": 0.5, "balanced": True},
        {"strategy": "label_skew", "classes_per_part": 3},
        {"strategy": "label_skew"},
    ],
)
def test_settings_survive_the_wire(members):
    config = read(**members)

    assert read(**config.to_dict()) == config


@pytest.mark.parametrize(
    ("members", "field", "words"),
    [
        ({"strategy": "non_iid"}, "alpha", "alpha parameter is required for non_iid partitioning strategy"),
        (
            {"strategy": "non_iid", "alpha": 0},
            "alpha",
            "alpha parameter must be positive for non-IID partitioning, got 0.000000",
        ),
        ({"strategy": "non_iid", "alpha": -1.5}, "alpha", "got -1.500000"),
        ({"strategy": "non_iid", "alpha": float("nan")}, "alpha", "alpha must be a finite number"),
        ({"strategy": "random", "balanced": True}, "balanced", "balanced belongs to non_iid, not to random"),
        ({"strategy": "non_iid", "alpha": 1, "classes_per_part": 2}, "classes_per_part", "belongs to label_skew"),
        ({"strategy": "label_skew", "classes_per_part": 0}, "classes_per_part", "must be from 1"),
        ({"strategy": "label_skew", "balanced": []}, "balanced", "belongs to non_iid"),
    ],
)
def test_wrong_settings_are_refused_in_words(members, field, words):
    with pytest.raises(BadField) as caught:
        read(**members)

    assert caught.value.field == f"partition_config.{field}"
    assert words in caught.value.message
