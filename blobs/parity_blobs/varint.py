"""Unsigned varints (LEB128) in their one canonical form, as multiformats and our protobuf messages need them."""

from __future__ import annotations

from parity_protocol.errors import BadDocument

__all__ = ["MAX_VARINT", "decode_varint", "encode_varint"]

MAX_VARINT = 2**63 - 1  # the multiformats limit: nine bytes
_MAX_VARINT_BYTES = 9


def encode_varint(value: int) -> bytes:
    """Return the shortest encoding of ``value``.

    Raises:
        BadDocument: Negative, or over 2**63 - 1.
    """
    if 0 <= value < 0x80:
        return bytes((value,))
    if not 0 <= value <= MAX_VARINT:
        raise BadDocument(f"a varint holds 0 to 2**63 - 1, got {value}")
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def decode_varint(data: bytes, at: int = 0) -> tuple[int, int]:
    """Read the varint that starts at ``at``.

    Returns:
        The value, and the position after it.

    Raises:
        BadDocument: The data ends early, the varint is longer than nine bytes, or it is not in its shortest form.
    """
    if 0 <= at < len(data) and (value := data[at]) < 0x80:  # most of them
        return value, at + 1
    value = shift = 0
    for end in range(at, min(at + _MAX_VARINT_BYTES, len(data))):
        byte = data[end]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            # A padded varint would give one value two encodings, and so one node two CIDs.
            if byte == 0 and end > at:
                raise BadDocument(f"varint at byte {at} is not in its shortest form")
            return value, end + 1
        shift += 7
    if len(data) - at >= _MAX_VARINT_BYTES:
        raise BadDocument(f"varint at byte {at} is longer than {_MAX_VARINT_BYTES} bytes")
    raise BadDocument(f"varint at byte {at} is cut off")
