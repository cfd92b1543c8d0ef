"""Keccak-256 with Ethereum's padding, in C; ``hashlib.sha3_256`` is the later standard, which pads differently."""

from __future__ import annotations

from Crypto.Hash import keccak

__all__ = ["keccak256"]


def keccak256(data: bytes) -> bytes:
    """Return the Keccak-256 digest of ``data``, 32 bytes."""
    return keccak.new(digest_bits=256, data=data).digest()
