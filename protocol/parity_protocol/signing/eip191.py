"""Texts signed by a wallet (EIP-191, ``personal_sign``): sign-in and the statement that enrols a node."""

from __future__ import annotations

from parity_protocol.errors import BadField
from parity_protocol.ids import Address
from parity_protocol.signing.keccak import keccak256
from parity_protocol.signing.keys import EvmKey, recover_address

__all__ = ["personal_digest", "recover_personal", "sign_personal"]


def personal_digest(text: str | bytes) -> bytes:
    """Return what a wallet signs for ``text`` (EIP-191, version 0x45), 32 bytes.

    Raises:
        BadField: The text holds a lone surrogate.
    """
    try:
        data = text.encode() if isinstance(text, str) else text
    except UnicodeEncodeError as exc:
        raise BadField("a text to sign must be Unicode without lone surrogates", field="message") from exc
    return keccak256(b"\x19Ethereum Signed Message:\n" + str(len(data)).encode() + data)


def sign_personal(text: str | bytes, key: EvmKey) -> bytes:
    """Return the signature of ``text`` as a wallet's ``personal_sign`` makes it, 65 bytes."""
    return key.sign_digest(personal_digest(text))


def recover_personal(text: str | bytes, signature: bytes) -> Address:
    """Return who signed ``text``; ``BadSignature`` when nobody can have."""
    return recover_address(personal_digest(text), signature)
