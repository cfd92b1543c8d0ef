"""What the node and the market call: plan, train a part, check or audit an update, finish.

All are pure functions of bytes. The node runs ``train`` in a child process; the market runs the others, and none of
those imports scikit-learn.
"""

from __future__ import annotations

from dataclasses import dataclass

from parity_fl.bootstrap import split_trees
from parity_fl.data import load_dataset
from parity_fl.finishing import (
    FinalModel,
    Metric,
    audit_update,
    check_update,
    finish,
    indexed_importance,
    max_update_bytes,
)
from parity_fl.histogram_agreement import DEFAULT_MAX_PHASE_BYTES, check_histogram
from parity_fl.linear import feature_scale, linear_tensors, train_linear
from parity_fl.one_round import exact_part
from parity_fl.partition import plan_partition
from parity_fl.plan import PartitionPlan
from parity_fl.prng import derive_key
from parity_fl.scoring import scores
from parity_fl.spec import FlSpec, ForestConfig, LinearConfig, NeuralConfig
from parity_fl.table import Table, check_part, contradiction, required_training
from parity_fl.trees import as_forest_features, forest_tensors, predict
from parity_fl.update import FlUpdate, encode_update
from parity_protocol.errors import BadField

__all__ = [
    "FinalModel",
    "Metric",
    "TrainOutcome",
    "audit_update",
    "check_update",
    "finish",
    "max_update_bytes",
    "plan_session",
    "train",
]


@dataclass(frozen=True, slots=True)
class TrainOutcome:
    """One part's result: what to upload, and JSON-ready numbers for people."""

    update_bytes: bytes
    metrics: dict[str, Metric]


def plan_session(spec: FlSpec, dataset_bytes: bytes, seed: str) -> PartitionPlan:
    """Check the data against the session's settings and cut them; the market does this once, at creation.

    Args:
        spec: Resolved settings.
        dataset_bytes: The whole data set, already verified against its CID.
        seed: 64 lower-case hex characters.

    Raises:
        BadField: The settings do not fit the data.
        ExecutionFailed: ``data_invalid``: the data cannot be used.
    """
    if len(seed) != 64 or not set(seed) <= set("0123456789abcdef"):
        raise BadField("seed must be 64 lower-case hex characters", field="seed")
    dataset = load_dataset(dataset_bytes, spec.data_format)
    width = dataset.features.shape[1]
    if isinstance(spec.model, LinearConfig) and spec.model.input_size != width:
        raise BadField(
            f"feature size mismatch: expected {spec.model.input_size}, got {width}", field="model_config.input_size"
        )
    if isinstance(spec.model, ForestConfig):
        as_forest_features(dataset.features)
    plan = plan_partition(
        spec.partition, dataset.labels, seed=seed, n_features=width, classification=spec.is_classification
    )
    if isinstance(spec.model, NeuralConfig):
        spec.model.layers(n_features=width, n_classes=plan.class_count)
    if isinstance(spec.model, ForestConfig) and spec.model.mode == "histogram":
        check_histogram(spec.model, plan, max_phase_bytes=DEFAULT_MAX_PHASE_BYTES)
    if isinstance(spec.model, ForestConfig) and spec.is_classification:
        wanted, found = spec.model.num_classes, plan.class_count
        if wanted not in {0, found}:
            raise BadField(f"num_classes is {wanted}, the data have {found} classes", field="model_config.num_classes")
        if found < 2:
            raise BadField("the labels have one class only: there is nothing to learn", field="dataset_cid")
    return plan


def train(spec: FlSpec, plan: PartitionPlan, dataset_bytes: bytes, part: int) -> TrainOutcome:
    """Train one part.

    Args:
        spec: Resolved settings.
        plan: The session's plan; the cut is repeated and its hash compared.
        dataset_bytes: The whole data set, already verified against its CID.
        part: Which part to train.

    Raises:
        ExecutionFailed: ``spec_invalid`` if settings, plan and part contradict each other; ``data_invalid`` if the
            data cannot be used or are not those of the plan; ``numerical_instability`` if training diverges.
    """
    check_part(part, plan.total_parts)
    if spec.part_index not in {None, part}:
        contradiction(f"the task says part {spec.part_index}, asked to train part {part}")
    table = Table.load(spec, plan, dataset_bytes)
    rows = table.assignment.parts[part]
    features, truth = table.dataset.features[rows], table.truth[rows]
    metrics: dict[str, Metric] = {
        "part": part,
        "data_size": len(rows),
        "sample_count": len(rows),
        "feature_count": plan.n_features,
    }
    if isinstance(spec.model, ForestConfig) and spec.model.mode != "union":
        contradiction(f"a forest of mode {spec.model.mode} is made in phases, not of parts that are trained once")

    said: dict[str, float | None]
    if isinstance(spec.model, ForestConfig):
        from parity_fl.forest import train_forest  # scikit-learn comes with it; only nodes train

        grown = train_forest(
            features,
            truth,
            spec.model,
            n_classes=plan.class_count,
            part=part,
            n_trees=split_trees(spec.model.num_trees, plan.total_parts)[part],
        )
        tensors = forest_tensors(grown.forest)
        guess = predict(grown.forest, as_forest_features(features), classification=spec.is_classification)
        said = {**scores(truth, guess, classification=spec.is_classification), "oob_local": grown.oob_local}
        metrics["tree_count"] = grown.forest.n_trees
        metrics["oob_rows"] = grown.oob_rows
        metrics["feature_importance"] = indexed_importance(grown.forest)
    elif isinstance(spec.model, NeuralConfig):
        contradiction("a neural network trains in rounds")
    elif spec.model.solver == "exact":
        tensors, said = exact_part(spec.model, table, part)
    else:
        train = required_training(spec.train)
        scale = feature_scale(table.dataset.features[table.training_rows()], standardize=spec.model.standardize)
        seed = derive_key("sgd", bytes.fromhex(plan.seed), part.to_bytes(4, "big"))
        model = train_linear(features, truth, train, scale=scale, seed=int.from_bytes(seed, "big"))
        tensors = linear_tensors(model)
        said = scores(truth, model.predict(features), classification=False)

    update = FlUpdate(
        model_type=spec.model_type,
        session_id=spec.session_id,
        round_id=spec.round_id,
        part=part,
        total_parts=plan.total_parts,
        assignment_hash=plan.assignment_hash,
        base_hash="",
        n_samples=len(rows),
        metrics=said,
        tensors=tensors,
    )
    return TrainOutcome(encode_update(update), {**metrics, **said})
