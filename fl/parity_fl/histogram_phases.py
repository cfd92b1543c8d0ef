"""What the server of a histogram forest asks all parts; the same bytes for every part.

============  ==================================================================================================
classes       which classes (or range of targets), how many rows and columns
edges         rows per digit of the keys in some buckets (``parity_fl.histogram_edges``)
level         draws per class (or sums of targets) by bin of the tried features, for some nodes of some trees
score         how the finished forest does on the rows that a tree did not draw
trees         (leaf_refit) the part's own trees
refit         (leaf_refit) the part's rows in every leaf of all parts' trees
============  ==================================================================================================

A request carries everything that its answer depends on besides the part's rows: a node that takes over a part in the
middle needs no history.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NoReturn, TypeAlias

import numpy as np
from numpy.typing import NDArray

from parity_fl.histogram_draws import Drawing
from parity_fl.histogram_edges import DIGIT_BITS, Bins
from parity_fl.limits import (
    FOREST_LIMITS,
    MAX_CLASSES,
    MAX_HEADER_BYTES,
    MAX_LABEL_CHARS,
    MAX_PARTS,
    MAX_TREES,
)
from parity_fl.tensors import Tensor, decode_tensors, encode_tensors, take
from parity_fl.trees import Forest, forest_from_tensors, forest_tensors
from parity_protocol import strict_json
from parity_protocol.errors import BadDocument

__all__ = [
    "MAX_REQUEST_BYTES",
    "NO_FEATURE",
    "Agreed",
    "ClassesRequest",
    "EdgesRequest",
    "GrowingTrees",
    "LevelRequest",
    "RefitRequest",
    "Request",
    "ScoreRequest",
    "TargetScale",
    "TreesRequest",
    "decode_request",
]

MAX_REQUEST_BYTES: Final = 256 << 20
NO_FEATURE: Final = 0xFFFF_FFFF  # in ``tried``: nothing left to try
MAX_TARGET_BITS: Final = 20
_FORMAT: Final = "parity.histogram/1"
_MAX_BINS: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class TargetScale:
    """How targets become whole numbers: ``round((y - low) / step)``, cut to ``0 … 2**bits - 1``."""

    low: float = 0.0
    step: float = 1.0
    bits: int = 1

    def whole(self, truth: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return targets as whole numbers."""
        return np.clip(np.rint((truth - self.low) / self.step), 0, (1 << self.bits) - 1).astype(np.int64)

    def value(self, mean: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return what a mean of whole numbers stands for."""
        return self.low + self.step * mean


@dataclass(frozen=True, slots=True)
class Agreed:
    """What all parts use alike.

    Attributes:
        class_names: In index order; empty for regression.
        target: Of regression.
        row_offsets: First global row id of each part, for parts that do not know their rows' ids.
        random_state: Keys all draws.
        subsample: Draws per tree as a fraction of the rows.
        bootstrap: Draw with replacement.
    """

    class_names: tuple[str, ...]
    target: TargetScale
    row_offsets: tuple[int, ...]
    random_state: int
    subsample: float
    bootstrap: bool

    @property
    def classification(self) -> bool:
        """Whether the labels are classes."""
        return bool(self.class_names)

    @property
    def columns(self) -> int:
        """Whole numbers per cell: draws of each class; or draws, sum, sum of squares."""
        return len(self.class_names) or 3

    def drawing(self) -> Drawing:
        """Return how trees draw rows."""
        return Drawing(random_state=self.random_state, subsample=self.subsample, bootstrap=self.bootstrap)


@dataclass(frozen=True, slots=True)
class ClassesRequest:
    """Asks for classes, rows and columns."""

    classification: bool

    def encode(self) -> bytes:
        """Return the request's bytes."""
        task = "classification" if self.classification else "regression"
        return encode_tensors({}, {"format": _FORMAT, "kind": "classes", "task": task})


@dataclass(frozen=True, slots=True, eq=False)
class EdgesRequest:
    """Asks for counts in buckets of keys; see ``count_digits``."""

    feature: NDArray[np.int64]
    prefix: NDArray[np.int64]
    step: int

    def encode(self) -> bytes:
        """Return the request's bytes."""
        return encode_tensors(
            {"feature": self.feature.astype(np.uint32), "prefix": self.prefix.astype(np.uint32)},
            {"format": _FORMAT, "kind": "edges", "step": str(self.step)},
        )


@dataclass(frozen=True, slots=True, eq=False)
class GrowingTrees:
    """Trees as far as they have grown, in flat arrays; a leaf has feature -1.

    Attributes:
        number: Each tree's number in the forest, ``(t,)``.
        starts: First node of each tree, then the number of nodes, ``(t + 1,)``.
        feature: ``(N,)``.
        cut: Last bin that goes left, ``(N,)``.
        left, right: Children, counted from the tree's first node, ``(N,)``.
    """

    number: NDArray[np.int64]
    starts: NDArray[np.int64]
    feature: NDArray[np.int64]
    cut: NDArray[np.int64]
    left: NDArray[np.int64]
    right: NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class LevelRequest:
    """Asks for the table of some nodes.

    Attributes:
        agreed: Classes and draws.
        bins: Thresholds.
        trees: The trees of those nodes.
        slot_tree: For each node, its tree's place in ``trees``; never falls. Shape ``(m,)``.
        slot_node: Its number in the tree.
        tried: Features, ``(m, F)``; ``NO_FEATURE`` fills up.
    """

    agreed: Agreed
    bins: Bins
    trees: GrowingTrees
    slot_tree: NDArray[np.int64]
    slot_node: NDArray[np.int64]
    tried: NDArray[np.int64]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Nodes, tried features, bins, columns."""
        return len(self.slot_node), self.tried.shape[1], self.bins.width, self.agreed.columns

    def encode(self) -> bytes:
        """Return the request's bytes."""
        trees = self.trees
        tensors: dict[str, Tensor] = {
            "thresholds": self.bins.thresholds,
            "threshold_starts": self.bins.starts.astype(np.uint32),
            "tree": trees.number.astype(np.uint32),
            "tree_starts": trees.starts.astype(np.uint32),
            "feature": trees.feature.astype(np.int32),
            "cut": trees.cut.astype(np.int32),
            "left": trees.left.astype(np.int32),
            "right": trees.right.astype(np.int32),
            "slot_tree": self.slot_tree.astype(np.uint32),
            "slot_node": self.slot_node.astype(np.uint32),
            "tried": self.tried.astype(np.uint32),
            "row_offsets": np.array(self.agreed.row_offsets, dtype=np.uint32),
        }
        return encode_tensors(tensors, {"format": _FORMAT, "kind": "level", **_members(self.agreed)})


@dataclass(frozen=True, slots=True, eq=False)
class ScoreRequest:
    """Asks how the forest does out of bag; ``number`` is each tree's number, ``(t,)``."""

    agreed: Agreed
    number: NDArray[np.int64]
    forest: Forest

    def encode(self) -> bytes:
        """Return the request's bytes."""
        tensors: dict[str, Tensor] = {
            **forest_tensors(self.forest),
            "tree": self.number.astype(np.uint32),
            "row_offsets": np.array(self.agreed.row_offsets, dtype=np.uint32),
        }
        return encode_tensors(tensors, {"format": _FORMAT, "kind": "score", **_members(self.agreed)})


@dataclass(frozen=True, slots=True)
class TreesRequest:
    """Asks for the part's own trees over the agreed classes."""

    agreed: Agreed

    def encode(self) -> bytes:
        """Return the request's bytes."""
        offsets = np.array(self.agreed.row_offsets, dtype=np.uint32)
        return encode_tensors({"row_offsets": offsets}, {"format": _FORMAT, "kind": "trees", **_members(self.agreed)})


@dataclass(frozen=True, slots=True, eq=False)
class RefitRequest:
    """Asks where the part's rows end in all parts' trees."""

    agreed: Agreed
    forest: Forest

    def encode(self) -> bytes:
        """Return the request's bytes."""
        offsets = np.array(self.agreed.row_offsets, dtype=np.uint32)
        return encode_tensors(
            {**forest_tensors(self.forest), "row_offsets": offsets},
            {"format": _FORMAT, "kind": "refit", **_members(self.agreed)},
        )


Request: TypeAlias = ClassesRequest | EdgesRequest | LevelRequest | ScoreRequest | TreesRequest | RefitRequest


def decode_request(data: bytes, *, n_features: int) -> Request:
    """Read a request; ``n_features`` is the part's number of columns.

    Raises:
        TooLarge: Over ``MAX_REQUEST_BYTES``.
        BadDocument: It is not exactly a request about such data.
    """
    tensors, metadata = decode_tensors(data, max_bytes=MAX_REQUEST_BYTES)
    if metadata.get("format") != _FORMAT:
        _fail(f"format must be {_FORMAT}")
    match metadata.get("kind"):
        case "classes":
            return ClassesRequest(_word(metadata, "task", ("classification", "regression")) == "classification")
        case "edges":
            return _edges(tensors, metadata, n_features)
        case "level":
            return _level(tensors, metadata, n_features)
        case "score":
            agreed = _agreed(tensors, metadata)
            number = take(tensors, "tree", "U32", 1).astype(np.int64)
            forest = _forest(tensors, agreed, n_features)
            if len(number) != forest.n_trees or (number >= MAX_TREES).any():
                _fail("it must number its trees")
            return ScoreRequest(agreed, number, forest)
        case "trees":
            return TreesRequest(_agreed(tensors, metadata))
        case "refit":
            agreed = _agreed(tensors, metadata)
            return RefitRequest(agreed, _forest(tensors, agreed, n_features))
        case _:
            raise BadDocument("not a request of a histogram forest: unknown kind")


def _forest(tensors: Mapping[str, Tensor], agreed: Agreed, n_features: int) -> Forest:
    own = {name: tensor for name, tensor in tensors.items() if name not in {"tree", "row_offsets"}}
    outputs = max(1, len(agreed.class_names))
    return forest_from_tensors(own, n_features=n_features, n_outputs=outputs, classification=agreed.classification)


def _edges(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], n_features: int) -> EdgesRequest:
    step = int(_word(metadata, "step", tuple(str(step) for step in range(len(DIGIT_BITS)))))
    feature = take(tensors, "feature", "U32", 1).astype(np.int64)
    prefix = take(tensors, "prefix", "U32", 1).astype(np.int64)
    code = (feature << 32) | prefix if len(feature) == len(prefix) else np.zeros(2, dtype=np.int64)
    known = sum(DIGIT_BITS[:step])
    if not len(feature) or (code[1:] <= code[:-1]).any() or feature.max() >= n_features or (prefix >> known).any():
        _fail("its buckets must rise and be of known features")
    return EdgesRequest(feature, prefix, step)


