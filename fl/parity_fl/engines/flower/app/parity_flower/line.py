"""One end of a Unix socket: a JSON header and a body each way.

``4 bytes big-endian length | header | body``; the header's ``size`` is the body's length in bytes.
"""

from __future__ import annotations

import json
import socket
import struct
from typing import Any, Self

__all__ = ["Line"]

MAX_HEADER_BYTES = 1 << 20
MAX_BODY_BYTES = 1 << 30


class Line:
    """A connection to whoever serves ``path``; use it in a ``with`` statement.

    Args:
        timeout_s: That one answer may take.

    Raises:
        OSError: Nobody serves it.
    """

    def __init__(self, path: str, *, timeout_s: float) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout_s)
        self._socket.connect(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def ask(self, header: dict[str, Any], body: bytes = b"") -> tuple[dict[str, Any], bytes]:
        """Send one question and return the answer's header and body.

        Raises:
            ConnectionError: The other end has gone, or sends something else.
        """
        text = json.dumps({**header, "size": len(body)}).encode()
        self._socket.sendall(struct.pack(">I", len(text)) + text)
        self._socket.sendall(body)
        (length,) = struct.unpack(">I", self._exactly(4))
        if length > MAX_HEADER_BYTES:
            raise ConnectionError(f"the answer's header has {length} bytes")
        answer = json.loads(self._exactly(length))
        size = answer.get("size") if isinstance(answer, dict) else None
        if not isinstance(size, int) or not 0 <= size <= MAX_BODY_BYTES:
            raise ConnectionError("the answer's header names no size")
        return answer, self._exactly(size)

    def _exactly(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            piece = self._socket.recv(min(count - len(data), 1 << 20))
            if not piece:
                raise ConnectionError("the other end has hung up")
            data += piece
        return bytes(data)
