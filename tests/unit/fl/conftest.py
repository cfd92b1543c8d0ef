"""Real data sets as bytes and settings to change one member of."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_diabetes

Raw = dict[str, Any]


def to_csv(features: np.ndarray, labels: np.ndarray, names: list[str]) -> bytes:
    text = io.StringIO()
    text.write(",".join([*names, "target"]) + "\n")
    np.savetxt(text, np.c_[features, labels], delimiter=",", fmt="%.17g")
    return text.getvalue().encode()


@pytest.fixture(scope="session")
def breast_cancer() -> bytes:
    data = load_breast_cancer()
    return to_csv(data.data, data.target, list(data.feature_names))


@pytest.fixture(scope="session")
def diabetes() -> bytes:
    data = load_diabetes()
    return to_csv(data.data, data.target, list(data.feature_names))


@pytest.fixture
def forest_raw() -> Raw:
    return {
        "session_id": "session-1",
        "round_id": "round-1",
        "model_type": "random_forest",
        "dataset_cid": "QmData",
        "data_format": "csv",
        "model_config": {"num_trees": 100, "random_state": 42},
        "partition_config": {"strategy": "stratified", "total_parts": 3, "min_samples": 10},
    }


@pytest.fixture
def linear_raw() -> Raw:
    return {
        "session_id": "session-1",
        "round_id": "round-1",
        "model_type": "linear_regression",
        "dataset_cid": "QmData",
        "data_format": "csv",
        "model_config": {"input_size": 10},
        "train_config": {"epochs": 100, "batch_size": 32, "learning_rate": 0.02},
        "partition_config": {"strategy": "random", "total_parts": 3, "min_samples": 10},
    }


@pytest.fixture
def changed() -> Callable[[Raw, str, object], Raw]:
    """Return a copy of settings with one dotted member set, or removed when the value is ``...``."""

    def change(raw: Raw, place: str, value: object) -> Raw:
        copied = copy.deepcopy(raw)
        *path, last = place.split(".")
        section = copied
        for name in path:
            section = section[name]
        if value is ...:
            section.pop(last, None)
        else:
            section[last] = value
        return copied

    return change
