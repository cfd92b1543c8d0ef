"""What a session's noise is worth: Rényi differential privacy of the (sampled) Gaussian mechanism, and its ε at a δ.

Mironov, 2017, for the plain mechanism and composition; Mironov, Talwar and Zhang, 2019, for Poisson sampling;
proposition 12 of Canonne, Kamath and Steinke, 2020, for the conversion. Neighbours differ by one part's presence. Plain
Python floats: values agree with Google's ``dp-accounting`` to 1e-6 (``tests/vectors/fl/rdp.json``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from parity_protocol.errors import InvalidInput

__all__ = ["ORDERS", "epsilon_of", "rdp_of_gaussian"]

ORDERS: Final[tuple[float, ...]] = (
    *(1 + tenth / 10 for tenth in range(1, 100)),
    *(float(order) for order in range(11, 64)),
    *(128.0, 256.0, 512.0, 1024.0),
)
_TAILS: Final = 12.0  # standard deviations that an integral goes beyond where its mass is
_LEAST_ORDER: Final = 1.01


@lru_cache(maxsize=64)
def rdp_of_gaussian(noise_multiplier: float, sampling_rate: float = 1.0) -> tuple[float, ...]:
    """Return the Rényi divergence of one release at each of ``ORDERS``.

    Args:
        noise_multiplier: z, above 0: standard deviation of the noise over the sensitivity.
        sampling_rate: q, in (0, 1]: each part takes part with this chance, independently and in secret.

    Returns:
        Nats; ``inf`` where it has no bound in floats.

    Raises:
        InvalidInput: An argument is out of range.
    """
    if not (math.isfinite(noise_multiplier) and noise_multiplier > 0):
        raise InvalidInput(f"noise_multiplier must be above 0, got {noise_multiplier}", field="noise_multiplier")
    if not 0 < sampling_rate <= 1:
        raise InvalidInput(f"sampling_rate must be above 0 and at most 1, got {sampling_rate}", field="sampling_rate")
    if sampling_rate == 1:
        return tuple(order / (2 * noise_multiplier**2) for order in ORDERS)
    return tuple(_log_moment(order, noise_multiplier, sampling_rate) / (order - 1) for order in ORDERS)


def epsilon_of(rdp: Sequence[float], delta: float) -> float:
    """Return the least ε that ``rdp`` proves at a δ.

    Args:
        rdp: Divergences at ``ORDERS``; those of several releases are added up first.
        delta: In (0, 1).

    Raises:
        InvalidInput: An argument is out of range.
    """
    if len(rdp) != len(ORDERS) or any(math.isnan(one) or one < 0 for one in rdp):
        raise InvalidInput(f"rdp must be {len(ORDERS)} numbers of at least 0", field="rdp")
    if not 0 < delta < 1:
        raise InvalidInput(f"delta must be above 0 and below 1, got {delta}", field="delta")
    found = math.inf
    for order, one in zip(ORDERS, rdp, strict=True):
        if delta**2 + math.expm1(-one) > 0:  # δ bounds the total variation already: Bretagnolle and Huber, 1979
            return 0.0
        if order > _LEAST_ORDER:
            found = min(found, one + math.log1p(-1 / order) - math.log(delta * order) / (order - 1))
    return max(0.0, found)


def _log_moment(order: float, z: float, q: float) -> float:
    """Return ``log A_α`` of the sampled Gaussian mechanism."""
    return _log_moment_whole(int(order), z, q) if order == int(order) else _log_moment_fraction(order, z, q)


def _log_moment_whole(order: int, z: float, q: float) -> float:
    """Mironov, Talwar and Zhang, 2019, §3.3: a binomial sum."""
    terms = [
        _log_binomial(order, i) + i * math.log(q) + (order - i) * math.log1p(-q) + (i * i - i) / (2 * z * z)
        for i in range(order + 1)
    ]
    return _log_sum(terms)


def _log_moment_fraction(order: float, z: float, q: float) -> float:
    """The same for a fractional order, as an integral over the noise.

    The series of the paper alternates and hardly converges at low orders. The trapezoidal rule does so exponentially:
    the integrand is a Gaussian times a power that is analytic in a strip of half width πz².
    """
    step = min(z / 4, z * z / 2)
    low, high = -_TAILS * z, order + _TAILS * z
    count = int((high - low) / step) + 1
    log_q, log_rest = math.log(q), math.log1p(-q)
    terms = []
    for i in range(count + 1):
        x = low + i * step
        ratio = log_q + (2 * x - 1) / (2 * z * z)
        larger, smaller = max(ratio, log_rest), min(ratio, log_rest)
        terms.append(order * (larger + math.log1p(math.exp(smaller - larger))) - x * x / (2 * z * z))
    return _log_sum(terms, scale=math.log(step) - math.log(z * math.sqrt(2 * math.pi)))


def _log_sum(terms: Sequence[float], *, scale: float = 0.0) -> float:
    """Return the logarithm of the sum; at least 0, as every such moment's is."""
    largest = max(terms)
    return max(0.0, largest + math.log(math.fsum(math.exp(term - largest) for term in terms)) + scale)


def _log_binomial(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
