"""How many phases a forest still takes: an estimate, since the data decide when a tree stops growing.

It is one from above, but for nodes that find no split among the features that they try and are asked for again. People
are shown it, and what a forest that is never finished has earned is measured by it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from parity_fl.bootstrap import leaves_rows_out
from parity_fl.histogram_codec import max_answer_bytes
from parity_fl.histogram_draws import MAX_DRAWS
from parity_fl.spec import ForestConfig

__all__ = ["Tables", "has_score"]


def has_score(config: ForestConfig) -> bool:
    """Return whether a forest's last phase is its out-of-bag score."""
    return config.mode == "histogram" and config.oob_score and leaves_rows_out(config)


@dataclass(frozen=True, slots=True)
class Tables:
    """What decides how many nodes one phase asks for.

    Attributes:
        rows: Of all parts.
        tries: Features that a node tries at once.
        width: Most bins of a feature.
        columns: Numbers in a cell: classes, or 3.
        max_phase_bytes: Longest answer of a part.
        cell_bytes: Of a table that travels with all its cells; 0 where only those that are not 0 do.
    """

    rows: int
    tries: int
    width: int
    columns: int
    max_phase_bytes: int
    cell_bytes: int = 0

    @classmethod
    def of(
        cls,
        config: ForestConfig,
        *,
        rows: int,
        n_features: int,
        classes: int,
        max_phase_bytes: int,
        cell_bytes: int = 0,
    ) -> Tables:
        """Return the tables of a forest that has not begun; ``classes`` is 0 for regression."""
        tries = min(n_features, config.max_features or max(1, math.isqrt(n_features)))
        return cls(rows, tries, config.max_bins, classes or 3, max_phase_bytes, cell_bytes)

    def levels(self, config: ForestConfig, *, nodes: int, draws: int, depths: int) -> int:
        """Return the phases of the levels from ``nodes`` open nodes on, as if each could be split down to the last.

        Args:
            nodes: Open now.
            draws: Rows in them, over all trees.
            depths: Levels that may follow, this one included.
        """
        fewest = max(2, config.min_samples_split, 2 * config.min_samples_leaf)
        found = 0
        for _ in range(depths):
            size = nodes * self.tries * self.width * self.columns
            if config.task == "classification":
                cells = self.tries * min(nodes * self.width * self.columns, draws)
            else:
                cells = self.tries * self.columns * min(nodes * self.width, draws)
            longest = self.cell_bytes * size or max_answer_bytes(cells, size, MAX_DRAWS * self.rows)
            found += max(1, -(-longest // self.max_phase_bytes))
            nodes = min(2 * nodes, max(1, draws // fewest))
        return found

    def all_levels(self, config: ForestConfig) -> int:
        """Return the phases of all levels, and of the score after them."""
        draws = math.ceil(config.num_trees * self.rows * config.subsample)
        grown = self.levels(config, nodes=config.num_trees, draws=draws, depths=config.max_depth)
        return grown + has_score(config)
