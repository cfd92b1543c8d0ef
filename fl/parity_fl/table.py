"""A session's data as training and scoring see them: parsed, cut by the plan, labels as numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from parity_fl.data import Dataset, label_classes, load_dataset, targets
from parity_fl.partition import Assignment, assign
from parity_fl.plan import PartitionPlan
from parity_fl.spec import FlSpec, ForestConfig, TrainConfig
from parity_protocol.errors import ExecutionFailed, FailureReason

__all__ = ["Table", "check_part", "contradiction", "required_training"]


@dataclass(frozen=True, slots=True)
class Table:
    """The data with the plan's cut; ``truth`` is class indices or targets, float64 ``(n,)``."""

    dataset: Dataset
    truth: NDArray[np.float64]
    assignment: Assignment

    @classmethod
    def load(cls, spec: FlSpec, plan: PartitionPlan, dataset_bytes: bytes) -> Table:
        """Parse the data and repeat the cut.

        Raises:
            ExecutionFailed: ``spec_invalid`` or ``data_invalid``: settings, plan and data do not belong together.
        """
        classification = spec.is_classification
        if (
            plan.total_parts != spec.partition.total_parts
            or plan.strategy != spec.partition.strategy
            or plan.strata != ("class" if classification else "quantile")
        ):
            contradiction("the partition plan was made for other settings")
        if not isinstance(spec.model, ForestConfig) and spec.model.input_size not in {0, plan.n_features}:
            contradiction(f"feature size mismatch: expected {spec.model.input_size}, got {plan.n_features}")
        dataset = load_dataset(dataset_bytes, spec.data_format)
        if dataset.features.shape[1] != plan.n_features:
            message = f"feature size mismatch: expected {plan.n_features}, got {dataset.features.shape[1]}"
            raise ExecutionFailed(FailureReason.DATA_INVALID, message)
        assignment = assign(plan, dataset.labels)
        if classification:
            return cls(dataset, label_classes(dataset.labels).index.astype(np.float64), assignment)
        return cls(dataset, targets(dataset.labels), assignment)

    def training_rows(self) -> NDArray[np.uint32]:
        """Return the sorted rows that some part trains on: all but the hold-out."""
        trained = np.ones(len(self.truth), dtype=np.bool_)
        trained[self.assignment.holdout] = False
        return np.flatnonzero(trained).astype(np.uint32)


def contradiction(message: str) -> NoReturn:
    """Raise ``ExecutionFailed`` with ``spec_invalid``."""
    raise ExecutionFailed(FailureReason.SPEC_INVALID, message)


def check_part(part: int, total_parts: int) -> None:
    """Refuse a part that a session does not have, as ``contradiction`` does."""
    if not 0 <= part < total_parts:
        contradiction(f"there is no part {part} of {total_parts}")


def required_training(train: TrainConfig | None) -> TrainConfig:
    """Return the settings of training of a model that cannot do without, as ``contradiction`` refuses."""
    if train is None:
        contradiction("training configuration is incomplete: epochs, batch_size, learning_rate are required")
    return train
