"""What the market does with the parts' results: check each, merge all, score on the hold-out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from parity_fl.audit import recount
from parity_fl.bootstrap import draw_counts, leaves_rows_out, split_trees
from parity_fl.limits import FOREST_LIMITS, MAX_UPDATE_BYTES, ForestLimits
from parity_fl.linear import LinearModel, linear_from_tensors
from parity_fl.merge import merge_linear, merge_union
from parity_fl.model import TrainedModel, encode_model
from parity_fl.models.linear_exact import LinearStatistics, statistics_bytes
from parity_fl.neural_config import parameter_count
from parity_fl.one_round import audit_sums, finish_exact, statistics_of
from parity_fl.plan import PartitionPlan
from parity_fl.scoring import out_of_bag, scores
from parity_fl.spec import FlSpec, ForestConfig, LinearConfig, NeuralConfig
from parity_fl.table import Table
from parity_fl.trees import Forest, as_forest_features, forest_from_tensors, predict
from parity_fl.update import decode_update
from parity_protocol.errors import BadDocument

__all__ = [
    "FinalModel",
    "Metric",
    "audit_update",
    "check_update",
    "finish",
    "finish_phased",
    "forest_scores",
    "indexed_importance",
    "max_update_bytes",
]

Metric: TypeAlias = float | int | str | dict[str, float] | None
_Opened: TypeAlias = Forest | LinearModel | LinearStatistics

_HEADER_ALLOWANCE: Final = 1 << 16  # names, shapes, ids and metrics of an update


@dataclass(frozen=True, slots=True)
class FinalModel:
    """A session's result: the model document (see ``decode_model``), and JSON-ready numbers for people."""

    model_bytes: bytes
    metrics: dict[str, Metric]


def check_update(spec: FlSpec, plan: PartitionPlan, update_bytes: bytes, part: int) -> None:
    """Decide whether a node's result for ``part`` can be merged; the market does this before it accepts the task.

    Raises:
        TooLarge: The update is over its cap.
        BadDocument: It is not a well-formed update of this session, round, part and cut.
    """
    _open(spec, plan, update_bytes, part)


def audit_update(spec: FlSpec, plan: PartitionPlan, dataset_bytes: bytes, update_bytes: bytes, part: int) -> None:
    """Do what ``check_update`` does, and recount on the data: a forest's trees (see ``parity_fl.audit``), or exact sums.

    Worth its time (about that of scoring) where nodes are strangers. A line found by steps has nothing to recount.

    Raises:
        TooLarge: The update is over its cap.
        BadDocument: It is not an update of this task, or its trees or sums did not see this part's rows.
        ExecutionFailed: ``data_invalid``: the data are not those of the plan.
    """
    model = _open(spec, plan, update_bytes, part)
    if isinstance(spec.model, LinearConfig) and isinstance(model, LinearStatistics):
        audit_sums(spec.model, Table.load(spec, plan, dataset_bytes), part, model)
    if not isinstance(spec.model, ForestConfig) or not isinstance(model, Forest):
        return
    table = Table.load(spec, plan, dataset_bytes)
    rows = table.assignment.parts[part]
    recount(model, spec.model, as_forest_features(table.dataset.features[rows]), table.truth[rows], part=part)


def max_update_bytes(spec: FlSpec, plan: PartitionPlan, part: int) -> int:
    """Return the most bytes that an honest update of ``part`` can have; an upload is cut off there."""
    if isinstance(spec.model, NeuralConfig):
        widths = spec.model.layers(n_features=plan.n_features, n_classes=plan.class_count)
        return _HEADER_ALLOWANCE + 4 * parameter_count(widths)
    if isinstance(spec.model, LinearConfig):
        exact = spec.model.solver == "exact"
        return _HEADER_ALLOWANCE + (statistics_bytes(plan.n_features) if exact else 8 * (3 * plan.n_features + 1))
    outputs = plan.class_count if spec.is_classification else 1
    trees = split_trees(spec.model.num_trees, plan.total_parts)[part]
    nodes = _max_nodes(spec.model, plan, part) * (24 + 4 * outputs)
    return min(MAX_UPDATE_BYTES, _HEADER_ALLOWANCE + nodes + 12 * trees + 8 * plan.n_features)


