"""Rounds under secure aggregation with every part in this process: the market's and the nodes' code, message by message."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from parity_fl.aggregate import Aggregated, Update
from parity_fl.averaging import Refused
from parity_fl.models.base import Weights
from parity_fl.privacy.config import PrivacyConfig
from parity_fl.privacy.secure_mean import SecureMean
from parity_fl.privacy.secure_part import update_part
from parity_protocol.errors import TooFewUpdates

__all__ = ["SimulatedSums"]


class SimulatedSums:
    """Combines the updates of a simulation's rounds, one after the other.

    Args:
        mean: The market's side.
        privacy: With secure aggregation.
        session_id: As ``mean`` has it.
        rows: Of each part.
        randomness: Gives so many secret random bytes.
    """

    def __init__(
        self,
        mean: SecureMean,
        privacy: PrivacyConfig,
        *,
        session_id: str,
        rows: Mapping[int, int],
        randomness: Callable[[int], bytes],
    ) -> None:
        self._mean, self._privacy, self._session_id = mean, privacy, session_id
        self._rows, self._random = rows, randomness
        self._state: bytes | None = None

    def aggregate(self, base: Weights, updates: Mapping[int, Update]) -> Aggregated:
        """Return the next model, as ``Strategy.aggregate``.

        Raises:
            TooFewUpdates: Fewer than the threshold could train.
        """
        terms = self._mean.terms(self._state)
        nodes = {
            part: update_part(
                self._privacy,
                terms,
                base,
                update.delta,
                session_id=self._session_id,
                parts=len(self._rows),
                part=part,
                rows=self._rows[part],
                randomness=self._random,
            )
            for part, update in updates.items()
        }
        answers = {part: node.keys().__bytes__ for part, node in nodes.items()}
        request = b""
        rejected: dict[int, str] = {}
        while True:
            step = self._mean.reduce(base, request, self._state, answers)
            if isinstance(step, Refused):
                raise TooFewUpdates(step.reason, rejected=step.rejected)
            if step.restarts:
                raise TooFewUpdates("the secure sum could not be opened", rejected=step.rejected)
            self._state, request = step.state, step.request
            rejected |= step.rejected
            if step.weights is not None:
                return Aggregated(step.weights, step.accepted, rejected, step.metrics)
            answers = {part: nodes[part].answer(request).__bytes__ for part in step.accepted}
