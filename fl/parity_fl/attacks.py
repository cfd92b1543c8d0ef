"""What malicious nodes do in a simulation, so that a strategy can be judged before it is needed.

Who is malicious and what noise they send follow from the session's seed, so every number can be recomputed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from parity_fl.fields import fail
from parity_fl.limits import MAX_PARTS
from parity_fl.models.base import Weights
from parity_fl.prng import Sha256Stream, derive_key

__all__ = ["ATTACKS", "Attack", "parse_attack"]

_NOISE_RATIO: Final = 10.0
_SCALE: Final = 1e6
_WRITTEN: Final = re.compile(r"([a-z0-9_]+)(?::([0-9]{1,4}))?")

ATTACKS: Final[dict[str, str]] = {
    "sign_flip": "sends the opposite of its update",
    "sign_flip_x5": "sends the opposite of its update, five times as long",
    "noise": f"sends Gaussian noise {_NOISE_RATIO:g} times as long as its update",
    "label_flip": "trains on turned-round labels",
    "nan": "sends NaN values",
    "inf": "sends infinite values",
    "copy": "sends another node's update as its own",
    "scale": f"sends its update times {_SCALE:g}",
}


@dataclass(frozen=True, slots=True)
class Attack:
    """``count`` nodes do what ``ATTACKS[name]`` says, in every round."""

    name: str
    count: int = 1

    def attackers(self, parts: int, seed: str) -> frozenset[int]:
        """Return the malicious parts: the first of all parts in an order that the seed decides.

        Args:
            parts: How many parts there are.
            seed: The plan's, 64 hex characters.
        """
        order = sorted(range(parts), key=lambda part: derive_key("attack", bytes.fromhex(seed), _four(part)))
        return frozenset(order[: self.count])

    def labels(self, truth: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return what a malicious part trains on: its own labels, or for ``label_flip`` their mirror image.

        Args:
            truth: Class indices or targets, shape ``(n,)``.
        """
        return truth.max() + truth.min() - truth if self.name == "label_flip" else truth

    def update(self, delta: Weights, *, seed: str, number: int, part: int) -> Weights:
        """Return what a malicious part sends instead of ``delta``.

        Args:
            delta: What its training made, less the round's model.
            seed: The plan's.
            number: Of the round.
            part: Its own number.
        """
        match self.name:
            case "sign_flip":
                return _each(delta, np.negative)
            case "sign_flip_x5":
                return _each(delta, lambda tensor: tensor * np.float32(-5))
            case "scale":
                return _each(delta, lambda tensor: tensor * np.float32(_SCALE))
            case "nan":
                return _each(delta, lambda tensor: np.full_like(tensor, np.nan))
            case "inf":
                return _each(delta, lambda tensor: np.full_like(tensor, np.inf))
            case "noise":
                return _noise(delta, derive_key("noise", bytes.fromhex(seed), _four(number), _four(part)))
            case _:
                return delta


def parse_attack(text: str) -> Attack:
    """Read ``NAME:COUNT``, such as ``sign_flip:2``; the count is 1 when it is left out.

    Raises:
        BadField: There is no such attack.
    """
    found = _WRITTEN.fullmatch(text)
    if found is None or found[1] not in ATTACKS:
        fail("attack", f"attack must be one of {', '.join(ATTACKS)}, with :COUNT behind it, got {ascii(text)[:64]}")
    count = int(found[2] or 1)
    if not 1 <= count <= MAX_PARTS:
        fail("attack", f"an attack needs 1 to {MAX_PARTS} malicious nodes, got {count}")
    return Attack(found[1], count)


def _each(delta: Weights, change: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> Weights:
    with np.errstate(over="ignore"):
        return {name: change(tensor) for name, tensor in delta.items()}


def _noise(delta: Weights, key: bytes) -> Weights:
    """Return noise of ``_NOISE_RATIO`` times the update's length, normal by Box and Muller."""
    size = sum(tensor.size for tensor in delta.values())
    words = Sha256Stream(key).peek(2 * size).astype(np.float64)
    uniform = (words + 0.5) / 2**32
    normal = np.sqrt(-2 * np.log(uniform[:size])) * np.cos(2 * np.pi * uniform[size:])
    length = np.sqrt(sum(float(np.sum(tensor.astype(np.float64) ** 2)) for tensor in delta.values()))
    normal *= _NOISE_RATIO * length / max(float(np.linalg.norm(normal)), 1e-300)
    noise: Weights = {}
    start = 0
    for name, tensor in delta.items():
        noise[name] = normal[start : start + tensor.size].reshape(tensor.shape).astype(np.float32)
        start += tensor.size
    return noise


def _four(number: int) -> bytes:
    return number.to_bytes(4, "big")
