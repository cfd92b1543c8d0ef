"""Real data sets as bytes and settings to change one member of."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_diabetes

from parity_fl import FlSpec, resolve_fl_spec
from parity_fl.plan import PartitionPlan
from parity_fl.runner import plan_session, train

Raw = dict[str, Any]
Session = tuple[FlSpec, PartitionPlan, tuple[bytes, ...]]

SEED = "5a" * 32


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


def forest_settings() -> Raw:
    return {
        "session_id": "session-1",
        "round_id": "round-1",
        "model_type": "random_forest",
        "dataset_cid": "QmData",
        "data_format": "csv",
        "model_config": {"num_trees": 100, "random_state": 42},
        "partition_config": {"strategy": "stratified", "total_parts": 3, "min_samples": 10},
    }


def linear_settings() -> Raw:
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
def forest_raw() -> Raw:
    return forest_settings()


@pytest.fixture
def linear_raw() -> Raw:
    return linear_settings()


def run_parts(raw: Raw, data: bytes, seed: str) -> Session:
    spec = resolve_fl_spec(raw)
    plan = plan_session(spec, data, seed)
    return spec, plan, tuple(train(spec, plan, data, part).update_bytes for part in range(plan.total_parts))


@pytest.fixture(scope="session")
def run_session() -> Callable[[Raw, bytes, str], Session]:
    """Plan a session and train all its parts."""
    return run_parts


@pytest.fixture(scope="session")
def forest(breast_cancer: bytes) -> Session:
    raw = forest_settings()
    raw["model_config"]["num_trees"] = 12
    return run_parts(raw, breast_cancer, SEED)


@pytest.fixture(scope="session")
def linear(diabetes: bytes) -> Session:
    return run_parts(linear_settings(), diabetes, SEED)


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
