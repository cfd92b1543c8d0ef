"""A random stream that any language can reproduce: SHA-256 in counter mode, integers only.

Partitions and bootstrap draws must come out equal on every node, whatever its NumPy version, so they use this stream
and not a library generator:

- ``key = SHA-256("parity-fl/v1" 00 purpose 00 material)``;
- block ``i`` = SHA-256(key, i as 8 bytes big-endian), read as eight 32-bit words, big-endian;
- a number below ``b`` is Lemire's multiply-and-reject (Lemire, 2019, algorithm 5, 32-bit words): take a word ``x``; let
  ``m = x * b``; if ``m mod 2^32 < 2^32 mod b`` drop the word and take the next, else the number is ``m >> 32``;
- a shuffle is Fisher–Yates from the end: for ``i = n-1 … 1`` swap ``a[i]`` with ``a[j]``, ``j`` below ``i + 1``.
"""

from __future__ import annotations

import hashlib
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["Sha256Stream", "below", "derive_key", "shuffled"]

_CHUNK: Final = 4096  # bounds per vector step; small, because a rejected word repeats the rest of its chunk
_WORDS_PER_BLOCK: Final = 8
_LOW: Final = np.uint64(0xFFFF_FFFF)
_SHIFT: Final = np.uint64(32)
_TWO32: Final = np.uint64(1 << 32)


def derive_key(purpose: str, *material: bytes) -> bytes:
    """Return the 32-byte key of one independent stream.

    Args:
        purpose: What the stream is for; two purposes never share words.
        material: Fixed-width pieces (seed, part, tree); the caller fixes their widths per purpose.
    """
    return hashlib.sha256(b"parity-fl/v1\x00" + purpose.encode("ascii") + b"\x00" + b"".join(material)).digest()


class Sha256Stream:
    """An endless sequence of 32-bit words made from a key."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._next_block = 0
        self._words: NDArray[np.uint64] = np.empty(0, dtype=np.uint64)

    def peek(self, count: int) -> NDArray[np.uint64]:
        """Return the next ``count`` words, as uint64 of shape ``(count,)``, without consuming them."""
        missing = count - len(self._words)
        if missing > 0:
            blocks = -(-missing // _WORDS_PER_BLOCK)
            sha256, key = hashlib.sha256, self._key
            raw = b"".join(
                sha256(key + number.to_bytes(8, "big")).digest()
                for number in range(self._next_block, self._next_block + blocks)
            )
            self._next_block += blocks
            fresh = np.frombuffer(raw, dtype=">u4").astype(np.uint64)
            self._words = np.concatenate([self._words, fresh])
        return self._words[:count]

    def skip(self, count: int) -> None:
        """Consume ``count`` words that ``peek`` has shown."""
        self._words = self._words[count:]


def below(stream: Sha256Stream, bounds: NDArray[np.int64]) -> NDArray[np.int64]:
    """Draw one unbiased number below each bound, in order.

    Args:
        stream: Where the words come from; advanced by the words used.
        bounds: Exclusive upper bounds, shape ``(n,)``, each in ``1 … 2**32``.

    Returns:
        Numbers, shape ``(n,)``, int64.
    """
    out = np.empty(len(bounds), dtype=np.int64)
    done = 0
    while done < len(bounds):
        bound = bounds[done : done + _CHUNK].astype(np.uint64)
        product = stream.peek(len(bound)) * bound
        rejected = (product & _LOW) < (_TWO32 - bound) % bound
        good = int(np.argmax(rejected)) if rejected.any() else len(bound)
        out[done : done + good] = (product[:good] >> _SHIFT).astype(np.int64)
        stream.skip(good + 1 if good < len(bound) else good)
        done += good
    return out


def shuffled(values: NDArray[np.uint32], stream: Sha256Stream) -> NDArray[np.uint32]:
    """Return the values in the stream's random order; the argument is left as it is.

    Args:
        values: Shape ``(n,)``.
        stream: Advanced by at least ``n - 1`` words.
    """
    order: list[int] = values.tolist()
    draws = below(stream, np.arange(len(order), 1, -1, dtype=np.int64)).tolist()
    for last, pick in zip(range(len(order) - 1, 0, -1), draws, strict=True):
        order[last], order[pick] = order[pick], order[last]
    return np.array(order, dtype=np.uint32)
