"""What a sharded session trains, at the market: a model by averaging, an exact line, a union of trees, a forest in phases.

Each starts from what the parts agreed on, takes their answers to ``train``, and ends with a model. None of them sees a row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np

from parity_fl.averaging import Bodies, Refused, average
from parity_fl.bootstrap import split_trees
from parity_fl.contribution import Credit
from parity_fl.forest_rounds import ForestPhases, decode_forest, encode_forest
from parity_fl.histogram import HistogramServer
from parity_fl.histogram_agreement import DEFAULT_MAX_PHASE_BYTES, check_histogram
from parity_fl.limits import FOREST_LIMITS, MAX_UPDATE_BYTES, ForestLimits
from parity_fl.linear import FeatureScale, LinearModel, linear_from_tensors, linear_tensors
from parity_fl.merge import merge_union
from parity_fl.models.base import RoundModel, Scaling, Weights, round_model
from parity_fl.models.linear_exact import (
    LinearStatistics,
    solve_linear,
    statistics_bytes,
    statistics_from_tensors,
    sum_statistics,
)
from parity_fl.models.linear_sgd import LinearSgd
from parity_fl.networks import Network
from parity_fl.neural_config import NeuralConfig
from parity_fl.privacy.dp import NoiseSetup
from parity_fl.privacy.secagg import PHASES
from parity_fl.privacy.secure_part import SumTerms
from parity_fl.sharded.bodies import opaque, raw_bytes
from parity_fl.shards import ShardPlan
from parity_fl.spec import FlSpec, ForestConfig, LinearConfig
from parity_fl.strategy import StrategyConfig
from parity_fl.tensors import Tensor, decode_tensors
from parity_fl.training import first_seed
from parity_fl.trees import Forest, forest_from_tensors
from parity_protocol import strict_json
from parity_protocol.errors import BadDocument, BadField, ParityError

__all__ = [
    "Averaging",
    "ExactLine",
    "Fitted",
    "Kind",
    "Scorer",
    "Step",
    "Turn",
    "check_plan",
    "forest_of",
    "kind_of",
    "phases_of",
]

Fitted: TypeAlias = Network | LinearModel | Forest
_HEADER_ALLOWANCE = 1 << 16


class Scorer(Protocol):
    """Scores of a model on data that the market has itself; empty without them."""

    def __call__(self, tensors: Mapping[str, Tensor], scaling: Scaling) -> dict[str, float]:
        """Return finite scores."""


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """What the answers to ``train`` made; members as those of ``Reduced``.

    Attributes:
        tensors: The next model, or the next request.
        more: Another phase of training follows before the round is over.
        appends: As ``Reduced.appends``.
        drops: As ``Reduced.drops``.
        restarts: As ``Reduced.restarts``; ``tensors`` are what the round began with.
        left: Phases of training that are still to come; of a forest an estimate from above.
    """

    tensors: Mapping[str, Tensor]
    state: bytes
    accepted: tuple[int, ...]
    rejected: dict[int, str]
    metrics: dict[str, float]
    contributions: dict[int, float]
    more: bool = False
    appends: bool = False
    restarts: bool = False
    drops: bool = False
    left: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Turn:
    """Answers to ``train``, and what they answer.

    Attributes:
        tensors: The model, or the request, that the phase started from.
        state: ``Step.state`` of the phase before; None in the first.
        updates: The answers.
        inners: Reads ``Step.state`` of every phase of the round so far, one after the other.
        credit: How each part is scored; None scores none.
    """

    tensors: Mapping[str, Tensor]
    state: bytes | None
    updates: Bodies
    inners: Callable[[], bytes]
    credit: Credit | None


class Kind(Protocol):
    """How one kind of model is made of the parts' answers. Pure: what it returns follows from its arguments."""

    def open(self) -> Mapping[str, Tensor]:
        """Return what the first training starts from."""

    def reduce(self, turn: Turn) -> Step | Refused:
        """Take the answers to ``train``."""

    def terms(self, state: bytes | None) -> SumTerms | None:
        """Return what nodes are told of the round's secure sum, which begins with ``state``; None without one."""

    def fitted(self, tensors: Mapping[str, Tensor]) -> tuple[Fitted, dict[str, float | None]]:
        """Return the model to predict with, and what else there is to say of it; ``BadDocument`` if unfinished."""


def phases_of(spec: FlSpec, plan: ShardPlan) -> int:
    """Return how many phases of training a round has; of a forest that the data decide on, an estimate from above."""
    each = len(PHASES) if spec.privacy.secure_aggregation else 1
    if not isinstance(spec.model, ForestConfig) or spec.model.mode == "union":
        return each
    return 1 + each * (HistogramServer(spec.model, plan).left - 1)  # the first one is answered openly


