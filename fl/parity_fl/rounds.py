"""Both sides of a training round, as pure functions of bytes: the market's (``RoundServer``), a node's (``RoundTrainer``).

The model file that every node starts from and the updates that come back are safetensors documents. A round's model is
named by the SHA-256 of its file; what a node sends is the difference to it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from parity_fl.aggregate import Update, make_strategy
from parity_fl.checkpoint import Checkpoint
from parity_fl.finishing import FinalModel, Metric
from parity_fl.model import TrainedModel, encode_model
from parity_fl.models import Weights
from parity_fl.plan import PartitionPlan
from parity_fl.round_bodies import decode_weights, encode_delta, encode_weights, mapped_delta
from parity_fl.rounds_config import UpdateFormat
from parity_fl.spec import FlSpec, TrainConfig
from parity_fl.strategy import StrategyConfig
from parity_fl.table import contradiction
from parity_fl.tensors import decode_tensors, encode_tensors
from parity_fl.training import SessionModel, train_seed
from parity_protocol.errors import BadDocument, ParityError, TooFewUpdates

__all__ = ["Reduced", "Refused", "RoundServer", "RoundTrainer", "TrainedRound"]

_MAX_STATE_BYTES: Final = 4 << 30
_MAX_SCORED_PARTS: Final = 64  # beyond that, leaving out each in turn would take longer than the round


@dataclass(frozen=True, slots=True)
class Reduced:
    """A closed round.

    Attributes:
        model: The next model's file.
        state: Of the strategy, for the next round.
        accepted: Parts whose update is in the model, ascending.
        rejected: Why others are not, by part.
        metrics: Scores of the next model on the hold-out, and what the rule says.
        contributions: By part: how much worse the hold-out's loss is without it; empty when not asked for.
        more_phases: The round goes on with another phase; only a forest's does.
    """

    model: bytes
    state: bytes
    accepted: tuple[int, ...]
    rejected: dict[int, str]
    metrics: dict[str, float]
    contributions: dict[int, float]
    more_phases: bool = False


@dataclass(frozen=True, slots=True)
class Refused:
    """A round that cannot be closed with the updates that came.

    Attributes:
        reason: In words.
        rejected: What is wrong with some of them, by part; others may still come.
    """

    reason: str
    rejected: dict[int, str]


@dataclass(frozen=True, slots=True)
class TrainedRound:
    """One part's update to one round, and JSON-ready numbers for people."""

    update: bytes
    metrics: dict[str, float]


