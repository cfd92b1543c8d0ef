"""The golden vectors of perceptrons, against a slow second implementation in float64 with plain loops."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parity_fl.models.base import weights_digest
from parity_fl.models.dense import epoch_order
from parity_fl.models.mlp import Mlp
from parity_fl.neural_config import NeuralConfig
from parity_fl.spec import TrainConfig

VECTORS: dict[str, Any] = json.loads((Path(__file__).parents[3] / "vectors" / "fl" / "mlp.json").read_text())
SEED = bytes.fromhex(VECTORS["seed"])
WIDTHS = (3, 4, 3)


def words(purpose: str, material: bytes, count: int) -> list[int]:
    key = hashlib.sha256(b"parity-fl/v1\x00" + purpose.encode() + b"\x00" + material).digest()
    blocks = [hashlib.sha256(key + at.to_bytes(8, "big")).digest() for at in range(count // 8 + 1)]
    raw = b"".join(blocks)
    return [int.from_bytes(raw[4 * at : 4 * at + 4], "big") for at in range(count)]


def first(layer: int, fan_in: int, fan_out: int, bound: float) -> list[list[float]]:
    drawn = words("layer", SEED + layer.to_bytes(4, "big"), fan_in * fan_out)
    flat = [float(np.float32(((word + 0.5) / 2**31 - 1) * bound)) for word in drawn]
    return [flat[row * fan_out : (row + 1) * fan_out] for row in range(fan_in)]


def order(epoch: int, rows: int) -> list[int]:
    """Fisher–Yates by Lemire's rule; no word of these vectors is rejected."""
    drawn = words("batches", SEED + epoch.to_bytes(4, "big"), rows)
    found = list(range(rows))
    for at, word in zip(range(rows - 1, 0, -1), drawn, strict=False):
        product = word * (at + 1)
        assert product % 2**32 >= 2**32 % (at + 1)
        other = product >> 32
        found[at], found[other] = found[other], found[at]
    return found


ACTIVATIONS = {
    "relu": (lambda z: max(z, 0.0), lambda a: 1.0 if a > 0 else 0.0),
    "tanh": (math.tanh, lambda a: 1 - a * a),
    "sigmoid": (lambda z: 1 / (1 + math.exp(-z)), lambda a: a * (1 - a)),
}


def slowly_trained(case: dict[str, Any]) -> dict[str, np.ndarray]:
    activate, slope = ACTIVATIONS[case["activation"]]
    hidden_bound = math.sqrt(6 / 3) if case["activation"] == "relu" else math.sqrt(6 / 7)
    w = [np.array(first(0, 3, 4, hidden_bound)), np.array(first(1, 4, 3, math.sqrt(6 / 7)))]
    b = [np.zeros(4), np.zeros(3)]
    values = [b[0], w[0], b[1], w[1]]
    anchors = [value.copy() for value in values]
    memory = [(np.zeros_like(value), np.zeros_like(value)) for value in values]
    features, labels, train = VECTORS["features"], VECTORS["labels"], VECTORS["train"]
    steps = 0
    for epoch in range(1, train["epochs"] + 1):
        rows = order(epoch, len(labels))
        for start in range(0, len(rows), train["batch_size"]):
            batch = rows[start : start + train["batch_size"]]
            gradients = [np.zeros_like(value) for value in values]
            for row in batch:
                x = features[row]
                a = [activate(b[0][h] + sum(x[i] * w[0][i, h] for i in range(3))) for h in range(4)]
                z = [b[1][o] + sum(a[h] * w[1][h, o] for h in range(4)) for o in range(3)]
                total = sum(math.exp(value) for value in z)
                d_out = [math.exp(z[o]) / total - (1.0 if labels[row] == o else 0.0) for o in range(3)]
                d_hidden = [slope(a[h]) * sum(d_out[o] * w[1][h, o] for o in range(3)) for h in range(4)]
                gradients[2] += np.array(d_out) / len(batch)
                gradients[3] += np.outer(a, d_out) / len(batch)
                gradients[0] += np.array(d_hidden) / len(batch)
                gradients[1] += np.outer(x, d_hidden) / len(batch)
            steps += 1
            for value, anchor, g, (m, v) in zip(values, anchors, gradients, memory, strict=True):
                g += case["proximal_mu"] * (value - anchor)
                if case["optimizer"] == "sgd":
                    value -= train["learning_rate"] * g
                elif case["optimizer"] == "momentum":
                    m *= train["momentum"]
                    m += g
                    value -= train["learning_rate"] * m
                else:
                    m[:] = 0.9 * m + 0.1 * g
                    v[:] = 0.999 * v + 0.001 * g * g
                    value -= train["learning_rate"] * (m / (1 - 0.9**steps)) / (np.sqrt(v / (1 - 0.999**steps)) + 1e-8)
    return {
        "layer_00.bias": values[0],
        "layer_00.weight": values[1],
        "layer_01.bias": values[2],
        "layer_01.weight": values[3],
    }


def test_first_weights_are_the_files_and_the_texts_bit_for_bit() -> None:
    made = Mlp(NeuralConfig((4,)), n_features=3, n_classes=3).init(SEED)

    assert {name: value.tolist() for name, value in made.items()} == VECTORS["first_weights_3_4_3_relu"]
    assert made["layer_00.weight"].tolist() == first(0, 3, 4, math.sqrt(6 / 3))
    assert made["layer_01.weight"].tolist() == first(1, 4, 3, math.sqrt(6 / 7))


def test_a_larger_networks_first_weights_have_the_files_digest() -> None:
    made = Mlp(NeuralConfig((128,)), n_features=64, n_classes=10).init(SEED)

    assert weights_digest(made) == VECTORS["first_digest_64_128_10_relu"]


def test_an_epochs_order_is_the_files_and_the_texts() -> None:
    assert epoch_order(SEED, 1, 10).tolist() == VECTORS["order_of_epoch_1"] == order(1, 10)


@pytest.mark.parametrize("case", VECTORS["trained"], ids=lambda case: f"{case['optimizer']}-{case['activation']}")
def test_two_epochs_are_the_files_and_the_slow_implementations(case: dict[str, Any]) -> None:
    settings = VECTORS["train"]
    config = TrainConfig(
        settings["epochs"], settings["batch_size"], settings["learning_rate"], case["optimizer"], settings["momentum"]
    )
    model = Mlp(NeuralConfig((4,), activation=case["activation"]), n_features=3, n_classes=3, kernel="numpy")

    trained = model.train(
        model.init(SEED),
        np.array(VECTORS["features"]),
        np.array(VECTORS["labels"], dtype=np.float64),
        config,
        seed=SEED,
        proximal_mu=case["proximal_mu"],
    )

    slow = slowly_trained(case)
    assert trained.steps == 6
    assert trained.loss == pytest.approx(case["loss"], abs=1e-5)
    for name, value in trained.weights.items():
        np.testing.assert_allclose(value, case["weights"][name], atol=2e-6)
        np.testing.assert_allclose(value, slow[name], atol=2e-6)
