"""The text encodings of CIDs: base58btc, base36, base32 and base16, each in its one canonical form."""

from __future__ import annotations

import base64
import binascii

from parity_protocol.errors import BadCid

__all__ = ["decode_base58", "decode_multibase", "encode_base32", "encode_base58", "encode_multibase"]

_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_BASE36 = "0123456789abcdefghijklmnopqrstuvwxyz"
_VALUES58 = {char: value for value, char in enumerate(_BASE58)}
_VALUES36 = {char: value for value, char in enumerate(_BASE36)}


def encode_base58(data: bytes) -> str:
    """Return base58btc; each leading zero byte becomes a ``1``."""
    return _encode_digits(data, _BASE58)


def decode_base58(text: str) -> bytes:
    """Read base58btc.

    Raises:
        BadCid: A character is not in the alphabet.
    """
    return _decode_digits(text, _VALUES58, "base58btc", "1")


def encode_base32(data: bytes) -> str:
    """Return RFC 4648 base32 in lower case without padding."""
    return base64.b32encode(data).decode("ascii").rstrip("=").lower()


def encode_multibase(data: bytes, base: str) -> str:
    """Return ``data`` in the multibase whose prefix is ``base``: b, f, k or z.

    Raises:
        BadCid: Another base.
    """
    match base:
        case "b":
            return "b" + encode_base32(data)
        case "f":
            return "f" + data.hex()
        case "k":
            return "k" + _encode_digits(data, _BASE36)
        case "z":
            return "z" + encode_base58(data)
        case _:
            raise BadCid(f"multibase prefix must be b, f, k or z, got {base[:8]!r}")


def decode_multibase(text: str) -> bytes:
    """Read a multibase text: base32 ``b``, base16 ``f``, base36 ``k`` (all lower case) or base58btc ``z``.

    Raises:
        BadCid: Another prefix, a foreign character, or an encoding that is not canonical.
    """
    prefix, rest = text[:1], text[1:]
    match prefix:
        case "b":
            return _decode_base32(rest)
        case "f":
            return _decode_base16(rest)
        case "k":
            return _decode_digits(rest, _VALUES36, "base36", "0")
        case "z":
            return decode_base58(rest)
        case _:
            raise BadCid(f"a CID starts with Qm, b, f, k or z, got {prefix!r}")


def _encode_digits(data: bytes, alphabet: str) -> str:
    zeros = len(data) - len(data.lstrip(b"\0"))
    number = int.from_bytes(data, "big")
    digits = []
    while number:
        number, digit = divmod(number, len(alphabet))
        digits.append(alphabet[digit])
    return alphabet[0] * zeros + "".join(reversed(digits))


def _decode_digits(text: str, values: dict[str, int], name: str, zero: str) -> bytes:
    number = 0
    for char in text:
        value = values.get(char)
        if value is None:
            raise BadCid(f"{char!r} is not a {name} character")
        number = number * len(values) + value
    zeros = len(text) - len(text.lstrip(zero))
    return bytes(zeros) + number.to_bytes((number.bit_length() + 7) // 8, "big")


def _decode_base32(text: str) -> bytes:
    if not text.isascii() or text != text.lower() or "=" in text:
        raise BadCid("base32 in a CID is lower case and has no padding")
    try:
        data = base64.b32decode(text.upper() + "=" * (-len(text) % 8))
    except binascii.Error as exc:
        raise BadCid(f"not base32: {exc}") from exc
    if encode_base32(data) != text:
        raise BadCid("base32 with bits set past its end")
    return data


def _decode_base16(text: str) -> bytes:
    if text != text.lower():
        raise BadCid("base16 in a CID is lower case")
    try:
        data = bytes.fromhex(text)
    except ValueError as exc:
        raise BadCid("not base16") from exc
    if data.hex() != text:  # fromhex also reads blanks
        raise BadCid("not base16")
    return data