def _level(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], n_features: int) -> LevelRequest:
    agreed = _agreed(tensors, metadata)
    thresholds = take(tensors, "thresholds", "F64", 1)
    starts = take(tensors, "threshold_starts", "U32", 1).astype(np.int64)
    if len(starts) != n_features + 1 or not _rises(starts, len(thresholds)) or np.diff(starts).max() >= _MAX_BINS:
        _fail(f"it must have thresholds of {n_features} features")
    inside = np.ones(len(thresholds), dtype=np.bool_)
    inside[starts[:-1][starts[:-1] < len(thresholds)]] = False
    if (np.diff(thresholds, prepend=-np.inf) <= 0)[inside].any():
        _fail("thresholds must rise within a feature")
    trees = _trees(tensors, n_features)
    slot_tree = take(tensors, "slot_tree", "U32", 1).astype(np.int64)
    slot_node = take(tensors, "slot_node", "U32", 1).astype(np.int64)
    tried = take(tensors, "tried", "U32", 2).astype(np.int64)
    if not len(slot_tree) or len(slot_tree) != len(slot_node) or len(tried) != len(slot_tree):
        _fail("slots differ in length or are none")
    if slot_tree.max() >= len(trees.number) or (np.diff(slot_tree) < 0).any():
        _fail("slots must be grouped by tree")
    at = trees.starts[slot_tree] + slot_node
    if (at >= trees.starts[slot_tree + 1]).any() or len(np.unique(at)) != len(at) or (trees.feature[at] >= 0).any():
        _fail("a slot must be a leaf of its tree, asked once")
    if not 1 <= tried.shape[1] <= n_features or ((tried >= n_features) & (tried != NO_FEATURE)).any():
        _fail(f"tried features must be below {n_features}")
    return LevelRequest(agreed, Bins(thresholds, starts), trees, slot_tree, slot_node, tried)


