"""The market's side of a forest in phases: ask all parts, check and add up their answers, ask on.

It is a state machine over bytes: ``next_request`` says what to send to every part, ``absorb`` takes each part's answer, and
the last one moves it on. It does no I/O and draws nothing, so after a crash the same answers, absorbed again in any order
within a phase, lead to the same state. Every part must answer every phase; a part that moves to another node goes on where
it was.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from parity_fl.forest_refit_stages import trees_stage
from parity_fl.histogram_agreement import DEFAULT_MAX_PHASE_BYTES, check_histogram
from parity_fl.histogram_stages import ClassesStage, Job, OutOfBag, PhaseName, Result, Stage, edges_stage
from parity_fl.plan import PartitionPlan
from parity_fl.shards import ShardPlan
from parity_fl.spec import ForestConfig
from parity_fl.trees import Forest
from parity_protocol.errors import BadDocument, BadField, NotFinished, TooLarge

__all__ = ["HistogramServer", "Phase"]

_AFTER_CLASSES: Final = {"histogram": edges_stage, "leaf_refit": trees_stage}


@dataclass(frozen=True, slots=True)
class Phase:
    """What every part is asked next.

    Attributes:
        number: Counted from 0.
        name: ``classes``, ``edges``, ``level`` or ``score``; for leaf_refit ``classes``, ``trees`` or ``refit``.
        body: The request, the same for all parts.
        max_answer_bytes: Longest answer that can be right.
        wave: Of a ``level``: which pass over the open nodes this belongs to, from 0; else 0.
    """

    number: int
    name: PhaseName
    body: bytes
    max_answer_bytes: int
    wave: int


class HistogramServer:
    """Makes a forest of mode ``histogram`` or ``leaf_refit``.

    Args:
        config: The forest's settings.
        plan: The session's; its classes, columns and rows are expected of the parts.
        parts: Number of parts, when there is no plan.
        max_phase_bytes: Longest answer of a part; nodes are asked for in as many phases as that takes.
        cell_bytes: Of a cell, where all phases after the classes are answered by the sum of all parts' tables: that sum is
            absorbed as the answer of one part, number 0. The forest is the same: sums are all that it is made of.

    Raises:
        BadField: The settings cannot work; see ``check_histogram``.
    """

    def __init__(
        self,
        config: ForestConfig,
        plan: PartitionPlan | ShardPlan | None = None,
        *,
        parts: int = 0,
        max_phase_bytes: int = DEFAULT_MAX_PHASE_BYTES,
        cell_bytes: int = 0,
    ) -> None:
        if plan is not None:
            parts = plan.total_parts
            if config.mode == "histogram":
                check_histogram(config, plan, max_phase_bytes=max_phase_bytes)
        if config.mode not in _AFTER_CLASSES:
            raise BadField(f"mode {config.mode} has no phases", field="model_config.mode")
        if parts < 1:
            raise BadField("a histogram forest needs a plan or a number of parts", field="partition_config.total_parts")
        self._parts = parts
        self._result = Result()
        then = _AFTER_CLASSES[config.mode]
        self._is_pooled = cell_bytes > 0
        job = Job(config, plan, parts, max_phase_bytes, cell_bytes)
        self._stage: Stage | None = ClassesStage(
            job, (lambda ground: then(ground.pooled())) if self._is_pooled else then
        )
        self._number = 0
        self._answers: dict[int, bytes] = {}

    def next_request(self) -> Phase | None:
        """Return what to ask all parts now; ``None`` when the forest is done. The same until all have answered."""
        stage = self._stage
        if stage is None:
            return None
        return Phase(self._number, stage.name, stage.body, stage.max_answer_bytes, stage.wave)

    @property
    def table(self) -> tuple[int, int] | None:
        """Cells of the table that is asked for now, and the largest value of one; None while it is something else."""
        return None if self._stage is None else self._stage.table

    @property
    def left(self) -> int:
        """Phases until the forest is done, the one that is asked now included; an estimate from above."""
        return 0 if self._stage is None else self._stage.left

    @property
    def waiting(self) -> tuple[int, ...]:
        """Parts whose answer is missing in this phase."""
        return () if self._stage is None else tuple(part for part in range(self._parts) if part not in self._answers)

    def absorb(self, part: int, answer: bytes) -> None:
        """Take a part's answer to the present phase. The same answer again changes nothing.

        Raises:
            TooLarge: It is longer than any right answer.
            BadDocument: It is no answer to this phase, contradicts itself or the part's earlier answers, or differs
                from what the part answered in this phase. The message names the part; nothing was taken.
            ExecutionFailed: ``data_invalid``: with this last answer it is clear that the parts do not belong together.
        """
        if self._stage is None:
            raise BadDocument(f"part {part}: the forest is done")
        if not 0 <= part < self._parts:
            raise BadDocument(f"there is no part {part} of {self._parts}")
        if part in self._answers:
            if self._answers[part] != answer:
                raise BadDocument(f"part {part}: it answered this phase already, with other bytes")
            return
        if len(answer) > self._stage.max_answer_bytes:
            raise TooLarge(f"part {part}: {len(answer)} bytes, at most {self._stage.max_answer_bytes} are possible")
        try:
            self._stage.check(part, answer)
        except (BadDocument, TooLarge) as error:
            if error.message.startswith("part "):
                raise
            raise type(error)(f"part {part}: {error.message}") from error
        self._answers[part] = answer
        if len(self._answers) == self._parts:
            answers = {number: self._answers[number] for number in range(self._parts)}
            self._stage = self._stage.close(answers, self._result)
            self._answers = {}
            self._number += 1
            if self._is_pooled:
                self._parts = 1

    @property
    def forest(self) -> Forest:
        """The finished forest.

        Raises:
            NotFinished: Phases are left.
        """
        if self._stage is not None or self._result.forest is None:
            raise NotFinished("the forest is not finished: phases are left")
        return self._result.forest

    @property
    def out_of_bag(self) -> OutOfBag | None:
        """The out-of-bag score, once finished.

        ``None`` if it was not asked for, every tree draws every row, or leaves know all rows (leaf_refit).
        """
        return self._result.out_of_bag

    @property
    def class_names(self) -> tuple[str, ...]:
        """The agreed classes, after the first phase; empty before, and for regression."""
        return () if self._result.agreed is None else self._result.agreed.class_names
