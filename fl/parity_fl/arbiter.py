"""Whose update is it, when two parts send the same: whoever has the data trains both parts again and compares.

In a partitioned session every node has all rows, and a part's training follows from session seed, round, part and model. So
a node can make another part's update and send it as its own; the rule that the first of two equal ones holds would pay
it and leave the honest one unpaid. Training again is no matter of opinion: it gives each of the parts its own update.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from parity_fl.aggregate.base import Update, Updates
from parity_fl.aggregate.layout import Layout, pieces
from parity_fl.models.base import Weights
from parity_fl.spec import TrainConfig
from parity_fl.table import required_training
from parity_fl.training import SessionModel
from parity_protocol.errors import ExecutionFailed

__all__ = ["MAX_RETRAININGS", "MAX_WORK", "Retraining"]

MAX_RETRAININGS: Final = 16  # parts of a round
MAX_WORK: Final = 100_000_000_000  # of a round, in rows times parameters; about a minute and a half of one core
_STEP_WORK: Final = 30_000  # what an optimizer's step costs beside its rows, in the same unit: NumPy's calls,
_UPDATE_WORK: Final = 20  # and for each parameter; with batches of one row that is nearly all of it

# Kernels differ in the last bits, half precision (of the update, and of a large model that nodes start from) in the
# eleventh, 8 bits with their carry in the seventh; the updates of two parts differ by more than half their length unless
# the parts are nearly equal, and then the nearer one counts.
_TOLERANCE: Final = 0.25  # of the update's length
_CLEARLY_NEARER: Final = 1.5


class Retraining:
    """Implements ``Arbiter`` for one round of a session whose data are here.

    Args:
        session: The session.
        number: Of the round, from 1.
        config: In place of the session's, for a strategy with its own client rate.
        proximal_mu: FedProx's coefficient.
        start: Returns the model that nodes started from, where that is not the market's own: a large one goes to them in
            16 bits.
        max_retrainings: Parts that are trained again at most.
        max_work: What training them may cost, in rows times parameters.
    """

    def __init__(
        self,
        session: SessionModel,
        *,
        number: int,
        config: TrainConfig | None = None,
        proximal_mu: float = 0.0,
        start: Callable[[], Weights] | None = None,
        max_retrainings: int = MAX_RETRAININGS,
        max_work: int = MAX_WORK,
    ) -> None:
        self._session, self._number, self._mu, self._start = session, number, proximal_mu, start
        self._config = required_training(config or session.spec.train)
        self._parts_left, self._work_left = max_retrainings, max_work
        self._known: dict[int, float] = {}  # by part: how far what it sent is from its own training, in lengths

    def __call__(self, base: Weights, updates: Updates, groups: Sequence[tuple[int, ...]]) -> dict[int, str]:
        """See ``Arbiter``."""
        refused: dict[int, str] = {}
        # Small groups first: many that copy one another must not use up what two others need.
        for group in sorted(groups, key=lambda group: (len(group), group)):
            new = [part for part in group if part not in self._known]
            work = sum(self._work(base, part) for part in new)
            if len(new) > self._parts_left or work > self._work_left:
                told = "it would take too much to train them again and see whose it is"
                refused |= dict.fromkeys(group, f"duplicate: parts {_listed(group)} sent the same update, and {told}")
                continue
            self._parts_left -= len(new)
            self._work_left -= work
            sent = next(update for update in updates() if update.part == group[0])
            start = base if self._start is None or not new else self._start()
            for part in new:
                self._known[part] = self._distance(start, part, sent)
            refused |= self._judged(group)
        return refused

    def _judged(self, group: tuple[int, ...]) -> dict[int, str]:
        least = min(self._known[part] for part in group)
        owners = [
            part for part in group if self._known[part] <= min(_TOLERANCE, _CLEARLY_NEARER * least)
        ]  # more than one if their rows are as good as the same
        if not owners:
            reason = f"duplicate: parts {_listed(group)} sent the same update, and it is that of none of them"
            return dict.fromkeys(group, reason)
        return {part: f"duplicate: it is part {owners[0]}'s update" for part in group if part not in owners}

    def _distance(self, start: Weights, part: int, sent: Update) -> float:
        """Return how far ``sent`` is from what training the part gives, over the length of that; inf if it diverges."""
        try:
            made = self._session.train(part, start, self._number, config=self._config, proximal_mu=self._mu).delta
        except (ExecutionFailed, MemoryError):
            return math.inf
        apart = length = 0.0
        for name in Layout.of(start).shapes:
            ours, theirs = made[name].reshape(-1), sent.delta[name].reshape(-1)
            for piece in pieces(len(ours)):
                wide = ours[piece].astype(np.float64)
                length += float(np.square(wide).sum())
                apart += float(np.square(theirs[piece] - wide).sum())
        return math.sqrt(apart / length) if length > 0 else math.inf

    def _work(self, base: Weights, part: int) -> int:
        """Return what training a part costs; from settings and sizes alone, so that every run decides the same."""
        rows = len(self._session.table.assignment.parts[part])
        parameters = sum(tensor.size for tensor in base.values())
        steps = -(-rows // max(1, min(self._config.batch_size, rows)))
        return self._config.epochs * (rows * parameters + steps * (_STEP_WORK + _UPDATE_WORK * parameters))


def _listed(parts: Sequence[int]) -> str:
    shown = [str(part) for part in parts[:4]] + (["…"] if len(parts) > 4 else [])
    return ", ".join(shown)
