"""The configuration of a federated-learning session: checked once, in the network's order and words.

``resolve_fl_spec`` is pure, so the market (at creation) and the node (before training) run the same checks on the
same document and must agree. Training parameters never have defaults; the forest's model settings do, and they are
written down in ``ForestConfig``. This module imports no NumPy, so admission can use it in the idle node.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import NoReturn, TypeAlias, assert_never

from parity_fl.fields import Section, fail
from parity_fl.limits import (
    MAX_BATCH_SIZE,
    MAX_CLASSES,
    MAX_DEPTH,
    MAX_EPOCHS,
    MAX_EXACT_FEATURES,
    MAX_FEATURES,
    MAX_ID_CHARS,
    MAX_PARTS,
    MAX_TREES,
)
from parity_fl.neural_config import NEURAL_FIELDS, NeuralConfig, neural_config
from parity_fl.partition_config import PARTITION_FIELDS, SHARDED, PartitionConfig, partition_config, sharded_config
from parity_fl.privacy.config import PrivacyConfig, read_privacy

__all__ = [
    "FlSpec",
    "ForestConfig",
    "LinearConfig",
    "ModelConfig",
    "NeuralConfig",
    "PartitionConfig",
    "TrainConfig",
    "resolve_fl_spec",
]

_FOREST_MODES = ("union", "leaf_refit", "histogram")
_MAX_BINS = 1 << 15
_CRITERIA = {"classification": ("gini", "entropy"), "regression": ("squared_error",)}
_SEED_LIMIT = 1 << 53  # whole numbers that every JSON reader keeps exact
_ROW_LIMIT = 1 << 31
_STANDARDIZE = True
_MOMENTUM = 0.9


@dataclass(frozen=True, slots=True)
class ForestConfig:
    """A random forest; the defaults are the documented ones.

    Attributes:
        num_trees: Trees of the whole forest; the market splits them over the parts.
        max_depth: Deepest leaf; the root has depth 0.
        min_samples_split: Fewest rows of a node that is split further.
        min_samples_leaf: Fewest rows of a leaf.
        max_features: Features tried at a split; 0 means the square root of their number, rounded down.
        subsample: Draws per tree, as a fraction of the part's rows, in (0, 1].
        bootstrap_samples: Draw with replacement. Without, ``subsample`` below 1 leaves rows out.
        oob_score: Score every tree on the rows it did not draw.
        num_classes: Classes the data must have; 0 takes what they have.
        random_state: With part and tree number it keys all randomness of a tree.
        criterion: ``gini`` or ``entropy``; ``squared_error`` for regression.
        mode: ``union``: each part grows its trees, the forest is all of them. ``leaf_refit``: then all parts count their
            rows in all leaves. ``histogram``: all grow every tree together, from sums.
        task: ``classification`` or ``regression``.
        max_bins: Most bins of a feature in mode ``histogram``.
    """

    num_trees: int = 100
    max_depth: int = 10
    min_samples_split: int = 2
    min_samples_leaf: int = 1
    max_features: int = 0
    subsample: float = 1.0
    bootstrap_samples: bool = True
    oob_score: bool = True
    num_classes: int = 0
    random_state: int = 42
    criterion: str = "gini"
    mode: str = "union"
    task: str = "classification"
    max_bins: int = 32


@dataclass(frozen=True, slots=True)
class LinearConfig:
    """A linear regression.

    Attributes:
        input_size: Number of features; required, and must equal the data's.
        standardize: Train on features (in rounds: targets too) scaled to mean 0 and deviation 1, with the statistics of
            all training rows; default true. The model is reported in the data's own units either way.
        solver: ``sgd`` (default), or ``exact``: the least-squares solution from sums over all parts, in one round.
    """

    input_size: int
    standardize: bool = _STANDARDIZE
    solver: str = "sgd"


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """How one part trains.

    Attributes:
        epochs: Passes over the part's rows in one round; required.
        batch_size: Rows of a step; required. More than the part has means all of them.
        learning_rate: In (0, 1]; required.
        optimizer: Of a neural network: ``sgd`` (default), ``momentum`` or ``adam``; its state lives for one round.
        momentum: Of the optimizer ``momentum``, in [0, 1); default 0.9.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    optimizer: str = "sgd"
    momentum: float = _MOMENTUM


ModelConfig: TypeAlias = ForestConfig | LinearConfig | NeuralConfig


