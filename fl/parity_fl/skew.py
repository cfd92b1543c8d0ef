"""Unequal shares: the matrices of ``non_iid`` and ``label_skew``, and their repair.

Only the market computes these, once, and publishes the result as whole numbers. They come out equal on every machine
all the same: random words are those of ``parity_fl.prng``, and logarithms are Python's ``decimal``, which rounds
correctly by its specification where a C library may not.

- The stream ``dirichlet`` of a class is keyed by (seed, attempt, class), both as 4 bytes big-endian.
- A *uniform* number is ``(w0 * 2^32 + w1 + 1/2) / 2^64`` of the next two words; all arithmetic has 30 digits, half-even.
- A *normal* pair is Marsaglia's polar method; the second of a pair is used before a new pair is drawn.
- Gamma(a) is Marsaglia and Tsang (2000), for ``a < 1`` as ``Gamma(a + 1) * U^(1/a)`` with ``U`` drawn first. Only its
  logarithm is used, so a tiny ``alpha`` cannot make every share 0.
- A class's shares are ``floor(2^64 * gamma_k / max gamma)``, its rows are split in that proportion by largest remainder.
"""

from __future__ import annotations

import decimal
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Final

from parity_fl.partition_config import MAX_REDRAWS, PartitionConfig
from parity_fl.prng import Sha256Stream, derive_key
from parity_protocol.errors import BadField

__all__ = ["Skewed", "dirichlet_shares", "largest_remainder", "skewed_counts"]

_MAX_DRAWS: Final = 1 << 16  # gamma draws of all attempts together: some ten seconds
_CONTEXT: Final = decimal.Context(prec=30, rounding=decimal.ROUND_HALF_EVEN, traps=[decimal.InvalidOperation])
_BUFFER: Final = 256  # words taken at once, an even number
_HALF: Final = Decimal("0.5")
_UNIT: Final = Decimal(1) / Decimal(1 << 64)
_SHARE: Final = Decimal(1 << 64)

Counts = list[list[int]]  # [part][stratum]


@dataclass(frozen=True, slots=True)
class Skewed:
    """A matrix of counts, and what it took to get it.

    Attributes:
        counts: Rows by part and stratum; columns add up to the strata.
        redraws: How often all shares were drawn again because a part was below ``min_samples``.
        moved: Rows that were then taken from the largest part and given to the smallest.
    """

    counts: tuple[tuple[int, ...], ...]
    redraws: int
    moved: int


