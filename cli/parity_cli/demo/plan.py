"""What the demo does: its data sets, its tasks and what they pay. Nothing here touches the network."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from parity_cli.demo.image import IMAGE
from parity_fl.runner import plan_session, train
from parity_fl.session import resolve_session

__all__ = [
    "CLASSES",
    "CONTAINER",
    "DELAYED",
    "FOREST",
    "LINEAR",
    "NODES",
    "SHELL",
    "STAKE",
    "SUBMITTER_FUNDS",
    "DataSets",
    "Work",
    "calibrate",
    "load_data",
    "make_work",
]

TOKEN = 10**18  # base units
NODES = ("alder", "birch", "cedar")
STAKE = 25 * TOKEN
SUBMITTER_FUNDS = 100 * TOKEN
FOREST, LINEAR, DELAYED, SHELL, CONTAINER = "forest", "linear", "long", "shell", "container"
CLASSES = ("malignant", "benign")

TREES = 90
PARTS = 3
DEPTH = 10
LONG_S = 7.0  # of training that is asked for; at least 5 s must come out
_COUNT = "cut -d, -f31 inputs/cancer.csv | tail -n +2 | sort | uniq -c"
_TRIAL_EPOCHS = 200
_TRIALS = 4
_MAX_EPOCHS = 100_000


@dataclass(frozen=True, slots=True)
class DataSets:
    """CSV files with a header; the last column is the label."""

    breast_cancer: bytes
    diabetes: bytes


@dataclass(frozen=True, slots=True)
class Work:
    """Something to submit. ``reward`` is base units for all that it becomes."""

    name: str
    title: str
    spec: dict[str, Any]
    reward: int


def load_data() -> DataSets:
    """Write scikit-learn's two data sets as CSV."""
    from sklearn.datasets import load_breast_cancer, load_diabetes

    cancer, diabetes = load_breast_cancer(), load_diabetes()
    labels = [str(cancer.target_names[index]) for index in cancer.target]
    return DataSets(
        breast_cancer=_csv([str(name) for name in cancer.feature_names], "diagnosis", cancer.data.tolist(), labels),
        diabetes=_csv(list(diabetes.feature_names), "progression", diabetes.data.tolist(), diabetes.target.tolist()),
    )


def calibrate(data: DataSets) -> int:
    """Return how many epochs of the linear regression take this machine about ``LONG_S`` seconds, or more when it is busy.

    Processor time is measured: what else runs at this moment must not make the task too short.
    """
    spec = resolve_session(_linear("trial", _TRIAL_EPOCHS), session_id="trial", round_id="1")
    plan = plan_session(spec, data.diabetes, "0" * 64)
    fastest = float("inf")
    for _ in range(_TRIALS):
        began = time.thread_time()
        train(spec, plan, data.diabetes, 0)
        fastest = min(fastest, time.thread_time() - began)
    return max(_TRIAL_EPOCHS, min(_MAX_EPOCHS, int(LONG_S / fastest * _TRIAL_EPOCHS)))


def make_work(cancer_cid: str, diabetes_cid: str, epochs: int, image_cid: str = "") -> dict[str, Work]:
    """Return the demo's tasks by name.

    Args:
        cancer_cid: Of ``DataSets.breast_cancer``.
        diabetes_cid: Of ``DataSets.diabetes``.
        epochs: As ``calibrate`` gave them.
        image_cid: Of an image's archive; without one there is no container among the tasks.
    """
    cancer = {"kind": "cid", "name": "cancer.csv", "cid": cancer_cid, "max_bytes": 1 << 20}
    forest = {
        "type": "federated_learning",
        "title": "breast cancer: a random forest over three parts",
        "model_type": "random_forest",
        "dataset_cid": cancer_cid,
        "data_format": "csv",
        "model_config": {"num_trees": TREES, "max_depth": DEPTH, "mode": "union"},
        "partition_config": {"strategy": "stratified", "total_parts": PARTS, "min_samples": 20},
    }
    linear = {"type": "federated_learning", "title": "diabetes: a linear regression", **_linear(diabetes_cid, 60)}
    long = {
        "type": "federated_learning",
        "title": f"diabetes: {epochs} epochs, about {LONG_S:.0f} s",
        **_linear(diabetes_cid, epochs),
    }
    shell = {
        "type": "command",
        "title": "breast cancer: count the classes in a shell",
        "command": ["sh", "-c", _COUNT],
        "inputs": [cancer],
        "requires": {"isolation": "bwrap"},
    }
    container = {
        "type": "docker",
        "title": "breast cancer: count the classes in a container",
        "image": IMAGE,
        "image_tar": {"kind": "cid", "name": "image", "cid": image_cid, "max_bytes": 64 << 20},
        "command": ["sh", "-c", f"cd / && {_COUNT}"],
        "inputs": [cancer],
        "resources": {"memory_bytes": 64 << 20, "pids": 16},
        "requires": {"isolation": "docker"},
    }
    works = {
        FOREST: Work(FOREST, f"random forest, {TREES} trees over {PARTS} parts", forest, 3 * TOKEN),
        LINEAR: Work(LINEAR, "linear regression", linear, TOKEN // 2),
        DELAYED: Work(DELAYED, f"linear regression, {epochs} epochs", long, TOKEN),
        SHELL: Work(SHELL, "count the classes in a shell", shell, TOKEN // 4),
    }
    if image_cid:
        works[CONTAINER] = Work(CONTAINER, "count the classes in a container", container, TOKEN // 4)
    return works


def _linear(cid: str, epochs: int) -> dict[str, Any]:
    return {
        "model_type": "linear_regression",
        "dataset_cid": cid,
        "data_format": "csv",
        "model_config": {"input_size": 10},
        "train_config": {"epochs": epochs, "batch_size": 32, "learning_rate": 0.02},
        "partition_config": {"strategy": "random", "total_parts": 1, "min_samples": 20},
    }


def _csv(names: list[str], label: str, rows: list[list[float]], labels: list[Any]) -> bytes:
    lines = [",".join([*(name.replace(" ", "_") for name in names), label])]
    lines += [",".join([*(repr(value) for value in row), str(found)]) for row, found in zip(rows, labels, strict=True)]
    return ("\n".join(lines) + "\n").encode()