def finish(spec: FlSpec, plan: PartitionPlan, dataset_bytes: bytes, updates: Sequence[bytes]) -> FinalModel:
    """Merge all parts' updates and score the result on the hold-out.

    Out-of-bag numbers are recomputed here from the trees and the repeated draws, not taken from the nodes.

    Args:
        spec: Resolved settings.
        plan: The session's plan.
        dataset_bytes: The whole data set.
        updates: One update per part, in any order.

    Raises:
        BadDocument: An update is not acceptable, or a part is missing or there twice.
        ExecutionFailed: ``data_invalid``: the data are not those of the plan.
    """
    if len(updates) != plan.total_parts:
        raise BadDocument(f"expected one update for each of {plan.total_parts} parts, got {len(updates)}")
    opened: dict[int, _Opened] = {}
    for data in updates:
        part = decode_update(data, max_bytes=MAX_UPDATE_BYTES).part
        if part in opened:
            raise BadDocument(f"there are two updates for part {part}")
        opened[part] = _open(spec, plan, data, part)
    models = [opened[part] for part in range(plan.total_parts)]
    table = Table.load(spec, plan, dataset_bytes)
    if isinstance(spec.model, ForestConfig) and spec.model.mode != "union":
        raise BadDocument(f"a forest of mode {spec.model.mode} is made in phases, not of parts that are trained once")
    if isinstance(spec.model, ForestConfig):
        forests = [model for model in models if isinstance(model, Forest)]
        return _finish_forest(spec.model, plan, table, forests)
    if isinstance(spec.model, LinearConfig) and spec.model.solver == "exact":
        sums = [model for model in models if isinstance(model, LinearStatistics)]
        solution = finish_exact(spec.model, table, sums)
        return _finish_linear(plan, table, solution.model, {"solver": "exact", "ridge": solution.ridge})
    merged = merge_linear(
        [model for model in models if isinstance(model, LinearModel)],
        [plan.part_size(part) for part in range(plan.total_parts)],
    )
    return _finish_linear(plan, table, merged, {})


def finish_phased(
    spec: FlSpec, plan: PartitionPlan, dataset_bytes: bytes, forest: Forest, out_of_bag: float | None
) -> FinalModel:
    """Score a forest that was made in phases (modes histogram and leaf_refit) on the hold-out.

    Args:
        spec: Resolved settings.
        plan: The session's plan.
        dataset_bytes: The whole data set.
        forest: Of ``HistogramServer``.
        out_of_bag: Its score, if it has one. No tree belongs to a part alone, so ``oob_local_mean`` is undefined.

    Raises:
        ExecutionFailed: ``data_invalid``: the data are not those of the plan.
    """
    if not isinstance(spec.model, ForestConfig):
        raise BadDocument("only a forest is made in phases")
    estimates = {"oob_local_mean": None, "oob_federated": out_of_bag}
    return _scored_forest(spec.model, plan, Table.load(spec, plan, dataset_bytes), forest, estimates)


def _open(spec: FlSpec, plan: PartitionPlan, data: bytes, part: int) -> _Opened:
    if not 0 <= part < plan.total_parts:
        raise BadDocument(f"not an update of this task: there is no part {part} of {plan.total_parts}")
    if isinstance(spec.model, NeuralConfig):
        raise BadDocument("not an update of this task: a neural network trains in rounds")
    update = decode_update(data, max_bytes=max_update_bytes(spec, plan, part))
    expected: Mapping[str, object] = {
        "model_type": spec.model_type,
        "session_id": spec.session_id,
        "round_id": spec.round_id,
        "part": part,
        "total_parts": plan.total_parts,
        "assignment_hash": plan.assignment_hash,
        "base_hash": "",
        "n_samples": plan.part_size(part),
    }
    for name, value in expected.items():
        if getattr(update, name) != value:
            raise BadDocument(
                f"not an update of this task: {name} must be {str(value)!a}, got {str(getattr(update, name))!a}"
            )
    if isinstance(spec.model, LinearConfig):
        if spec.model.solver == "exact":
            return statistics_of(update.tensors, plan, part)
        return linear_from_tensors(update.tensors, n_features=plan.n_features)
    trees = split_trees(spec.model.num_trees, plan.total_parts)[part]
    forest = forest_from_tensors(
        update.tensors,
        n_features=plan.n_features,
        n_outputs=plan.class_count if spec.is_classification else 1,
        classification=spec.is_classification,
        limits=ForestLimits(
            max_trees=trees, max_depth=spec.model.max_depth, max_nodes=_max_nodes(spec.model, plan, part)
        ),
    )
    if forest.n_trees != trees:
        raise BadDocument(f"not an update of this task: part {part} grows {trees} trees, got {forest.n_trees}")
    if len(set(forest.tree_weight.tolist())) != 1:
        raise BadDocument("not an update of this task: the trees of a part must weigh the same")
    return forest


def _max_nodes(config: ForestConfig, plan: PartitionPlan, part: int) -> int:
    """Bound a part's nodes: no tree has more leaves than rows, nor more levels than ``max_depth``."""
    leaves = min(plan.part_size(part), 1 << config.max_depth)
    trees = split_trees(config.num_trees, plan.total_parts)[part]
    return min(FOREST_LIMITS.max_nodes, trees * (2 * leaves - 1))


