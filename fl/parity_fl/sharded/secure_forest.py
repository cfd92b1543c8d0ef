"""A histogram forest of which the market sees counts of all parts together and of no single one.

The first phase, which classes there are, is answered openly: a shard's summary said it before. Every table after it is a
secure sum; the forest that comes out of sums is the same, bit for bit. What the market keeps of a phase is marked: ``A``
is what a phase of the forest was answered with, ``S`` a secure sum that is under way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from parity_fl.averaging import Bodies, Refused
from parity_fl.forest_rounds import encode_forest
from parity_fl.histogram import HistogramServer
from parity_fl.histogram_codec import encode_answer
from parity_fl.histogram_draws import MAX_DRAWS
from parity_fl.privacy.secure_counts import MAX_CELLS, cell_bytes, counts_setup, counts_table
from parity_fl.privacy.secure_mean import MAX_FAILED_SUMS, close_phase, full_weight, phases_left
from parity_fl.privacy.secure_part import SumTerms
from parity_fl.sharded.bodies import SECURE, opaque, raw_bytes
from parity_fl.sharded.kinds import Fitted, Step, Turn, forest_of
from parity_fl.shards import ShardPlan
from parity_fl.spec import FlSpec, ForestConfig
from parity_fl.tensors import Tensor, decode_tensors, encode_tensors
from parity_protocol.errors import BadDocument, BadField, ParityError

__all__ = ["SecureForest"]

_REGRESSION_CELL: Final = 8
_MAX_STATE_BYTES: Final = 1 << 30
_LENGTH_BYTES: Final = 8
_ANSWER: Final = b"A"
_SUM: Final = b"S"


class SecureForest:
    """Implements ``Kind``.

    Raises:
        BadField: A node's table would be too large to travel whole.
    """

    def __init__(self, spec: FlSpec, config: ForestConfig, plan: ShardPlan) -> None:
        self._spec, self._config, self._plan = spec, config, plan
        rows = plan.n_rows - plan.holdout_size
        self._cell = cell_bytes(MAX_DRAWS * rows) if config.task == "classification" else _REGRESSION_CELL
        self._server = self._fresh()
        self._absorbed = 0  # answers that it was made of

    def open(self) -> Mapping[str, Tensor]:
        """See ``Kind``."""
        return {"request": opaque(self._body(self._fresh()))}

    def terms(self, state: bytes | None) -> SumTerms | None:
        """See ``Kind``; of the phase that the last ``reduce`` opened."""
        table = self._server.table
        if state is None or table is None:
            return None
        kind, record = _records(state)[-1]
        return SumTerms(_failed(record) if kind == _SUM else 0, full_weight=full_weight(table[1]))

    def reduce(self, turn: Turn) -> Step | Refused:
        """See ``Kind``."""
        # Credits nobody: no part's counts can be left out of a sum.
        server = self._server_at(turn.inners)
        if server.table is None:
            return self._agreed(server, turn.updates)
        last = _records(turn.state)[-1] if turn.state else (_ANSWER, b"")
        done = self._summed(server, turn.tensors, last[1] if last[0] == _SUM else b"", turn.updates)
        # What a sum kept between two of its phases is as large as the table: nobody needs it after the next.
        return replace(done, drops=last[0] == _SUM) if isinstance(done, Step) else done

    def fitted(self, tensors: Mapping[str, Tensor]) -> tuple[Fitted, dict[str, float | None]]:
        """See ``Kind``."""
        return forest_of(tensors, self._config, self._plan)

    def _fresh(self) -> HistogramServer:
        return HistogramServer(self._config, self._plan, cell_bytes=self._cell)

    def _body(self, server: HistogramServer) -> bytes:
        phase = server.next_request()
        return b"" if phase is None else phase.body

    def _server_at(self, inners: Callable[[], bytes]) -> HistogramServer:
        """Return the server after every answer so far; it is made again only when it was lost."""
        answers = [record for kind, record in _records(inners()) if kind == _ANSWER]
        if len(answers) != self._absorbed:
            self._server, self._absorbed = self._fresh(), 0
            for number, record in enumerate(answers):
                for part, answer in enumerate(_unframed(record) if number == 0 else [record]):
                    self._server.absorb(part, answer)
                self._absorbed += 1
        return self._server

    def _agreed(self, server: HistogramServer, updates: Bodies) -> Step | Refused:
        """Take the open answers to the first phase."""
        parts = self._plan.total_parts
        probe = self._fresh()
        answers: dict[int, bytes] = {}
        rejected: dict[int, str] = {}
        for part in sorted(updates):
            answers[part] = bytes(updates[part]())
            try:
                probe.absorb(part, answers[part])
            except ParityError as exc:
                rejected[part] = f"malformed: {exc.message}"
        if rejected or len(answers) < parts:
            return Refused(f"a forest needs all {parts} parts in every phase", rejected)
        del server
        self._server, self._absorbed = probe, 1
        return self._next(_ANSWER, _framed([answers[part] for part in sorted(answers)]), tuple(sorted(answers)), {})

    def _summed(
        self, server: HistogramServer, tensors: Mapping[str, Tensor], record: bytes, updates: Bodies
    ) -> Step | Refused:
        """Close one phase of the secure sum of a table."""
        plan, table = self._plan, server.table
        assert table is not None
        if table[0] > MAX_CELLS:
            raise BadField(
                f"a table of {table[0]} cells cannot travel whole, at most {MAX_CELLS}: use fewer bins or a smaller"
                " max_features",
                field="model_config.max_bins",
            )
        failed = _failed(record)
        terms = SumTerms(failed, full_weight=full_weight(table[1]))
        request = self._body(server)
        setup = counts_setup(
            self._spec.privacy,
            terms,
            request,
            session_id=self._spec.session_id,
            parts=plan.total_parts,
            cells=table[0],
        )
        tables: dict[str, Tensor] = {}
        phase = "keys"
        if SECURE in tensors:
            tables, said = decode_tensors(record, max_bytes=_MAX_STATE_BYTES)
            phase = said.get("phase", "")
        closing = close_phase(setup, phase, raw_bytes(tensors, SECURE) if SECURE in tensors else b"", tables, updates)
        missing = Refused(f"a forest needs all {plan.total_parts} parts in every phase", {})
        if isinstance(closing, Refused):
            return self._again(closing, phase, failed, request, updates)
        secure, closed = closing
        if phase in {"keys", "shares", "masked"} and len(closed.accepted) < plan.total_parts:
            missing = Refused(missing.reason, closed.rejected)
            return self._again(missing, phase, failed, request, updates)
        if secure.phase is not None:
            kept = encode_tensors(secure.state(), {"phase": secure.phase, "failed": str(failed)})
            asked = {SECURE: opaque(secure.request)}
            return Step(
                asked,
                _framed_record(_SUM, kept),
                closed.accepted,
                closed.rejected,
                {},
                {},
                more=True,
                appends=True,
                left=self._left(secure.phase),
            )
        total, _ = secure.result()
        answer = encode_answer(request, counts_table(total))
        try:
            server.absorb(0, answer)
        except ParityError as exc:
            return Refused(
                f"some part's counts cannot be right, and under masks nobody can say whose: {exc.message}", {}
            )
        self._absorbed += 1
        return self._next(_ANSWER, answer, closed.accepted, closed.rejected)

    def _next(self, kind: bytes, record: bytes, accepted: tuple[int, ...], rejected: dict[int, str]) -> Step:
        """Open the next phase of the forest for every part, or end with it."""
        body = self._body(self._server)
        kept = _framed_record(kind, record)
        if body:
            asked = {"request": opaque(body)}
            left = self._left("keys")
            return Step(asked, kept, accepted, rejected, {}, {}, more=True, appends=True, restarts=True, left=left)
        found = self._server.out_of_bag
        forest = {"forest": opaque(encode_forest(self._server.forest, found.score if found else None))}
        return Step(forest, kept, accepted, rejected, {"summed": float(self._plan.total_parts)}, {})

    def _again(self, problem: Refused, phase: str, failed: int, request: bytes, answers: Bodies) -> Step | Refused:
        if phase == "keys" or failed >= MAX_FAILED_SUMS:
            return problem
        kept = _framed_record(_SUM, encode_tensors({}, {"phase": "keys", "failed": str(failed + 1)}))
        good = tuple(part for part in sorted(answers) if part not in problem.rejected)
        told = {"restarted": 1.0}
        asked = {"request": opaque(request)}
        left = self._left("keys")
        return Step(asked, kept, good, problem.rejected, told, {}, more=True, appends=True, restarts=True, left=left)

    def _left(self, phase: str) -> int:
        """Return how many phases are to come, from one of the present table's sum on."""
        return phases_left(phase) + (self._server.left - 1) * phases_left("keys")


