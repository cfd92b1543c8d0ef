"""What the old network's runner says of a task that is wrong, in its order and its words (parity-protocol.md §5.2).

One mistake is mended at a time, so that each text is seen exactly where it belongs.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from parity_fl.runner import plan_session
from parity_fl.spec import resolve_fl_spec
from parity_fl.training import SessionModel
from parity_protocol.errors import BadField, ExecutionFailed, ParityError

SEED = "ab" * 32
ROWS = b"".join(b"%d,%d,%d\n" % (i, i * 7 % 13, i % 2) for i in range(60))

# (what is mended, the text before it was)
STEPS: list[tuple[dict[str, Any], str]] = [
    ({"model_type": "svm"}, "model_type is required"),
    ({"dataset_cid": "QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG"}, "dataset_cid is required"),
    ({"data_format": "csv"}, "data_format is required"),
    ({"session_id": "s"}, "session_id is required"),
    ({"round_id": "r"}, "round_id is required"),
    ({"model_type": "neural_network"}, "unsupported model type: svm"),
    (
        {"model_config": {"hidden_size": 4, "input_size": "2"}},
        "hidden_size is required in neural network configuration",
    ),
    ({"model_config": {"hidden_size": 4}}, "invalid input size"),
    ({"partition_config": {"strategy": "non_iid"}}, "partition strategy is required"),
    (
        {"partition_config": {"strategy": "non_iid", "alpha": 0.0}},
        "alpha parameter is required for non_iid partitioning strategy",
    ),
    (
        {"partition_config": {"strategy": "by_moon"}},
        "alpha parameter must be positive for non-IID partitioning, got 0.000000",
    ),
    ({"partition_config": {"strategy": "by_moon", "min_samples": 5}}, "min_samples must be provided and positive"),
    ({"partition_config": {"strategy": "random", "min_samples": 5}}, "unsupported partitioning strategy: by_moon"),
    (
        {"train_config": {"epochs": 2, "batch_size": 8, "learning_rate": 0}},
        "training configuration is incomplete: epochs, batch_size, learning_rate are required",
    ),
    (
        {"train_config": {"epochs": 2, "batch_size": 8, "learning_rate": 2.0}},
        "learning rate must be positive, got 0.0",
    ),
    (
        {"train_config": {"epochs": 2, "batch_size": 8, "learning_rate": 0.1}},
        "learning rate is too high (2.0), maximum allowed is 1.0",
    ),
]


def test_every_text_comes_in_the_old_runners_order() -> None:
    raw: dict[str, Any] = {}
    said = []

    for mended, _ in STEPS:
        with pytest.raises(BadField) as caught:
            resolve_fl_spec(copy.deepcopy(raw))
        said.append(caught.value.message)
        raw |= mended

    resolve_fl_spec(raw)  # nothing is wrong any more
    wanted = [text for _, text in STEPS]
    assert [one[: len(text)] for one, text in zip(said, wanted, strict=True)] == wanted


def task(**changes: Any) -> dict[str, Any]:
    raw: dict[str, Any] = {}
    for mended, _ in STEPS:
        raw |= mended
    return {**raw, **changes}


@pytest.mark.parametrize(
    ("changes", "data", "text"),
    [
        ({}, b"", "failed to read CSV header"),
        ({}, b"a,b,y\n", "no data loaded"),
        ({}, b"y\n1\n", "features have zero dimensions"),
        ({}, b"1,2,0\n1,0\n", "inconsistent feature dimensions at sample 1: expected 2, got 1"),
        ({}, b"1,2,0\n1,x,0\n", "failed to parse feature value"),
        ({}, b"1,2,0\n1,nan,0\n", "input features contain NaN or Inf values at sample 1, feature 1"),
        ({}, b"1,2,0\n1,2,inf\n", "input labels contain NaN or Inf values at sample 1"),
        ({"data_format": "json"}, b"[]", "failed to parse JSON data"),
        (
            {"data_format": "json"},
            b'{"features": [[1], [2]], "labels": [1]}',
            "mismatched features and labels length",
        ),
        ({"model_config": {"hidden_size": 4, "input_size": 3}}, ROWS, "feature size mismatch: expected 3, got 2"),
    ],
)
def test_data_that_cannot_be_used_are_refused_in_its_words(changes: dict[str, Any], data: bytes, text: str) -> None:
    with pytest.raises(ParityError) as caught:
        plan_session(resolve_fl_spec(task(**changes)), data, SEED)

    assert caught.value.message.startswith(text)


@pytest.mark.parametrize(
    "model",
    [
        {"model_type": "neural_network", "model_config": {"hidden_size": 4, "standardize": False}},
        {"model_type": "linear_regression", "model_config": {"input_size": 2, "standardize": False}},
    ],
    ids=["network", "line"],
)
def test_training_that_does_not_stay_finite_ends_in_its_words(model: dict[str, Any]) -> None:
    huge = b"".join(b"%d,%d,%d\n" % (i * 10**12, -i * 10**12, i % 2) for i in range(60))
    training = {"epochs": 50, "batch_size": 4, "learning_rate": 1.0}
    spec = resolve_fl_spec(task(**model, train_config=training))
    plan = plan_session(spec, huge, SEED)
    session = SessionModel.load(spec, plan, huge)

    with np.errstate(all="ignore"), pytest.raises(ExecutionFailed) as caught:
        session.train(0, session.first(), 1)

    assert caught.value.message.startswith("training produced NaN/Inf loss at epoch ")
    assert "this indicates numerical instability" in caught.value.message
