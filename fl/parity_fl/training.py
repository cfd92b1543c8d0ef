"""One session's model in rounds, for whoever has its data: the node trains a part, the market scores, a simulation both.

Everything is a function of the settings, the plan and the data. The first model follows from the plan's seed, and a
part's training in round ``r`` from ``derive_key("train", session seed, r, part)``, so any update can be made again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from parity_fl.linear import LinearModel
from parity_fl.models.base import RoundModel, Scaling, Weights, round_model, scaling_of, weights_digest
from parity_fl.models.linear_sgd import LinearSgd
from parity_fl.networks import Network
from parity_fl.neural_config import NeuralConfig
from parity_fl.plan import PartitionPlan
from parity_fl.prng import derive_key
from parity_fl.spec import FlSpec, TrainConfig
from parity_fl.table import Table, check_part, required_training

__all__ = ["RoundUpdate", "SessionModel", "first_model", "first_seed", "round_seed", "train_seed"]


@dataclass(frozen=True, slots=True, eq=False)
class RoundUpdate:
    """What one part hands in for one round.

    Attributes:
        part: Its number.
        delta: Trained parameters less the round's model, float32.
        base_hash: ``weights_digest`` of the round's model.
        n_samples: Rows trained on, with borrowed ones.
        steps: Optimizer steps.
        metrics: Of the trained model on the part's own rows: ``loss`` with ``accuracy``, or with ``mse`` and ``r2``.
    """

    part: int
    delta: Weights
    base_hash: str
    n_samples: int
    steps: int
    metrics: dict[str, float]


class SessionModel:
    """A session's data and model. Loading parses the data once, for all rounds."""

    def __init__(
        self, spec: FlSpec, plan: PartitionPlan, table: Table, *, scaling: Scaling | None = None, kernel: str = "auto"
    ) -> None:
        """Make the model fit the table.

        Args:
            spec: Resolved settings of a model that trains in rounds.
            plan: The session's plan.
            table: The data as the plan cuts them.
            scaling: What all parts agreed on (``merged_scaling``), where nobody has all rows; else it is computed.
            kernel: See ``round_model``.

        Raises:
            BadField: The settings do not fit the data, or the model has no rounds.
            ExecutionFailed: ``numerical_instability``: a column is too large for its statistics.
        """
        self.spec, self.plan, self.table = spec, plan, table
        rows = table.training_rows()
        self.scaling = scaling or scaling_of(spec, table.dataset.features[rows], table.truth[rows])
        self.model: RoundModel = round_model(
            spec,
            n_features=plan.n_features,
            n_classes=_n_classes(spec, plan),
            scaling=self.scaling,
            kernel=kernel,
        )

    @classmethod
    def load(cls, spec: FlSpec, plan: PartitionPlan, dataset_bytes: bytes, *, kernel: str = "auto") -> SessionModel:
        """Parse the data, repeat the cut and make the model.

        Raises:
            BadField: See ``__init__``.
            ExecutionFailed: ``spec_invalid`` or ``data_invalid``: settings, plan and data do not belong together.
        """
        return cls(spec, plan, Table.load(spec, plan, dataset_bytes), kernel=kernel)

    def rows(self, part: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return a part's features, shape ``(n, d)``, and class indices or targets, shape ``(n,)``."""
        wanted = self.table.assignment.parts[part]
        return self.table.dataset.features[wanted], self.table.truth[wanted]

    def first(self) -> Weights:
        """Return the model that round 1 starts from; ``first_model`` needs no data for it."""
        return self.model.init(first_seed(self.plan.seed))

    def train(
        self,
        part: int,
        base: Weights,
        round_number: int,
        *,
        config: TrainConfig | None = None,
        proximal_mu: float = 0.0,
    ) -> RoundUpdate:
        """Train one part for one round.

        Args:
            part: Which part.
            base: The round's model.
            round_number: From 1.
            config: In place of the session's, for a strategy with its own client rate.
            proximal_mu: FedProx's coefficient.

        Raises:
            BadField: ``base`` is not this session's model.
            ExecutionFailed: ``spec_invalid``: there is no such part; ``numerical_instability``: training diverges.
        """
        check_part(part, self.plan.total_parts)
        chosen = required_training(config or self.spec.train)
        features, truth = self.rows(part)
        seed = train_seed(self.plan, part, round_number)
        trained = self.model.train(base, features, truth, chosen, seed=seed, proximal_mu=proximal_mu)
        return RoundUpdate(
            part=part,
            delta={name: np.subtract(trained.weights[name], base[name], dtype=np.float32) for name in sorted(base)},
            base_hash=weights_digest(base),
            n_samples=trained.n_samples,
            steps=trained.steps,
            metrics=self.model.evaluate(trained.weights, features, truth),
        )

    def score(self, weights: Weights) -> dict[str, float]:
        """Return the scores of a model on the hold-out; empty without one."""
        held = self.table.assignment.holdout
        if len(held) == 0:
            return {}
        return self.model.evaluate(weights, self.table.dataset.features[held], self.table.truth[held])

    def finished(self, weights: Weights) -> Network | LinearModel:
        """Return the model to predict with, in the data's own units: ``TrainedModel.fitted``."""
        if isinstance(self.model, LinearSgd):
            return self.model.own_units(weights)
        assert isinstance(self.spec.model, NeuralConfig)
        return Network(self.spec.model, weights, self.scaling, _n_classes(self.spec, self.plan))


def first_model(spec: FlSpec, plan: PartitionPlan) -> Weights:
    """Return the model that round 1 starts from, without the data.

    Raises:
        BadField: The settings do not fit the plan, or the model has no rounds.
    """
    model = round_model(spec, n_features=plan.n_features, n_classes=_n_classes(spec, plan))
    return model.init(first_seed(plan.seed))


def train_seed(plan: PartitionPlan, part: int, round_number: int) -> bytes:
    """Return the 32 bytes that key a part's training in a round."""
    return round_seed(plan.seed, part, round_number)


def round_seed(seed: str, part: int, round_number: int) -> bytes:
    """Return what ``train_seed`` does, of a session's seed of 64 hex characters."""
    return derive_key("train", bytes.fromhex(seed), round_number.to_bytes(4, "big"), part.to_bytes(4, "big"))


def first_seed(seed: str) -> bytes:
    """Return the 32 bytes that a session's first model is drawn with."""
    return derive_key("init", bytes.fromhex(seed))


def _n_classes(spec: FlSpec, plan: PartitionPlan) -> int:
    return plan.class_count if spec.is_classification else 0
