"""The market's side of a sharded session: agree, scale, train, score; as ``RoundServer``, without a row of data.

Round 0 is what all parts agree on. From round 1 on a round is the training and then, unless the market has data of its own
to score with, one more phase in which each part scores the new model on its hold-out. What the phases found out is in the
state that the next one starts from: a market that is killed goes on from its files.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final, Literal, NoReturn, TypeAlias

import numpy as np
from numpy.typing import NDArray

from parity_fl.averaging import Bodies, Reduced, Refused, decode_state
from parity_fl.checkpoint import Checkpoint
from parity_fl.contribution import Credit
from parity_fl.data import Dataset, label_classes, load_dataset, targets
from parity_fl.finishing import FinalModel, Metric, indexed_importance
from parity_fl.model import TrainedModel, encode_model
from parity_fl.models.base import Scaling
from parity_fl.models.moments import Moments, fair_scaling, moments_from_tensors
from parity_fl.privacy.dp import NoiseSetup
from parity_fl.privacy.secure_mean import rule_state, state_of_rule
from parity_fl.resuming import RESUME_FIELD, settings_of
from parity_fl.session import ShardTerms
from parity_fl.sharded.agreeing import agree, fewest_parts, missing
from parity_fl.sharded.bodies import Base, HoldoutScore, decode_base, encode_base, merged_scores
from parity_fl.sharded.kinds import Kind, Turn, kind_of, phases_of
from parity_fl.sharded.scoring import evaluate
from parity_fl.shards import ShardPlan
from parity_fl.spec import FlSpec, ForestConfig
from parity_fl.strategy import StrategyConfig
from parity_fl.tensors import Tensor, decode_tensors, encode_tensors
from parity_fl.trees import Forest
from parity_protocol.errors import BadDocument, BadField, ExecutionFailed, FailureReason, Internal, ParityError

__all__ = ["Asks", "ShardedServer"]

Asks: TypeAlias = Literal["summary", "moments", "train", "score"]

_LENGTH_BYTES: Final = 8
_MAX_MOMENTS_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class _State:
    """What a phase starts from beside its file; ``inner`` is the strategy's or the forest's own."""

    asks: Asks = "summary"
    plan: ShardPlan | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    inner: bytes = b""

    def encode(self) -> bytes:
        head = {
            "asks": self.asks,
            "plan": None if self.plan is None else self.plan.to_dict(),
            "metrics": self.metrics,
        }
        text = json.dumps(head, separators=(",", ":")).encode()
        return b"".join(len(one).to_bytes(_LENGTH_BYTES, "big") + one for one in (text, self.inner))

    @classmethod
    def decode(cls, data: bytes) -> _State:
        """Read what ``encode`` wrote; of several records, one after the other, the last one."""
        text, inner = _records(data)[-1]
        try:
            head: dict[str, Any] = json.loads(text)
            plan = None if head["plan"] is None else ShardPlan.from_dict(head["plan"])
            return cls(head["asks"], plan, head["metrics"], inner)
        except (ValueError, KeyError, TypeError) as exc:
            raise BadDocument("not the state of a sharded session") from exc

    @property
    def agreed(self) -> ShardPlan:
        if self.plan is None:
            raise BadDocument("the session was stopped before its shards had agreed")
        return self.plan


class ShardedServer:
    """The market's side of one session.

    Args:
        spec: Resolved settings of a sharded session.
        terms: Number of parts and seed.
        strategy: The rule, of a model that is averaged.
        evaluation: The data set of ``eval_cid``; None leaves scoring to the parts' hold-outs.
        private: With differential privacy.
        resumes: The checkpoint that the session goes on from, once its shards have agreed again.
        quorum: Of its rounds: with so many parts it begins if no node has a good answer for the others; None needs all.

    Raises:
        ExecutionFailed: ``data_invalid``: the evaluation data cannot be used.
    """

    def __init__(
        self,
        spec: FlSpec,
        terms: ShardTerms,
        strategy: StrategyConfig,
        evaluation: bytes | None = None,
        *,
        private: NoiseSetup | None = None,
        resumes: Checkpoint | None = None,
        quorum: int | None = None,
    ) -> None:
        if spec.privacy.differential_privacy != (private is not None):
            raise Internal("differential privacy needs noise, and nothing else does")
        self._spec, self._terms, self._strategy, self._private = spec, terms, strategy, private
        self._resumes = resumes
        self._least = fewest_parts(spec, terms.total_parts, quorum)
        self._evaluation: Dataset | None = None
        if evaluation is not None:
            self._evaluation = load_dataset(evaluation, spec.data_format)
        self._kind: tuple[str, Kind] | None = None  # by the plan that it was made of

    @property
    def saves(self) -> bool:
        """Whether the session has rounds whose model a checkpoint holds: not a forest, nor what is solved at once."""
        return self._spec.train is not None

    def first(self) -> bytes:
        """Return the file that the session starts from: the question what each shard is."""
        return encode_base(Base())

    def reduce(
        self,
        base: bytes,
        state: bytes | None,
        updates: Bodies,
        *,
        states: Callable[[], bytes] | None = None,
        credit: Credit | None = None,
    ) -> Reduced | Refused:
        """Close a phase; as ``RoundServer.reduce``.

        Args:
            states: Reads the states of all phases of the round so far, one after the other; for forests, where
                ``Reduced.appends``. ``state`` alone where there was one phase.

        Raises:
            BadDocument: ``base`` or ``state`` is not one of ours.
            BadField: The shards do not fit together, or the settings do not fit them; the message names the part.
            ExecutionFailed: The parts' numbers cannot be used.
        """
        at = _State() if state is None else _State.decode(state)
        match at.asks:
            case "summary":
                return self._agree(updates)
            case "moments":
                return self._scale(at, updates)
            case "train":
                inners = partial(_inners, states) if states is not None else (lambda: at.inner)
                return self._train(at, decode_base(base), inners, updates, credit=credit)
            case "score":
                return self._score(at, base, updates)

    # -- round 0 ---------------------------------------------------------------------------------------------------

    def _agree(self, updates: Bodies) -> Reduced | Refused:
        """Make one plan of what the nodes said of their shards."""
        plan = agree(self._spec, self._terms, updates, least=self._least)
        if isinstance(plan, Refused):
            return plan
        if self._evaluation is not None:
            self._evaluation_truth(plan)
        state, parts = _State("moments", plan), plan.present
        if not isinstance(self._spec.model, ForestConfig) and self._spec.model.standardize:
            base = encode_base(Base(plan.agreement))
            left = 1 + self._phases(plan)
            told = _shape(plan)
            more = Reduced(base, state.encode(), parts, {}, told, {}, more_phases=True, asks="moments", left=left)
            return replace(more, present=parts)
        width = plan.n_features
        return self._opened(state, Scaling(np.zeros(width), np.ones(width)), parts)

    def _scale(self, at: _State, updates: Bodies) -> Reduced | Refused:
        """Agree on what features and targets are scaled with."""
        plan = at.agreed
        moments: dict[int, Moments] = {}
        rejected: dict[int, str] = {}
        for part in sorted(set(updates).intersection(plan.present)):
            try:
                tensors, _ = decode_tensors(updates[part](), max_bytes=_MAX_MOMENTS_BYTES)
                moments[part] = moments_from_tensors(tensors, n_features=plan.n_features, rows=plan.part_size(part))
            except ParityError as exc:
                rejected[part] = f"malformed: {exc.message}"
        told = missing("moments", moments, len(plan.present), self._least, rejected)
        if told is not None:
            return told
        if gone := set(plan.present) - set(moments):
            plan = plan.without(gone)
            at = replace(at, plan=plan)
        scaling, left_out = fair_scaling(self._spec, moments)
        return self._opened(at, scaling, tuple(sorted(moments)), left_out)

    def _opened(
        self, at: _State, scaling: Scaling, parts: tuple[int, ...], left_out: Mapping[int, int] | None = None
    ) -> Reduced:
        plan = at.agreed
        kind = self._kind_of(plan, scaling)
        tensors, inner, number = kind.open(), b"", None
        if self._resumes is not None:
            tensors, inner = self._resumed(plan, tensors)
            number = self._resumes.round + 1
        base = encode_base(Base(plan.agreement, scaling, tensors, kind.terms(inner or None)))
        state = _State("train", plan, {}, inner).encode()
        # By part, in how many columns the common scaling goes without it.
        told = {f"scaling_without_part_{part}": float(columns) for part, columns in (left_out or {}).items()}
        shown = {**_shape(plan), **told}
        left = self._phases(plan)
        return Reduced(base, state, parts, {}, shown, {}, next_round=number, left=left, present=plan.present)

    def _resumed(self, plan: ShardPlan, first: Mapping[str, Tensor]) -> tuple[Mapping[str, Tensor], bytes]:
        """Return the model and the strategy's state after the checkpoint.

        Raises:
            BadField: It is of other shards, or another model.
        """
        checkpoint = self._resumes
        assert checkpoint is not None
        if plan.digest() != checkpoint.assignment_hash:
            raise BadField(
                "resume_from: the shards are not those that the checkpoint was trained on", field=RESUME_FIELD
            )
        shapes = {name: tensor.shape for name, tensor in first.items()}
        if {name: tensor.shape for name, tensor in checkpoint.weights.items()} != shapes:
            raise BadField("resume_from: the checkpoint's model has other parameters", field=RESUME_FIELD)
        if self._spec.privacy.secure_aggregation:
            return checkpoint.weights, state_of_rule(checkpoint.state)
        return checkpoint.weights, encode_tensors(dict(checkpoint.state), {})

    # -- every other round -----------------------------------------------------------------------------------------

    def _train(
        self, at: _State, base: Base, inners: Callable[[], bytes], updates: Bodies, *, credit: Credit | None
    ) -> Reduced | Refused:
        plan, scaling = at.agreed, _scaling_of(base)
        kind = self._kind_of(plan, scaling)
        step = kind.reduce(Turn(base.tensors, at.inner or None, updates, inners, credit))
        if isinstance(step, Refused):
            return step
        terms = kind.terms(step.state) if step.restarts or not step.more else None
        has_score = self._evaluation is None and plan.holdout_size > 0
        is_scored = not step.more and has_score
        asks: Asks = "score" if is_scored else "train"
        metrics = step.metrics
        if not step.more and self._evaluation is not None:
            metrics = {**self._evaluated(plan, scaling, step.tensors), **metrics}
        return Reduced(
            model=encode_base(replace(base, tensors=step.tensors, terms=terms)),
            state=_State(asks, plan, metrics, step.state).encode(),
            accepted=step.accepted,
            rejected=step.rejected,
            metrics=metrics,
            contributions=step.contributions,
            more_phases=step.more or is_scored,
            asks=asks,
            appends=step.appends,
            restarts=step.restarts,
            drops=step.drops,
            left=(step.left if step.more else 0) + has_score,
            present=plan.present,
        )

    def _phases(self, plan: ShardPlan) -> int:
        """Return how many phases a round has, the score included."""
        return phases_of(self._spec, plan) + (self._evaluation is None and plan.holdout_size > 0)

    def _score(self, at: _State, base: bytes, updates: Bodies) -> Reduced | Refused:
        """Merge what the parts found on their hold-outs; the model stays as it is."""
        plan, classification = at.agreed, self._spec.is_classification
        scores: dict[int, HoldoutScore] = {}
        rejected: dict[int, str] = {}
        for part in sorted(updates):
            try:
                rows = sum(plan.holdout_counts[part])
                scores[part] = HoldoutScore.decode(updates[part](), rows=rows, classification=classification)
            except ParityError as exc:
                rejected[part] = f"malformed: {exc.message}"
        if updates and not scores:
            return Refused("no part could score the model", rejected)
        # Without a single answer nobody was asked: by Poisson sampling a round may have drawn no part at all.
        parts = sorted(scores)
        found = merged_scores([scores[part] for part in parts], classification=classification)
        metrics = {**found, **at.metrics}
        state = replace(at, asks="train", metrics=metrics)
        return Reduced(base, state.encode(), tuple(parts), rejected, metrics, {}, present=plan.present)

    def plan_of(self, state: bytes) -> ShardPlan:
        """Return what was agreed on, from a phase's state.

        Raises:
            BadDocument: The shards have not agreed.
        """
        return _State.decode(state).agreed

    # -- the end ---------------------------------------------------------------------------------------------------

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
        """Return the session as it is after a round; as ``RoundServer.checkpoint``."""
        at = _State.decode(state)
        inner = at.inner
        return Checkpoint(
            session_id=self._spec.session_id,
            round=number,
            total_rounds=total_rounds,
            strategy=self._strategy,
            weights={name: np.asarray(value, np.float32) for name, value in decode_base(file).tensors.items()},
            state=self._rule_state(inner) if inner else {},
            metrics=dict(metrics),
            settings=settings_of(self._spec),
            seed=self._terms.seed,
            assignment_hash=at.agreed.digest(),
            owner=owner,
        )

    def _rule_state(self, inner: bytes) -> dict[str, NDArray[np.float64]]:
        return rule_state(inner) if self._spec.privacy.secure_aggregation else decode_state(inner)

    def final(self, file: bytes, state: bytes, *, rounds: int) -> FinalModel:
        """Return the session's result: the model to predict with, and its last scores.

        Args:
            file: The model file after the last round.
            state: ``Reduced.state`` of it.
            rounds: How many there were.

        Raises:
            BadDocument: The session was stopped before there was a model.
        """
        at, base = _State.decode(state), decode_base(file)
        plan = at.agreed
        if rounds < 1:
            raise BadDocument("the session was stopped before its first round")
        fitted, extra = self._kind_of(plan, _scaling_of(base)).fitted(base.tensors)
        document = TrainedModel(fitted, plan.class_names, plan.n_features, plan.feature_names)
        metrics: dict[str, Metric] = {
            "model_type": self._spec.model_type,
            "task": "classification" if self._spec.is_classification else "regression",
            "data_mode": "sharded",
            "rounds": rounds,
            **at.metrics,
            **extra,
            "parts": plan.total_parts,
            "train_samples": plan.n_rows - plan.holdout_size,
            "holdout_samples": self._rows_scored(plan),
            "feature_count": plan.n_features,
            "shards": plan.digest(),
        }
        if isinstance(fitted, Forest) and isinstance(self._spec.model, ForestConfig):
            metrics |= {
                "mode": self._spec.model.mode,
                "tree_count": fitted.n_trees,
                "node_count": len(fitted.feature),
                "holdout": at.metrics.get("accuracy", at.metrics.get("r2")),
                "feature_importance": indexed_importance(fitted),
            }
        return FinalModel(encode_model(document), metrics)

    def _rows_scored(self, plan: ShardPlan) -> int:
        return plan.holdout_size if self._evaluation is None else len(self._evaluation.labels)

    # -- the market's own data ---------------------------------------------------------------------------------------

    def _kind_of(self, plan: ShardPlan, scaling: Scaling) -> Kind:
        mark = plan.digest()
        if self._kind is None or self._kind[0] != mark:
            self._kind = (
                mark,
                kind_of(
                    self._spec,
                    plan,
                    scaling,
                    self._strategy,
                    lambda tensors, scale: self._evaluated(plan, scale, tensors),
                    private=self._private,
                ),
            )
        return self._kind[1]

    def _evaluated(self, plan: ShardPlan, scaling: Scaling, tensors: Mapping[str, Tensor]) -> dict[str, float]:
        if self._evaluation is None:
            return {}
        found = evaluate(
            self._spec,
            tensors,
            scaling,
            self._evaluation.features,
            self._evaluation_truth(plan),
            n_classes=plan.class_count,
        )
        return {name: float(value) for name, value in found.items() if math.isfinite(value)}

    def _evaluation_truth(self, plan: ShardPlan) -> NDArray[np.float64]:
        """Return the evaluation data's class indices or targets.

        Raises:
            ExecutionFailed: ``data_invalid``: they do not fit the shards.
        """
        assert self._evaluation is not None
        data = self._evaluation
        if data.features.shape[1] != plan.n_features:
            _unfit(f"it has {data.features.shape[1]} features, the shards have {plan.n_features}")
        if not plan.class_names:
            return targets(data.labels)
        own = label_classes(data.labels)
        place = {name: index for index, name in enumerate(plan.class_names)}
        unknown = next((name for name in own.names if name not in place), None)
        if unknown is not None:
            _unfit(f"it has the class {unknown[:64]!a}, which no shard has")
        return np.array([place[name] for name in own.names], dtype=np.float64)[own.index]


def _records(data: bytes) -> list[tuple[bytes, bytes]]:
    """Return head and inner state of each record."""
    found: list[tuple[bytes, bytes]] = []
    at = 0
    while at < len(data) or not found:
        pair = []
        for _ in range(2):
            start = at + _LENGTH_BYTES
            end = start + int.from_bytes(data[at:start], "big")
            if end > len(data) or start > len(data):
                raise BadDocument("the state of a sharded session ends inside a record")
            pair.append(data[start:end])
            at = end
        found.append((pair[0], pair[1]))
    return found


def _inners(states: Callable[[], bytes]) -> bytes:
    """Return the inner states of all records, one after the other."""
    return b"".join(inner for _, inner in _records(states()))


def _scaling_of(base: Base) -> Scaling:
    if base.scaling is None:
        raise BadDocument("the phase has no scaling")
    return base.scaling


def _shape(plan: ShardPlan) -> dict[str, float]:
    """Return what people are shown of what was agreed."""
    return {
        "train_samples": float(plan.n_rows - plan.holdout_size),
        "holdout_samples": float(plan.holdout_size),
        "feature_count": float(plan.n_features),
        "class_count": float(plan.class_count),
    }


def _unfit(message: str) -> NoReturn:
    raise ExecutionFailed(FailureReason.DATA_INVALID, f"the evaluation data do not fit the shards: {message}")
