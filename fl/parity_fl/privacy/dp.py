"""Central differential privacy on updates: clip, average, add noise, count what it cost.

McMahan et al., 2018, with a fixed denominator; adaptive clipping of Andrew et al., 2021. What is protected is the presence
of one part with all its rows, in the models that are published, against everybody but the market, which sees updates as
they come (secure aggregation hides these too). A rule's optimizer comes after the noise and costs nothing.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from parity_fl.aggregate.base import Aggregated, Updates, UpdatesOf
from parity_fl.aggregate.layout import Block, Layout, pieces, take_block
from parity_fl.aggregate.optimizers import ServerOptimizer
from parity_fl.models.base import Weights
from parity_fl.privacy.accountant import ORDERS, epsilon_of, rdp_of_gaussian
from parity_fl.privacy.config import PrivacyConfig
from parity_fl.privacy.noise import GaussianNoise
from parity_fl.strategy import STRATEGIES, StrategyConfig
from parity_protocol.errors import BadDocument, Internal, TooFewUpdates, Unprocessable

__all__ = ["Accountant", "ClippedSum", "NoiseSetup", "PrivateMean"]

Vector = NDArray[np.float64]

_PREFIX: Final = "privacy."
_OPTIMIZER: Final = "optimizer."
_LEAST_CLIP: Final = 1e-12
_MOST_CLIP: Final = 1e12


@dataclass(frozen=True, slots=True)
class NoiseSetup:
    """With what a session's server makes its rule in every round.

    Attributes:
        config: With differential privacy.
        n: Expected updates of a round: the fixed denominator.
        sampling_rate: q, with which each part is asked; 1 when all are.
        key: Of the noise: 32 bytes from the operating system, of this session alone and known to nobody else.
    """

    config: PrivacyConfig
    n: float
    key: bytes = field(repr=False)
    sampling_rate: float = 1.0

    def rule(self, strategy: StrategyConfig) -> PrivateMean:
        """Return the rule, at the beginning of a session."""
        return PrivateMean(strategy, self.config, n=self.n, key=self.key, sampling_rate=self.sampling_rate)


@dataclass(slots=True)
class Accountant:
    """What a session has spent so far, and the clip norm of its next round.

    Attributes:
        clip: C, above 0.
        rounds: Releases so far.
        rdp: Their divergences at ``ORDERS``, added up.
    """

    clip: float
    rounds: int = 0
    rdp: list[float] = field(default_factory=lambda: [0.0] * len(ORDERS))

    @classmethod
    def begin(cls, config: PrivacyConfig) -> Accountant:
        """Return a session's, before its first round."""
        return cls(config.first_clip)

    def spend(self, noise_multiplier: float, sampling_rate: float) -> None:
        """Count one release."""
        cost = rdp_of_gaussian(noise_multiplier, sampling_rate)
        self.rdp = [so_far + one for so_far, one in zip(self.rdp, cost, strict=True)]
        self.rounds += 1

    def epsilon(self, delta: float) -> float:
        """Return ε of all releases together."""
        return epsilon_of(self.rdp, delta) if self.rounds else 0.0

    def state(self) -> dict[str, Vector]:
        """Return it as arrays, for a strategy's state."""
        return {
            f"{_PREFIX}clip": np.array([self.clip]),
            f"{_PREFIX}rounds": np.array([float(self.rounds)]),
            f"{_PREFIX}rdp": np.array(self.rdp),
        }

    @classmethod
    def of_state(cls, state: Mapping[str, Vector]) -> Accountant:
        """Read what ``state`` wrote.

        Raises:
            BadDocument: It is something else.
        """
        found = {name: state.get(_PREFIX + name) for name in ("clip", "rounds", "rdp")}
        clip, rounds, rdp = found["clip"], found["rounds"], found["rdp"]
        if clip is None or rounds is None or rdp is None:
            raise BadDocument(f"the state of a private session has {_PREFIX}clip, {_PREFIX}rounds and {_PREFIX}rdp")
        if clip.shape != (1,) or rounds.shape != (1,) or rdp.shape != (len(ORDERS),):
            raise BadDocument("the privacy accountant's state has another shape")
        if not (0 < clip[0] < math.inf and 0 <= rounds[0] < 1 << 53 and (rdp >= 0).all()):
            raise BadDocument("the privacy accountant's state is out of range")
        return cls(float(clip[0]), int(rounds[0]), rdp.tolist())


