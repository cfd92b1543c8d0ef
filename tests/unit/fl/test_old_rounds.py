"""A round for a runner of the Parity network: the model as lists, its update as one of ours."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from parity_fl import old_rounds
from parity_fl.codec import decode_delta, encode_weights
from parity_fl.old_rounds import old_base, old_update
from parity_protocol.errors import BadDocument, BadField, InvalidInput, TooLarge

BASE = {"bias": np.array([0.5], np.float32), "weights": np.array([1.0, 2.0], np.float32)}
MODEL = encode_weights(BASE)
SENT: dict[str, Any] = {
    "session_id": "s",
    "round_id": "r",
    "runner_id": "d",
    "weights": {"layer_weights": [1.5, 2.0, 0.0]},
    "gradients": {"layer_weights": [9, 9, 9]},
    "loss": 0.25,
    "accuracy": 0.5,
    "data_size": 7,
    "training_time": 1500,
}


def body(**changes: Any) -> bytes:
    return json.dumps({**SENT, **changes}).encode()


def test_the_model_is_lists_under_the_old_names() -> None:
    assert old_base(MODEL) == {"layer_weights": [0.5, 1.0, 2.0]}


def test_an_update_is_the_difference_to_the_rounds_model() -> None:
    found = old_update(MODEL, body())

    delta = decode_delta(found.body, {"bias": (1,), "weights": (2,)})
    np.testing.assert_array_equal(delta["bias"], [1.0])
    np.testing.assert_array_equal(delta["weights"], [1.0, -2.0])
    assert (found.session_id, found.round_id, found.runner_id) == ("s", "r", "d")
    assert found.numbers == {"loss": 0.25, "accuracy": 0.5, "samples": 7.0, "train_s": 1.5}


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"weights": {"layer_weights": [1.0, 2.0]}}, "weights.layer_weights"),
        ({"weights": {"layer_weights": [1.0, 2.0, "NaN"]}}, "weights.layer_weights"),
        ({"weights": {"layer_weights": [1.0, 2.0, 1e300]}}, "weights.layer_weights"),
        ({"weights": {"layer_weights": [1.0, [2.0], 3.0]}}, "weights.layer_weights"),
        ({"weights": {"other": [1.0, 2.0, 3.0]}}, "weights"),
        ({"weights": [1.0, 2.0, 3.0]}, "weights"),
        ({"weights": None, "gradients": None}, "gradients"),
        ({"loss": "NaN"}, "loss"),
        ({"data_size": True}, "data_size"),
    ],
)
def test_what_is_no_update_of_this_model_is_refused_by_name(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(BadField) as caught:
        old_update(MODEL, body(**changes))

    assert caught.value.field == field


@pytest.mark.parametrize(
    "data",
    [
        body().replace(b"2.0", b"NaN", 1),
        body().replace(b"2.0", b"1e999", 1),
        body()[:-1],
        b"[" * 100_000,
        json.dumps({**SENT, "metadata": {"a": [[[[[[[[[1]]]]]]]]]}}).encode(),
        body(weights={"layer_weights": [0] * 50_000}),
    ],
    ids=["nan", "too large a number", "cut off", "brackets", "deep", "many"],
)
def test_hostile_json_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidInput):
        old_update(MODEL, data)


def test_a_model_of_too_many_parameters_does_not_travel_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(old_rounds, "MAX_OLD_VALUES", 2)

    with pytest.raises(TooLarge, match="3 parameters"):
        old_base(MODEL)


def test_what_is_no_rounds_model_is_refused() -> None:
    with pytest.raises(BadDocument):
        old_base(encode_weights(BASE, "fp16"))
