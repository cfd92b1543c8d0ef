"""Rounds of a model whose weights are averaged, apart from where its rows lie: the rule on updates, a part's training.

``rounds`` and ``sharded`` put the session's data around it. Both halves are pure functions of their arguments.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
from numpy.typing import NDArray

from parity_fl.aggregate import Arbiter, Strategy, Update, UpdatesOf, make_strategy
from parity_fl.contribution import Credit, shapley
from parity_fl.models import Weights
from parity_fl.models.base import RoundModel
from parity_fl.privacy.dp import NoiseSetup
from parity_fl.round_bodies import decode_weights, encode_delta, mapped_delta
from parity_fl.rounds_config import UpdateFormat
from parity_fl.spec import TrainConfig
from parity_fl.strategy import StrategyConfig
from parity_fl.tensors import decode_tensors, encode_tensors
from parity_fl.training import round_seed
from parity_protocol.errors import BadDocument, ParityError, TooFewUpdates, Unprocessable

__all__ = [
    "Averaged",
    "Bodies",
    "PartTrainer",
    "Reduced",
    "Refused",
    "TrainedRound",
    "average",
    "credited",
    "decode_state",
]

Bodies = Mapping[int, Callable[[], bytes | memoryview]]
"""By part, what reads or maps its answer; called several times, one in memory at a time."""

_MAX_STATE_BYTES: Final = 4 << 30
_MAX_SCORED_PARTS: Final = 64  # beyond that, leaving out each in turn would take longer than the round


@dataclass(frozen=True, slots=True)
class Reduced:
    """A closed round, or a closed phase of one.

    Attributes:
        model: The next model's file.
        state: Of the strategy, for the next round.
        restarts: The next phase begins the training of this round anew, with every part that was asked at first.
        drops: With ``appends``: the state that this phase began with is needed by no later one.
        appends: The next phase needs the ``state`` of every phase of the round, one after the other, not this one alone.
        accepted: Parts whose update is in the model, ascending.
        rejected: Why others are not, by part.
        metrics: Scores of the next model on the hold-out, and what the rule says.
        contributions: By part: how much worse the hold-out's loss is without it; empty when not asked for.
        more_phases: The round goes on with another phase.
        next_round: Number of the next round, where a session goes on from a checkpoint; None is the one after this.
        asks: What the next phase, or the first of the next round, asks of the parts.
        left: Phases of the round that are still to come, of a forest an estimate from above; after a phase in which shards
            agree also those of one round after it.
        present: Parts that the session goes on with, ascending; None is all of them.
    """

    model: bytes
    state: bytes
    accepted: tuple[int, ...]
    rejected: dict[int, str]
    metrics: dict[str, float]
    contributions: dict[int, float]
    more_phases: bool = False
    asks: str = "train"
    appends: bool = False
    next_round: int | None = None
    restarts: bool = False
    drops: bool = False
    left: int = 0
    present: tuple[int, ...] | None = None


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
    """One part's answer to one round, and JSON-ready numbers for people."""

    update: bytes
    metrics: dict[str, float]


@dataclass(frozen=True, slots=True, eq=False)
class Averaged:
    """What a rule made of a round's updates; the members are those of ``Reduced``."""

    weights: Weights
    state: bytes
    accepted: tuple[int, ...]
    rejected: dict[int, str]
    metrics: dict[str, float]
    contributions: dict[int, float]

    def reduced(self, model: bytes, *, more_phases: bool = False, asks: str = "train") -> Reduced:
        """Return the closed round whose next model is the file ``model``."""
        return Reduced(
            model,
            self.state,
            self.accepted,
            self.rejected,
            self.metrics,
            self.contributions,
            more_phases=more_phases,
            asks=asks,
        )


def average(
    strategy: StrategyConfig,
    shapes: Mapping[str, tuple[int, ...]],
    weights: Weights,
    state: bytes | memoryview | None,
    updates: Bodies,
    *,
    weight: Callable[[int], float],
    score: Callable[[Weights], dict[str, float]],
    credit: Credit | None = None,
    private: NoiseSetup | None = None,
    arbiter: Arbiter | None = None,
) -> Averaged | Refused:
    """Combine a round's updates by its rule.

    Args:
        strategy: The rule.
        shapes: Of the model's parameters.
        weights: The model that the updates start from.
        state: Of the strategy, from the round before; None in the first.
        updates: By part.
        weight: What a part's update counts, above 0; the market's own number, never the node's.
        score: Finite scores of a model, ``loss`` among them if anything can be left out; empty without a hold-out.
        credit: How each part is scored; None scores none.
        private: With differential privacy.
        arbiter: Of the round, where somebody can tell whose an update is that several parts sent.

    Raises:
        BadDocument: ``state`` is not one of ours.
    """
    bad: dict[int, str] = {}
    good: list[int] = []
    for part in sorted(updates):
        try:
            mapped_delta(updates[part](), shapes)  # names and shapes; values are the rule's to check
            good.append(part)
        except ParityError as exc:
            bad[part] = f"malformed: {exc.message}"

    def of(parts: Collection[int]) -> Iterator[Update]:
        for part in sorted(parts):
            yield Update(part, weight(part), mapped_delta(updates[part](), shapes))

    before = {} if state is None else decode_state(state)

    def rule_before() -> Strategy:
        rule = make_strategy(strategy, arbiter) if private is None else private.rule(strategy)
        if state is not None:
            rule.restore(before)
        return rule

    rule = rule_before()
    try:
        done = rule.aggregate(weights, partial(of, good), len(good))
    except TooFewUpdates as exc:
        return Refused(exc.message, {**bad, **exc.rejected})
    scores = score(done.weights)
    contributions, spent = credited(credit, rule_before, weights, of, done.accepted, score, scores)
    return Averaged(
        weights=done.weights,
        state=encode_tensors(rule.state(), {}),
        accepted=done.accepted,
        rejected={**bad, **done.rejected},
        metrics={**scores, **done.metrics, **spent},
        contributions=contributions,
    )


