"""The stages of a forest in phases, one after another; of a histogram forest: classes, edges, levels, score.

A stage says what it asks, refuses an answer that cannot be right, and turns all answers into the next stage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from typing import Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from parity_fl.histogram_agreement import MAX_SAID_BYTES, PartSays, agree, check_against_plan, read_classes
from parity_fl.histogram_codec import Sparse, decode_answer, max_answer_bytes, summed
from parity_fl.histogram_edges import SEARCH_PHASES, Bins, EdgeSearch
from parity_fl.histogram_phases import Agreed, ClassesRequest, EdgesRequest, ScoreRequest
from parity_fl.histogram_progress import Tables, has_score
from parity_fl.histogram_trees import Grower
from parity_fl.plan import PartitionPlan
from parity_fl.shards import ShardPlan
from parity_fl.spec import ForestConfig
from parity_fl.trees import Forest
from parity_protocol.errors import BadDocument

__all__ = ["ClassesStage", "Ground", "Job", "OutOfBag", "PhaseName", "Result", "Stage", "edges_stage"]

PhaseName: TypeAlias = Literal["classes", "edges", "level", "score", "trees", "refit"]
_MERGE_CELLS = 1 << 22
_KEPT_CELLS = 1 << 23  # 128 MiB


@dataclass(frozen=True, slots=True)
class OutOfBag:
    """The forest's score on rows by the trees that did not draw them; exact, because draws belong to rows.

    Attributes:
        score: Accuracy or R²; ``None`` if undefined.
        rows: Rows behind it.
    """

    score: float | None
    rows: int


@dataclass(frozen=True, slots=True)
class Job:
    """What a server was made with.

    Attributes:
        cell_bytes: Of a table that travels with all its cells; 0 where only those that are not 0 do.
    """

    config: ForestConfig
    plan: PartitionPlan | ShardPlan | None
    parts: int
    max_phase_bytes: int
    cell_bytes: int = 0


@dataclass(slots=True)
class Result:
    """What the stages find out on their way."""

    agreed: Agreed | None = None
    forest: Forest | None = None
    out_of_bag: OutOfBag | None = None


class Stage(Protocol):
    """One phase.

    Attributes:
        table: Cells of the table that it asks for, and the largest value of one; None if it asks for something else.
        left: Phases until the forest is done, this one included; estimated from above where the data decide.
    """

    left: int
    table: tuple[int, int] | None

    name: PhaseName
    wave: int
    body: bytes
    max_answer_bytes: int

    def check(self, part: int, answer: bytes) -> None:
        """Raise ``BadDocument`` or ``TooLarge`` for an answer that cannot be right."""

    def close(self, answers: Mapping[int, bytes], result: Result) -> Stage | None:
        """Take the checked answers of all parts and return the next stage; ``None`` at the end."""


class ClassesStage:
    """Asks for classes, columns and rows."""

    name: PhaseName = "classes"
    wave = 0
    table: tuple[int, int] | None = None
    max_answer_bytes = MAX_SAID_BYTES

    def __init__(self, job: Job, then: Callable[[Ground], Stage]) -> None:
        self._job, self._then = job, then
        self._classification = job.config.task == "classification"
        self.left = 1 + _phases_after_classes(job)
        self.body = ClassesRequest(self._classification).encode()

    def check(self, part: int, answer: bytes) -> None:
        """See ``Stage``."""
        said = read_classes(answer, self.body, classification=self._classification)
        if self._job.plan is not None:
            check_against_plan(said, self._job.plan, part)

    def close(self, answers: Mapping[int, bytes], result: Result) -> Stage | None:
        """See ``Stage``."""
        said = [
            read_classes(answers[part], self.body, classification=self._classification)
            for part in range(self._job.parts)
        ]
        result.agreed = agree(self._job.config, said, self._job.plan)
        return self._then(Ground(self._job, result.agreed, said))


@dataclass(frozen=True, slots=True)
class Ground:
    """What later stages know: the job, what was agreed, what each part has and, in part order, its rows."""

    job: Job
    agreed: Agreed
    said: list[PartSays]
    rows: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", tuple(one.rows for one in self.said))

    def pooled(self) -> Ground:
        """Return the ground of one part that has all rows: what follows sees the sums of all parts alone."""
        classes: dict[str, int] = {}
        for one in self.said:
            for name, count in one.classes.items():
                classes[name] = classes.get(name, 0) + count
        low, high = min(one.low for one in self.said), max(one.high for one in self.said)
        everybody = PartSays(self.n_features, sum(self.rows), classes, low, high)
        return Ground(replace(self.job, parts=1), self.agreed, [everybody])

    def tables(self) -> Tables:
        """Return how large the tables of the levels may be."""
        return Tables.of(
            self.job.config,
            rows=sum(self.rows),
            n_features=self.n_features,
            classes=len(self.agreed.class_names),
            max_phase_bytes=self.job.max_phase_bytes,
            cell_bytes=self.job.cell_bytes,
        )

    @property
    def n_features(self) -> int:
        """Columns of the data."""
        return self.said[0].n_features

    def class_rows(self) -> tuple[tuple[int, ...], ...]:
        """Return each part's rows by class, or all of them for regression."""
        if not self.agreed.classification:
            return tuple((rows,) for rows in self.rows)
        return tuple(tuple(one.classes.get(name, 0) for name in self.agreed.class_names) for one in self.said)


