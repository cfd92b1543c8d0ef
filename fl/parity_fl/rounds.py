"""Both sides of a training round, as pure functions of bytes: the market's (``RoundServer``), a node's (``RoundTrainer``).

The model file that every node starts from and the updates that come back are safetensors documents. A round's model is
named by the SHA-256 of its file; what a node sends is the difference to it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from parity_fl.aggregate import make_strategy
from parity_fl.arbiter import Retraining
from parity_fl.averaging import (
    Bodies,
    PartTrainer,
    Reduced,
    Refused,
    TrainedRound,
    average,
    decode_state,
)
from parity_fl.checkpoint import Checkpoint
from parity_fl.contribution import Credit
from parity_fl.finishing import FinalModel, Metric
from parity_fl.model import TrainedModel, encode_model
from parity_fl.models import Weights
from parity_fl.plan import PartitionPlan
from parity_fl.resuming import settings_of
from parity_fl.round_bodies import decode_weights, encode_weights, sent_weights
from parity_fl.rounds_config import UpdateFormat
from parity_fl.spec import FlSpec
from parity_fl.strategy import StrategyConfig
from parity_fl.table import check_part, required_training
from parity_fl.tensors import encode_tensors
from parity_fl.training import SessionModel

__all__ = ["Reduced", "Refused", "RoundServer", "RoundTrainer", "TrainedRound"]


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

    def sent(self, file: bytes, update_format: UpdateFormat) -> bytes:
        """Return what nodes fetch of a model file: the same bytes, or fewer; see ``sent_weights``."""
        return sent_weights(decode_weights(file, self._made.model.shapes()), update_format)

    def scores(self, weights: Weights) -> dict[str, float]:
        """Return a model's scores on the hold-out; empty without one. What is not finite is left out."""
        found = self._made.score(weights)
        return {name: float(value) for name, value in found.items() if math.isfinite(value)}

    def reduce(
        self,
        base: bytes | memoryview,
        state: bytes | memoryview | None,
        updates: Bodies,
        *,
        number: int,
        start: Callable[[], bytes | memoryview] | None = None,
        credit: Credit | None = None,
    ) -> Reduced | Refused:
        """Close a round: what it returns follows from the arguments alone.

        Where several parts sent the same update, they are trained again here to see whose it is; see ``arbiter``.

        Views of mapped files take no memory beside the model's own; they are let go as soon as they have been read.

        Args:
            base: The round's model file.
            state: ``Reduced.state`` of the round before; None in the first.
            updates: By part, what reads or maps its body; called several times, one body in memory at a time.
            number: Of the round, from 1.
            start: Reads what nodes fetched of ``base``, see ``sent``; None if that was the same file.
            credit: How each part is scored; None scores none.

        Raises:
            BadDocument: ``base`` or ``state`` is not one of ours.
        """
        shapes = self._made.model.shapes()
        held = [decode_weights(base, shapes)]
        del base  # a caller that keeps no name of the file either has the model twice, and not three times
        done = average(
            self._strategy,
            shapes,
            held.pop(),
            state,
            updates,
            # The market's own count of rows: what a node says of itself weighs nothing.
            weight=lambda part: float(self._plan.part_size(part)),
            score=self.scores,
            credit=credit,
            arbiter=Retraining(
                self._made,
                number=number,
                proximal_mu=self._strategy.mu,
                start=None if start is None else lambda: decode_weights(start(), shapes),
            ),
        )
        return done if isinstance(done, Refused) else done.reduced(encode_weights(done.weights))

    def checkpoint(
        self,
        file: bytes,
        state: bytes,
        *,
        number: int,
        total_rounds: int,
        metrics: Mapping[str, float],
        owner: str = "",
    ) -> Checkpoint:
        """Return the session as it is after a round.

        Args:
            file: The model file after the round.
            state: ``Reduced.state`` of it.
            number: Of the round.
            total_rounds: Of the session.
            metrics: Of the round.
            owner: Whose session it is.
        """
        return Checkpoint(
            session_id=self._spec.session_id,
            round=number,
            total_rounds=total_rounds,
            strategy=self._strategy,
            weights=decode_weights(file, self._made.model.shapes()),
            state=decode_state(state),
            metrics=dict(metrics),
            settings=settings_of(self._spec),
            seed=self._plan.seed,
            assignment_hash=self._plan.assignment_hash,
            owner=owner,
        )

    def resume(self, checkpoint: Checkpoint) -> tuple[bytes, bytes]:
        """Return the model file and the strategy's state that the round after a checkpoint starts from.

        Raises:
            BadDocument: Its arrays are not those of this session's model and rule.
        """
        file = encode_weights(checkpoint.weights)
        decode_weights(file, self._made.model.shapes())
        make_strategy(self._strategy).restore(checkpoint.state)
        return file, encode_tensors(dict(checkpoint.state), {})

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
        check_part(part, plan.total_parts)
        train = required_training(spec.train)
        made = SessionModel.load(spec, plan, dataset)
        self._trainer = PartTrainer(made.model, train, *made.rows(part), seed=plan.seed, part=part)

    def train(
        self, base: bytes | memoryview, *, number: int, proximal_mu: float = 0.0, update_format: UpdateFormat = "fp32"
    ) -> TrainedRound:
        """Train one round from the global model. The same round again gives the same update.

        Args:
            base: The round's model file.
            number: Of the round, from 1.

        Raises:
            BadDocument: ``base`` is not this session's model.
            ExecutionFailed: ``numerical_instability``: training diverges.
        """
        return self._trainer.train(base, number=number, proximal_mu=proximal_mu, update_format=update_format)
