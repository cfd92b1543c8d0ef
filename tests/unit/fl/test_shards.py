"""Parts that hold their own rows: what they say, what is agreed, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parity_fl.data import Dataset, label_classes
from parity_fl.partition_config import PartitionConfig
from parity_fl.shard_plans import misfits, odd_one_out, plan_shards
from parity_fl.shards import ShardAgreement, ShardPlan, ShardSummary, cut_shard, fingerprint_of, summarize
from parity_protocol.errors import BadDocument, BadField, ExecutionFailed

SEED = "ab" * 32
NAMES = ("height", "width")


def dataset(labels: list[Any], *, columns: int = 2, names: tuple[str, ...] | None = NAMES) -> Dataset:
    return Dataset(np.zeros((len(labels), columns)), np.array(labels), names)


def config(parts: int, *, least: int = 1, holdout: float = 0.25, **more: Any) -> PartitionConfig:
    return PartitionConfig(strategy="random", min_samples=least, total_parts=parts, holdout_fraction=holdout, **more)


def planned(*labels: list[Any], classification: bool = True, **more: Any) -> ShardPlan:
    summaries = [summarize(dataset(each), part, classification=classification) for part, each in enumerate(labels)]
    return plan_shards(config(len(labels), **more), summaries, seed=SEED, classification=classification)


def test_classes_are_the_union_of_all_shards_in_one_order() -> None:
    plan = planned([10.0, 9.0, 10.0], [2.0, 9.0], holdout=0.0)

    assert plan.class_names == ("2", "9", "10")
    assert plan.counts == ((0, 1, 2), (1, 1, 0))
    assert cut_shard(plan.agreement, np.array([10.0, 9.0, 10.0]), 0).truth.tolist() == [2, 1, 2]
    assert cut_shard(plan.agreement, np.array([2.0, 9.0]), 1).truth.tolist() == [0, 1]


def test_the_union_is_the_class_list_of_all_rows_together() -> None:
    shards = [["cat", "dog"], ["emu", "cat"], ["ant"] * 4]

    assert planned(*shards, holdout=0.0).class_names == label_classes(np.concatenate(shards)).names


@settings(max_examples=80)
@given(
    shards=st.lists(st.lists(st.integers(0, 4), min_size=3, max_size=40), min_size=2, max_size=5),
    holdout=st.sampled_from([0.0, 0.2, 0.5, 0.9]),
    seed=st.integers(0, 2**256 - 1).map("{:064x}".format),
)
def test_every_shard_is_cut_into_training_and_hold_out_by_class(shards, holdout, seed) -> None:
    shards[0] += [0, 1]  # so that there are two classes at least
    labels = [np.array(each, dtype=np.float64) for each in shards]
    said = [summarize(dataset(each.tolist()), part, classification=True) for part, each in enumerate(labels)]
    plan = plan_shards(config(len(shards), holdout=holdout), said, seed=seed, classification=True)

    for part, each in enumerate(labels):
        cut = cut_shard(plan.agreement, each, part)

        assert sorted([*cut.training.tolist(), *cut.holdout.tolist()]) == list(range(len(each)))
        assert len(cut.training) == plan.part_size(part)
        counted = [int((each[cut.holdout] == float(name)).sum()) for name in plan.class_names]
        assert tuple(counted) == plan.holdout_counts[part]
        assert set(each[cut.training]) == set(each)  # no class of a shard is in its hold-out alone


def test_the_hold_out_follows_from_seed_and_part() -> None:
    labels = np.array([0.0, 1.0] * 30)
    plan = planned(labels.tolist(), labels.tolist())

    first, again, other_part = (
        cut_shard(plan.agreement, labels, 0),
        cut_shard(plan.agreement, labels, 0),
        cut_shard(plan.agreement, labels, 1),
    )
    other_seed = cut_shard(replace(plan.agreement, seed="cd" * 32), labels, 0)

    assert first.holdout.tolist() == again.holdout.tolist()
    assert first.holdout.tolist() != other_part.holdout.tolist()
    assert first.holdout.tolist() != other_seed.holdout.tolist()


def test_a_regression_has_no_classes_and_keeps_its_targets() -> None:
    plan = planned([1.5, 2.5, 3.5, 4.5], [9.0, 8.0], classification=False)

    assert plan.class_names == ()
    assert plan.counts == ((3,), (1,))
    assert plan.holdout_counts == ((1,), (1,))
    assert cut_shard(plan.agreement, np.array([9.0, 8.0]), 1).truth.tolist() == [9.0, 8.0]


def test_a_part_that_claims_many_rows_does_not_own_the_model() -> None:
    plan = planned([0.0, 1.0] * 10, [0.0, 1.0] * 10, [0.0, 1.0] * 5_000, holdout=0.0)

    assert [plan.weight(part) for part in range(3)] == [20.0, 20.0, 200.0]
    two = planned([0.0, 1.0] * 10, [0.0, 1.0] * 5_000, holdout=0.0)
    assert [two.weight(part) for part in range(2)] == [20.0, 200.0]


def test_plans_are_named_by_a_hash_of_all_that_was_agreed() -> None:
    plan = planned(["a", "b"], ["b", "c"])

    assert plan.digest() == planned(["a", "b"], ["b", "c"]).digest()
    assert len({plan.digest(), planned(["a", "b"], ["b", "b"]).digest(), replace(plan, seed="0" * 64).digest()}) == 3


def test_a_shard_without_names_is_as_good_as_one_with() -> None:
    said = [
        summarize(dataset([0.0, 1.0], names=None), 0, classification=True),
        summarize(dataset([0.0, 1.0]), 1, classification=True),
    ]

    assert plan_shards(config(2, holdout=0.0), said, seed=SEED, classification=True).feature_names == NAMES


# -- refusals -------------------------------------------------------------------------------------------------------


def said(part: int, labels: list[Any], **more: Any) -> ShardSummary:
    return summarize(dataset(labels, **more), part, classification=True)


GOOD = said(0, [0.0, 1.0, 1.0])


@pytest.mark.parametrize(
    ("summaries", "words"),
    [
        ([GOOD], r"one summary of each of 2 parts, got parts \[0\]"),
        ([GOOD, GOOD], "one summary of each"),
        ([GOOD, said(2, [0.0, 1.0])], "one summary of each"),
        ([GOOD, said(1, [0.0, 1.0], columns=3, names=None)], "part 1 has 3 features, part 0 has 2"),
        ([GOOD, said(1, [0.0, 1.0], names=("width", "height"))], "part 1 has other feature names"),
        ([GOOD, said(1, ["a", "b"])], "classes of part 1 are words, those of part 0 are numbers"),
        ([GOOD, replace(said(1, [1.0]), class_counts={})], "part 1 says nothing of classes"),
        ([replace(said(part, [1.0]), part=part) for part in (0, 1)], "one class only"),
        ([GOOD, replace(said(1, [1.0]), class_counts={"x": 1})], "a class name is no number"),
        ([GOOD, replace(said(1, [1.0]), class_counts={"nan": 1})], "must be finite and differ"),
        ([GOOD, replace(said(1, [1.0]), class_counts={"1.0": 1})], "must be finite and differ"),
    ],
)
def test_shards_that_do_not_fit_together_are_refused_by_part(summaries: list[ShardSummary], words: str) -> None:
    with pytest.raises(BadField, match=words):
        plan_shards(config(2), summaries, seed=SEED, classification=True)


def test_a_shard_that_is_too_small_is_refused_with_its_numbers() -> None:
    with pytest.raises(BadField, match="part 1 would have 3 samples, min_samples is 4"):
        planned([0.0, 1.0] * 10, [0.0, 1.0, 0.0, 1.0], least=4)


def test_rows_cannot_be_borrowed_between_shards() -> None:
    with pytest.raises(BadField) as caught:
        plan_shards(config(1, overlap_ratio=0.1), [GOOD], seed=SEED, classification=True)

    assert caught.value.field == "partition_config.overlap_ratio"


@pytest.mark.parametrize("changed", [(b"other rows", b"salt"), (b"rows", b"other salt")])
def test_a_shard_that_changed_since_is_refused(changed: tuple[bytes, bytes]) -> None:
    known = replace(GOOD, fingerprint=fingerprint_of(b"rows", b"salt"))
    plan = plan_shards(config(1), [known], seed=SEED, classification=True)
    labels = np.array([0.0, 1.0, 1.0])

    assert len(cut_shard(plan.agreement, labels, 0, fingerprint=fingerprint_of(b"rows", b"salt")).training)
    with pytest.raises(ExecutionFailed) as caught:
        cut_shard(plan.agreement, labels, 0, fingerprint=fingerprint_of(*changed))

    assert caught.value.reason == "data_invalid"


def test_a_shard_with_a_class_that_was_not_agreed_on_is_refused() -> None:
    plan = plan_shards(config(1), [GOOD], seed=SEED, classification=True)

    with pytest.raises(ExecutionFailed, match="classes that the plan does not know"):
        cut_shard(plan.agreement, np.array([0.0, 1.0, 2.0]), 0)


def test_a_plan_and_its_agreement_survive_being_written() -> None:
    plan = planned(["a", "b"], ["b", "c"])

    assert ShardPlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    assert ShardAgreement.from_dict(json.loads(json.dumps(plan.agreement.to_dict()))) == plan.agreement


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("total_parts", 0),
        ("total_parts", 3),
        ("seed", "AB" * 32),
        ("n_features", 0),
        ("class_names", ["a", 1]),
        ("fingerprints", [1, 2]),
        ("holdout_fraction", 1),
        ("holdout_fraction", "0"),
        ("counts", [[1]]),
    ],
)
def test_a_wrong_member_of_an_agreement_is_refused(name: str, value: object) -> None:
    with pytest.raises(BadDocument):
        ShardAgreement.from_dict({**planned(["a", "b"], ["b", "c"]).agreement.to_dict(), name: value})


def test_a_part_that_does_not_exist_is_refused() -> None:
    with pytest.raises(BadField, match="part must be 0 to 0, got 1"):
        cut_shard(plan_shards(config(1), [GOOD], seed=SEED, classification=True), np.array([0.0, 1.0, 1.0]), 1)


# -- who is wrong ---------------------------------------------------------------------------------------------------


@settings(max_examples=80)
@given(data=st.data())
def test_honest_shards_contradict_nobody_whatever_they_hold(data: st.DataObject) -> None:
    classes = data.draw(st.sampled_from([["a", "b", "c"], [0.0, 1.5, -7.0, 1e20]]))
    one_each = data.draw(st.booleans())
    labels = [
        [classes[part % len(classes)]] * data.draw(st.integers(1, 50))
        if one_each
        else data.draw(st.lists(st.sampled_from(classes), min_size=1, max_size=30))
        for part in range(data.draw(st.integers(3, 8)))
    ]
    named = data.draw(st.lists(st.booleans(), min_size=len(labels), max_size=len(labels)))
    shards = {
        part: ShardSummary.from_dict(said(part, own, names=NAMES if has_names else None).to_dict())
        for part, (own, has_names) in enumerate(zip(labels, named, strict=True))
    }

    assert misfits(shards) == {}


def five(**odd: ShardSummary) -> dict[int, ShardSummary]:
    """Return five shards, some of them as given by ``p0`` to ``p4``."""
    return {part: odd.get(f"p{part}", said(part, [0.0, 1.0, 1.0])) for part in range(5)}


@pytest.mark.parametrize(
    ("odd", "found"),
    [
        ({"p0": said(0, [0.0, 1.0], columns=3, names=None)}, {0: "its columns number 3, those of most parts 2"}),
        (
            {"p1": said(1, [0.0], names=("b", "a")), "p4": said(4, [0.0], columns=1, names=None)},
            {1: "its columns are named b, a, those of most parts height, width", 4: "its columns number 1"},
        ),
        ({"p2": said(2, ["x", "y"])}, {2: "its classes are words, those of most parts numbers"}),
        ({"p2": said(2, [0.0], names=None)}, {}),
    ],
)
def test_what_most_parts_say_holds(odd: dict[str, ShardSummary], found: dict[int, str]) -> None:
    told = misfits(five(**odd))

    assert list(told) == list(found)
    for part, words in found.items():
        assert told[part].startswith(f"does_not_fit: {words}")


def test_half_of_the_parts_are_no_majority() -> None:
    halves = {part: said(part, [0.0], columns=2 + part // 2, names=None) for part in range(4)}

    assert misfits(halves) == {}
    assert misfits({part: halves[part] for part in (0, 2)}) == {}


def test_the_one_part_without_which_the_others_fit_is_found() -> None:
    def fits(shards: dict[int, ShardSummary]) -> None:
        if sum(shard.n_rows for shard in shards.values()) > 12:
            raise BadField("too many", field="shards")

    def with_rows(*rows: int) -> dict[int, ShardSummary]:
        return {part: replace(said(part, [0.0]), n_rows=count) for part, count in enumerate(rows)}

    assert odd_one_out(with_rows(5, 9, 5), fits) == 1
    assert odd_one_out(with_rows(7, 7, 1), fits) is None  # either of two
    assert odd_one_out(with_rows(9, 9, 9), fits) is None
    assert odd_one_out(with_rows(3, 12), fits) is None  # of two nobody knows


# -- the summary as a document --------------------------------------------------------------------------------------


@pytest.mark.parametrize("summary", [GOOD, said(3, ["a", "b"], names=None)])
def test_a_summary_survives_the_wire(summary: ShardSummary) -> None:
    assert ShardSummary.from_dict(json.loads(json.dumps(summary.to_dict()))) == summary


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("part", -1),
        ("part", True),
        ("part", 1024),
        ("n_rows", 0),
        ("n_rows", 4),
        ("n_rows", 1 << 40),
        ("n_features", 3),
        ("n_features", 0),
        ("n_features", 10**9),
        ("feature_names", "ab"),
        ("feature_names", ["a"]),
        ("feature_names", ["a", 1]),
        ("feature_names", ["a", "\x1b[0m"]),
        ("class_counts", [3]),
        ("class_counts", {"0": 1}),
        ("class_counts", {"0": 4, "1": -1}),
        ("class_counts", {"0": 1.0, "1": 2}),
        ("class_counts", {"x" * 300: 3}),
        ("class_counts", {"0": 1, "one": 2}),
        ("class_counts", {"0": 1, "1.0": 2}),
        ("class_counts", {"0": 1, "nan": 2}),
        ("class_counts", {str(number): 1 for number in range(1001)}),
        ("has_numbers", 1),
        ("fingerprint", "AB" * 32),
        ("fingerprint", "ab"),
        ("surprise", 1),
        ("part", ...),
    ],
)
def test_a_wrong_member_of_a_summary_is_refused(name: str, value: object) -> None:
    raw = GOOD.to_dict()
    raw.pop(name, None)
    if value is not ...:
        raw[name] = value

    with pytest.raises(BadDocument):
        ShardSummary.from_dict(raw)


def test_what_is_no_object_is_refused() -> None:
    with pytest.raises(BadDocument):
        ShardSummary.from_dict([])
