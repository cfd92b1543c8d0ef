"""Kinds of models of which the market sees sums alone: averages and exact lines under secure aggregation."""

from __future__ import annotations

from parity_fl.averaging import Bodies, Refused
from parity_fl.linear import linear_tensors
from parity_fl.models.base import Scaling
from parity_fl.models.linear_exact import solve_linear
from parity_fl.privacy.dp import NoiseSetup
from parity_fl.privacy.secure_line import line_point, line_setup, line_statistics
from parity_fl.privacy.secure_mean import MAX_FAILED_SUMS, SecureMean, close_phase, full_weight, phases_left
from parity_fl.privacy.secure_part import SumTerms
from parity_fl.sharded.bodies import SECURE, opaque, raw_bytes
from parity_fl.sharded.kinds import Averaging, ExactLine, Scorer, Step, Turn
from parity_fl.shards import ShardPlan
from parity_fl.spec import FlSpec
from parity_fl.strategy import StrategyConfig
from parity_fl.tensors import Tensor, decode_tensors, encode_tensors
from parity_protocol.errors import BadDocument

__all__ = ["SecureAveraging", "SecureLine"]

_MAX_STATE_BYTES = 1 << 30


class SecureAveraging(Averaging):
    """The same under secure aggregation: a round is five phases, and the rule sees the sum alone."""

    def __init__(
        self,
        spec: FlSpec,
        plan: ShardPlan,
        scaling: Scaling,
        strategy: StrategyConfig,
        score: Scorer,
        private: NoiseSetup | None,
    ) -> None:
        super().__init__(spec, plan, scaling, strategy, score, private)
        self._mean = SecureMean(
            strategy,
            spec.privacy,
            session_id=spec.session_id,
            parts=plan.total_parts,
            rows=lambda part: float(plan.part_size(part)),
            heaviest=max(plan.weight(part) for part in range(plan.total_parts)),
            private=private,
        )

    def terms(self, state: bytes | None) -> SumTerms | None:
        """See ``Kind``."""
        return self._mean.terms(state)

    def reduce(self, turn: Turn) -> Step | Refused:
        """See ``Kind``."""
        # Credits nobody: there is no single update to leave out.
        is_asked = SECURE in turn.tensors
        done = self._mean.reduce(
            None if is_asked else self._weights(turn.tensors),
            raw_bytes(turn.tensors, SECURE) if is_asked else b"",
            turn.state,
            turn.updates,
        )
        if isinstance(done, Refused):
            return done
        if done.restarts and done.weights is not None:
            told = done.metrics
            return Step(
                done.weights,
                done.state,
                done.accepted,
                done.rejected,
                told,
                {},
                more=True,
                restarts=True,
                left=done.left,
            )
        if done.weights is None:
            request = {SECURE: opaque(done.request)}
            return Step(request, done.state, done.accepted, done.rejected, {}, {}, more=True, left=done.left)
        scores = self._score(done.weights, self._scaling)
        return Step(done.weights, done.state, done.accepted, done.rejected, {**scores, **done.metrics}, {})


class SecureLine(ExactLine):
    """Least squares from the sum of all parts' sums; one round of five phases."""

    def __init__(self, spec: FlSpec, plan: ShardPlan, scaling: Scaling) -> None:
        super().__init__(plan, scaling)
        self._spec, self._scaling = spec, scaling

    def terms(self, state: bytes | None) -> SumTerms | None:
        """See ``Kind``."""
        rows = sum(self._plan.part_size(part) for part in range(self._plan.total_parts))
        return SumTerms(_failed(state), full_weight=full_weight(rows))

    def reduce(self, turn: Turn) -> Step | Refused:
        """See ``Kind``."""
        plan, terms = self._plan, self.terms(turn.state)
        assert terms is not None
        setup = line_setup(
            self._spec.privacy, terms, self._scaling, session_id=self._spec.session_id, parts=plan.total_parts
        )
        tables: dict[str, Tensor] = {}
        phase = "keys"
        if turn.state is not None:
            tables, said = decode_tensors(turn.state, max_bytes=_MAX_STATE_BYTES)
            phase = said.get("phase", "")
        request = raw_bytes(turn.tensors, SECURE) if SECURE in turn.tensors else b""
        closing = close_phase(setup, phase, request, tables, turn.updates)
        if isinstance(closing, Refused):
            return self._again(closing, phase, terms.number, turn.updates)
        server, closed = closing
        if phase in {"keys", "shares", "masked"} and len(closed.accepted) < plan.total_parts:
            # Said before anybody opens anything: a part opens one sum of its rows and no other.
            missing = Refused(f"the exact solution needs the sums of all {plan.total_parts} parts", closed.rejected)
            return self._again(missing, phase, terms.number, turn.updates)
        if server.phase is not None:
            kept = encode_tensors(server.state(), {"phase": server.phase, "failed": str(terms.number)})
            asked = {SECURE: opaque(server.request)}
            left = phases_left(server.phase)
            return Step(asked, kept, closed.accepted, closed.rejected, {}, {}, more=True, left=left)
        total, parts = server.result()
        point = line_point(terms, parts=plan.total_parts)
        rows = sum(plan.part_size(part) for part in parts)
        solution = solve_linear(line_statistics(total, self._scaling, point, rows=rows), self._scale)
        told = {"ridge": solution.ridge, "summed": float(len(parts))}
        return Step(linear_tensors(solution.model), b"", closed.accepted, closed.rejected, told, {})

    def _again(self, problem: Refused, phase: str, failed: int, answers: Bodies) -> Step | Refused:
        if phase == "keys" or failed >= MAX_FAILED_SUMS:
            return problem
        kept = encode_tensors({}, {"phase": "keys", "failed": str(failed + 1)})
        good = tuple(part for part in sorted(answers) if part not in problem.rejected)
        told, left = {"restarted": 1.0}, phases_left("keys")
        return Step(self.open(), kept, good, problem.rejected, told, {}, more=True, restarts=True, left=left)


def _failed(state: bytes | None) -> int:
    if not state:
        return 0
    _, said = decode_tensors(state, max_bytes=_MAX_STATE_BYTES)
    count = said.get("failed", "")
    if not (count.isascii() and count.isdigit()):
        raise BadDocument("not the state of a secure line")
    return int(count)
