"""The market's side of a round under secure aggregation: five phases, then the rule on the sum of all updates."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, cast

import numpy as np

from parity_fl.aggregate import Update, make_strategy
from parity_fl.aggregate.layout import Block
from parity_fl.averaging import Bodies, Refused
from parity_fl.models.base import Weights
from parity_fl.privacy.config import PrivacyConfig
from parity_fl.privacy.dp import ClippedSum, NoiseSetup, PrivateMean, Vector
from parity_fl.privacy.fixed_point import Words
from parity_fl.privacy.secagg import PHASES, SumSetup
from parity_fl.privacy.secagg_server import PhaseClosed, SecureServer
from parity_fl.privacy.secure_part import SumTerms
from parity_fl.strategy import StrategyConfig
from parity_fl.tensors import Tensor, decode_tensors, encode_tensors
from parity_protocol.errors import BadDocument, TooFewUpdates

__all__ = [
    "MAX_FAILED_SUMS",
    "SecureMean",
    "SecureStep",
    "close_phase",
    "full_weight",
    "phases_left",
    "rule_state",
    "state_of_rule",
]

MAX_FAILED_SUMS: Final = 5  # of one round, before the session gives up

_MAX_STATE_BYTES: Final = 4 << 30
_RULE: Final = "rule."
_MODEL: Final = "model."
_SUM: Final = "sum."
_SLACK: Final = 0.5  # of a step: what rounding adds to a coordinate


@dataclass(frozen=True, slots=True, eq=False)
class SecureStep:
    """A closed phase.

    Attributes:
        request: Of the next phase; empty when the round is over.
        weights: The next model, or the same one when the round restarts; None while the round is not over.
        state: For the next phase, or the next round.
        accepted: Parts that are still in; at the end those that helped to open the sum.
        rejected: Why others are not, by part.
        metrics: What may be told; empty while the round is not over.
        restarts: The sum could not be opened, and nothing of it was: the round begins another one with every part.
        left: Phases of the sum that are still to come.
    """

    request: bytes
    weights: Weights | None
    state: bytes
    accepted: tuple[int, ...]
    rejected: dict[int, str]
    metrics: dict[str, float]
    restarts: bool = False
    left: int = 0


@dataclass(slots=True)
class _Kept:
    """``SecureStep.state``, read."""

    phase: str = "keys"
    number: int = 0
    failed: int = 0  # sums of this round
    rule: dict[str, Vector] | None = None
    model: dict[str, Tensor] = field(default_factory=dict)
    sums: dict[str, Tensor] = field(default_factory=dict)

    def encode(self) -> bytes:
        tensors = {_RULE + name: value for name, value in (self.rule or {}).items()}
        tensors |= {_MODEL + name: value for name, value in self.model.items()}
        tensors |= {_SUM + name: value for name, value in self.sums.items()}
        return encode_tensors(tensors, {"phase": self.phase, "number": str(self.number), "failed": str(self.failed)})

    @classmethod
    def decode(cls, data: bytes | None) -> _Kept:
        if data is None:
            return cls()
        tensors, said = decode_tensors(data, max_bytes=_MAX_STATE_BYTES)
        parts = {
            prefix: {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}
            for prefix in (_RULE, _MODEL, _SUM)
        }
        counts = [said.get(name, "") for name in ("number", "failed")]
        if said.get("phase") not in PHASES or not all(one.isascii() and one.isdigit() for one in counts):
            raise BadDocument("not the state of a session with secure aggregation")
        number, failed = map(int, counts)
        if any(value.dtype != np.float64 for value in parts[_RULE].values()):
            raise BadDocument("a strategy's state is float64")
        return cls(said["phase"], number, failed, parts[_RULE] or None, parts[_MODEL], parts[_SUM])


class SecureMean:
    """Combines updates by a rule that is a mean, from nothing but their sum.

    Args:
        strategy: The rule.
        privacy: With secure aggregation.
        session_id: The session.
        parts: How many it has.
        rows: Rows of a part, the market's own number.
        heaviest: Rows that are more count as so many; parts count the same under a uniform rule.
        private: With differential privacy as well.
    """

    def __init__(
        self,
        strategy: StrategyConfig,
        privacy: PrivacyConfig,
        *,
        session_id: str,
        parts: int,
        rows: Callable[[int], float],
        heaviest: float,
        private: NoiseSetup | None = None,
    ) -> None:
        self._strategy, self._privacy, self._private = strategy, privacy, private
        self._session_id, self._parts, self._rows = session_id, parts, rows
        is_uniform = strategy.is_uniform or private is not None
        self._full = None if is_uniform else full_weight(heaviest)

    def terms(self, state: bytes | None) -> SumTerms:
        """Return what nodes are told with the model of the round that begins with ``state``."""
        kept = _Kept.decode(state)
        clip = None
        if self._privacy.adaptive and self._private is not None:
            rule = self._private.rule(self._strategy)
            if kept.rule is not None:
                rule.restore(kept.rule)
            clip = rule.accountant.clip
        return SumTerms(kept.number, clip, self._full)

    def reduce(
        self, base: Weights | None, request: bytes, state: bytes | None, answers: Bodies
    ) -> SecureStep | Refused:
        """Close a phase.

        Args:
            base: The round's model, in its first phase; later it is in the state.
            request: What the parts were sent, in a later phase.
            state: Of the phase or round before; None in the first.
            answers: By part.

        Raises:
            BadDocument: ``state`` is not one of ours.
        """
        kept = _Kept.decode(state)
        if kept.phase == "keys":
            if base is None:
                raise BadDocument("a round under secure aggregation begins with a model")
            kept.model = dict(base)
        terms = self.terms(state)
        model = cast("Weights", kept.model)
        setup = terms.setup(self._privacy, model, session_id=self._session_id, parts=self._parts)
        closing = close_phase(setup, kept.phase, request, kept.sums, answers)
        if isinstance(closing, Refused):
            if kept.phase == "keys" or kept.failed >= MAX_FAILED_SUMS:
                return closing
            again = _Kept("keys", kept.number + 1, kept.failed + 1, kept.rule)
            good = tuple(part for part in sorted(answers) if part not in closing.rejected)
            return SecureStep(
                b"", model, again.encode(), good, closing.rejected, {"restarted": 1.0}, restarts=True, left=len(PHASES)
            )
        server, closed = closing
        if server.phase is not None:
            kept.phase, kept.sums = server.phase, server.state()
            left = phases_left(server.phase)
            return SecureStep(server.request, None, kept.encode(), closed.accepted, closed.rejected, {}, left=left)
        total, parts = server.result()
        weights, rule, metrics = self._applied(model, terms, total, parts, kept.rule)
        after = _Kept("keys", kept.number + 1, rule=rule)
        told = {"summed": float(len(parts)), **metrics}
        return SecureStep(b"", weights, after.encode(), closed.accepted, closed.rejected, told)

    def _applied(
        self, base: Weights, terms: SumTerms, total: Words, parts: tuple[int, ...], before: Mapping[str, Vector] | None
    ) -> tuple[Weights, dict[str, Vector], dict[str, float]]:
        point = terms.point(self._privacy, parts=self._parts)
        names, place = sorted(base), {}
        at = 0
        for name in names:
            place[name] = at
            at += base[name].size

        def sums(block: Block) -> Vector:
            first = place[block.name]
            return point.decode(total[first + block.begin : first + block.end])

        if self._private is not None:
            private = self._private.rule(self._strategy)
            if before is not None:
                private.restore(before)
            return self._noisy(private, base, total, parts, sums)

        weight = sum(1.0 if terms.full_weight is None else min(self._rows(part), terms.full_weight) for part in parts)
        weight /= terms.full_weight or 1.0
        delta = {
            name: (sums(Block(name, 0, base[name].size)) / weight).astype(np.float32).reshape(base[name].shape)
            for name in names
        }
        rule = make_strategy(self._strategy)
        if before is not None:
            rule.restore(before)
        # A mean of one update is that update: what comes after the mean is the rule's own.
        done = rule.aggregate(base, lambda: iter([Update(0, 1.0, delta)]), 1)
        return done.weights, rule.state(), {"step_norm": done.metrics["step_norm"]}

    def _noisy(
        self,
        rule: PrivateMean,
        base: Weights,
        total: Words,
        parts: tuple[int, ...],
        sums: Callable[[Block], Vector],
    ) -> tuple[Weights, dict[str, Vector], dict[str, float]]:
        terms = SumTerms(clip=rule.accountant.clip)
        point = terms.point(self._privacy, parts=self._parts)
        below = None
        if self._privacy.adaptive:
            below = round(float(point.decode(total[-1:])[0]) / point.largest)
        slack = point.step * _SLACK * math.sqrt(len(total)) + rule.accountant.clip * (
            point.largest / rule.accountant.clip - 1
        )
        context = hashlib.sha256(total.tobytes()).digest() + repr(parts).encode()
        clipped = ClippedSum(sums, len(parts), None if below is None else float(below), slack)
        weights, metrics = rule.release(base, clipped, context=context)
        return weights, rule.state(), metrics


def close_phase(
    setup: SumSetup, phase: str, request: bytes, tables: Mapping[str, Tensor], answers: Bodies
) -> tuple[SecureServer, PhaseClosed] | Refused:
    """Close one phase of a sum whose server is made again from what was kept.

    Args:
        setup: The sum.
        phase: What was open.
        request: What the parts were sent.
        tables: ``SecureServer.state`` after the phase before.
        answers: By part.

    Raises:
        BadDocument: Phase and tables do not belong together.
    """
    server = SecureServer(setup)
    if phase != "keys":
        server.restore(tables, next(one for one in PHASES if one == phase), request)
    try:
        return server, server.close(answers)
    except TooFewUpdates as exc:
        return Refused(exc.message, dict(exc.rejected))


def phases_left(phase: str) -> int:
    """Return how many phases of a secure sum are to come, the open one included."""
    return len(PHASES) - next(place for place, one in enumerate(PHASES) if one == phase)


def rule_state(state: bytes) -> dict[str, Vector]:
    """Return the strategy's own part of a ``SecureStep.state``, for a checkpoint; ``BadDocument`` if it is none."""
    return _Kept.decode(state).rule or {}


def state_of_rule(rule: Mapping[str, Vector]) -> bytes:
    """Return the state with which a session goes on from a checkpoint; ``rule_state`` reads it back."""
    return _Kept(rule=dict(rule) or None).encode()


def full_weight(heaviest: float) -> float:
    """Return the power of two at or above: how many rows the largest part has is told no nearer than this."""
    return float(2 ** math.ceil(math.log2(max(1.0, heaviest))))
