"""The stages of mode ``leaf_refit`` after the classes: every part's own trees, then every part's rows in all leaves."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from parity_fl.bootstrap import split_trees
from parity_fl.forest_refit import (
    check_own_leaves,
    decode_sums,
    decode_trees,
    max_sums_bytes,
    max_trees_bytes,
    refitted,
)
from parity_fl.histogram_codec import Sparse, decode_answer, max_answer_bytes
from parity_fl.histogram_phases import RefitRequest, TreesRequest
from parity_fl.histogram_stages import Ground, PhaseName, Result, Stage
from parity_fl.merge import merge_union
from parity_fl.trees import Forest
from parity_protocol.errors import BadDocument

__all__ = ["trees_stage"]


def trees_stage(ground: Ground) -> Stage:
    """Return the first stage of leaf_refit after the classes."""
    return _TreesStage(ground)


class _TreesStage:
    name: PhaseName = "trees"
    table: tuple[int, int] | None = None
    wave = 0
    left = 2

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self.body = TreesRequest(ground.agreed).encode()
        self.max_answer_bytes = max(
            max_trees_bytes(ground.job.config, ground.agreed, part=part, rows=rows, n_features=ground.n_features)
            for part, rows in enumerate(ground.rows)
        )

    def check(self, part: int, answer: bytes) -> None:
        """See ``Stage``."""
        self._read(part, answer)

    def close(self, answers: Mapping[int, bytes], result: Result) -> Stage | None:
        """See ``Stage``."""
        del result
        forests = [self._read(part, answers[part]) for part in range(len(answers))]
        return _RefitStage(self._ground, merge_union(forests, self._ground.rows))

    def _read(self, part: int, answer: bytes) -> Forest:
        ground = self._ground
        return decode_trees(
            answer,
            self.body,
            ground.job.config,
            ground.agreed,
            part=part,
            rows=ground.rows[part],
            n_features=ground.n_features,
        )


class _RefitStage:
    name: PhaseName = "refit"
    table: tuple[int, int] | None = None
    wave = 0
    left = 1

    def __init__(self, ground: Ground, forest: Forest) -> None:
        self._ground, self._forest = ground, forest
        self._nodes, self._width = len(forest.feature), forest.n_outputs
        self._first_tree = np.cumsum([0, *split_trees(ground.job.config.num_trees, ground.job.parts)]).tolist()
        self.body = RefitRequest(ground.agreed, forest).encode()
        self._cells = min(self._nodes * self._width, max(ground.rows) * forest.n_trees)
        if ground.agreed.classification:
            size = self._nodes * self._width
            self.max_answer_bytes = max_answer_bytes(self._cells, size, max(ground.rows))
        else:
            self.max_answer_bytes = max_sums_bytes(self._nodes)

    def check(self, part: int, answer: bytes) -> None:
        """Every tree must have seen each of the part's rows once, of the right class, in a leaf."""
        forest, ground = self._forest, self._ground
        if ground.agreed.classification:
            cells = self._counts(answer)
            node, column = np.divmod(cells.index, self._width)
            value = cells.value
        else:
            count, _ = decode_sums(answer, self.body, self._nodes)
            node = np.flatnonzero(count)
            value, column = count[node], np.zeros(len(node), dtype=np.int64)
        if (forest.feature[node] >= 0).any():
            raise BadDocument(f"part {part}: it counts rows in a node that is no leaf")
        width = len(ground.class_rows()[part])
        tree = np.searchsorted(forest.tree_starts, node, side="right") - 1
        seen = np.zeros((forest.n_trees, width), dtype=np.int64)
        np.add.at(seen, (tree, column), value)
        wrong = (seen != np.array(ground.class_rows()[part])).any(axis=1)
        if wrong.any():
            raise BadDocument(
                f"part {part}: its counts do not add up in tree {int(np.argmax(wrong))}: they are not its rows"
            )
        rows = dict(zip(node.tolist(), value.tolist(), strict=True))
        check_own_leaves(forest, rows, range(self._first_tree[part], self._first_tree[part + 1]))

    def close(self, answers: Mapping[int, bytes], result: Result) -> Stage | None:
        """See ``Stage``."""
        classification = self._ground.agreed.classification
        sums = np.zeros((self._nodes, self._width if classification else 2), dtype=np.float64)
        for part in range(len(answers)):  # in part order: sums of targets are not whole numbers
            if classification:
                cells = self._counts(answers[part])
                sums.reshape(-1)[cells.index] += cells.value
            else:
                count, total = decode_sums(answers[part], self.body, self._nodes)
                sums[:, 0] += count
                sums[:, 1] += total
        result.forest = refitted(self._forest, sums, classification=classification)
        return None

    def _counts(self, answer: bytes) -> Sparse:
        size = self._nodes * self._width
        return decode_answer(answer, self.body, max_cells=self._cells, size=size, max_value=max(self._ground.rows))
