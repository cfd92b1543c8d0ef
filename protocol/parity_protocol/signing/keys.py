"""Key pairs: Ed25519 for machines and tokens, secp256k1 for what a chain must be able to check.

A secret never shows in ``repr``, is never pickled or copied, and leaves only through a method whose name says so.
"""

from __future__ import annotations

import re
import secrets
from base64 import urlsafe_b64encode
from hashlib import sha256
from typing import NoReturn

import coincurve
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ed25519

from parity_protocol.errors import BadField, BadSignature
from parity_protocol.ids import Address, NodeId
from parity_protocol.signing.keccak import keccak256

__all__ = [
    "Ed25519PrivateKey",
    "Ed25519PublicKey",
    "EvmKey",
    "checksum_address",
    "node_id_of",
    "recover_address",
]

_FIELD_PRIME = 2**255 - 19
_SIGN_BIT = 1 << 255
# y of the points whose order divides 8. A signature under such a key can be made by anybody (RFC 8032 §5.1.7 does not
# ask a verifier to refuse them).
_SMALL_ORDER_Y = frozenset(
    {
        0,
        1,
        _FIELD_PRIME - 1,
        0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826,
        0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7,
    }
)

_CURVE_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141  # of secp256k1
_HALF_ORDER = _CURVE_ORDER // 2  # a larger s is the second form of the same signature (EIP-2)
_SECRET_HEX = re.compile(r"(?:0x)?([0-9a-fA-F]{64})")
_ZERO_ADDRESS = "0x" + "0" * 40


class _Secret:
    """Refuses to be printed, pickled or copied."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(***)"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError(f"{type(self).__name__} holds a secret and cannot be pickled or copied")


# -- Ed25519 -----------------------------------------------------------------------------------------------------


class Ed25519PublicKey:
    """A public key of a device, a session or a market."""

    __slots__ = ("_key", "raw")

    def __init__(self, raw: bytes) -> None:
        """Take the 32 bytes of RFC 8032.

        Raises:
            BadField: Not 32 bytes, not in canonical form, or a point of small order, under which anybody can sign.
        """
        if len(raw) != 32:
            raise BadField(f"an Ed25519 public key has 32 bytes, got {len(raw)}", field="public_key")
        y = int.from_bytes(raw, "little") & ~_SIGN_BIT
        if y >= _FIELD_PRIME or y in _SMALL_ORDER_Y:
            raise BadField("the Ed25519 public key is weak or not in its canonical form", field="public_key")
        self.raw = bytes(raw)
        self._key = ed25519.Ed25519PublicKey.from_public_bytes(self.raw)

    def verify(self, signature: bytes, data: bytes) -> None:
        """Return if ``signature`` (64 bytes) over ``data`` is by this key.

        Raises:
            BadSignature: It is not.
        """
        try:
            self._key.verify(signature, data)
        except InvalidSignature as exc:
            raise BadSignature from exc

    def jwk(self) -> dict[str, str]:
        """Return the key as a JWK of type OKP (RFC 8037), with its thumbprint as ``kid``."""
        return {"kty": "OKP", "crv": "Ed25519", "x": _b64url(self.raw), "kid": self.thumbprint()}

    def thumbprint(self) -> str:
        """Return the JWK thumbprint (RFC 7638): base64url of a SHA-256, 43 characters."""
        return _b64url(self.thumbprint_bytes())

    def thumbprint_bytes(self) -> bytes:
        """Return the JWK thumbprint, 32 bytes, as EIP-712 orders name a market."""
        members = f'{{"crv":"Ed25519","kty":"OKP","x":"{_b64url(self.raw)}"}}'  # RFC 7638 §3: sorted, no spaces
        return sha256(members.encode()).digest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ed25519PublicKey) and self.raw == other.raw

    def __hash__(self) -> int:
        return hash(self.raw)

    def __repr__(self) -> str:
        return f"Ed25519PublicKey({self.raw.hex()})"


class Ed25519PrivateKey(_Secret):
    """A key pair of a device, a session or a market."""

    __slots__ = ("_key", "public_key")

    def __init__(self, seed: bytes) -> None:
        """Take the 32-byte seed of RFC 8032.

        Raises:
            BadField: Not 32 bytes.
        """
        if len(seed) != 32:
            raise BadField(f"an Ed25519 seed has 32 bytes, got {len(seed)}", field="private_key")
        self._key = ed25519.Ed25519PrivateKey.from_private_bytes(seed)
        self.public_key = Ed25519PublicKey(self._key.public_key().public_bytes_raw())

    @classmethod
    def generate(cls) -> Ed25519PrivateKey:
        """Make a new key from the system's randomness."""
        return cls(secrets.token_bytes(32))

    def sign(self, data: bytes) -> bytes:
        """Return the signature over ``data``, 64 bytes."""
        return self._key.sign(data)

    def reveal_seed(self) -> bytes:
        """Return the secret seed, 32 bytes, for storing it; never log it."""
        return self._key.private_bytes_raw()