def credited(
    credit: Credit | None,
    rule_before: Callable[[], Strategy],
    weights: Weights,
    of: UpdatesOf,
    parts: Sequence[int],
    score: Callable[[Weights], dict[str, float]],
    scores: Mapping[str, float],
) -> tuple[dict[int, float], dict[str, float]]:
    """Return what each part gave to a round, and what people should know of how that was found out.

    Args:
        credit: None scores nobody.
        rule_before: Makes the rule as it was before the round.
        weights: The model that the round started from.
        of: Gives the updates of some parts.
        parts: Those whose updates are in the round's model.
        score: As of ``average``.
        scores: Of the round's model.
    """
    if credit is None or not 1 < len(parts) <= _MAX_SCORED_PARTS or "loss" not in scores:
        return {}, {}
    if credit.method == "shapley":
        return _shapley_of(rule_before, weights, of, parts, score, {frozenset(parts): -scores["loss"]}, credit)
    found = {}
    for part, without in rule_before().without_each(weights, of, parts):
        found[part] = score(without).get("loss", scores["loss"]) - scores["loss"]
    return found, {}


def _shapley_of(
    rule_before: Callable[[], Strategy],
    weights: Weights,
    of: UpdatesOf,
    parts: Sequence[int],
    score: Callable[[Weights], dict[str, float]],
    known: Mapping[frozenset[int], float],
    credit: Credit,
) -> tuple[dict[int, float], dict[str, float]]:
    """Return each part's Shapley value of the loss that the round took off the hold-out, and what it cost.

    A group that the rule cannot close a round with, or whose model has no finite loss, is worth as much as no update.
    """
    nothing = -score(weights).get("loss", math.inf)
    if not math.isfinite(nothing):
        return {}, {}

    def value(group: frozenset[int]) -> float:
        if not group or group in known:
            return known.get(group, nothing)
        try:
            made = rule_before().aggregate(weights, partial(of, sorted(group)), len(group))
        except (TooFewUpdates, Unprocessable):
            return nothing
        loss = score(made.weights).get("loss")
        return nothing if loss is None else -loss

    found = shapley(parts, value, credit)
    return found.values, {
        "shapley_permutations": float(found.permutations),
        "shapley_evaluations": float(found.evaluations),
    }


class PartTrainer:
    """Trains one part, round after round.

    Args:
        model: The session's.
        config: Epochs, batch size, learning rate, optimizer.
        features: The part's rows, shape ``(n, d)``.
        truth: Their class indices or targets, shape ``(n,)``.
        seed: The session's, 64 hex characters.
        part: Which part.
    """

    def __init__(
        self,
        model: RoundModel,
        config: TrainConfig,
        features: NDArray[np.float64],
        truth: NDArray[np.float64],
        *,
        seed: str,
        part: int,
    ) -> None:
        self._model = model
        self._config = config
        self._features, self._truth = features, truth
        self._seed, self._part = seed, part
        self._number = 0  # of the round trained last
        self._before: Weights | None = None  # what the formats of the rounds before it could not carry
        self._left: Weights | None = None  # the same after it

    def train(
        self, base: bytes | memoryview, *, number: int, proximal_mu: float = 0.0, update_format: UpdateFormat = "fp32"
    ) -> TrainedRound:
        """Train one round from the global model's file; see ``RoundTrainer.train``."""
        return self.train_from(
            decode_weights(base, self._model.shapes()),
            number=number,
            proximal_mu=proximal_mu,
            update_format=update_format,
        )

    def train_from(
        self, weights: Weights, *, number: int, proximal_mu: float = 0.0, update_format: UpdateFormat = "fp32"
    ) -> TrainedRound:
        """Train one round from the global model. The same round again gives the same update.

        Args:
            weights: The round's model.
            number: Of the round, from 1.

        Raises:
            ExecutionFailed: ``numerical_instability``: training diverges.
        """
        seed = round_seed(self._seed, self._part, number)
        trained = self._model.train(
            weights, self._features, self._truth, self._config, seed=seed, proximal_mu=proximal_mu
        )
        # In place: what was trained is ours, and the difference of a large model would be as much memory again.
        delta = {name: np.subtract(value, weights[name], out=value) for name, value in trained.weights.items()}
        if number != self._number:
            self._number, self._before = number, self._left
        body, self._left = encode_delta(delta, update_format, left=self._before)
        said = {"loss": trained.loss, "samples": float(trained.n_samples), "steps": float(trained.steps)}
        return TrainedRound(body, {name: value for name, value in said.items() if math.isfinite(value)})


def decode_state(data: bytes | memoryview) -> dict[str, NDArray[np.float64]]:
    """Read ``Reduced.state`` of an averaged round.

    Raises:
        BadDocument: It is not one of ours.
    """
    tensors, _ = decode_tensors(data, max_bytes=_MAX_STATE_BYTES)
    if any(tensor.dtype != np.float64 for tensor in tensors.values()):
        raise BadDocument("a strategy's state is float64")
    return tensors
