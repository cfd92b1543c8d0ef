"""Secret random numbers in bulk: a ChaCha20 stream, and Gaussian noise made of it.

A key comes from the operating system's generator and never from a session's seed, which everybody knows. What follows from
the same key and context is the same, so that a market which is killed in a round makes the same model again, and no two
sums are ever published under one noise: the context says what it is added to.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

__all__ = ["KEY_BYTES", "GaussianNoise", "KeyStream", "derived"]

KEY_BYTES: Final = 32
_NONCE: Final = bytes(16)  # block counter and nonce: every key is used for one stream
_UNIT: Final = 2.0**-53
_GRID: Final = 2.0**-40  # of a standard deviation


class KeyStream:
    """The ChaCha20 stream of a key (RFC 8439), up to 256 GiB."""

    def __init__(self, key: bytes) -> None:
        # The library's nonce holds the 32-bit counter first; a key of its own for each stream needs no nonce.
        self._cipher = Cipher(algorithms.ChaCha20(key, _NONCE), mode=None).encryptor()
        self._zeros = b""

    def words(self, count: int) -> NDArray[np.uint32]:
        """Return the next ``count`` words, little-endian, shape ``(count,)``; read-only."""
        size = 4 * count
        if len(self._zeros) < size:
            self._zeros = bytes(size)
        return np.frombuffer(self._cipher.update(memoryview(self._zeros)[:size]), dtype="<u4")


class GaussianNoise:
    """Independent normal numbers, in order.

    Args:
        key: 32 secret bytes.
        context: What the noise is for; another context gives other noise.
    """

    def __init__(self, key: bytes, context: bytes) -> None:
        self._stream = KeyStream(derived(key, b"noise", context))

    def standard(self, count: int) -> NDArray[np.float64]:
        """Return ``count`` numbers of mean 0 and variance 1, shape ``(count,)`` (Box and Muller, 1958)."""
        pairs = -(-count // 2)
        raw = self._stream.words(4 * pairs).view("<u8") >> np.uint64(11)
        uniform = (raw.astype(np.float64) + 1) * _UNIT  # in (0, 1]: its logarithm is finite
        radius = np.sqrt(-2 * np.log(uniform[:pairs]))
        angle = 2 * np.pi * uniform[pairs:]
        return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]

    def added_to(self, values: NDArray[np.float64], deviation: float) -> NDArray[np.float64]:
        """Return values with noise of a standard deviation.

        Both are rounded to one grid first, so that their sum is exact: the last bits of a floating-point sum would
        tell the value under the noise (Mironov, 2012).
        """
        if deviation <= 0:
            return values
        grid = float(2.0 ** np.ceil(np.log2(deviation * _GRID)))
        noise = np.rint(self.standard(len(values)) * (deviation / grid))
        return np.asarray((np.rint(values / grid) + noise) * grid, dtype=np.float64)


def derived(key: bytes, purpose: bytes, context: bytes) -> bytes:
    """Return 32 bytes for one purpose (HKDF-SHA256, RFC 5869)."""
    return HKDF(SHA256(), KEY_BYTES, salt=context, info=b"parity-fl/privacy/1 " + purpose).derive(key)
