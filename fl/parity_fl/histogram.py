"""A random forest that equals the central one under any cut of the data: parts send sums, the market grows the trees.

Breadth-first growth from histograms as in PLANET (Panda et al., 2009) and LightGBM (Ke et al., 2017), over parts: what is
summed are whole numbers, draws belong to rows and not to parts, and the bins come from exact quantiles of all rows. So
K parts give the same bytes as one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from parity_fl.histogram_agreement import DEFAULT_MAX_PHASE_BYTES, check_histogram
from parity_fl.histogram_client import HistogramPart, PartRows, histogram_client
from parity_fl.histogram_server import HistogramServer, Phase
from parity_fl.histogram_stages import OutOfBag
from parity_fl.plan import PartitionPlan
from parity_fl.spec import ForestConfig
from parity_fl.table import Table
from parity_fl.trees import Forest, as_forest_features

__all__ = [
    "HistogramPart",
    "HistogramRun",
    "HistogramServer",
    "OutOfBag",
    "PartRows",
    "Phase",
    "check_histogram",
    "histogram_client",
    "part_rows",
    "run_local",
]


@dataclass(frozen=True, slots=True, eq=False)
class HistogramRun:
    """A forest grown in one process.

    Attributes:
        forest: The forest.
        class_names: In index order; empty for regression.
        out_of_bag: Its score; ``None`` if not asked for.
        phases: How many.
        bytes_down: What each part received.
        bytes_up: What each part sent.
    """

    forest: Forest
    class_names: tuple[str, ...]
    out_of_bag: OutOfBag | None
    phases: int
    bytes_down: int
    bytes_up: tuple[int, ...]


def part_rows(table: Table, plan: PartitionPlan, part: int) -> PartRows:
    """Return the rows of one part of a partitioned session."""
    rows = table.assignment.parts[part]
    return PartRows(
        part=part,
        features=as_forest_features(table.dataset.features[rows]),
        truth=table.truth[rows],
        class_names=plan.class_names,
        row_ids=rows,
    )


def run_local(
    config: ForestConfig,
    parts: Sequence[PartRows],
    plan: PartitionPlan | None = None,
    *,
    max_phase_bytes: int = DEFAULT_MAX_PHASE_BYTES,
) -> HistogramRun:
    """Make a forest of mode histogram or leaf_refit in this process, by the same bytes that would travel.

    Args:
        config: The forest's settings.
        parts: In part order.
        plan: Of a partitioned session; without, the parts are shards.
        max_phase_bytes: Longest answer of a part.

    Raises:
        BadField: The settings cannot work.
        ExecutionFailed: ``data_invalid``: the data cannot be used.
    """
    server = HistogramServer(config, plan, parts=len(parts), max_phase_bytes=max_phase_bytes)
    nodes = [HistogramPart(rows, config) for rows in parts]
    phases, down, up = 0, 0, [0] * len(parts)
    while (phase := server.next_request()) is not None:
        phases += 1
        down += len(phase.body)
        for part, node in enumerate(nodes):
            answer = node.answer(phase.body)
            up[part] += len(answer)
            server.absorb(part, answer)
    return HistogramRun(server.forest, server.class_names, server.out_of_bag, phases, down, tuple(up))