def check_plan(spec: FlSpec, plan: ShardPlan) -> None:
    """Refuse settings that do not fit what the shards turned out to be.

    Raises:
        BadField: They do not.
    """
    model, width = spec.model, plan.n_features
    if not isinstance(model, ForestConfig):
        if model.input_size not in {0, width}:
            raise BadField(
                f"feature size mismatch: expected {model.input_size}, got {width}", field="model_config.input_size"
            )
        if isinstance(model, NeuralConfig):
            model.layers(n_features=width, n_classes=plan.class_count)
        return
    if model.num_classes not in {0, plan.class_count}:
        raise BadField(
            f"num_classes is {model.num_classes}, the shards have {plan.class_count} classes",
            field="model_config.num_classes",
        )
    if model.mode == "histogram":
        check_histogram(model, plan, max_phase_bytes=DEFAULT_MAX_PHASE_BYTES)


def kind_of(
    spec: FlSpec,
    plan: ShardPlan,
    scaling: Scaling,
    strategy: StrategyConfig,
    score: Scorer,
    *,
    private: NoiseSetup | None = None,
) -> Kind:
    """Return how a session's model is made.

    Args:
        private: With differential privacy.

    Raises:
        BadField: The settings cannot work.
    """
    if isinstance(spec.model, ForestConfig):
        if spec.privacy.secure_aggregation:
            from parity_fl.sharded.secure_forest import SecureForest  # it is made of what is here

            return SecureForest(spec, spec.model, plan)
        return _Union(spec.model, plan) if spec.model.mode == "union" else _Phases(spec.model, plan)
    from parity_fl.sharded.secure_kinds import SecureAveraging, SecureLine  # they are made of what is here

    if isinstance(spec.model, LinearConfig) and spec.model.solver == "exact":
        return SecureLine(spec, plan, scaling) if spec.privacy.secure_aggregation else ExactLine(plan, scaling)
    if spec.privacy.secure_aggregation:
        return SecureAveraging(spec, plan, scaling, strategy, score, private)
    return Averaging(spec, plan, scaling, strategy, score, private)


class Averaging:
    """Networks and lines by steps: each round's differences, combined by the session's rule."""

    def __init__(
        self,
        spec: FlSpec,
        plan: ShardPlan,
        scaling: Scaling,
        strategy: StrategyConfig,
        score: Scorer,
        private: NoiseSetup | None,
    ) -> None:
        self._spec, self._plan, self._scaling, self._strategy, self._score = spec, plan, scaling, strategy, score
        self._private = private
        self._model: RoundModel = round_model(
            spec, n_features=plan.n_features, n_classes=plan.class_count, scaling=scaling
        )

    def terms(self, state: bytes | None) -> SumTerms | None:
        """See ``Kind``."""
        del state
        return None

    def open(self) -> Mapping[str, Tensor]:
        """See ``Kind``."""
        return self._model.init(first_seed(self._plan.seed))

    def reduce(self, turn: Turn) -> Step | Refused:
        """See ``Kind``."""
        done = average(
            self._strategy,
            self._model.shapes(),
            self._weights(turn.tensors),
            turn.state,
            turn.updates,
            weight=self._plan.weight,  # capped: rows are the node's own claim here
            score=lambda weights: self._score(weights, self._scaling),
            credit=turn.credit,
            private=self._private,
        )
        if isinstance(done, Refused):
            return done
        return Step(done.weights, done.state, done.accepted, done.rejected, done.metrics, done.contributions)

    def fitted(self, tensors: Mapping[str, Tensor]) -> tuple[Fitted, dict[str, float | None]]:
        """See ``Kind``."""
        weights = self._weights(tensors)
        if isinstance(self._model, LinearSgd):
            return self._model.own_units(weights), {}
        assert isinstance(self._spec.model, NeuralConfig)
        return Network(self._spec.model, weights, self._scaling, self._plan.class_count), {}

    def _weights(self, tensors: Mapping[str, Tensor]) -> Weights:
        shapes = self._model.shapes()
        if {name: tensor.shape for name, tensor in tensors.items()} != shapes:
            raise BadDocument("not a model of this session: it has other parameters")
        return {name: np.asarray(tensors[name], dtype=np.float32) for name in shapes}


class ExactLine:
    """Least squares from the sums of all parts; one round."""

    def __init__(self, plan: ShardPlan, scaling: Scaling) -> None:
        self._plan, self._scale = plan, FeatureScale(scaling.mean, scaling.deviation)

    def terms(self, state: bytes | None) -> SumTerms | None:
        """See ``Kind``."""
        del state
        return None

    def open(self) -> Mapping[str, Tensor]:
        """See ``Kind``."""
        return {}

    def reduce(self, turn: Turn) -> Step | Refused:
        """See ``Kind``."""
        most = _HEADER_ALLOWANCE + statistics_bytes(self._plan.n_features)

        def read(part: int, body: bytes | memoryview) -> LinearStatistics:
            found, _ = decode_tensors(body, max_bytes=most)
            return statistics_from_tensors(found, n_features=self._plan.n_features, rows=self._plan.part_size(part))

        sums: dict[int, LinearStatistics] = {}
        rejected: dict[int, str] = {}
        for part in sorted(turn.updates):
            try:
                sums[part] = read(part, turn.updates[part]())
            except ParityError as exc:
                rejected[part] = f"malformed: {exc.message}"
        if len(sums) < self._plan.total_parts:
            return Refused(f"the exact solution needs the sums of all {self._plan.total_parts} parts", rejected)
        solution = solve_linear(sum_statistics([sums[part] for part in sorted(sums)]), self._scale)
        return Step(linear_tensors(solution.model), b"", tuple(sorted(sums)), {}, {"ridge": solution.ridge}, {})

    def fitted(self, tensors: Mapping[str, Tensor]) -> tuple[Fitted, dict[str, float | None]]:
        """See ``Kind``."""
        return linear_from_tensors(tensors, n_features=self._plan.n_features), {}