@dataclass(frozen=True, slots=True, eq=False)
class ClippedSum:
    """The sum of clipped updates, as it is before noise.

    Attributes:
        sums: Of one block of coordinates, float64, shape ``(block.size,)``; called once for each.
        count: How many updates are in it.
        below: How many of them were not longer than the clip norm; None where nobody asked.
        slack: By how much rounding may have lengthened an update beyond the clip norm.
    """

    sums: Callable[[Block], Vector]
    count: int
    below: float | None
    slack: float = 0.0


class PrivateMean:
    """Implements ``Strategy``: the rules that are means, with clipping and noise in front of the server's optimizer.

    Checks that compare updates with each other are left out on purpose: with them one part's presence would decide about
    another's, and noise for one clip norm would not cover that. Clipping already bounds what any single update can do.

    Args:
        config: The rule; one that is a mean.
        privacy: With differential privacy.
        n: Expected updates of a round: the fixed denominator.
        sampling_rate: q, with which each part is asked; 1 when all are.
        key: Of the noise: 32 bytes from the operating system, of this session alone and known to nobody else.
    """

    def __init__(
        self, config: StrategyConfig, privacy: PrivacyConfig, *, n: float, key: bytes, sampling_rate: float = 1.0
    ) -> None:
        self.name = STRATEGIES[config.strategy]
        self._privacy, self._n, self._q, self._key = privacy, float(n), sampling_rate, key
        self._delta_noise = privacy.sum_noise(n)
        self._optimizer = ServerOptimizer(config)
        self.accountant = Accountant.begin(privacy)

    def aggregate(self, base: Weights, updates: Updates, n: int) -> Aggregated:
        """See ``Strategy``. A round without any update is noise alone, and counts."""
        layout = Layout.of(base)
        norms, rejected = _norms(layout, updates, n)
        if n and not norms:
            reasons = "; ".join(f"part {part}: {why}" for part, why in list(rejected.items())[:3])
            raise TooFewUpdates(f"no usable update among {n} ({reasons})", rejected=rejected)
        clip = self.accountant.clip
        scales = {part: min(1.0, clip / norm) if norm else 1.0 for part, norm in norms.items()}
        below = float(sum(norm <= clip for norm in norms.values()))

        def sums(block: Block) -> Vector:
            total = np.zeros(block.size)
            for update in updates():
                scale = scales.get(update.part)
                if scale is None:
                    continue
                values = take_block(update, block)
                for at in pieces(block.size):
                    total[at] += values[at] * np.float64(scale)
            return total

        context = repr(sorted(norms.items())).encode()
        weights, metrics = self.release(base, ClippedSum(sums, len(norms), below), context=context)
        return Aggregated(
            weights=weights,
            accepted=tuple(sorted(norms)),
            rejected=dict(sorted(rejected.items())),
            metrics={"updates": float(n), "accepted": float(len(norms)), "rejected": float(len(rejected)), **metrics},
        )

    def release(self, base: Weights, clipped: ClippedSum, *, context: bytes) -> tuple[Weights, dict[str, float]]:
        """Return the next model and what may be told of it, from a sum of clipped updates.

        Args:
            base: The round's model.
            clipped: Over at most one update of each part.
            context: Differs when anything that the sum is made of does.

        Raises:
            Unprocessable: The next model would not be finite.
        """
        layout, spent, config = Layout.of(base), self.accountant, self._privacy
        sensitivity = spent.clip + clipped.slack
        deviation = self._delta_noise * sensitivity
        noise = GaussianNoise(self._key, _context(spent, base, layout, context))
        share = None
        if config.adaptive:
            if clipped.below is None:
                raise Internal("adaptive clipping needs to know how many updates were short")
            # Andrew et al., 2021, algorithm 1: the bits are centred, so that the count's sensitivity is a half.
            count = np.array([clipped.below - clipped.count / 2])
            share = float(noise.added_to(count, config.count_noise(self._n))[0]) / self._n + 0.5

        out = {name: np.empty(shape, dtype=np.float32) for name, shape in layout.shapes.items()}
        self._optimizer.begin(layout)
        for block in layout.blocks():
            total = clipped.sums(block)
            for at in pieces(block.size):
                mean = noise.added_to(total[at], deviation) / self._n
                step = self._optimizer.step(block, at, mean)
                place = slice(block.begin + at.start, block.begin + at.stop)
                with np.errstate(over="ignore"):  # said below, with a reason
                    out[block.name].reshape(-1)[place] = base[block.name].reshape(-1)[place] + step
        if not all(np.isfinite(tensor).all() for tensor in out.values()):
            raise Unprocessable("the next model would have NaN or Inf values: the noise is too large for it")
        self._optimizer.commit()
        spent.spend(config.noise, self._q)
        metrics = {"clip_norm": spent.clip, "noise_stddev": deviation / self._n, "delta": config.at_delta}
        epsilon = spent.epsilon(config.at_delta)
        if math.isfinite(epsilon):
            metrics["epsilon"] = epsilon
        if share is not None:
            factor = math.exp(max(-50.0, min(50.0, -config.clip_rate * (share - config.quantile))))
            spent.clip = min(_MOST_CLIP, max(_LEAST_CLIP, spent.clip * factor))
        return out, metrics

    def without_each(self, base: Weights, updates: UpdatesOf, parts: Sequence[int]) -> Iterator[tuple[int, Weights]]:
        """Yield nothing: what a single part gave is what differential privacy hides."""
        del base, updates, parts
        return iter(())

    def state(self) -> dict[str, Vector]:
        """See ``Strategy``. The noise's key is no part of it: whoever had both could take the noise away again."""
        moments = {f"{_OPTIMIZER}{key}": array for key, array in self._optimizer.state().items()}
        return self.accountant.state() | moments

    def restore(self, state: Mapping[str, Vector]) -> None:
        """See ``Strategy``."""
        if not all(key.startswith((_PREFIX, _OPTIMIZER)) for key in state):
            raise BadDocument(f"a private strategy's state has {_PREFIX}* and {_OPTIMIZER}* only")
        accountant = Accountant.of_state(state)
        moments = {key.removeprefix(_OPTIMIZER): array for key, array in state.items() if key.startswith(_OPTIMIZER)}
        self._optimizer.restore(moments)
        self.accountant = accountant


