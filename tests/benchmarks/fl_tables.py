"""The data sets and settings that the federated-learning figures share."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import numpy as np
from sklearn.datasets import load_breast_cancer, load_digits

from parity_fl.session import resolve_session
from parity_fl.spec import FlSpec, ForestConfig

__all__ = ["DECIMALS", "HIDDEN", "RATE", "forest", "network", "seed_of", "table"]

HIDDEN = 128
DECIMALS = 9  # of what an aim is compared with: more is rounding of floats, fewer would hide a miss
RATE = 0.1  # of the anchors that the aims were taken from


def table(name: str) -> bytes:
    """Return ``digits`` or ``breast cancer`` as CSV."""
    found = {"digits": load_digits, "breast cancer": load_breast_cancer}[name]()
    text = io.StringIO()
    text.write(",".join([*(f"f{place}" for place in range(found.data.shape[1])), "label"]) + "\n")
    np.savetxt(text, np.c_[found.data, found.target], delimiter=",", fmt="%.17g")
    return text.getvalue().encode()


def seed_of(number: int) -> str:
    """Return the seed of one repetition."""
    return f"{number:064x}"


def network(partition: dict[str, Any], *, epochs: int = 5, rate: float = RATE) -> FlSpec:
    """Return a network of one hidden layer of ``HIDDEN`` on batches of 32."""
    train = {"epochs": epochs, "batch_size": 32, "learning_rate": rate}
    return _spec("neural_network", {"hidden_size": HIDDEN}, partition, train_config=train)


def forest(partition: dict[str, Any], mode: str) -> FlSpec:
    """Return a forest of 100 trees of depth 10."""
    spec = _spec("random_forest", {}, partition)
    assert isinstance(spec.model, ForestConfig)
    return replace(spec, model=replace(spec.model, mode=mode))


def _spec(kind: str, model: dict[str, Any], partition: dict[str, Any], **more: Any) -> FlSpec:
    members = {
        "model_type": kind,
        "dataset_cid": "bench",
        "data_format": "csv",
        "model_config": model,
        "partition_config": {"min_samples": 1, **partition},
        **more,
    }
    return resolve_session(members, session_id="bench", round_id="bench")