@dataclass(frozen=True, slots=True)
class FlSpec:
    """A session's resolved configuration: everything is explicit now.

    Attributes:
        model: Its type says the model type.
        train: Always there for what trains by steps; a forest and the exact solver have none.
        part_index: Only in the task of one part.
        eval_cid: Of a sharded session: the data that the market scores with; empty leaves it to the nodes' hold-outs.
        privacy: Its switches; a node holds the market to them.
    """

    session_id: str
    round_id: str
    dataset_cid: str
    data_format: str
    model: ModelConfig
    partition: PartitionConfig
    train: TrainConfig | None = None
    part_index: int | None = None
    eval_cid: str = ""
    privacy: PrivacyConfig = field(default_factory=PrivacyConfig)

    @property
    def is_sharded(self) -> bool:
        """Whether each part has rows of its own, and ``dataset_cid`` is empty."""
        return self.partition.strategy == SHARDED

    @property
    def model_type(self) -> str:
        """``random_forest``, ``linear_regression`` or ``neural_network``."""
        match self.model:
            case ForestConfig():
                return "random_forest"
            case LinearConfig():
                return "linear_regression"
            case NeuralConfig():
                return "neural_network"
            case _ as never:
                assert_never(never)

    @property
    def is_classification(self) -> bool:
        """Whether labels are classes."""
        return not isinstance(self.model, LinearConfig) and self.model.task == "classification"

    def to_dict(self) -> dict[str, object]:
        """Return the wire members; resolving them again gives an equal spec."""
        partition = self.partition.to_dict()
        if self.part_index is not None:
            partition["part_index"] = self.part_index
        members: dict[str, object] = {
            "session_id": self.session_id,
            "round_id": self.round_id,
            "model_type": self.model_type,
            "dataset_cid": self.dataset_cid,
            "data_format": self.data_format,
            "model_config": self.model.to_dict() if isinstance(self.model, NeuralConfig) else asdict(self.model),
            "partition_config": partition,
            "output_format": "json",
        }
        if self.is_sharded:
            members |= {"data_mode": SHARDED, "eval_cid": self.eval_cid}
        if self.privacy.is_on:
            members["privacy"] = self.privacy.to_dict()
        if self.train is not None:
            train = asdict(self.train)
            members["train_config"] = {name: train[name] for name in _TRAIN[self.model_type]}
        return members


def resolve_fl_spec(raw: object) -> FlSpec:
    """Check a task's configuration and fill in what has a documented default.

    The order of checks is the network's: identifiers, model type, model, partition, training parameters.

    Args:
        raw: Parsed JSON: ``session_id, round_id, model_type, dataset_cid, data_format, model_config, train_config,
            partition_config, output_format, privacy``, and of a sharded session ``data_mode, eval_cid``.

    Raises:
        BadField: The first thing that is wrong; ``field`` is its dotted name.
    """
    top = Section.open(raw, "", _TOP)
    is_sharded = top.choice("data_mode", ("partitioned", SHARDED), "partitioned") == SHARDED
    required = ("model_type", "dataset_cid", "data_format", "session_id", "round_id")
    for name in required:
        if name == "dataset_cid" and is_sharded:
            if top.get(name, ""):
                top.refuse(name, "must be empty: a sharded session has no data but its shards")
            continue
        top.text(name, MAX_ID_CHARS)  # "X is required" in this order; values are judged below
    model_type = top.text("model_type", MAX_ID_CHARS)
    if model_type not in _MODEL:
        fail("model_type", f"unsupported model type: {model_type} (expected one of {', '.join(sorted(_MODEL))})")
    data_format = top.text("data_format", MAX_ID_CHARS).lower()
    if data_format not in {"csv", "json"}:
        fail("data_format", f"unsupported data format: {data_format} (expected csv or json)")
    if top.get("output_format", "json") != "json":
        fail("output_format", "output_format must be json")

    model_section = Section.open(top.get("model_config", {}), "model_config", _MODEL[model_type])
    model: ModelConfig
    if model_type == "random_forest":
        model = _forest(model_section)
    elif model_type == "linear_regression":
        model = _linear(model_section)
    else:
        model = neural_config(model_section)
    section = Section.open(top.get("partition_config", {}), "partition_config", PARTITION_FIELDS)
    part_index: int | None = None
    if is_sharded:
        partition = sharded_config(section, section.whole("total_parts", 1, MAX_PARTS, 1))
    else:
        partition, part_index = partition_config(section)
    stepwise = not isinstance(model, ForestConfig) and not (isinstance(model, LinearConfig) and model.solver == "exact")
    train = _train(Section.open(top.get("train_config", {}), "train_config", _TRAIN[model_type]), required=stepwise)
    if isinstance(model, ForestConfig) and model.mode != "histogram" and model.num_trees < partition.total_parts:
        fail(
            "model_config.num_trees",
            f"num_trees must be at least one per part ({partition.total_parts}), got {model.num_trees}",
        )
    return FlSpec(
        session_id=top.text("session_id", MAX_ID_CHARS),
        round_id=top.text("round_id", MAX_ID_CHARS),
        dataset_cid="" if is_sharded else top.text("dataset_cid", MAX_ID_CHARS),
        data_format=data_format,
        model=model,
        partition=partition,
        train=train,
        part_index=part_index,
        eval_cid=top.text("eval_cid", MAX_ID_CHARS) if is_sharded and top.get("eval_cid", "") else "",
        privacy=read_privacy(top.get("privacy") or None),
    )


