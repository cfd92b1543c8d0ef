"""Forests of old runners, counted again: they pass the recount that every part's forest does, and lies have no effect."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_diabetes, load_iris

from parity_fl.forest import train_forest
from parity_fl.forest_wire import write_old_trees
from parity_fl.old_forest import refitted_update
from parity_fl.plan import PartitionPlan
from parity_fl.runner import audit_update, finish, plan_session
from parity_fl.spec import FlSpec, ForestConfig, resolve_fl_spec
from parity_fl.update import decode_update
from parity_protocol.errors import BadDocument, BadField, InvalidInput

IRIS, DIABETES = load_iris(), load_diabetes()
SEED = "ab" * 32


def table(features: Any, labels: Any) -> bytes:
    return "".join(
        ",".join(map(str, [*row, label])) + "\n" for row, label in zip(features, labels, strict=True)
    ).encode()


DATA = table(IRIS.data, IRIS.target)
NUMBERS = table(DIABETES.data, DIABETES.target)


def session(data: bytes = DATA, **model: Any) -> tuple[FlSpec, PartitionPlan]:
    spec = resolve_fl_spec(
        {
            "session_id": "s",
            "round_id": "r",
            "model_type": "random_forest",
            "dataset_cid": "c",
            "data_format": "csv",
            "model_config": {"num_trees": 6, "max_depth": 5, **model},
            "partition_config": {"strategy": "random", "total_parts": 2, "min_samples": 5},
        }
    )
    return spec, plan_session(spec, data, SEED)


def grown(*, trees: int = 3, seed: int = 1) -> list[float]:
    """Return trees as an old runner grows them: on rows that it chose itself."""
    config = ForestConfig(num_trees=trees, max_depth=5, random_state=seed)
    rows = np.random.default_rng(seed).permutation(150)[:75]
    forest = train_forest(IRIS.data[rows], IRIS.target[rows].astype(float), config, n_classes=3, part=0, n_trees=trees)
    return write_old_trees(forest.forest, config, labels=(0.0, 1.0, 2.0))


def sent(trees: object, **weights: Any) -> bytes:
    return json.dumps({"weights": {"trees": trees, **weights}}).encode()


def test_an_old_runners_forest_passes_the_recount_and_is_merged() -> None:
    spec, plan = session()

    updates = [refitted_update(spec, plan, DATA, sent(grown(seed=part)), part) for part in range(2)]

    for part, update in enumerate(updates):
        audit_update(spec, plan, DATA, update, part)
    assert finish(spec, plan, DATA, updates).metrics["accuracy"] > 0.85


def test_what_is_said_of_leaves_has_no_effect() -> None:
    spec, plan = session()
    numbers = grown()
    lies = list(numbers)
    at = 4
    while at < len(lies):  # every leaf says class 2, and a million rows
        if lies[at + 5] == 1:
            lies[at + 2], lies[at + 3] = 2.0, 1_000_000.0
        at += 6
        if at < len(lies) and (lies[at] == 5.0 and lies[at + 1] == 2.0 and lies[at + 2] == 1.0):
            at += 4

    assert refitted_update(spec, plan, DATA, sent(lies), 0) == refitted_update(spec, plan, DATA, sent(numbers), 0)


def test_a_branch_that_no_row_reaches_is_cut_off() -> None:
    spec, plan = session(num_trees=2)
    # Everything is left of a thousand, so the root is its left child: a split at petal length 2.5.
    stump = [
        5,
        2,
        1,
        0,
        0,
        1e3,
        0,
        9,
        0,
        0,
        2,
        2.5,
        0,
        6,
        0,
        0,
        -1,
        0,
        0,
        3,
        0,
        1,
        -1,
        0,
        1,
        3,
        0,
        1,
        -1,
        0,
        2,
        3,
        0,
        1,
    ]

    update = refitted_update(spec, plan, DATA, sent(stump), 0)

    audit_update(spec, plan, DATA, update, 0)
    tensors = decode_update(update).tensors
    assert tensors["feature"].tolist() == [2, -1, -1]
    assert tensors["n"][0] == tensors["n"][1] + tensors["n"][2]
    np.testing.assert_allclose(tensors["value"][1], [1, 0, 0], atol=1e-6)  # petals below 2.5 are all setosa


def test_a_regression_forest_is_counted_again_too() -> None:
    spec, plan = session(NUMBERS, task="regression", num_trees=2)
    stump = [5, 2, 1, 0, 2, 0.0, 0, 9, 0, 0, -1, 0, 1e9, 3, 0, 1, -1, 0, -1e9, 6, 0, 1]

    updates = [refitted_update(spec, plan, NUMBERS, sent(stump), part) for part in range(2)]

    for part, update in enumerate(updates):
        audit_update(spec, plan, NUMBERS, update, part)
    assert finish(spec, plan, NUMBERS, updates).metrics["r2"] > 0.1


def test_more_trees_than_the_part_grows_are_left_out() -> None:
    spec, plan = session()

    audit_update(spec, plan, DATA, refitted_update(spec, plan, DATA, sent(grown(trees=7)), 0), 0)


@pytest.mark.parametrize(
    ("data", "field"),
    [
        (b"{}", "weights"),
        (b"[]", "weights"),
        (sent([]), "weights.trees"),
        (sent("x"), "weights.trees"),
        (sent(["1"] * 10), "weights.trees"),
        (sent([True] * 10), "weights.trees"),
        (sent(grown(trees=2)), "weights.trees"),
        (sent(grown(), feature_importance=["x"]), "weights.feature_importance"),
    ],
)
def test_what_are_no_trees_is_refused_by_name(data: bytes, field: str) -> None:
    with pytest.raises(BadField) as caught:
        refitted_update(*session(), DATA, data, 0)

    assert caught.value.field == field


@pytest.mark.parametrize(
    "data",
    [
        sent([1, 2, 3]),
        sent([5, 2, 1, 0, 9, 0.5, 0, 4, 0, 0, -1, 0, 0, 2, 0, 1, -1, 0, 1, 2, 0, 1] * 3),  # there is no column 9
        sent([5, 2, 1, 0] + [0, 0.5, 0, 4, 0, 0] * 9),  # deeper than allowed, and cut off
        sent([5, 2, 1, 0, -1, 0, 0, 1e300, 0, 1] * 3),
        b"[" * 10_000,
        b'{"weights": {"trees": [NaN]}}',
        sent([0] * 900_000),
    ],
    ids=["short", "column", "deep", "rows", "brackets", "nan", "many"],
)
def test_hostile_trees_are_refused(data: bytes) -> None:
    with pytest.raises((BadDocument, InvalidInput)):
        refitted_update(*session(), DATA, data, 0)
