"""A forest in phases, behind the same two faces as a model in rounds: each phase is one exchange with every part.

The "model" of a phase is the request; an update is a part's answer; the last model is the forest. The state that a phase
starts from is every answer so far: the server is made again from it after a crash, and ends with the same bytes. Each
phase gives only its own answers to be kept, so what is written grows with the answers and not with their square.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Final

from parity_fl.finishing import FinalModel, finish_phased
from parity_fl.histogram import HistogramPart, HistogramServer, part_rows
from parity_fl.plan import PartitionPlan
from parity_fl.rounds import Reduced, Refused, TrainedRound
from parity_fl.rounds_config import UpdateFormat
from parity_fl.shards import ShardPlan
from parity_fl.spec import FlSpec, ForestConfig
from parity_fl.table import Table, check_part, contradiction
from parity_fl.tensors import decode_tensors, encode_tensors
from parity_fl.trees import Forest, forest_from_tensors, forest_tensors
from parity_protocol import strict_json
from parity_protocol.errors import BadDocument, ExecutionFailed, FailureReason, TooLarge

__all__ = ["ForestPhases", "ForestRounds", "ForestTrainer", "decode_forest", "encode_forest"]

_MAX_FILE_BYTES: Final = 1 << 30  # of a forest, and of the state: the market reads no longer file back
_LENGTH_BYTES: Final = 4


class ForestPhases:
    """The phases of a forest, wherever its rows lie; the market's side.

    Args:
        config: Of a forest of mode ``histogram`` or ``leaf_refit``.
        plan: The session's; what parts say of themselves must be what it says.

    Raises:
        BadField: The settings cannot work; see ``check_histogram``.
    """

    def __init__(self, config: ForestConfig, plan: PartitionPlan | ShardPlan) -> None:
        self._config, self._plan, self._parts = config, plan, plan.total_parts
        self._server = self._fresh()
        self._kept = 0  # bytes of all answers that it has absorbed

    def _fresh(self) -> HistogramServer:
        return HistogramServer(self._config, self._plan)

    def first(self) -> bytes:
        """Return the first request."""
        return _body(self._fresh())

    def reduce(
        self,
        base: bytes,
        state: Callable[[], bytes] | None,
        updates: Mapping[int, Callable[[], bytes | memoryview]],
    ) -> Reduced | Refused:
        """Close a phase; as ``RoundServer.reduce``. Without every part it is refused.

        Args:
            state: Reads ``Reduced.state`` of every phase before, one after the other; called after a restart only.

        Raises:
            BadDocument: ``base`` or ``state`` is not one of ours.
            ExecutionFailed: ``data_invalid``: the parts do not belong together; ``output_too_large``: the answers of
                all phases are more than a state may hold.
        """
        server = self._server_at(base, state)
        self._server = self._fresh()  # kept only when the phase closes
        answers: dict[int, bytes] = {}
        rejected: dict[int, str] = {}
        for part in sorted(updates):
            answers[part] = bytes(updates[part]())
            try:
                server.absorb(part, answers[part])
            except (BadDocument, TooLarge) as exc:
                rejected[part] = f"malformed: {exc.message}"
        if rejected or len(answers) < self._parts:
            return Refused(f"a forest needs all {self._parts} parts in every phase", rejected)
        more = server.next_request() is not None
        kept = _framed([answers[part] for part in sorted(answers)])
        total = self._kept + len(kept)
        if more and total > _MAX_FILE_BYTES:
            raise ExecutionFailed(
                FailureReason.OUTPUT_TOO_LARGE,
                f"the answers of all phases take {total} bytes, at most {_MAX_FILE_BYTES} are kept",
                hint="Use fewer trees, less depth or fewer bins.",
            )
        self._server, self._kept = server, total
        return Reduced(
            model=_body(server) if more else _finished(server),
            state=kept,
            accepted=tuple(sorted(answers)),
            rejected={},
            metrics={},
            contributions={},
            more_phases=more,
            appends=True,
            left=server.left,
        )

    def _server_at(self, base: bytes, state: Callable[[], bytes] | None) -> HistogramServer:
        """Return the server whose present request is ``base``."""
        phase = self._server.next_request()
        if phase is not None and phase.body == base and phase.number > 0:
            return self._server
        server = self._fresh()
        answers = state() if state is not None else b""
        self._kept = len(answers)
        for number, answer in enumerate(_unframed(answers)):
            server.absorb(number % self._parts, answer)
        if _body(server) != base:
            raise BadDocument("the phase's request does not follow from the answers before it")
        return server


class ForestRounds:
    """The market's side of a partitioned session; as ``RoundServer``.

    Args:
        spec: Resolved settings of a forest of mode ``histogram`` or ``leaf_refit``.
        plan: The session's plan.
        dataset: The whole data set, verified against its CID.

    Raises:
        BadField: The settings cannot work; see ``check_histogram``.
    """

    def __init__(self, spec: FlSpec, plan: PartitionPlan, dataset: bytes) -> None:
        self._config = _config_of(spec)
        self._phases = ForestPhases(self._config, plan)
        self._spec, self._plan, self._dataset = spec, plan, dataset

    def first(self) -> bytes:
        """Return the first request."""
        return self._phases.first()

    def reduce(
        self,
        base: bytes,
        state: Callable[[], bytes] | None,
        updates: Mapping[int, Callable[[], bytes | memoryview]],
    ) -> Reduced | Refused:
        """Close a phase; see ``ForestPhases.reduce``."""
        return self._phases.reduce(base, state, updates)

    def final(self, file: bytes, *, rounds: int) -> FinalModel:
        """Return the forest and its scores; as ``RoundServer.final``.

        Raises:
            BadDocument: The forest was not finished when the session was stopped.
        """
        del rounds
        forest, score = decode_forest(
            file, self._config, n_features=self._plan.n_features, n_classes=self._plan.class_count
        )
        return finish_phased(self._spec, self._plan, self._dataset, forest, score)


class ForestTrainer:
    """A node's side; as ``RoundTrainer``.

    Args:
        spec: Resolved settings, as they were signed.
        plan: The session's plan; the cut is repeated and its hash compared.
        dataset: The whole data set, verified against its CID.
        part: Which part.

    Raises:
        ExecutionFailed: Settings, plan, part and data do not belong together.
    """

    def __init__(self, spec: FlSpec, plan: PartitionPlan, dataset: bytes, part: int) -> None:
        check_part(part, plan.total_parts)
        rows = part_rows(Table.load(spec, plan, dataset), plan, part)
        self._part = HistogramPart(rows, _config_of(spec))
        self._rows = len(rows.truth)

    def train(
        self, base: bytes | memoryview, *, number: int, proximal_mu: float = 0.0, update_format: UpdateFormat = "fp32"
    ) -> TrainedRound:
        """Answer one phase.

        Args:
            base: The request.
            number: Of the round; a forest has one.
            proximal_mu: Means nothing to a forest.
            update_format: Nor does this: counts are whole numbers.

        Raises:
            BadDocument: It is no request about such data.
            ExecutionFailed: The data cannot be used, or the request draws otherwise than was signed.
        """
        del number, proximal_mu, update_format
        return TrainedRound(self._part.answer(bytes(base)), {"samples": float(self._rows)})


def _config_of(spec: FlSpec) -> ForestConfig:
    if not isinstance(spec.model, ForestConfig):
        contradiction(f"a {spec.model_type} is no forest")
    return spec.model


def _body(server: HistogramServer) -> bytes:
    phase = server.next_request()
    return b"" if phase is None else phase.body


def _finished(server: HistogramServer) -> bytes:
    found = server.out_of_bag
    return encode_forest(server.forest, found.score if found else None)


def encode_forest(forest: Forest, out_of_bag: float | None) -> bytes:
    """Return the file of a finished forest."""
    return encode_tensors(forest_tensors(forest), {"out_of_bag": json.dumps(out_of_bag)})


def decode_forest(file: bytes, config: ForestConfig, *, n_features: int, n_classes: int) -> tuple[Forest, float | None]:
    """Read what ``encode_forest`` wrote: the forest and its out-of-bag score.

    Raises:
        BadDocument: It is none; or a request, because the session was stopped before its forest was finished.
    """
    tensors, metadata = decode_tensors(file, max_bytes=_MAX_FILE_BYTES)
    if "out_of_bag" not in metadata:
        raise BadDocument("the session was stopped before its forest was finished")
    found = strict_json.loads(metadata["out_of_bag"].encode())
    classification = config.task == "classification"
    forest = forest_from_tensors(
        tensors,
        n_features=n_features,
        n_outputs=n_classes if classification else 1,
        classification=classification,
    )
    return forest, float(found) if isinstance(found, (int, float)) else None


def _framed(answers: list[bytes]) -> bytes:
    return b"".join(len(answer).to_bytes(_LENGTH_BYTES, "big") + answer for answer in answers)


def _unframed(state: bytes) -> list[bytes]:
    answers, at = [], 0
    while at < len(state):
        end = at + _LENGTH_BYTES + int.from_bytes(state[at : at + _LENGTH_BYTES], "big")
        if end > len(state):
            raise BadDocument("the forest's state ends inside an answer")
        answers.append(state[at + _LENGTH_BYTES : end])
        at = end
    return answers