def node_id_of(public_key: Ed25519PublicKey) -> NodeId:
    """Return the id of the node whose first device key this is: hex SHA-256 of its 32 bytes."""
    return NodeId(sha256(public_key.raw).hexdigest())


# -- secp256k1 ---------------------------------------------------------------------------------------------------


class EvmKey(_Secret):
    """A secp256k1 key pair with its EVM address."""

    __slots__ = ("_key", "address")

    def __init__(self, secret: bytes) -> None:
        """Take the 32-byte secret.

        Raises:
            BadField: Not 32 bytes, zero, or not below the curve's order.
        """
        if len(secret) != 32 or not 0 < int.from_bytes(secret, "big") < _CURVE_ORDER:
            raise BadField("a secp256k1 private key is 32 bytes, above 0 and below the curve's order", field="key")
        self._key = coincurve.PrivateKey(secret)
        self.address = _address_of(self._key.public_key)

    @classmethod
    def generate(cls) -> EvmKey:
        """Make a new key from the system's randomness."""
        while True:
            secret = secrets.token_bytes(32)
            if 0 < int.from_bytes(secret, "big") < _CURVE_ORDER:  # fails once in 2**128 tries
                return cls(secret)

    @classmethod
    def from_hex(cls, text: str) -> EvmKey:
        """Read a key of 64 hex digits, with or without ``0x``.

        Raises:
            BadField: Not such a key. The message does not repeat it.
        """
        match = _SECRET_HEX.fullmatch(text.strip())
        if match is None:
            raise BadField(f"a private key is 64 hex digits, got {len(text.strip())} characters", field="key")
        return cls(bytes.fromhex(match[1]))

    def sign_digest(self, digest: bytes) -> bytes:
        """Sign a 32-byte digest deterministically (RFC 6979).

        Returns:
            65 bytes: r, s (low), v (27 or 28).
        """
        if len(digest) != 32:
            raise BadField(f"a digest has 32 bytes, got {len(digest)}", field="digest")
        signature = self._key.sign_recoverable(digest, hasher=None)
        return signature[:64] + bytes([27 + signature[64]])

    def reveal_secret(self) -> bytes:
        """Return the secret, 32 bytes, for writing a keystore; never log it."""
        return self._key.secret


def recover_address(digest: bytes, signature: bytes) -> Address:
    """Return who signed ``digest``.

    Only one form of each signature is taken: 65 bytes r, s, v with r and s in range, s in the lower half and v 27 or
    28, as the vault takes it.

    Args:
        digest: 32 bytes.
        signature: 65 bytes.

    Raises:
        BadSignature: Another form, or no key can have made it.
    """
    if len(digest) != 32:
        raise BadSignature(f"a digest has 32 bytes, got {len(digest)}")
    if len(signature) != 65:
        raise BadSignature(f"a signature has 65 bytes, got {len(signature)}")
    v = signature[64]
    if v not in (27, 28):
        raise BadSignature(f"a signature's v is 27 or 28, got {v}")
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:64], "big")
    if not 0 < r < _CURVE_ORDER:
        raise BadSignature("a signature's r must be above 0 and below the curve's order")
    if not 0 < s <= _HALF_ORDER:
        raise BadSignature("a signature's s must be above 0 and in the lower half of the curve's order")
    try:
        key = coincurve.PublicKey.from_signature_and_message(signature[:64] + bytes([v - 27]), digest, hasher=None)
    except ValueError as exc:
        raise BadSignature("the signature recovers to no key") from exc
    address = _address_of(key)
    if address == _ZERO_ADDRESS:
        raise BadSignature("the signature recovers to the zero address")
    return address


def checksum_address(address: str) -> str:
    """Write a ``0x`` address in the mixed case of EIP-55, as people and wallets see it."""
    digits = address[2:].lower()
    digest = keccak256(digits.encode()).hex()
    return "0x" + "".join(
        digit.upper() if nibble >= "8" else digit for digit, nibble in zip(digits, digest, strict=False)
    )


def _address_of(key: coincurve.PublicKey) -> Address:
    return Address("0x" + keccak256(key.format(compressed=False)[1:])[-20:].hex())


def _b64url(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()
