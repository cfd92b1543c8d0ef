"""Secure aggregation (Bonawitz et al., 2017): the market learns the sum of all parts' vectors and no single one.

Five exchanges; who does not answer one is out from there on:

1. ``keys``: each part sends two X25519 keys of this sum alone and a commitment to the seed of its self mask.
2. ``shares``: each part deals its mask key and its seed to all others by Shamir, each share sealed to its receiver.
3. ``masked``: each part sends its vector plus the self mask, plus a mask with every later part, minus one with every
   earlier part. In the sum the pairwise masks cancel.
4. ``confirm``: the parts tell each other whose vectors they were told are in, so that nobody can tell them different things.
5. ``unmask``: for each part whose vector is in, the others open its seed; for each that dealt shares and then went away, its
   mask key. Never both of one part.

**Against whom.** A market that follows the rules and up to t − 1 nodes that tell it all they know learn nothing but sums over
at least t parts. With t ≥ ⌊2n/3⌋ + 1 that holds also for a market that breaks the rules together with fewer than a third of
the nodes (2t > n + their number; §6.2 of the paper), as long as the keys it hands on are those of nodes: a market that
makes up most of the nodes sees the rest. All keys enter what a share is sealed with, so whoever was shown other keys
cannot open a single share, and stops.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from numpy.typing import NDArray

from parity_fl.privacy.config import MAX_SECURE_PARTS, fewest_shares
from parity_fl.privacy.fixed_point import Words
from parity_fl.privacy.noise import KeyStream, derived
from parity_protocol.errors import BadDocument, InvalidInput

__all__ = [
    "PHASES",
    "Phase",
    "SumSetup",
    "add_mask",
    "agreed",
    "commitment",
    "confirmation",
    "mask_seed",
    "public_key",
    "roster_digest",
    "sealing_key",
    "sign_of",
]

Phase: TypeAlias = Literal["keys", "shares", "masked", "confirm", "unmask"]

PHASES: Final[tuple[Phase, ...]] = ("keys", "shares", "masked", "confirm", "unmask")
_CHUNK: Final = 1 << 18  # words of a mask at a time: a megabyte stays near the core
_PART_BYTES: Final = 4


@dataclass(frozen=True, slots=True)
class SumSetup:
    """What every party to one sum knows before it begins.

    Attributes:
        context: 32 bytes that name session, round and what is added up; no two sums share them.
        parts: n: parts that may take part are 0 … n − 1.
        threshold: t.
        size: Whole numbers in a vector.
        bits: Of a whole number.
    """

    context: bytes
    parts: int
    threshold: int
    size: int
    bits: Literal[32, 64] = 32

    def __post_init__(self) -> None:
        if len(self.context) != 32 or not 3 <= self.parts <= MAX_SECURE_PARTS or self.size < 1:
            raise InvalidInput(f"a secure sum needs a context, 3 to {MAX_SECURE_PARTS} parts and a vector")
        if not fewest_shares(self.parts) <= self.threshold <= self.parts:
            raise InvalidInput(
                f"threshold must be from {fewest_shares(self.parts)} to {self.parts}, got {self.threshold}"
            )

    @property
    def dtype(self) -> np.dtype[np.uint32] | np.dtype[np.uint64]:
        """Of a vector."""
        return np.dtype("<u4") if self.bits == 32 else np.dtype("<u8")

    @property
    def row(self) -> int:
        """32-bit words that a vector takes on the wire."""
        return self.size * (self.bits // 32)


def public_key(secret: bytes) -> bytes:
    """Return the X25519 public key of 32 secret bytes."""
    return X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()


def agreed(secret: bytes, public: bytes) -> bytes:
    """Return the X25519 secret of two parties (RFC 7748).

    Raises:
        BadDocument: The public key is one of the few with which everybody gets the same.
    """
    try:
        return X25519PrivateKey.from_private_bytes(secret).exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as exc:
        raise BadDocument("a public key is of low order") from exc


def roster_digest(setup: SumSetup, parts: NDArray[np.uint32], keys: NDArray[np.uint32]) -> bytes:
    """Return what stands for everybody's keys, 32 bytes; it enters every key that is derived from here on."""
    head = setup.context + np.array([setup.parts, setup.threshold, setup.size, setup.bits], dtype="<u4").tobytes()
    return hashlib.sha256(b"parity-fl/roster/1\x00" + head + parts.tobytes() + keys.tobytes()).digest()


def sealing_key(shared: bytes, roster: bytes, sender: int, receiver: int) -> bytes:
    """Return the key of the one message from ``sender`` to ``receiver``."""
    return derived(shared, b"share" + _named(sender, receiver), roster)


def mask_seed(shared: bytes, roster: bytes) -> bytes:
    """Return the key of the mask that two parts share; both make the same."""
    return derived(shared, b"mask", roster)


def add_mask(vector: Words, key: bytes, sign: int) -> None:
    """Add to a vector, or take from it, the mask of a key, in place."""
    stream, wide = KeyStream(key), vector.dtype.itemsize // 4
    for begin in range(0, len(vector), _CHUNK):
        piece = vector[begin : begin + _CHUNK]
        mask = stream.words(len(piece) * wide).view(vector.dtype)
        if sign > 0:
            piece += mask
        else:
            piece -= mask


def sign_of(part: int, other: int) -> int:
    """Return whether ``part`` adds the mask that it has with ``other``, or subtracts it."""
    return 1 if part < other else -1


def commitment(setup: SumSetup, purpose: bytes, dealer: int, receiver: int, value: bytes) -> bytes:
    """Return 32 bytes that bind whoever sends them to ``value``, which is random and cannot be guessed."""
    head = b"parity-fl/commitment/1\x00" + purpose + b"\x00" + setup.context + _named(dealer, receiver)
    return hashlib.sha256(head + value).digest()


def confirmation(shared: bytes, roster: bytes, sender: int, receiver: int, survivors: NDArray[np.uint32]) -> bytes:
    """Return 32 bytes with which ``sender`` shows ``receiver`` whose vectors it was told are in."""
    key = derived(shared, b"confirm" + _named(sender, receiver), roster)
    return hmac.new(key, survivors.tobytes(), hashlib.sha256).digest()


def _named(one: int, other: int) -> bytes:
    return one.to_bytes(_PART_BYTES, "big") + other.to_bytes(_PART_BYTES, "big")