_TOP = (
    "session_id",
    "round_id",
    "model_type",
    "dataset_cid",
    "data_format",
    "model_config",
    "train_config",
    "partition_config",
    "output_format",
    "data_mode",
    "eval_cid",
    "privacy",
)
_MODEL = {
    "random_forest": tuple(ForestConfig.__dataclass_fields__),
    "linear_regression": tuple(LinearConfig.__dataclass_fields__),
    "neural_network": NEURAL_FIELDS,
}
_REQUIRED = ("epochs", "batch_size", "learning_rate")
_TRAIN = {
    "random_forest": _REQUIRED,
    "linear_regression": _REQUIRED,
    "neural_network": tuple(TrainConfig.__dataclass_fields__),
}
_OPTIMIZERS = ("sgd", "momentum", "adam")


def _forest(section: Section) -> ForestConfig:
    fallback = ForestConfig()
    task = section.choice("task", ("classification", "regression"), fallback.task)
    criteria = _CRITERIA[task]
    subsample = section.number("subsample", fallback.subsample)
    if not 0 < subsample <= 1:
        section.refuse("subsample", f"must be above 0 and at most 1, got {subsample}")
    num_classes = section.whole("num_classes", 0, MAX_CLASSES, fallback.num_classes)
    if num_classes and task == "regression":
        section.refuse("num_classes", "must be 0 for regression")
    return ForestConfig(
        num_trees=section.whole("num_trees", 1, MAX_TREES, fallback.num_trees),
        max_depth=section.whole("max_depth", 1, MAX_DEPTH, fallback.max_depth),
        min_samples_split=section.whole("min_samples_split", 2, _ROW_LIMIT, fallback.min_samples_split),
        min_samples_leaf=section.whole("min_samples_leaf", 1, _ROW_LIMIT, fallback.min_samples_leaf),
        max_features=section.whole("max_features", 0, MAX_FEATURES, fallback.max_features),
        subsample=subsample,
        bootstrap_samples=section.flag("bootstrap_samples", fallback.bootstrap_samples),
        oob_score=section.flag("oob_score", fallback.oob_score),
        num_classes=num_classes,
        random_state=section.whole("random_state", 0, _SEED_LIMIT - 1, fallback.random_state),
        criterion=section.choice("criterion", criteria, criteria[0]),
        mode=section.choice("mode", _FOREST_MODES, fallback.mode),
        max_bins=section.whole("max_bins", 2, _MAX_BINS, fallback.max_bins),
        task=task,
    )


def _linear(section: Section) -> LinearConfig:
    if section.get("input_size") is None:
        fail("model_config.input_size", "input_size is required in linear regression configuration")
    size = section.get("input_size")
    if type(size) is not int or not 1 <= size <= MAX_FEATURES:
        fail("model_config.input_size", f"invalid input size: must be a whole number from 1 to {MAX_FEATURES}")
    solver = section.choice("solver", ("sgd", "exact"), "sgd")
    if solver == "exact" and size > MAX_EXACT_FEATURES:
        section.refuse("solver", f"exact takes at most {MAX_EXACT_FEATURES} features, got {size}: use sgd")
    return LinearConfig(input_size=size, standardize=section.flag("standardize", _STANDARDIZE), solver=solver)


def _train(section: Section, *, required: bool) -> TrainConfig | None:
    missing = [name for name in _REQUIRED if section.get(name) is None]
    if missing and required:
        _incomplete(missing)
    rate = section.number("learning_rate", 0.1)
    if rate <= 0:
        fail("train_config.learning_rate", f"learning rate must be positive, got {rate}")
    if rate > 1:
        fail("train_config.learning_rate", f"learning rate is too high ({rate}), maximum allowed is 1.0")
    momentum = section.number("momentum", _MOMENTUM)
    if not 0 <= momentum < 1:
        section.refuse("momentum", f"must be at least 0 and below 1, got {momentum}")
    config = TrainConfig(
        epochs=section.whole("epochs", 1, MAX_EPOCHS, 1),
        batch_size=section.whole("batch_size", 1, MAX_BATCH_SIZE, 1),
        learning_rate=rate,
        optimizer=section.choice("optimizer", _OPTIMIZERS, "sgd"),
        momentum=momentum,
    )
    # Old programs send training parameters with a forest; they are checked, and mean nothing to it.
    return config if required else None


def _incomplete(missing: Iterable[str]) -> NoReturn:
    names = list(missing)
    verb = "is" if len(names) == 1 else "are"
    fail(f"train_config.{names[0]}", f"training configuration is incomplete: {', '.join(names)} {verb} required")
