"""Keys that are the same in every run, for tests and golden vectors. Anybody can make them: they protect nothing."""

from __future__ import annotations

from hashlib import sha256

from parity_protocol.signing.keys import Ed25519PrivateKey, EvmKey

__all__ = ["deterministic_ed25519", "deterministic_evm_key"]


def deterministic_ed25519(name: str) -> Ed25519PrivateKey:
    """Return the Ed25519 key that tests call ``name``."""
    return Ed25519PrivateKey(sha256(b"parity-node test key ed25519 " + name.encode()).digest())


def deterministic_evm_key(name: str) -> EvmKey:
    """Return the secp256k1 key that tests call ``name``."""
    return EvmKey(sha256(b"parity-node test key secp256k1 " + name.encode()).digest())
