"""Write ``mlp.json`` again: ``python tests/vectors/fl/generate_mlp.py``.

``tests/unit/fl/models/test_mlp_vectors.py`` checks the file against a slow second implementation of the same text.
"""

import json
from pathlib import Path

import numpy as np

from parity_fl.models.base import weights_digest
from parity_fl.models.dense import epoch_order
from parity_fl.models.mlp import Mlp
from parity_fl.neural_config import NeuralConfig
from parity_fl.spec import TrainConfig

HERE = Path(__file__).parent
SEED = "5eed" * 16


def table(rows: int, width: int) -> tuple[list[list[float]], list[int]]:
    features = [[((7 * row + 3 * column) % 11) / 4 - 1 for column in range(width)] for row in range(rows)]
    return features, [(row * row) % 3 for row in range(rows)]


def epoch_cases() -> list[dict[str, object]]:
    features, labels = table(10, 3)
    cases: list[dict[str, object]] = []
    for optimizer in ("sgd", "momentum", "adam"):
        for activation in ("relu", "tanh", "sigmoid"):
            config = NeuralConfig((4,), activation=activation)
            model = Mlp(config, n_features=3, n_classes=3, kernel="numpy")
            train = TrainConfig(epochs=2, batch_size=4, learning_rate=0.1, optimizer=optimizer, momentum=0.9)
            mu = 0.5 if optimizer == "momentum" else 0.0
            trained = model.train(
                model.init(bytes.fromhex(SEED)),
                np.array(features),
                np.array(labels, dtype=np.float64),
                train,
                seed=bytes.fromhex(SEED),
                proximal_mu=mu,
            )
            cases.append(
                {
                    "optimizer": optimizer,
                    "activation": activation,
                    "proximal_mu": mu,
                    "weights": {name: value.tolist() for name, value in trained.weights.items()},
                    "loss": trained.loss,
                }
            )
    return cases


def vectors() -> dict[str, object]:
    seed = bytes.fromhex(SEED)
    small = Mlp(NeuralConfig((4,)), n_features=3, n_classes=3).init(seed)
    large = Mlp(NeuralConfig((128,)), n_features=64, n_classes=10).init(seed)
    features, labels = table(10, 3)
    return {
        "seed": SEED,
        "first_weights_3_4_3_relu": {name: value.tolist() for name, value in small.items()},
        "first_digest_64_128_10_relu": weights_digest(large),
        "order_of_epoch_1": epoch_order(seed, 1, 10).tolist(),
        "features": features,
        "labels": labels,
        "train": {"epochs": 2, "batch_size": 4, "learning_rate": 0.1, "momentum": 0.9},
        "trained": epoch_cases(),
    }


if __name__ == "__main__":
    (HERE / "mlp.json").write_text(json.dumps(vectors(), indent=1) + "\n")
