"""A part's side of a forest in phases: an answer to each request, from its rows alone."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from math import prod
from typing import Final, NoReturn, assert_never

import numpy as np
from numpy.typing import NDArray

from parity_fl.bootstrap import split_trees
from parity_fl.forest_refit import encode_sums, encode_trees, leaf_counts, leaf_sums
from parity_fl.histogram_codec import Sparse, encode_answer, request_digest, summed
from parity_fl.histogram_draws import row_draws
from parity_fl.histogram_edges import DIGIT_BITS, Bins, count_digits, float_keys
from parity_fl.histogram_phases import (
    NO_FEATURE,
    Agreed,
    ClassesRequest,
    EdgesRequest,
    GrowingTrees,
    LevelRequest,
    RefitRequest,
    ScoreRequest,
    TreesRequest,
    decode_request,
)
from parity_fl.spec import ForestConfig
from parity_fl.trees import Forest, votes
from parity_protocol.errors import BadDocument, ExecutionFailed, FailureReason

__all__ = ["HistogramPart", "PartRows", "histogram_client"]

SCORE_CELLS: Final = 4
_CACHED_DRAWS: Final = 32_000_000  # draws of all trees that a part may keep between requests (12 bytes each)
_DENSE: Final = 16  # cells of a table per entry, from which sorting is faster than counting


@dataclass(frozen=True, slots=True, eq=False)
class PartRows:
    """What a part trains on.

    Attributes:
        part: Part number.
        features: float32 ``(n, d)``, from ``as_forest_features``.
        truth: Indices into ``class_names``, or targets; float64 ``(n,)``.
        class_names: The part's own classes or all of them, in any order; empty for regression.
        row_ids: Global row ids, uint32 ``(n,)``; ``None`` numbers the rows from the part's offset.
    """

    part: int
    features: NDArray[np.float32]
    truth: NDArray[np.float64]
    class_names: tuple[str, ...]
    row_ids: NDArray[np.uint32] | None = None


def histogram_client(request: bytes, rows: PartRows) -> bytes:
    """Answer one request.

    Raises:
        TooLarge: The request is over its cap.
        BadDocument: It is no request about such data.
        ExecutionFailed: ``data_invalid``: the rows cannot be used, or have a class that was not agreed.
    """
    return HistogramPart(rows).answer(request)


@dataclass(slots=True)
class _Walk:
    """Where a tree's draws are."""

    rows: NDArray[np.int64]
    counts: NDArray[np.int64]
    node: NDArray[np.int64]


