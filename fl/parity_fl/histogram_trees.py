"""Growing all trees level by level: which nodes are asked for next, and what the sums make of them.

A node that is neither small, deep nor pure is *open*. It waits in a queue; a request takes as many nodes of one wave as fit.
From the summed table the best split of the features it tried is taken. Where none of them separates the node's draws, it
tries its next features in the following wave, until it has tried all that vary; then it stays a leaf (as in scikit-learn).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from parity_fl.histogram_codec import Sparse, max_answer_bytes, summed
from parity_fl.histogram_draws import MAX_DRAWS, feature_order
from parity_fl.histogram_edges import Bins
from parity_fl.histogram_phases import NO_FEATURE, Agreed, GrowingTrees, LevelRequest
from parity_fl.histogram_progress import Tables
from parity_fl.histogram_splits import Criterion, Splits, best_splits, draws_of, is_pure
from parity_fl.spec import ForestConfig
from parity_fl.trees import Forest
from parity_protocol.errors import BadDocument, ExecutionFailed, FailureReason

__all__ = ["Grower"]


@dataclass(slots=True)
class _Tree:
    feature: list[int] = field(default_factory=list)
    cut: list[int] = field(default_factory=list)
    left: list[int] = field(default_factory=list)
    right: list[int] = field(default_factory=list)
    sums: list[NDArray[np.int64]] = field(default_factory=list)
    decrease: dict[int, float] = field(default_factory=dict)  # by feature

    def add(self, sums: NDArray[np.int64]) -> int:
        """Add a leaf and return its number."""
        for links, nothing in ((self.feature, -1), (self.cut, 0), (self.left, -1), (self.right, -1)):
            links.append(nothing)
        self.sums.append(sums)
        return len(self.feature) - 1


@dataclass(frozen=True, slots=True)
class _Open:
    tree: int
    node: int
    depth: int
    tries: int  # how many times it was asked for already
    wave: int
    draws: int


class Grower:
    """Grows the trees of one forest from sums.

    Args:
        config: The forest's settings.
        agreed: Classes and draws of the session.
        bins: Thresholds.
        class_rows: Rows of each part by class; for regression all its rows, as one number.
        max_phase_bytes: Longest answer of a part.
        cell_bytes: As ``Job.cell_bytes``.
    """

    def __init__(
        self,
        config: ForestConfig,
        agreed: Agreed,
        bins: Bins,
        *,
        class_rows: tuple[tuple[int, ...], ...],
        max_phase_bytes: int,
        cell_bytes: int = 0,
    ) -> None:
        self._config = config
        self._cell_bytes = cell_bytes
        self._agreed = agreed
        self._bins = bins
        self._class_rows = class_rows
        self._max_phase_bytes = max_phase_bytes
        self._criterion = Criterion(config.criterion, config.min_samples_leaf)
        n_features = len(bins.starts) - 1
        varying = bins.varying()
        self._varying = varying if len(varying) else np.zeros(1, dtype=np.int64)
        wanted = config.max_features or max(1, math.isqrt(n_features))
        self._tries = min(len(self._varying), wanted)
        self._width = bins.width
        self._trees = [_Tree() for _ in range(config.num_trees)]
        rows = sum(sum(counts) for counts in class_rows)
        nothing = np.zeros(agreed.columns, dtype=np.int64)
        self._open = deque(
            _Open(number, tree.add(nothing), 0, 0, 0, rows * MAX_DRAWS) for number, tree in enumerate(self._trees)
        )
        # Open nodes have serial numbers in the order of the queue; what each part must say about them goes by these.
        self._first_serial = 0
        self._next_serial = len(self._open)
        nobody = Sparse(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64))
        self._expected = dict.fromkeys(range(len(class_rows)), nobody)
        self._batch: list[_Open] = []
        self._request: LevelRequest | None = None

    @property
    def done(self) -> bool:
        """Whether no node is open."""
        return not self._open

    @property
    def wave(self) -> int:
        """Wave of the next nodes."""
        return self._open[0].wave

    def left(self) -> int:
        """Return how many phases of levels are to come, the next one included: an estimate from above."""
        # A root's draws are a bound that nothing comes near, until its first table is there.
        rows = sum(sum(counts) for counts in self._class_rows)
        draws = sum(min(node.draws, rows) if node.depth == 0 else node.draws for node in self._open)
        shallowest = min(node.depth for node in self._open)
        tables = Tables(rows, self._tries, self._width, self._agreed.columns, self._max_phase_bytes, self._cell_bytes)
        return tables.levels(
            self._config, nodes=len(self._open), draws=draws, depths=self._config.max_depth - shallowest
        )

    @property
    def max_value(self) -> int:
        """Largest value of a cell of any part."""
        draws = MAX_DRAWS * max(sum(counts) for counts in self._class_rows)
        if self._agreed.classification:
            return draws
        return draws * ((1 << self._agreed.target.bits) - 1) ** 2

    def next_request(self) -> LevelRequest:
        """Return the request for the next nodes; the same until ``close``."""
        if self._request is None:
            self._batch = self._take()
            self._request = self._asked(self._batch)
        return self._request

    def max_cells(self) -> int:
        """Return the most cells that a part's answer to the request can have."""
        return sum(self._cells_of(node) for node in self._batch)

    def check(self, part: int, cells: Sparse) -> None:
        """Refuse a part whose table contradicts itself or its own earlier tables.

        Raises:
            BadDocument: It names the part, the tree and the node.
        """
        request = self.next_request()
        nodes, tries, width, columns = request.shape
        slot, rest = np.divmod(cells.index, tries * width * columns)
        tried, rest = np.divmod(rest, width * columns)
        place, column = np.divmod(rest, columns)
        feature = request.tried[slot, tried]
        known = feature != NO_FEATURE
        edges = np.diff(self._bins.starts)[np.where(known, feature, 0)]
        impossible = ~known | (place > edges)
        if impossible.any():
            self._contradicts(part, int(slot[np.argmax(impossible)]))
        by_try = summed((slot * tries + tried) * columns + column, cells.value)
        own = by_try.index // columns % tries == 0
        totals = Sparse(
            by_try.index[own] // (tries * columns) * columns + by_try.index[own] % columns, by_try.value[own]
        )
        each = (request.tried != NO_FEATURE).sum(axis=1)[totals.index // columns]  # every tried feature says the same
        where = np.repeat(np.arange(len(totals)), each)
        attempt = np.arange(len(where)) - np.repeat(np.cumsum(each) - each, each)
        repeated = summed(
            (totals.index[where] // columns * tries + attempt) * columns + totals.index[where] % columns,
            totals.value[where],
        )
        if not repeated.equals(by_try):
            self._contradicts(part, _first_difference(repeated, by_try) // (tries * columns))

        roots = sum(node.depth == 0 and node.tries == 0 for node in self._batch)
        later = totals.between(roots * columns, nodes * columns)
        first = self._first_serial
        expected = self._expected[part].between((first + roots) * columns, (first + nodes) * columns)
        expected = Sparse(expected.index - first * columns, expected.value)
        if not later.equals(expected):
            self._contradicts(part, _first_difference(later, expected) // columns)
        at_root = totals.between(0, roots * columns)
        most = np.full(columns, self.max_value, dtype=np.int64)
        most[: len(self._class_rows[part])] = MAX_DRAWS * np.array(self._class_rows[part], dtype=np.int64)
        over = at_root.value > most[at_root.index % columns]
        if over.any():
            self._contradicts(part, int(at_root.index[np.argmax(over)]) // columns)

    def close(self, total: Sparse, of_part: Callable[[int], Sparse]) -> None:
        """Split the asked nodes.

        Args:
            total: Sum of all parts' tables.
            of_part: Reads a part's own table again.
        """
        request = self.next_request()
        splits = best_splits(total, request.shape, self._criterion)
        heirs = np.full((3, len(self._batch)), -1, dtype=np.int64)  # serials: left child, right child, itself again
        taken = len(self._batch)
        for slot, node in enumerate(self._batch):
            self._settle(slot, node, request, splits, heirs[:, slot])
        for part, expected in self._expected.items():
            kept = expected.between((self._first_serial + taken) * request.shape[3], self._next_serial << 32)
            fresh = _inherited(of_part(part), request.shape, splits, heirs)
            self._expected[part] = Sparse(
                np.concatenate([kept.index, fresh.index]), np.concatenate([kept.value, fresh.value])
            )
        self._first_serial += taken
        self._batch, self._request = [], None

    def forest(self) -> tuple[Forest, NDArray[np.int64]]:
        """Return the grown forest and the number of each of its trees; a tree that drew nothing is left out.

        Raises:
            ExecutionFailed: ``data_invalid``: no tree drew a row.
        """
        classification = self._agreed.classification
        kept = [n for n, tree in enumerate(self._trees) if draws_of(tree.sums[0], classification=classification) > 0]
        if not kept:
            raise ExecutionFailed(FailureReason.DATA_INVALID, "no tree drew a row: there are too few rows")
        trees = [self._trees[number] for number in kept]
        sizes = [len(tree.feature) for tree in trees]
        feature = np.concatenate([np.array(tree.feature, dtype=np.int32) for tree in trees])
        cut = np.concatenate([np.array(tree.cut, dtype=np.int64) for tree in trees])
        sums = np.concatenate([np.stack(tree.sums) for tree in trees])
        draws = draws_of(sums, classification=classification)
        inner = feature >= 0
        threshold = np.zeros(len(feature), dtype=np.float64)
        threshold[inner] = self._bins.thresholds[self._bins.starts[feature[inner]] + cut[inner]]
        mean = (sums if classification else sums[:, 1:2]) / draws[:, None]
        value = mean if classification else self._agreed.target.value(mean)
        return (
            Forest(
                tree_starts=np.concatenate([[0], np.cumsum(sizes)]).astype(np.uint32),
                feature=feature,
                threshold=threshold,
                left=np.concatenate([np.array(tree.left, dtype=np.int32) for tree in trees]),
                right=np.concatenate([np.array(tree.right, dtype=np.int32) for tree in trees]),
                value=value.astype(np.float32),
                n=draws.astype(np.uint32),
                tree_weight=np.full(len(trees), 1 / len(trees), dtype=np.float64),
                importance=_importance([tree.decrease for tree in trees], len(self._bins.starts) - 1),
            ),
            np.array(kept, dtype=np.int64),
        )

    def _take(self) -> list[_Open]:
        wave, cells, batch = self._open[0].wave, 0, list[_Open]()
        width = self._tries * self._width * self._agreed.columns
        while self._open and self._open[0].wave == wave:
            cells += self._cells_of(self._open[0])
            size = width * (len(batch) + 1)
            longest = self._cell_bytes * size or max_answer_bytes(cells, size, self.max_value)
            if batch and longest > self._max_phase_bytes:
                break
            batch.append(self._open.popleft())
        return batch

    def _cells_of(self, node: _Open) -> int:
        """Bound the cells of a node that are not 0: no more than its draws, for each tried feature."""
        columns = self._agreed.columns
        if self._agreed.classification:
            return self._tries * min(self._width * columns, node.draws)
        return self._tries * columns * min(self._width, node.draws)

    def _asked(self, batch: list[_Open]) -> LevelRequest:
        numbers, place = np.unique([node.tree for node in batch], return_inverse=True)
        trees = [self._trees[number] for number in numbers.tolist()]
        tried = np.full((len(batch), self._tries), NO_FEATURE, dtype=np.int64)
        starts = np.searchsorted(place, np.arange(len(numbers) + 1)).tolist()
        n_features = len(self._bins.starts) - 1
        for number, low, high in zip(numbers.tolist(), starts[:-1], starts[1:], strict=True):
            nodes = np.array([node.node for node in batch[low:high]], dtype=np.int64)
            order = feature_order(self._config.random_state, number, nodes, self._varying, n_features=n_features)
            for slot in range(low, high):
                begin = batch[slot].tries * self._tries
                some = order[slot - low, begin : begin + self._tries]
                tried[slot, : len(some)] = some
        growing = GrowingTrees(
            number=numbers.astype(np.int64),
            starts=np.concatenate([[0], np.cumsum([len(tree.feature) for tree in trees])]).astype(np.int64),
            feature=np.concatenate([np.array(tree.feature, dtype=np.int64) for tree in trees]),
            cut=np.concatenate([np.array(tree.cut, dtype=np.int64) for tree in trees]),
            left=np.concatenate([np.array(tree.left, dtype=np.int64) for tree in trees]),
            right=np.concatenate([np.array(tree.right, dtype=np.int64) for tree in trees]),
        )
        return LevelRequest(
            agreed=self._agreed,
            bins=self._bins,
            trees=growing,
            slot_tree=place.astype(np.int64),
            slot_node=np.array([node.node for node in batch], dtype=np.int64),
            tried=tried,
        )

    def _settle(self, slot: int, node: _Open, request: LevelRequest, splits: Splits, heirs: NDArray[np.int64]) -> None:
        tree, total = self._trees[node.tree], splits.total[slot]
        if node.depth == 0 and node.tries == 0:
            tree.sums[0] = total
            if not self._may_split(total, 0):
                return
        tried = int(splits.tried[slot])
        if tried < 0:
            if (node.tries + 1) * self._tries < len(self._varying):
                draws = int(draws_of(total, classification=self._agreed.classification))
                again = _Open(node.tree, node.node, node.depth, node.tries + 1, node.wave + 1, draws)
                heirs[2] = self._enqueue(again)
            return
        feature = int(request.tried[slot, tried])
        tree.feature[node.node], tree.cut[node.node] = feature, int(splits.cut[slot])
        tree.decrease[feature] = tree.decrease.get(feature, 0.0) + float(splits.decrease[slot])
        left = splits.left[slot]
        for side, sums, links in ((0, left, tree.left), (1, total - left, tree.right)):
            child = tree.add(sums)
            links[node.node] = child
            if self._may_split(sums, node.depth + 1):
                draws = int(draws_of(sums, classification=self._agreed.classification))
                heirs[side] = self._enqueue(_Open(node.tree, child, node.depth + 1, 0, node.wave + 1, draws))

    def _enqueue(self, node: _Open) -> int:
        self._open.append(node)
        self._next_serial += 1
        return self._next_serial - 1

    def _may_split(self, sums: NDArray[np.int64], depth: int) -> bool:
        config, classification = self._config, self._agreed.classification
        draws = int(draws_of(sums, classification=classification))
        if depth >= config.max_depth or draws < max(config.min_samples_split, 2 * config.min_samples_leaf):
            return False
        return not is_pure(sums, classification=classification)

    def _contradicts(self, part: int, slot: int) -> NoReturn:
        node = self._batch[min(slot, len(self._batch) - 1)]
        raise BadDocument(
            f"part {part}: its counts do not add up at node {node.node} of tree {node.tree}: they are not its rows"
        )


def _inherited(cells: Sparse, shape: tuple[int, int, int, int], splits: Splits, heirs: NDArray[np.int64]) -> Sparse:
    """Return what a part must say about the nodes that come out of a request, by ``serial * C + column``."""
    _, tries, width, columns = shape
    slot, rest = np.divmod(cells.index, tries * width * columns)
    tried, rest = np.divmod(rest, width * columns)
    place, column = np.divmod(rest, columns)
    index: list[NDArray[np.int64]] = []
    value: list[NDArray[np.int64]] = []
    chosen = np.where(splits.tried[slot] < 0, 0, splits.tried[slot])
    own = tried == chosen
    goes_left = place <= splits.cut[slot]
    for heir, side in ((heirs[0], goes_left), (heirs[1], ~goes_left), (heirs[2], np.ones_like(goes_left))):
        mine = own & side & (heir[slot] >= 0)
        index.append(heir[slot[mine]] * columns + column[mine])
        value.append(cells.value[mine])
    return summed(np.concatenate(index), np.concatenate(value))


def _first_difference(one: Sparse, other: Sparse) -> int:
    both = summed(np.concatenate([one.index, other.index]), np.concatenate([one.value, -other.value]))
    return int(both.index[0])


def _importance(decreases: list[Mapping[int, float]], n_features: int) -> NDArray[np.float64]:
    """Return the mean over trees of each tree's shares, summing to 1 (all 0 if no tree has a split)."""
    total = np.zeros(n_features, dtype=np.float64)
    for decrease in decreases:
        whole = sum(decrease.values())
        for feature, amount in decrease.items():
            total[feature] += amount / whole if whole > 0 else 0.0
    whole = float(total.sum())
    return total / whole if whole > 0 else total