class RoundServer:
    """The market's side of one session.

    Args:
        spec: Resolved settings.
        plan: The session's plan.
        dataset: The whole data set, verified against its CID.
        strategy: The rule.

    Raises:
        ExecutionFailed: Settings, plan and data do not belong together.
    """

    def __init__(self, spec: FlSpec, plan: PartitionPlan, dataset: bytes, strategy: StrategyConfig) -> None:
        self._spec = spec
        self._plan = plan
        self._strategy = strategy
        self._made = SessionModel.load(spec, plan, dataset)

    def first(self) -> bytes:
        """Return the model file that round 1 starts from; it follows from the plan's seed."""
        return encode_weights(self._made.first())

    def scores(self, weights: Weights) -> dict[str, float]:
        """Return a model's scores on the hold-out; empty without one. What is not finite is left out."""
        found = self._made.score(weights)
        return {name: float(value) for name, value in found.items() if math.isfinite(value)}

    def reduce(
        self,
        base: bytes,
        state: bytes | None,
        updates: Mapping[int, Callable[[], bytes | memoryview]],
        *,
        leave_one_out: bool = False,
    ) -> Reduced | Refused:
        """Close a round: what it returns follows from the arguments alone.

        Args:
            base: The round's model file.
            state: ``Reduced.state`` of the round before; None in the first.
            updates: By part, what reads or maps its body; called several times, one body in memory at a time.
            leave_one_out: Score each part by the round without it.

        Raises:
            BadDocument: ``base`` or ``state`` is not one of ours.
        """
        shapes = self._made.model.shapes()
        weights = decode_weights(base, shapes)
        bad: dict[int, str] = {}
        good: list[int] = []
        for part in sorted(updates):
            try:
                mapped_delta(updates[part](), shapes)  # names and shapes; values are the rule's to check
                good.append(part)
            except ParityError as exc:
                bad[part] = f"malformed: {exc.message}"

        def combine(
            parts: list[int], *, keep: bool
        ) -> tuple[Weights, bytes, tuple[int, ...], dict[int, str], dict[str, float]]:
            rule = make_strategy(self._strategy)
            if state is not None:
                rule.restore({name: np.array(value) for name, value in _state_of(state).items()})

            def each() -> Iterator[Update]:
                for part in parts:
                    # The market's own count of rows: what a node says of itself weighs nothing.
                    yield Update(part, float(self._plan.part_size(part)), mapped_delta(updates[part](), shapes))

            done = rule.aggregate(weights, each, len(parts))
            kept = encode_tensors(rule.state(), {}) if keep else b""
            return done.weights, kept, done.accepted, done.rejected, done.metrics

        try:
            made, kept, accepted, rejected, metrics = combine(good, keep=True)
        except TooFewUpdates as exc:
            return Refused(exc.message, {**bad, **exc.rejected})
        contributions: dict[int, float] = {}
        scores = self.scores(made)
        if leave_one_out and 1 < len(accepted) <= _MAX_SCORED_PARTS and "loss" in scores:
            for part in accepted:
                try:
                    without = self.scores(combine([one for one in accepted if one != part], keep=False)[0])
                except ParityError:  # the rule needs every one of them
                    continue
                contributions[part] = without.get("loss", scores["loss"]) - scores["loss"]
        return Reduced(
            model=encode_weights(made),
            state=kept,
            accepted=accepted,
            rejected={**bad, **rejected},
            metrics={**scores, **metrics},
            contributions=contributions,
        )

    def checkpoint(
        self, file: bytes, state: bytes, *, number: int, total_rounds: int, metrics: Mapping[str, float]
    ) -> Checkpoint:
        """Return the session as it is after a round.

        Args:
            file: The model file after the round.
            state: ``Reduced.state`` of it.
            number: Of the round.
            total_rounds: Of the session.
            metrics: Of the round.
        """
        return Checkpoint(
            session_id=self._spec.session_id,
            round=number,
            total_rounds=total_rounds,
            strategy=self._strategy,
            weights=decode_weights(file, self._made.model.shapes()),
            state=_state_of(state),
            metrics=dict(metrics),
        )

    def final(self, file: bytes, *, rounds: int) -> FinalModel:
        """Return the session's result: the model to predict with, and its scores.

        Args:
            file: The model file after the last round.
            rounds: How many there were.
        """
        weights = decode_weights(file, self._made.model.shapes())
        plan = self._plan
        classes = plan.class_names if self._spec.is_classification else ()
        fitted = self._made.finished(weights)
        document = TrainedModel(fitted, classes, plan.n_features, self._made.table.dataset.feature_names)
        metrics: dict[str, Metric] = {
            "model_type": self._spec.model_type,
            "task": "classification" if self._spec.is_classification else "regression",
            "rounds": rounds,
            **self.scores(weights),
            "parts": self._plan.total_parts,
            "train_samples": self._plan.n_rows - self._plan.holdout_size,
            "holdout_samples": self._plan.holdout_size,
            "feature_count": self._plan.n_features,
        }
        return FinalModel(encode_model(document), metrics)


class RoundTrainer:
    """A node's side: one part of one session, round after round.

    Args:
        spec: Resolved settings.
        plan: The session's plan; the cut is repeated and its hash compared.
        dataset: The whole data set, verified against its CID.
        part: Which part.

    Raises:
        ExecutionFailed: Settings, plan, part and data do not belong together.
    """

    def __init__(self, spec: FlSpec, plan: PartitionPlan, dataset: bytes, part: int) -> None:
        if not 0 <= part < plan.total_parts:
            contradiction(f"there is no part {part} of {plan.total_parts}")
        if spec.train is None:
            contradiction("training configuration is incomplete: epochs, batch_size, learning_rate are required")
        self._config: TrainConfig = spec.train
        self._plan = plan
        self._part = part
        made = SessionModel.load(spec, plan, dataset)
        self._model = made.model
        self._features, self._truth = made.rows(part)
        self._number = 0  # of the round trained last
        self._before: Weights | None = None  # what the formats of the rounds before it could not carry
        self._left: Weights | None = None  # the same after it

    def train(
        self, base: bytes, *, number: int, proximal_mu: float = 0.0, update_format: UpdateFormat = "fp32"
    ) -> TrainedRound:
        """Train one round from the global model. The same round again gives the same update.

        Args:
            base: The round's model file.
            number: Of the round, from 1.

        Raises:
            BadDocument: ``base`` is not this session's model.
            ExecutionFailed: ``numerical_instability``: training diverges.
        """
        weights = decode_weights(base, self._model.shapes())
        seed = train_seed(self._plan, self._part, number)
        trained = self._model.train(
            weights, self._features, self._truth, self._config, seed=seed, proximal_mu=proximal_mu
        )
        delta = {name: trained.weights[name] - weights[name] for name in weights}
        if number != self._number:
            self._number, self._before = number, self._left
        body, self._left = encode_delta(delta, update_format, left=self._before)
        said = {"loss": trained.loss, "samples": float(trained.n_samples), "steps": float(trained.steps)}
        return TrainedRound(body, {name: value for name, value in said.items() if math.isfinite(value)})


def _state_of(data: bytes) -> dict[str, NDArray[np.float64]]:
    tensors, _ = decode_tensors(data, max_bytes=_MAX_STATE_BYTES)
    if any(tensor.dtype != np.float64 for tensor in tensors.values()):
        raise BadDocument("a strategy's state is float64")
    return tensors