class HistogramPart:
    """Answers the requests of one session, and remembers between them what makes the next answer cheaper.

    Answers equal ``histogram_client``'s as long as the requests are of one growing forest.

    Args:
        rows: The part's.
        config: The settings that the submitter signed. With them, a request that draws otherwise is refused, and the
            part grows trees of its own for mode ``leaf_refit``.

    Raises:
        ExecutionFailed: ``data_invalid``: there are no rows, or a target does not fit a 32-bit float.
    """

    def __init__(self, rows: PartRows, config: ForestConfig | None = None) -> None:
        if not len(rows.truth):
            _refuse("empty training data")
        if not rows.class_names and np.abs(rows.truth).max() > np.finfo(np.float32).max:
            _refuse("a label is too large for a forest (over 3.4e38)")
        self._rows = rows
        self._config = config
        self._keys: NDArray[np.uint32] | None = None
        self._walks: dict[int, _Walk] = {}
        self._cached = 0  # draws in them
        self._session = b""
        self._binned: NDArray[np.uint16] = np.empty((0, 0), dtype=np.uint16)
        self._ids: NDArray[np.uint32] = np.empty(0, dtype=np.uint32)
        self._numbers: NDArray[np.int64] = np.empty(0, dtype=np.int64)

    def answer(self, request: bytes) -> bytes:
        """Return the answer to ``request``; see ``histogram_client`` for errors."""
        asked = decode_request(request, n_features=self._rows.features.shape[1])
        if self._config is not None and not isinstance(asked, (ClassesRequest, EdgesRequest)):
            _check_signed(asked.agreed, self._config)
        match asked:
            case ClassesRequest():
                return self._classes(asked, request)
            case EdgesRequest():
                if self._keys is None:
                    self._keys = float_keys(self._rows.features)
                return encode_answer(request, count_digits(self._keys, asked.feature, asked.prefix, step=asked.step))
            case LevelRequest():
                self._keys = None
                return encode_answer(request, self._level(asked))
            case ScoreRequest():
                return encode_answer(request, self._score(asked))
            case TreesRequest():
                return encode_trees(request, self._own_trees(asked.agreed))
            case RefitRequest():
                return self._refit(asked, request)
            case _ as never:
                assert_never(never)

    def table(self, request: bytes) -> tuple[Sparse, int]:
        """Return the answer to ``request`` as a table, and the cells it has; for requests that are answered by one.

        Raises:
            BadDocument: The request asks for something else; so ``answer``'s.
        """
        asked = decode_request(request, n_features=self._rows.features.shape[1])
        if self._config is not None and not isinstance(asked, (ClassesRequest, EdgesRequest)):
            _check_signed(asked.agreed, self._config)
        if isinstance(asked, EdgesRequest):
            if self._keys is None:
                self._keys = float_keys(self._rows.features)
            found = count_digits(self._keys, asked.feature, asked.prefix, step=asked.step)
            return found, len(asked.feature) << DIGIT_BITS[asked.step]
        if isinstance(asked, LevelRequest):
            self._keys = None
            return self._level(asked), prod(asked.shape)
        if isinstance(asked, ScoreRequest):
            return self._score(asked), SCORE_CELLS
        raise BadDocument("the phase is not answered by a table")

    def _classes(self, asked: ClassesRequest, request: bytes) -> bytes:
        rows = self._rows
        if asked.classification != bool(rows.class_names):
            _refuse("the session's labels are classes" if asked.classification else "the session's labels are numbers")
        said: dict[str, object] = {"request": request_digest(request).hex(), "n_features": rows.features.shape[1]}
        if asked.classification:
            counts = np.bincount(rows.truth.astype(np.int64), minlength=len(rows.class_names)).tolist()
            said["classes"] = {name: count for name, count in zip(rows.class_names, counts, strict=True) if count}
        else:
            said["rows"] = len(rows.truth)
            said["range"] = [float(rows.truth.min()), float(rows.truth.max())]
        return json.dumps(said, sort_keys=True, ensure_ascii=False, allow_nan=False).encode()

    def _level(self, asked: LevelRequest) -> Sparse:
        self._prepare(asked.agreed, asked.bins)
        _, tries, width, columns = asked.shape
        per_slot = tries * width * columns
        first = np.searchsorted(asked.slot_tree, np.arange(len(asked.trees.number) + 1)).tolist()
        blocks: list[Sparse] = []
        for place in range(len(asked.trees.number)):
            low, high = first[place], first[place + 1]
            walk = self._walk(asked.trees, place, asked.agreed)
            slot_of = np.full(int(asked.trees.starts[place + 1] - asked.trees.starts[place]), -1, dtype=np.int64)
            slot_of[asked.slot_node[low:high]] = np.arange(high - low)
            slot = slot_of[walk.node]
            here = np.flatnonzero(slot >= 0)
            slot, rows, counts = slot[here], walk.rows[here], walk.counts[here]
            tried = asked.tried[low:high][slot]  # (k, F)
            known = tried != NO_FEATURE
            bins = self._binned[rows[:, None], np.where(known, tried, 0)]
            cell = ((slot[:, None] * tries + np.arange(tries)) * width + bins) * columns
            table = _added(*self._columns(cell, rows, counts, known, asked.agreed), (high - low) * per_slot)
            blocks.append(Sparse(table.index + low * per_slot, table.value))
        return Sparse(
            np.concatenate([block.index for block in blocks]), np.concatenate([block.value for block in blocks])
        )

    def _columns(
        self,
        cell: NDArray[np.int64],
        rows: NDArray[np.int64],
        counts: NDArray[np.int64],
        known: NDArray[np.bool_],
        agreed: Agreed,
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return index and amount of everything that is added to the table, for cells ``(k, F)`` of rows ``(k,)``."""
        amount = np.broadcast_to(counts[:, None], cell.shape)
        if agreed.classification:
            return (cell + self._numbers[rows][:, None])[known], amount[known]
        whole = self._numbers[rows]
        sums = [amount[known]]
        sums.extend(
            np.broadcast_to(one[:, None], cell.shape)[known] for one in (counts * whole, counts * whole * whole)
        )
        return np.concatenate([cell[known] + column for column in range(3)]), np.concatenate(sums)

    def _prepare(self, agreed: Agreed, bins: Bins) -> None:
        """Bin the rows once for all levels of a session."""
        mark = hashlib.sha256(bins.thresholds.tobytes() + bins.starts.tobytes() + repr(agreed).encode()).digest()
        if mark == self._session:
            return
        self._session, self._walks, self._cached = mark, {}, 0
        self._ids = self._row_ids(agreed)
        self._numbers = self._agreed_truth(agreed)
        self._binned = bins.of(self._rows.features)

    def _walk(self, trees: GrowingTrees, place: int, agreed: Agreed) -> _Walk:
        """Return where a tree's draws are, moved on to where its splits now end."""
        number = int(trees.number[place])
        walk = self._walks.get(number)
        first, end = int(trees.starts[place]), int(trees.starts[place + 1])
        if walk is None or walk.node.max(initial=0) >= end - first:
            drawn, counts = row_draws(agreed.drawing(), number, self._ids)
            walk = _Walk(drawn, counts, np.zeros(len(drawn), dtype=np.int64))
        feature, cut = trees.feature[first:end], trees.cut[first:end]
        left, right = trees.left[first:end], trees.right[first:end]
        moving = np.flatnonzero(feature[walk.node] >= 0)
        node = walk.node.copy()
        while len(moving):
            at = node[moving]
            goes_left = self._binned[walk.rows[moving], feature[at]] <= cut[at]
            node[moving] = np.where(goes_left, left[at], right[at])
            moving = moving[feature[node[moving]] >= 0]
        walk = _Walk(walk.rows, walk.counts, node)
        known = number in self._walks
        if known or self._cached + len(walk.rows) <= _CACHED_DRAWS:
            self._cached += 0 if known else len(walk.rows)
            self._walks[number] = walk
        return walk

    def _score(self, asked: ScoreRequest) -> Sparse:
        rows, agreed = self._rows, asked.agreed
        ids, numbers, drawing = self._row_ids(agreed), self._agreed_truth(agreed), agreed.drawing()
        total, weight = votes(
            asked.forest, rows.features, skip=lambda tree: drawing.counts(int(asked.number[tree]), ids) > 0
        )
        scored = weight > 0
        known = numbers[scored]
        if agreed.classification:
            said = [len(known), int((np.argmax(total[scored], axis=1) == known).sum())]
        else:
            guess = agreed.target.whole(total[scored, 0] / weight[scored])
            said = [len(known), int(((known - guess) ** 2).sum()), int(known.sum()), int((known * known).sum())]
        return summed(np.arange(len(said), dtype=np.int64), np.array(said, dtype=np.int64))

    def _own_trees(self, agreed: Agreed) -> Forest:
        if self._config is None:
            raise ExecutionFailed(FailureReason.SPEC_INVALID, "own trees need the forest's signed settings")
        from parity_fl.forest import train_forest  # scikit-learn comes with it; only nodes train

        parts, part = len(agreed.row_offsets), self._rows.part
        if part >= parts:
            _refuse(f"the session has {parts} parts, this is part {part}")
        numbers = self._agreed_truth(agreed)
        return train_forest(
            self._rows.features.astype(np.float64),
            numbers.astype(np.float64) if agreed.classification else self._rows.truth,
            self._config,
            n_classes=len(agreed.class_names),
            part=part,
            n_trees=split_trees(self._config.num_trees, parts)[part],
        ).forest

    def _refit(self, asked: RefitRequest, request: bytes) -> bytes:
        if asked.agreed.classification:
            return encode_answer(
                request, leaf_counts(asked.forest, self._rows.features, self._agreed_truth(asked.agreed))
            )
        return encode_sums(request, *leaf_sums(asked.forest, self._rows.features, self._rows.truth))

    def _row_ids(self, agreed: Agreed) -> NDArray[np.uint32]:
        if self._rows.row_ids is not None:
            return self._rows.row_ids
        if self._rows.part >= len(agreed.row_offsets):
            _refuse(f"the session has {len(agreed.row_offsets)} parts, this is part {self._rows.part}")
        first = agreed.row_offsets[self._rows.part]
        return np.arange(first, first + len(self._rows.truth), dtype=np.int64).astype(np.uint32)

    def _agreed_truth(self, agreed: Agreed) -> NDArray[np.int64]:
        """Return class indices as agreed, or targets as whole numbers."""
        if not agreed.classification:
            return agreed.target.whole(self._rows.truth)
        place = {name: index for index, name in enumerate(agreed.class_names)}
        local = np.array([place.get(name, -1) for name in self._rows.class_names], dtype=np.int64)
        numbers: NDArray[np.int64] = local[self._rows.truth.astype(np.int64)]
        if (numbers < 0).any():
            unknown = self._rows.class_names[int(self._rows.truth[int(np.argmin(numbers))])]
            _refuse(f"class {unknown[:64]!a} was not agreed in this session")
        return numbers


def _check_signed(agreed: Agreed, config: ForestConfig) -> None:
    signed = (config.task == "classification", config.random_state, config.subsample, config.bootstrap_samples)
    asked = (agreed.classification, agreed.random_state, agreed.subsample, agreed.bootstrap)
    if signed != asked:
        raise ExecutionFailed(FailureReason.SPEC_INVALID, "the market asks for other draws than the session's")


def _added(index: NDArray[np.int64], amount: NDArray[np.int64], size: int) -> Sparse:
    """Add up amounts by index; sums are below 2^53."""
    if size > _DENSE * len(index):
        return summed(index, amount)
    table = np.bincount(index, weights=amount, minlength=size)
    cells = np.flatnonzero(table)
    return Sparse(cells, table[cells].astype(np.int64))


def _refuse(message: str) -> NoReturn:
    raise ExecutionFailed(FailureReason.DATA_INVALID, message)
