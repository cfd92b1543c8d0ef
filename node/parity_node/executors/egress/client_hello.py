"""Reading the server name that a TLS client asks for (RFC 8446 §4.1.2, RFC 6066 §3), from its first bytes."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["MAX_HELLO_BYTES", "Hello", "read_hello"]

MAX_HELLO_BYTES = 65_536  # of records; a hello with post-quantum keys has about 2,000
_HANDSHAKE = 22
_CLIENT_HELLO = 1
_MAX_RECORD_BYTES = 16_384
_MAX_RECORDS = (
    64  # it is read anew with each piece that arrives: thousands of records of one byte would take the node's time
)
_SERVER_NAME = 0
_HOST_NAME = 0


@dataclass(frozen=True, slots=True)
class Hello:
    """What a client's first bytes are."""

    is_tls: bool
    is_readable: bool = True
    server_names: tuple[str, ...] = ()


_NOT_TLS = Hello(is_tls=False)
_BROKEN = Hello(is_tls=True, is_readable=False)


def read_hello(data: bytes) -> Hello | None:
    """Return what ``data`` begins with, or None when more bytes are needed to know."""
    if not data:
        return None
    if data[0] != _HANDSHAKE:
        return _NOT_TLS
    message = bytearray()
    at = 0
    for _ in range(_MAX_RECORDS):
        if len(message) >= 4:
            if message[0] != _CLIENT_HELLO:
                return _BROKEN
            length = int.from_bytes(message[1:4], "big")
            if length > MAX_HELLO_BYTES:
                return _BROKEN
            if len(message) >= 4 + length:
                return _parse(bytes(message[4 : 4 + length]))
        if len(data) < at + 5:
            return None if at < MAX_HELLO_BYTES else _BROKEN
        if data[at] != _HANDSHAKE or data[at + 1] != 3:
            return _BROKEN
        size = int.from_bytes(data[at + 3 : at + 5], "big")
        if not 0 < size <= _MAX_RECORD_BYTES:
            return _BROKEN
        message += data[at + 5 : at + 5 + size]
        if len(data) < at + 5 + size:
            if len(message) >= 4 and message[0] != _CLIENT_HELLO:
                return _BROKEN
            return None
        at += 5 + size
    return _BROKEN


def _parse(body: bytes) -> Hello:
    try:
        names = tuple(_names(body))
    except (IndexError, ValueError):
        return _BROKEN
    return Hello(is_tls=True, server_names=names)


def _names(body: bytes) -> list[str]:
    at = 2 + 32  # version, random
    at += 1 + body[at]  # session id
    at += 2 + _number(body, at)  # cipher suites
    at += 1 + body[at]  # compression methods
    if at == len(body):
        return []
    end = at + 2 + _number(body, at)
    at += 2
    if end != len(body):
        raise ValueError("extensions of another length")
    found: list[str] = []
    while at < end:
        kind, size = _number(body, at), _number(body, at + 2)
        value = body[at + 4 : at + 4 + size]
        if len(value) != size:
            raise ValueError("an extension is cut off")
        if kind == _SERVER_NAME:
            found += _server_names(value)
        at += 4 + size
    return found


def _server_names(value: bytes) -> list[str]:
    if _number(value, 0) != len(value) - 2:
        raise ValueError("a list of names of another length")
    at, found = 2, []
    while at < len(value):
        size = _number(value, at + 1)
        name = value[at + 3 : at + 3 + size]
        if value[at] != _HOST_NAME or len(name) != size:
            raise ValueError("not a host name")
        found.append(name.decode("ascii").lower())
        at += 3 + size
    return found


def _number(data: bytes, at: int) -> int:
    if len(data) < at + 2:
        raise ValueError("cut off")
    return int.from_bytes(data[at : at + 2], "big")
