"""The torch kernel against the numpy kernel; needs the extra ``[torch]``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from parity_fl.engines.choice import LARGE_STEP, large_kernel
from parity_fl.models.base import weights_digest
from parity_fl.models.mlp import Mlp
from parity_fl.neural_config import NeuralConfig
from parity_fl.spec import TrainConfig
from parity_protocol.errors import ExecutionFailed

pytestmark = [pytest.mark.service("torch"), pytest.mark.serial]  # serial: torch stays loaded in its process


@pytest.fixture(scope="module", autouse=True)
def torch(service_path: Callable[[str], Path]) -> Iterator[None]:
    """Put torch's environment behind the project's own packages."""
    folder = str(service_path("torch"))
    sys.path.append(folder)
    yield
    sys.path.remove(folder)


SEED, OTHER = b"\x01" * 32, b"\x02" * 32


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid"])
@pytest.mark.parametrize(
    ("task", "outputs", "classes"), [("classification", 0, 3), ("classification", 1, 2), ("regression", 0, 0)]
)
def test_torch_and_numpy_train_the_same_weights(optimizer, activation, task, outputs, classes):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(200, 12))
    truth = rng.integers(0, classes, 200).astype(float) if classes else features @ rng.normal(size=12)
    config = NeuralConfig((16, 8), output_size=outputs, activation=activation, task=task)
    kernels = [Mlp(config, n_features=12, n_classes=classes, kernel=name) for name in ("numpy", "torch")]

    ours, theirs = (
        model.train(model.init(SEED), features, truth, TrainConfig(3, 32, 0.01, optimizer), seed=OTHER, proximal_mu=0.1)
        for model in kernels
    )

    assert ours.steps == theirs.steps
    assert ours.loss == pytest.approx(theirs.loss, rel=1e-5)
    for name, value in ours.weights.items():
        np.testing.assert_allclose(theirs.weights[name], value, atol=1e-5)


def test_torch_leaves_the_rounds_model_alone_and_names_the_step_of_divergence():
    rng = np.random.default_rng(0)
    features, truth = rng.normal(size=(64, 4)), rng.integers(0, 2, 64).astype(float)
    model = Mlp(NeuralConfig((8,)), n_features=4, n_classes=2, kernel="torch")
    start = model.init(SEED)
    before = weights_digest(start)

    model.train(start, features, truth, TrainConfig(1, 8, 0.1), seed=OTHER)

    assert weights_digest(start) == before
    with pytest.raises(ExecutionFailed, match=r"NaN/Inf loss at epoch \d+, batch \d+"):
        model.train(start, features * 1e25, truth, TrainConfig(50, 8, 1.0), seed=OTHER)


def test_large_steps_go_to_torch_by_themselves():
    assert large_kernel("auto", LARGE_STEP) is not None
    assert large_kernel("auto", LARGE_STEP - 1) is None
