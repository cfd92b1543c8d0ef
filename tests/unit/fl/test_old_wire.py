"""Updates in the Parity network's JSON form."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest

from parity_fl.models.base import Weights
from parity_fl.old_wire import OldUpdate, read_old_layers, read_old_update, write_old_layers, write_old_update
from parity_protocol.errors import BadDocument, BadField, TooLarge

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
# As a runner of the network sent it (recorded); gradients repeat the weights.
RECORDED = (
    b'{"accuracy":0,"data_size":75,"gradients":{"layer_weights":[0.23344644471053735,0.5696968053815736,'
    b'0.6277498519951505,0.7528334934917194,-1.102177082242089]},"loss":1.1626681280296247,"metadata":'
    b'{"submission_time":1795379388},"round_id":"b9ed340a-7f78-4212-ade2-9d1cddd4e8ef","runner_id":'
    b'"007145d4a09365c9fc4c2b400ffd91613e9d2420ef655f392f4494d4d0b0fe3f","session_id":'
    b'"0c6a4eac-a856-4d72-ab15-8391cf8c0d00","training_time":1000,"update_type":"gradients","weights":'
    b'{"layer_weights":[0.23344644471053735,0.5696968053815736,0.6277498519951505,0.7528334934917194,'
    b"-1.102177082242089]}}"
)
LINEAR = {"bias": np.array([0.5], np.float32), "weights": np.ones(4, np.float32)}


def network() -> Weights:
    rng = np.random.default_rng(0)
    shapes = {"layer_00.bias": (4,), "layer_00.weight": (3, 4), "layer_01.bias": (2,), "layer_01.weight": (4, 2)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def body(**changes: Any) -> bytes:
    members: dict[str, Any] = {**json.loads(RECORDED), **changes}
    return json.dumps({name: value for name, value in members.items() if value is not ...}).encode()


def test_a_recorded_update_is_the_difference_of_its_weights_to_the_model() -> None:
    found = read_old_update(RECORDED, LINEAR)

    assert found.session_id == "0c6a4eac-a856-4d72-ab15-8391cf8c0d00"
    assert (found.data_size, found.training_time_ms, found.accuracy) == (75, 1000, 0.0)
    np.testing.assert_allclose(found.delta["bias"], [0.23344644 - 0.5], rtol=1e-6)
    np.testing.assert_allclose(
        found.delta["weights"], [0.5696968 - 1, 0.6277498 - 1, 0.7528335 - 1, -1.1021771 - 1], rtol=1e-6
    )


def test_gradients_alone_are_true_differences() -> None:
    found = read_old_update(body(weights=..., gradients={"layer_weights": [1, 2, 3, 4, 5]}), LINEAR)

    np.testing.assert_array_equal(found.delta["bias"], [1])
    np.testing.assert_array_equal(found.delta["weights"], [2, 3, 4, 5])


def test_the_time_is_read_under_both_names() -> None:
    assert read_old_update(body(training_time=..., training_time_ms=7), LINEAR).training_time_ms == 7
    assert read_old_update(body(training_time=..., training_time_ms=...), LINEAR).training_time_ms == 0


def test_our_update_comes_back_and_its_gradients_are_the_differences() -> None:
    base = network()
    delta = {name: (tensor * np.float32(0.01)).astype(np.float32) for name, tensor in network().items()}
    said = write_old_update(OldUpdate("s", "r", "n", delta, 50, 0.3, 0.9, 1234), base, now=NOW)

    found = read_old_update(json.dumps(said).encode(), base)

    assert list(said) == [
        "session_id", "round_id", "runner_id", "gradients", "weights", "update_type",
        "data_size", "loss", "accuracy", "training_time", "metadata",
    ]  # fmt: skip
    assert said["metadata"] == {"submission_time": 1795435200}
    assert said["gradients"] == write_old_layers(delta)
    for name, tensor in delta.items():
        np.testing.assert_allclose(found.delta[name], tensor, atol=2e-7)


def test_a_network_with_one_hidden_layer_has_the_old_names_row_by_row() -> None:
    weights = network()

    layers = write_old_layers(weights)

    assert set(layers) == {"input_to_hidden_weights", "hidden_bias", "hidden_to_output_weights", "output_bias"}
    assert layers["input_to_hidden_weights"][4] == weights["layer_00.weight"][1, 0]
    found = read_old_layers(layers, {name: tensor.shape for name, tensor in weights.items()}, field="weights")
    for name, tensor in weights.items():
        np.testing.assert_array_equal(found[name], tensor)


def test_a_deeper_network_keeps_our_names() -> None:
    weights = {**network(), "layer_02.bias": np.zeros(1, np.float32)}

    assert set(write_old_layers(weights)) == set(weights)


def test_the_old_trainers_own_name_is_read() -> None:
    found = read_old_layers({"linear_weights": [1, 2, 3]}, {"bias": (1,), "weights": (2,)}, field="weights")

    assert found["weights"].tolist() == [2, 3]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"session_id": ...}, "session_id"),
        ({"round_id": ""}, "round_id"),
        ({"runner_id": 3}, "runner_id"),
        ({"weights": ..., "gradients": ...}, "gradients"),
        ({"weights": [1]}, "weights"),
        ({"weights": {"layer_weights": [1, 2]}}, "weights.layer_weights"),
        ({"weights": {"layer_weights": [1, 2, 3, 4, "5"]}}, "weights.layer_weights"),
        ({"weights": {"layer_weights": [1, 2, 3, 4, True]}}, "weights.layer_weights"),
        ({"weights": {"layer_weights": [1, 2, 3, 4, None]}}, "weights.layer_weights"),
        ({"weights": {"layer_weights": [1, 2, 3, 4, 1e39]}}, "weights.layer_weights"),
        ({"weights": {"layer_weights": [1, 2, 3, 4, 10**39]}}, "weights.layer_weights"),
        ({"weights": {"layer_weights": {"0": 1}}}, "weights.layer_weights"),
        ({"weights": {"hidden_bias": [1]}}, "weights"),
        ({"weights": {"layer_weights": [1, 2, 3, 4, 5], "more": []}}, "weights"),
        ({"data_size": "75"}, "data_size"),
        ({"loss": True}, "loss"),
        ({"data_size": 10**30}, "data_size"),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(BadField) as caught:
        read_old_update(body(**changes), LINEAR)

    assert caught.value.field == field


@pytest.mark.parametrize("data", [b"", b"{", b'{"loss": NaN}', b"\xff", body(loss=10**4000)])
def test_what_is_no_json_is_refused(data: bytes) -> None:
    with pytest.raises(BadDocument):
        read_old_update(data, LINEAR)


def test_a_long_model_is_read_in_the_old_form_too() -> None:
    base = {"bias": np.zeros(1, np.float32), "weights": np.zeros(400_000, np.float32)}
    layers = {"layer_weights": [1] * 400_001}

    found = read_old_update(body(weights=layers, gradients=layers), base)

    assert found.delta["weights"].sum() == 400_000


def test_what_is_too_long_is_refused() -> None:
    with pytest.raises(TooLarge):
        read_old_update(RECORDED, LINEAR, max_bytes=100)