class _Union:
    """Every part grows its own trees; the forest is all of them. One round."""

    def __init__(self, config: ForestConfig, plan: ShardPlan) -> None:
        self._config, self._plan = config, plan

    def terms(self, state: bytes | None) -> SumTerms | None:
        del state
        return None

    def open(self) -> Mapping[str, Tensor]:
        return {}

    def reduce(self, turn: Turn) -> Step | Refused:
        forests: dict[int, Forest] = {}
        rejected: dict[int, str] = {}
        local: list[tuple[float, int]] = []
        for part in sorted(turn.updates):
            try:
                forests[part], said = self._read(part, turn.updates[part]())
            except ParityError as exc:
                rejected[part] = f"malformed: {exc.message}"
                continue
            if said is not None:
                local.append((said, self._plan.part_size(part)))
        if len(forests) < self._plan.total_parts:
            return Refused(f"a forest needs the trees of all {self._plan.total_parts} parts", rejected)
        parts = sorted(forests)
        merged = merge_union([forests[part] for part in parts], [int(self._plan.weight(part)) for part in parts])
        rows = sum(count for _, count in local)
        mean = {"oob_local_mean": sum(score * count for score, count in local) / rows} if rows else {}
        return Step({"forest": opaque(encode_forest(merged, None))}, b"", tuple(parts), {}, mean, {})

    def fitted(self, tensors: Mapping[str, Tensor]) -> tuple[Fitted, dict[str, float | None]]:
        return forest_of(tensors, self._config, self._plan)

    def _read(self, part: int, body: bytes | memoryview) -> tuple[Forest, float | None]:
        """Return a part's trees, and what it says of their out-of-bag score."""
        config, plan = self._config, self._plan
        trees = split_trees(config.num_trees, plan.total_parts)[part]
        leaves = min(plan.part_size(part), 1 << config.max_depth)
        found, metadata = decode_tensors(body, max_bytes=MAX_UPDATE_BYTES)
        forest = forest_from_tensors(
            found,
            n_features=plan.n_features,
            n_outputs=max(1, plan.class_count),
            classification=bool(plan.class_names),
            limits=ForestLimits(
                max_trees=trees,
                max_depth=config.max_depth,
                max_nodes=min(FOREST_LIMITS.max_nodes, trees * (2 * leaves - 1)),
            ),
        )
        if forest.n_trees != trees or len(set(forest.tree_weight.tolist())) != 1:
            raise BadDocument(f"part {part} grows {trees} trees of one weight, got {forest.n_trees}")
        said = strict_json.loads(metadata.get("oob_local", "null").encode())
        return forest, float(said) if isinstance(said, int | float) and -1e6 < said <= 1 else None


class _Phases:
    """A forest that all parts grow together, phase after phase of one round."""

    def __init__(self, config: ForestConfig, plan: ShardPlan) -> None:
        self._config, self._plan = config, plan
        self._phases = ForestPhases(config, plan)

    def terms(self, state: bytes | None) -> SumTerms | None:
        del state
        return None

    def open(self) -> Mapping[str, Tensor]:
        return {"request": opaque(self._phases.first())}

    def reduce(self, turn: Turn) -> Step | Refused:
        # Credits nobody: no part's answer can be left out of a sum that later answers must add up to.
        done = self._phases.reduce(raw_bytes(turn.tensors, "request"), turn.inners, turn.updates)
        if isinstance(done, Refused):
            return done
        name = "request" if done.more_phases else "forest"
        return Step(
            {name: opaque(done.model)},
            done.state,
            done.accepted,
            {},
            {},
            {},
            more=done.more_phases,
            appends=True,
            left=done.left,
        )

    def fitted(self, tensors: Mapping[str, Tensor]) -> tuple[Fitted, dict[str, float | None]]:
        return forest_of(tensors, self._config, self._plan)


def forest_of(
    tensors: Mapping[str, Tensor], config: ForestConfig, plan: ShardPlan
) -> tuple[Forest, dict[str, float | None]]:
    """Return a finished forest and its out-of-bag score; ``BadDocument`` if the session was stopped before."""
    if "forest" not in tensors:
        raise BadDocument("the session was stopped before its forest was finished")
    forest, score = decode_forest(
        raw_bytes(tensors, "forest"), config, n_features=plan.n_features, n_classes=plan.class_count
    )
    return forest, {"oob_federated": score}