def _trees(tensors: Mapping[str, Tensor], n_features: int) -> GrowingTrees:
    number = take(tensors, "tree", "U32", 1).astype(np.int64)
    starts = take(tensors, "tree_starts", "U32", 1).astype(np.int64)
    feature = take(tensors, "feature", "I32", 1).astype(np.int64)
    cut, left, right = (take(tensors, name, "I32", 1).astype(np.int64) for name in ("cut", "left", "right"))
    nodes = len(feature)
    if not 1 <= len(number) <= MAX_TREES or (number >= MAX_TREES).any() or len(starts) != len(number) + 1:
        _fail("it must number its trees")
    if nodes > FOREST_LIMITS.max_nodes or not _rises(starts, nodes) or (np.diff(starts) < 1).any():
        _fail("tree_starts must begin at 0, rise, and end at the number of nodes")
    if any(len(one) != nodes for one in (cut, left, right)):
        _fail("node tensors differ in length")
    size = np.repeat(np.diff(starts), np.diff(starts))
    place = np.arange(nodes) - np.repeat(starts[:-1], np.diff(starts))
    inner = feature >= 0
    if (feature < -1).any() or (feature >= n_features).any() or (cut[inner] < 0).any():
        _fail(f"feature must be -1 or below {n_features}, and cut a bin")
    for child in (left, right):
        if ((child <= place) | (child >= size))[inner].any():
            _fail("a child does not come after its parent in the same tree")
    return GrowingTrees(number, starts, feature, cut, left, right)


