from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from parity_fl.bootstrap import draw_counts, split_trees
from parity_fl.partition import assign, holdout_rows, largest_remainder, plan_partition, rows_of_part
from parity_fl.plan import PartitionPlan
from parity_fl.prng import Sha256Stream, below, derive_key, shuffled
from parity_fl.spec import ForestConfig, PartitionConfig
from parity_protocol.errors import BadField, ExecutionFailed

SEED = "ab" * 32
VECTORS = Path(__file__).parents[2] / "vectors" / "fl"
STRATEGIES = ("random", "stratified", "sequential")  # the even ones; test_skew.py has the others


def plan_of(labels, *, strategy="random", parts=3, least=1, overlap=0.0, holdout=0.2, classification=True, seed=SEED):
    config = PartitionConfig(
        strategy=strategy,
        min_samples=least,
        total_parts=parts,
        overlap_ratio=overlap,
        holdout_fraction=holdout,
        alpha=0.5 if strategy == "non_iid" else None,
    )
    return plan_partition(config, np.asarray(labels), seed=seed, n_features=2, classification=classification)


# -- a second implementation of the words in partition.py and prng.py, one integer at a time -----------------------


class SlowStream:
    def __init__(self, purpose: str, *material: bytes) -> None:
        self.key = hashlib.sha256(b"parity-fl/v1\0" + purpose.encode() + b"\0" + b"".join(material)).digest()
        self.place = 0

    def word(self) -> int:
        block = hashlib.sha256(self.key + (self.place // 8).to_bytes(8, "big")).digest()
        start = 4 * (self.place % 8)
        self.place += 1
        return int.from_bytes(block[start : start + 4], "big")

    def below(self, bound: int) -> int:
        while True:
            product = self.word() * bound
            if product % 2**32 >= 2**32 % bound:
                return product >> 32

    def shuffle(self, values: list[int]) -> list[int]:
        values = list(values)
        for last in range(len(values) - 1, 0, -1):
            pick = self.below(last + 1)
            values[last], values[pick] = values[pick], values[last]
        return values


def slow_cut(plan: dict, labels: list) -> tuple[list[list[int]], list[int], str]:
    seed = bytes.fromhex(plan["seed"])
    if plan["strata"] == "class":
        strata = [plan["class_names"].index(str(label)) for label in labels]
    else:
        bins = min(10, max(1, len(labels) // 10))
        ranked = sorted(range(len(labels)), key=lambda row: (labels[row], row))
        strata = [0] * len(labels)
        for rank, row in enumerate(ranked):
            strata[row] = rank * bins // len(labels)
    shuffles = [
        SlowStream("stratum", seed, c.to_bytes(4, "big")).shuffle([r for r in range(len(labels)) if strata[r] == c])
        for c in range(plan["class_count"])
    ]
    holdout = sorted(row for c, rows in enumerate(shuffles) for row in rows[: plan["holdout_counts"][c]])
    if plan["strategy"] in {"stratified", "non_iid", "label_skew"}:
        owned: list[list[int]] = [[] for _ in range(plan["total_parts"])]
        for c, rows in enumerate(shuffles):
            rest = rows[plan["holdout_counts"][c] :]
            start = 0
            for number in range(plan["total_parts"]):
                count = plan["counts"][number][c]
                owned[number] += rest[start : start + count]
                start += count
    else:
        order = [row for row in range(len(labels)) if row not in set(holdout)]
        if plan["strategy"] == "random":
            order = SlowStream("rows", seed).shuffle(order)
        owned, start = [], 0
        for counts in plan["counts"]:
            owned.append(order[start : start + sum(counts)])
            start += sum(counts)
    parts = []
    for number, rows in enumerate(owned):
        lender = owned[(number + 1) % len(owned)]
        wanted = plan["overlap_counts"][number]
        if plan["strategy"] in {"stratified", "non_iid", "label_skew"}:
            borrowed = [row for c, n in enumerate(wanted) for row in [r for r in lender if strata[r] == c][:n]]
        else:
            borrowed = lender[: sum(wanted)]
        parts.append(sorted(rows + borrowed))
    digest = hashlib.sha256(b"parity-fl/assignment/v1\0")
    for rows in [*parts, holdout]:
        digest.update(len(rows).to_bytes(4, "little") + b"".join(row.to_bytes(4, "little") for row in rows))
    return parts, holdout, digest.hexdigest()


# -- golden vectors ------------------------------------------------------------------------------------------------


PARTITIONS = json.loads((VECTORS / "partition.json").read_text())


@pytest.mark.parametrize(
    "case",
    PARTITIONS,
    ids=[f"{c['plan']['strata']}-{c['plan']['strategy']}-{c['plan']['overlap_ratio']}" for c in PARTITIONS],
)
def test_golden_partition(case):
    slow_parts, slow_holdout, slow_hash = slow_cut(case["plan"], case["labels"])
    plan = PartitionPlan.from_dict(case["plan"])
    labels = np.array(case["labels"])

    cut = assign(plan, labels)

    assert [rows.tolist() for rows in cut.parts] == slow_parts == case["parts"]
    assert cut.holdout.tolist() == slow_holdout == case["holdout"]
    assert cut.digest() == slow_hash == plan.assignment_hash
    made = plan_of(
        labels,
        strategy=plan.strategy,
        parts=plan.total_parts,
        least=plan.min_samples,
        overlap=plan.overlap_ratio,
        holdout=plan.holdout_fraction,
        classification=plan.strata == "class",
        seed=plan.seed,
    )
    assert made == plan


def test_golden_stream():
    golden = json.loads((VECTORS / "stream.json").read_text())
    seed = bytes.fromhex(golden["material"])
    key = derive_key(golden["purpose"], seed)
    slow = SlowStream(golden["purpose"], seed)

    assert key.hex() == slow.key.hex() == golden["key"]
    assert Sha256Stream(key).peek(10).tolist() == [slow.word() for _ in range(10)] == golden["words"]
    slow = SlowStream(golden["purpose"], seed)
    numbers = below(Sha256Stream(key), np.array(golden["bounds"])).tolist()
    assert numbers == [slow.below(bound) for bound in golden["bounds"]] == golden["below"]
    mixed = shuffled(np.arange(20, dtype=np.uint32), Sha256Stream(key)).tolist()
    assert mixed == SlowStream(golden["purpose"], seed).shuffle(list(range(20))) == golden["shuffled_20"]


def test_golden_bootstrap():
    golden = json.loads((VECTORS / "stream.json").read_text())["bootstrap"]
    config = ForestConfig(random_state=golden["random_state"], subsample=golden["subsample"])
    slow = SlowStream("tree", (42).to_bytes(8, "big"), (1).to_bytes(4, "big"), (2).to_bytes(4, "big"))
    expected = [0] * golden["rows"]
    for _ in range(golden["rows"] // 2):
        expected[slow.below(golden["rows"])] += 1

    counts = draw_counts(config, part=golden["part"], tree=golden["tree"], rows=golden["rows"])

    assert counts.tolist() == expected == golden["counts"]


# -- the stream ----------------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(st.lists(st.integers(1, 2**32) | st.integers(2**31, 2**32), max_size=300), st.integers(0, 2**32 - 1))
def test_vector_draws_equal_one_by_one_draws_however_many_are_rejected(bounds, seed):
    material = seed.to_bytes(4, "big")
    slow = SlowStream("rows", material)

    numbers = below(Sha256Stream(derive_key("rows", material)), np.array(bounds, dtype=np.int64))

    assert numbers.tolist() == [slow.below(bound) for bound in bounds]


def test_draws_across_many_chunks_equal_one_by_one_draws():
    bounds = np.full(10_000, 3_000_000_000, dtype=np.int64)  # three of ten words are rejected
    slow = SlowStream("rows")

    numbers = below(Sha256Stream(derive_key("rows")), bounds)

    assert numbers.tolist() == [slow.below(3_000_000_000) for _ in range(10_000)]


def test_draws_are_uniform():
    numbers = below(Sha256Stream(derive_key("rows")), np.full(60_000, 6, dtype=np.int64))

    counts = np.bincount(numbers, minlength=6)
    chi_square = float(((counts - 10_000) ** 2 / 10_000).sum())
    assert chi_square < 20.5  # 5 degrees of freedom, one in a thousand


# -- properties of every cut ---------------------------------------------------------------------------------------


@st.composite
def tables(draw):
    classes = draw(st.integers(1, 6))
    labels = draw(st.lists(st.integers(0, classes - 1), min_size=6, max_size=120))
    return np.array(labels, dtype=np.float64)


@settings(max_examples=150)
@given(
    labels=tables(),
    strategy=st.sampled_from(STRATEGIES),
    parts=st.integers(1, 6),
    overlap=st.sampled_from([0.0, 0.1, 0.5, 0.99]),
    holdout=st.sampled_from([0.0, 0.2, 0.5]),
    classification=st.booleans(),
    seed=st.integers(0, 2**256 - 1).map("{:064x}".format),
)
def test_every_cut_is_sound(labels, strategy, parts, overlap, holdout, classification, seed):
    try:
        plan = plan_of(
            labels,
            strategy=strategy,
            parts=parts,
            overlap=overlap,
            holdout=holdout,
            classification=classification,
            seed=seed,
        )
    except BadField:
        assume(False)  # too few rows for so many parts
    cut = assign(plan, labels)
    owned = [set(rows.tolist()) for rows in cut.parts]
    held = set(cut.holdout.tolist())

    assert all(np.array_equal(rows, np.unique(rows)) for rows in (*cut.parts, cut.holdout))
    assert held.isdisjoint(set().union(*owned))
    assert held | set().union(*owned) == set(range(len(labels)))
    assert [len(rows) for rows in cut.parts] == [plan.part_size(part) for part in range(parts)]
    sizes = [sum(row) for row in plan.counts]
    assert max(sizes) - min(sizes) <= 1
    if overlap == 0 or parts == 1:
        assert sum(map(len, owned)) + len(held) == len(labels)
    elif parts > 1:
        assert all(
            len(rows) == size + min(int(np.ceil(overlap * size)), sizes[(part + 1) % parts])
            for part, (rows, size) in enumerate(zip(owned, sizes, strict=True))
        )
    if classification:
        assert set(labels) == set(labels[sorted(set().union(*owned))])
    again = PartitionPlan.from_dict(json.loads(json.dumps(plan.to_dict())))
    assert again == plan
    assert np.array_equal(rows_of_part(again, labels, parts - 1), cut.parts[-1])
    assert np.array_equal(holdout_rows(again, labels), cut.holdout)


def test_stratified_parts_keep_the_class_shares():
    labels = np.repeat([0.0, 1.0, 2.0], [300, 90, 30])

    cut = assign(plan_of(labels, strategy="stratified", holdout=0.1), labels)

    for rows in (*cut.parts, cut.holdout):
        shares = np.bincount(labels[rows].astype(int)) / len(rows)
        np.testing.assert_allclose(shares, [300 / 420, 90 / 420, 30 / 420], atol=0.02)


def test_regression_strata_spread_the_targets_evenly():
    labels = np.arange(200.0) ** 2

    plan = plan_of(labels, strategy="stratified", classification=False)

    assert plan.class_count == 10
    assert plan.holdout_counts == (4,) * 10
    assert all(abs(count - 16 / 3) < 1 for row in plan.counts for count in row)


def test_sequential_parts_are_consecutive_without_the_hold_out():
    labels = np.arange(50.0)

    plan = plan_of(labels, strategy="sequential", holdout=0, classification=False)

    assert [rows.tolist() for rows in assign(plan, labels).parts] == [
        list(range(17)),
        list(range(17, 34)),
        list(range(34, 50)),
    ]


def test_overlap_is_taken_from_the_next_part_cyclically():
    labels = np.arange(12.0)

    plan = plan_of(labels, strategy="sequential", parts=3, holdout=0, overlap=0.5, classification=False)

    assert [rows.tolist() for rows in assign(plan, labels).parts] == [
        [0, 1, 2, 3, 4, 5],
        [4, 5, 6, 7, 8, 9],
        [0, 1, 8, 9, 10, 11],
    ]


def test_another_seed_cuts_differently():
    labels = np.zeros(100)

    assert plan_of(labels).assignment_hash != plan_of(labels, seed="cd" * 32).assignment_hash


def test_a_class_with_one_row_is_trained_on_and_never_held_out():
    labels = np.array([0.0] * 20 + [1.0])

    plan = plan_of(labels, strategy="stratified", holdout=0.5)

    assert plan.holdout_counts[1] == 0


def test_a_part_below_min_samples_is_refused_with_its_numbers():
    with pytest.raises(BadField) as caught:
        plan_of(np.zeros(50), parts=5, least=9)

    assert caught.value.field == "partition_config.min_samples"
    assert "part 0 would have 8 samples, min_samples is 9" in caught.value.message


def test_a_hold_out_without_a_row_is_refused():
    with pytest.raises(BadField, match="leaves no row to score on"):
        plan_of(np.zeros(4), parts=1, holdout=0.1)


def test_numbers_to_predict_that_are_taken_for_classes_are_refused_as_such():
    with pytest.raises(BadField, match="600 rows have 600 different labels") as caught:
        plan_of(np.arange(600) / 7, parts=2, least=10)

    assert caught.value.field == "model_config.task"
    assert "make it a regression" in caught.value.message


def test_a_cut_of_other_data_is_refused():
    labels = np.repeat([0.0, 1.0], 30)
    plan = plan_of(labels, strategy="stratified")

    for other in (labels[:-1], 1 - labels, np.repeat([0.0, 2.0], 30), np.repeat([0.0, 1.0, 2.0], 20)):
        with pytest.raises(ExecutionFailed) as caught:
            assign(plan, other)
        assert caught.value.reason == "data_invalid"


def test_a_part_that_does_not_exist_is_refused():
    labels = np.zeros(60)

    with pytest.raises(BadField, match="part must be 0 to 2, got 3"):
        rows_of_part(plan_of(labels), labels, 3)


# -- the plan as a document ----------------------------------------------------------------------------------------


PLAN_FAULTS = [
    ("strategy", "by_moon"),
    ("redraws", 11),
    ("moved", -1),
    ("total_parts", 0),
    ("total_parts", True),
    ("total_parts", 4),
    ("seed", "AB" * 32),
    ("seed", "ab"),
    ("n_rows", 61),
    ("n_rows", -1),
    ("n_features", 0),
    ("strata", "rank"),
    ("class_names", ["0", "0"]),
    ("class_names", ["0"]),
    ("class_names", "01"),
    ("class_count", 3),
    ("holdout_fraction", 1),
    ("holdout_fraction", float("nan")),
    ("holdout_counts", [6, 5]),
    ("holdout_counts", [6, "6"]),
    ("counts", [[8, 8], [8, 8], [8, 9]]),
    ("counts", [[8, 8], [8, 8]]),
    ("counts", [[8, 8], [8, 8], [16]]),
    ("counts", [[24, 24], [0, 0], [0, 0]]),
    ("overlap_ratio", -0.5),
    ("overlap_counts", [[9, 0], [0, 0], [0, 0]]),
    ("overlap_counts", [[0, 0], [0, 0], [0, -1]]),
    ("min_samples", 17),
    ("assignment_hash", ""),
    ("surprise", 1),
    ("counts", ...),
]


@pytest.mark.parametrize(("name", "value"), PLAN_FAULTS)
def test_a_wrong_member_of_a_plan_is_refused_by_name(name, value):
    raw = plan_of(np.repeat([0.0, 1.0], 30), strategy="stratified").to_dict()
    assert raw["counts"] == [[8, 8], [8, 8], [8, 8]]
    raw.pop(name, None)
    if value is not ...:
        raw[name] = value

    with pytest.raises(BadField) as caught:
        PartitionPlan.from_dict(raw)

    assert caught.value.field.startswith("plan.")


def test_a_plan_whose_counts_do_not_fit_the_classes_is_refused():
    labels = np.repeat([0.0, 1.0], 30)
    raw = plan_of(labels, strategy="stratified").to_dict()
    raw["counts"] = [[16, 0], [16, 0], [16, 0]]

    with pytest.raises(ExecutionFailed, match="assignment hash"):
        assign(PartitionPlan.from_dict(raw), labels)


# -- shares --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("total", "weights", "caps", "shares"),
    [
        (10, [1, 1, 1], [9, 9, 9], [4, 3, 3]),
        (100, [47, 16, 15, 12, 9, 1], [99] * 6, [47, 16, 15, 12, 9, 1]),
        (10, [6, 6, 2], [99] * 3, [4, 4, 2]),  # the worked example of the Alabama paradox
        (11, [6, 6, 2], [99] * 3, [5, 5, 1]),
        (5, [1, 1], [1, 9], [1, 4]),
        (9, [1, 1], [2, 3], [2, 3]),
        (0, [3, 4], [3, 4], [0, 0]),
        (3, [0, 0], [0, 0], [0, 0]),
    ],
)
def test_largest_remainder(total, weights, caps, shares):
    assert largest_remainder(total, weights, caps) == shares


@given(st.integers(1, 500), st.integers(1, 20))
def test_trees_are_split_evenly(total, parts):
    shares = split_trees(total, parts)

    assert sum(shares) == total
    assert max(shares) - min(shares) <= 1
    assert shares == sorted(shares, reverse=True)


def test_draws_without_replacement_take_each_row_at_most_once():
    config = ForestConfig(bootstrap_samples=False, subsample=0.6)

    counts = draw_counts(config, part=0, tree=0, rows=50)

    assert counts.sum() == 30
    assert counts.max() == 1


def test_trees_of_different_parts_draw_differently():
    config = ForestConfig()
    draws = [draw_counts(config, part=part, tree=tree, rows=40).tolist() for part in range(3) for tree in range(3)]

    assert len({tuple(draw) for draw in draws}) == 9