def _norms(layout: Layout, updates: Updates, n: int) -> tuple[dict[int, float], dict[int, str]]:
    """Return the length of each update that is one, and why others are not; each judged by itself alone."""
    norms: dict[int, float] = {}
    rejected: dict[int, str] = {}
    for update in updates():
        if update.part in norms or update.part in rejected:
            raise Internal(f"part {update.part} comes twice")
        if problem := layout.mismatch(update.delta):
            rejected[update.part] = f"wrong_shape: {problem}"
            continue
        square = 0.0
        for block in layout.blocks():
            values = take_block(update, block)
            for at in pieces(block.size):
                square += float(np.square(values[at].astype(np.float64)).sum())
        if math.isfinite(square):
            norms[update.part] = math.sqrt(square)
        else:
            rejected[update.part] = "not_finite: the update has NaN or Inf values"
    if len(norms) + len(rejected) != n:
        raise Internal(f"the spool gave {len(norms) + len(rejected)} updates, {n} were announced")
    return norms, rejected


def _context(spent: Accountant, base: Weights, layout: Layout, context: bytes) -> bytes:
    digest = hashlib.sha256(f"round {spent.rounds} clip {spent.clip!r} ".encode())
    for name in layout.shapes:
        digest.update(np.ascontiguousarray(base[name], dtype="<f4").data)
    digest.update(context)
    return digest.digest()