def _members(agreed: Agreed) -> dict[str, str]:
    return {
        "class_names": json.dumps(list(agreed.class_names), ensure_ascii=False),
        "target": json.dumps([agreed.target.low, agreed.target.step, agreed.target.bits], allow_nan=False),
        "draws": json.dumps([agreed.random_state, agreed.subsample, agreed.bootstrap], allow_nan=False),
    }


def _agreed(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Agreed:
    names = _list(metadata, "class_names", MAX_CLASSES)
    words = tuple(name for name in names if isinstance(name, str) and 0 < len(name) <= MAX_LABEL_CHARS)
    if len(set(words)) != len(names):
        _fail("class_names must be distinct, non-empty strings")
    low, step, bits = _three(metadata, "target")
    if not isinstance(low, (int, float)) or not isinstance(step, (int, float)) or not step > 0 or type(bits) is not int:
        _fail("target must be low, step and bits")
    state, subsample, bootstrap = _three(metadata, "draws")
    if type(state) is not int or not 0 <= state < 1 << 53 or not isinstance(bootstrap, bool):
        _fail("draws must be random_state, subsample and bootstrap")
    if not isinstance(subsample, (int, float)) or not 1 <= bits <= MAX_TARGET_BITS or not 0 < subsample <= 1:
        _fail("target bits or subsample are out of range")
    offsets = take(tensors, "row_offsets", "U32", 1)
    if not 1 <= len(offsets) <= MAX_PARTS:
        _fail(f"row_offsets must be of 1 to {MAX_PARTS} parts")
    scale = TargetScale(float(low), float(step), bits)
    return Agreed(words, scale, tuple(offsets.tolist()), state, float(subsample), bootstrap)


def _list(metadata: Mapping[str, str], name: str, most: int) -> list[strict_json.JsonValue]:
    raw = strict_json.loads(metadata.get(name, "").encode(), max_bytes=MAX_HEADER_BYTES, max_depth=1)
    if not isinstance(raw, list) or len(raw) > most:
        _fail(f"{name} must be a list of at most {most}")
    return raw


def _three(metadata: Mapping[str, str], name: str) -> tuple[object, object, object]:
    raw = _list(metadata, name, 3)
    if len(raw) != 3:
        _fail(f"{name} must have three members")
    return raw[0], raw[1], raw[2]


def _rises(starts: NDArray[np.int64], end: int) -> bool:
    return len(starts) > 1 and starts[0] == 0 and starts[-1] == end and not (np.diff(starts) < 0).any()


def _word(metadata: Mapping[str, str], name: str, allowed: tuple[str, ...]) -> str:
    value = metadata.get(name, "")
    if value not in allowed:
        _fail(f"{name} must be one of {', '.join(allowed)}")
    return value


def _fail(message: str) -> NoReturn:
    raise BadDocument(f"not a request of a histogram forest: {message}")