def _finish_forest(config: ForestConfig, plan: PartitionPlan, table: Table, forests: Sequence[Forest]) -> FinalModel:
    merged = merge_union(forests, [plan.part_size(part) for part in range(plan.total_parts)])
    inputs = as_forest_features(table.dataset.features)
    return _scored_forest(config, plan, table, merged, _oob(config, table, forests, merged, inputs))


def _scored_forest(
    config: ForestConfig, plan: PartitionPlan, table: Table, merged: Forest, estimates: Mapping[str, float | None]
) -> FinalModel:
    classification = config.task == "classification"
    inputs = as_forest_features(table.dataset.features)
    held = table.assignment.holdout
    guess = predict(merged, inputs[held], classification=classification)
    metrics: dict[str, Metric] = {
        "model_type": "random_forest",
        "task": config.task,
        "tree_count": merged.n_trees,
        "node_count": len(merged.feature),
        **forest_scores(table.truth[held], guess, classification=classification),
        "mode": config.mode,
        **estimates,
        "feature_importance": indexed_importance(merged),
        **_sizes(plan),
    }
    names = plan.class_names if classification else ()
    model = TrainedModel(merged, names, plan.n_features, table.dataset.feature_names)
    return FinalModel(encode_model(model), metrics)


def _finish_linear(plan: PartitionPlan, table: Table, merged: LinearModel, extra: Mapping[str, Metric]) -> FinalModel:
    held = table.assignment.holdout
    with np.errstate(over="ignore", invalid="ignore"):
        found = scores(table.truth[held], merged.predict(table.dataset.features[held]), classification=False)
    metrics: dict[str, Metric] = {
        "model_type": "linear_regression",
        "task": "regression",
        **found,
        **extra,
        **_sizes(plan),
    }
    return FinalModel(encode_model(TrainedModel(merged, (), plan.n_features, table.dataset.feature_names)), metrics)


def _oob(
    config: ForestConfig,
    table: Table,
    forests: Sequence[Forest],
    merged: Forest,
    inputs: NDArray[np.float32],
) -> dict[str, float | None]:
    """Return the two out-of-bag numbers, by repeating every tree's draws.

    ``oob_local_mean``: each part's rows voted on by its own trees, averaged by rows. ``oob_federated``: each training row
    voted on by every tree, of any part, that did not draw it.
    """
    if not (config.oob_score and leaves_rows_out(config)):
        return {"oob_local_mean": None, "oob_federated": None}
    classification = config.task == "classification"
    training = table.training_rows()
    position = np.full(len(table.truth), -1, dtype=np.int64)
    position[training] = np.arange(len(training))

    local: list[tuple[float, int]] = []
    drew: list[NDArray[np.int64]] = []  # for each tree of the merged forest, the training rows it drew
    for part, forest in enumerate(forests):
        rows = table.assignment.parts[part]
        drawn = [draw_counts(config, part=part, tree=tree, rows=len(rows)) > 0 for tree in range(forest.n_trees)]
        score, _ = out_of_bag(
            forest, inputs[rows], table.truth[rows], drew=drawn.__getitem__, classification=classification
        )
        if score is not None:
            local.append((score, len(rows)))
        drew.extend(position[rows[mask]] for mask in drawn)

    def drew_row(tree: int) -> NDArray[np.bool_]:
        mask = np.zeros(len(training), dtype=np.bool_)
        mask[drew[tree]] = True
        return mask

    federated, _ = out_of_bag(
        merged, inputs[training], table.truth[training], drew=drew_row, classification=classification
    )
    weight = sum(rows for _, rows in local)
    mean = sum(score * rows for score, rows in local) / weight if weight else None
    return {"oob_local_mean": mean, "oob_federated": federated}


def _sizes(plan: PartitionPlan) -> dict[str, Metric]:
    return {
        "parts": plan.total_parts,
        "train_samples": plan.n_rows - plan.holdout_size,
        "holdout_samples": plan.holdout_size,
        "feature_count": plan.n_features,
    }


def forest_scores(
    truth: NDArray[np.float64], guess: NDArray[np.float64], *, classification: bool
) -> dict[str, float | None]:
    """Return a forest's scores on rows that no part trained on, the headline also as ``holdout``, its name as an estimate."""
    found = scores(truth, guess, classification=classification)
    return {**found, "holdout": found["accuracy" if classification else "r2"]}


def indexed_importance(forest: Forest) -> dict[str, float]:
    """Return the importance of each feature by its column number; they sum to 1."""
    return {str(index): share for index, share in enumerate(forest.importance.tolist())}