def skewed_counts(config: PartitionConfig, sizes: Sequence[int], *, seed: str) -> Skewed:
    """Share out the rows of each stratum unequally.

    Args:
        config: ``non_iid`` with its ``alpha``, or ``label_skew``.
        sizes: Rows of each stratum that are there to be shared.
        seed: 64 hex characters.

    Raises:
        BadField: There are fewer rows than ``total_parts * min_samples``, or too few parts for the classes.
    """
    parts, least = config.total_parts, config.min_samples
    if sum(sizes) < parts * least:
        raise BadField(
            f"invalid partition configuration: {sum(sizes)} rows to train on cannot give {parts} parts"
            f" {least} samples each",
            field="partition_config.min_samples",
        )
    redraws = 0
    if config.strategy == "label_skew":
        counts = _label_skew(config, sizes)
    else:
        attempts = max(1, min(MAX_REDRAWS + 1, _MAX_DRAWS // max(1, parts * len(sizes))))
        counts = _dirichlet(config, sizes, seed=seed, attempt=0)
        while min(map(sum, counts)) < least and redraws < attempts - 1:
            redraws += 1
            counts = _dirichlet(config, sizes, seed=seed, attempt=redraws)
    moved = _repair(counts, least)
    return Skewed(tuple(map(tuple, counts)), redraws, moved)


def dirichlet_shares(alpha: float, parts: int, stream: Sha256Stream) -> list[int]:
    """Draw the proportions of one class over the parts, as whole numbers of which the largest is 2^64.

    Args:
        alpha: Concentration, above 0.
        parts: How many.
        stream: Of this class alone.
    """
    with decimal.localcontext(_CONTEXT):
        gamma = _Gamma(Decimal(str(alpha)), stream)
        logs = [gamma.log() for _ in range(parts)]
        top = max(logs)
        return [int(_SHARE * (each - top).exp()) for each in logs]


def largest_remainder(total: int, weights: Sequence[int], caps: Sequence[int]) -> list[int]:
    """Split ``total`` in proportion to ``weights`` (Hamilton's method), never above ``caps``.

    Ties go to the lower index. What a cap cuts off goes to the others by the same order of remainders, round after
    round; the result sums to ``min(total, sum(caps))``.
    """
    whole = max(1, sum(weights))
    total = min(total, sum(caps))
    shares = [min(total * weight // whole, cap) for weight, cap in zip(weights, caps, strict=True)]
    order = sorted(range(len(weights)), key=lambda place: (-(total * weights[place] % whole), place))
    missing = total - sum(shares)
    while missing > 0:
        for place in order:
            if missing > 0 and shares[place] < caps[place]:
                shares[place] += 1
                missing -= 1
    return shares


class _Gamma:
    """Logarithms of independent Gamma(alpha, 1) numbers; needs the module's decimal context in force."""

    def __init__(self, alpha: Decimal, stream: Sha256Stream) -> None:
        self._stream = stream
        self._spare: Decimal | None = None
        self._words: list[int] = []
        self._boost = None if alpha >= 1 else 1 / alpha
        self._d = (alpha if alpha >= 1 else alpha + 1) - Decimal(1) / 3
        self._c = 1 / (9 * self._d).sqrt()

    def log(self) -> Decimal:
        power = Decimal(0) if self._boost is None else self._uniform().ln() * self._boost
        while True:
            normal = self._normal()
            root = 1 + self._c * normal
            if root <= 0:
                continue
            cube_log = 3 * root.ln()
            bound = normal * normal / 2 + self._d * (1 - root * root * root + cube_log)
            if self._uniform().ln() < bound:
                return self._d.ln() + cube_log + power

    def _uniform(self) -> Decimal:
        if not self._words:
            self._words = self._stream.peek(_BUFFER).tolist()[::-1]
            self._stream.skip(_BUFFER)
        high, low = self._words.pop(), self._words.pop()
        return (((high << 32) | low) + _HALF) * _UNIT

    def _normal(self) -> Decimal:
        if self._spare is not None:
            spare, self._spare = self._spare, None
            return spare
        while True:
            x, y = 2 * self._uniform() - 1, 2 * self._uniform() - 1
            square = x * x + y * y
            if 0 < square < 1:
                scale = (-2 * square.ln() / square).sqrt()
                self._spare = y * scale
                return x * scale


def _dirichlet(config: PartitionConfig, sizes: Sequence[int], *, seed: str, attempt: int) -> Counts:
    """Draw every class's shares (Hsu et al., 2019).

    With ``balanced`` a part that has its fill gets no share of what follows (Yurochkin et al., 2019).
    """
    assert config.alpha is not None  # ``partition_config`` requires it
    parts = config.total_parts
    fair = Fraction(sum(sizes), parts)
    counts: Counts = [[0] * len(sizes) for _ in range(parts)]
    for stratum, size in enumerate(sizes):
        key = derive_key("dirichlet", bytes.fromhex(seed), attempt.to_bytes(4, "big"), stratum.to_bytes(4, "big"))
        shares = dirichlet_shares(config.alpha, parts, Sha256Stream(key))
        if config.balanced:
            open_shares = [0 if sum(row) >= fair else share for row, share in zip(counts, shares, strict=True)]
            shares = open_shares if any(open_shares) else shares
        for row, count in zip(counts, largest_remainder(size, shares, [size] * parts), strict=True):
            row[stratum] = count
    return counts


def _label_skew(config: PartitionConfig, sizes: Sequence[int]) -> Counts:
    """Give every part a few classes: part ``i`` owns ``(first + j) mod C`` for ``j`` below ``classes_per_part``.

    ``first`` is ``i``; where that would leave the last classes without an owner, ``i * C // parts``. The rows of a class
    are split evenly among its owners, left-over ones to the owners that have the fewest rows so far.
    """
    parts, classes = config.total_parts, len(sizes)
    needed = -(-classes // parts)
    per_part = min(classes, max(2, needed) if config.classes_per_part is None else config.classes_per_part)
    if per_part < needed:
        raise BadField(
            f"classes_per_part must be at least {needed}, so that {parts} parts own all {classes} classes,"
            f" got {per_part}",
            field="partition_config.classes_per_part",
        )
    covers = parts + per_part - 1 >= classes
    owners: list[list[int]] = [[] for _ in sizes]
    for part in range(parts):
        first = part if covers else part * classes // parts
        for step in range(per_part):
            owners[(first + step) % classes].append(part)
    counts: Counts = [[0] * classes for _ in range(parts)]
    filled = [0] * parts
    for stratum, size in enumerate(sizes):
        among = owners[stratum]
        poorest = sorted(among, key=lambda part: (filled[part], part))
        for place, part in enumerate(poorest):
            counts[part][stratum] = size // len(among) + (place < size % len(among))
            filled[part] += counts[part][stratum]
    return counts


def _repair(counts: Counts, least: int) -> int:
    """Move rows from the largest part to the smallest until none is below ``least``; return how many moved.

    What is moved has the giver's mix of classes. Ties go to the lower part.
    """
    totals = [sum(row) for row in counts]
    moved = 0
    while min(totals) < least:
        poor = totals.index(min(totals))
        rich = totals.index(max(totals))
        second = max((total for part, total in enumerate(totals) if part != rich), default=0)
        some = min(least - totals[poor], totals[rich] - least, max(1, totals[rich] - second))
        for stratum, count in enumerate(largest_remainder(some, counts[rich], counts[rich])):
            counts[rich][stratum] -= count
            counts[poor][stratum] += count
        totals[rich] -= some
        totals[poor] += some
        moved += some
    return moved