def edges_stage(ground: Ground) -> Stage:
    """Return the first stage of a histogram forest after the classes."""
    return _EdgesStage.of(ground, 0, [])


class _EdgesStage:
    name: PhaseName = "edges"
    wave = 0

    def __init__(self, ground: Ground, search: EdgeSearch, end: int, found: list[NDArray[np.float64]]) -> None:
        self._ground, self._search, self._end, self._found = ground, search, end, found
        feature, prefix = search.buckets()
        self.body = EdgesRequest(feature, prefix, search.step).encode()
        self._size, self._buckets = search.size, len(feature)
        most = max(ground.rows)
        self.table: tuple[int, int] | None = (self._size, most)
        waiting = -(-(ground.n_features - end) // len(search.features))  # further groups of features
        self.left = search.left + waiting * SEARCH_PHASES + ground.tables().all_levels(ground.job.config)
        self.max_answer_bytes = max_answer_bytes(min(self._size, self._buckets * most), self._size, most)

    @classmethod
    def of(cls, ground: Ground, first: int, found: list[NDArray[np.float64]]) -> _EdgesStage:
        """Search as many features from ``first`` as one phase takes."""
        job = ground.job
        most = max(ground.rows)
        per_feature = max_answer_bytes(most, 1 << 40, most)
        if job.cell_bytes:
            per_feature = job.cell_bytes * EdgeSearch.most_cells(job.config.max_bins)
        end = min(ground.n_features, first + max(1, job.max_phase_bytes // per_feature))
        search = EdgeSearch(np.arange(first, end, dtype=np.int64), ground.rows, job.config.max_bins)
        return cls(ground, search, end, found)

    def check(self, part: int, answer: bytes) -> None:
        """See ``Stage``."""
        self._search.check(part, self._read(part, answer))

    def close(self, answers: Mapping[int, bytes], result: Result) -> Stage | None:
        """See ``Stage``."""
        del result
        of_part = {part: self._read(part, answer) for part, answer in answers.items()}
        self._search.close(_total(of_part.values()), of_part)
        if self._search.thresholds is None:
            return _EdgesStage(self._ground, self._search, self._end, self._found)
        found = [*self._found, *self._search.thresholds]
        if self._end < self._ground.n_features:
            return _EdgesStage.of(self._ground, self._end, found)
        starts = np.cumsum([0] + [len(one) for one in found]).astype(np.int64)
        grower = Grower(
            self._ground.job.config,
            self._ground.agreed,
            Bins(np.concatenate(found), starts),
            class_rows=self._ground.class_rows(),
            max_phase_bytes=self._ground.job.max_phase_bytes,
            cell_bytes=self._ground.job.cell_bytes,
        )
        return _LevelStage(self._ground, grower)

    def _read(self, part: int, answer: bytes) -> Sparse:
        rows = self._ground.rows[part]
        cells = min(self._size, self._buckets * rows)
        return decode_answer(answer, self.body, max_cells=cells, size=self._size, max_value=rows)


class _LevelStage:
    name: PhaseName = "level"

    def __init__(self, ground: Ground, grower: Grower) -> None:
        self._ground, self._grower = ground, grower
        self._kept: dict[int, Sparse] = {}  # tables that were read to be checked, as long as there is room
        self._room = _KEPT_CELLS
        self.wave = grower.wave
        self.left = grower.left() + has_score(ground.job.config)
        request = grower.next_request()
        self.body = request.encode()
        self._size, self._cells = prod(request.shape), grower.max_cells()
        self.table: tuple[int, int] | None = (self._size, grower.max_value)
        self.max_answer_bytes = max_answer_bytes(min(self._cells, self._size), self._size, grower.max_value)

    def check(self, part: int, answer: bytes) -> None:
        """See ``Stage``."""
        table = self._read(answer)
        self._grower.check(part, table)
        if len(table) <= self._room:
            self._room -= len(table)
            self._kept[part] = table

    def close(self, answers: Mapping[int, bytes], result: Result) -> Stage | None:
        """See ``Stage``."""

        def table(part: int) -> Sparse:
            return self._kept[part] if part in self._kept else self._read(answers[part])

        self._grower.close(_total(table(part) for part in range(len(answers))), table)
        if not self._grower.done:
            return _LevelStage(self._ground, self._grower)
        result.forest, numbers = self._grower.forest()
        if not has_score(self._ground.job.config):
            return None
        return _ScoreStage(self._ground, result.forest, numbers)

    def _read(self, answer: bytes) -> Sparse:
        return decode_answer(
            answer, self.body, max_cells=self._cells, size=self._size, max_value=self._grower.max_value
        )


class _ScoreStage:
    name: PhaseName = "score"
    wave = 0
    left = 1
    _CELLS = 4

    def __init__(self, ground: Ground, forest: Forest, numbers: NDArray[np.int64]) -> None:
        self._ground = ground
        self.body = ScoreRequest(ground.agreed, numbers, forest).encode()
        self._most = max(ground.rows) << (2 * ground.agreed.target.bits)
        self.table: tuple[int, int] | None = (self._CELLS, self._most)
        self.max_answer_bytes = max_answer_bytes(self._CELLS, self._CELLS, self._most)

    def check(self, part: int, answer: bytes) -> None:
        """See ``Stage``."""
        rows, *sums = self._read(answer)
        limit = rows if self._ground.agreed.classification else self._most
        if rows > self._ground.rows[part] or any(number > limit for number in sums):
            raise BadDocument(f"part {part}: it scored more rows than it has")

    def close(self, answers: Mapping[int, bytes], result: Result) -> Stage | None:
        """See ``Stage``."""
        rows, *sums = (sum(column) for column in zip(*map(self._read, answers.values()), strict=True))
        score: float | None = None
        if self._ground.agreed.classification:
            score = sums[0] / rows if rows else None
        elif rows >= 2 and rows * sums[2] > sums[1] * sums[1]:
            score = 1.0 - sums[0] * rows / (rows * sums[2] - sums[1] * sums[1])
        result.out_of_bag = OutOfBag(score, rows)
        return None

    def _read(self, answer: bytes) -> list[int]:
        cells = decode_answer(answer, self.body, max_cells=self._CELLS, size=self._CELLS, max_value=self._most)
        numbers = [0] * self._CELLS
        for place, value in zip(cells.index.tolist(), cells.value.tolist(), strict=True):
            numbers[place] = value
        return numbers


def _phases_after_classes(job: Job) -> int:
    if job.config.mode == "leaf_refit":
        return 2
    if job.plan is None:
        return SEARCH_PHASES + job.config.max_depth + has_score(job.config)
    tables = Tables.of(
        job.config,
        rows=job.plan.n_rows - job.plan.holdout_size,
        n_features=job.plan.n_features,
        classes=job.plan.class_count,
        max_phase_bytes=job.max_phase_bytes,
        cell_bytes=job.cell_bytes,
    )
    return SEARCH_PHASES + tables.all_levels(job.config)


def _total(tables: Iterable[Sparse]) -> Sparse:
    """Add up tables; whole numbers, so their order does not matter."""
    waiting: list[Sparse] = []
    size = 0
    for table in tables:
        waiting.append(table)
        size += len(table)
        if size > _MERGE_CELLS:  # merge now and then, so that a thousand parts do not lie in memory together
            waiting = [_merged(waiting)]
            size = len(waiting[0])
    return _merged(waiting)


def _merged(tables: list[Sparse]) -> Sparse:
    if len(tables) == 1:
        return tables[0]
    return summed(np.concatenate([table.index for table in tables]), np.concatenate([table.value for table in tables]))