def _failed(record: bytes) -> int:
    if not record:
        return 0
    _, said = decode_tensors(record, max_bytes=_MAX_STATE_BYTES)
    count = said.get("failed", "")
    if not (count.isascii() and count.isdigit()):
        raise BadDocument("not the state of a secure sum")
    return int(count)


def _framed_record(kind: bytes, record: bytes) -> bytes:
    return kind + len(record).to_bytes(_LENGTH_BYTES, "big") + record


def _records(state: bytes) -> list[tuple[bytes, bytes]]:
    found: list[tuple[bytes, bytes]] = []
    at = 0
    while at < len(state):
        begin = at + 1 + _LENGTH_BYTES
        end = begin + int.from_bytes(state[at + 1 : begin], "big")
        if end > len(state) or state[at : at + 1] not in (_ANSWER, _SUM):
            raise BadDocument("the state of a secure forest ends inside a record")
        found.append((state[at : at + 1], state[begin:end]))
        at = end
    return found


def _framed(answers: list[bytes]) -> bytes:
    return b"".join(len(answer).to_bytes(_LENGTH_BYTES, "big") + answer for answer in answers)


def _unframed(record: bytes) -> list[bytes]:
    answers, at = [], 0
    while at < len(record):
        begin = at + _LENGTH_BYTES
        end = begin + int.from_bytes(record[at:begin], "big")
        answers.append(record[begin:end])
        at = end
    return answers
