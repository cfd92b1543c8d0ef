"""A connection that is held open to see whether an engine is still the process that it was.

Whose process answers cannot be asked of the socket: where systemd opened it (``dockerd -H fd://``, as distributions install
Docker) the kernel names systemd, before and after every restart of the engine, and to a node in another pid namespace it
names nobody. A connection that the engine took ends with the engine, whoever opened the socket.
"""

from __future__ import annotations

import socket
from pathlib import Path

__all__ = ["Lifeline"]

_CONNECT_S = 1.0
_READ_BYTES = 4_096
_MOST_READS = 16  # of one look; the answer to one question is some hundred bytes
_QUESTION = b"GET /_ping HTTP/1.1\r\nHost: docker\r\n\r\n"  # engines end a connection on which nothing was ever asked


class Lifeline:
    """One connection to an engine, opened when it is first looked at and again when it has ended.

    Args:
        path: The engine's socket.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._held: socket.socket | None = None
        self._opened = 0

    def instance(self) -> str:
        """Return what changes when the engine is started again; empty when nobody listens. Waits a second at most."""
        if self._held is not None and not _is_open(self._held):
            self.close()
        if self._held is None:
            self._held = self._connect()
            self._opened += self._held is not None
        return "" if self._held is None else str(self._opened)

    def close(self) -> None:
        """Let go of the connection; idempotent. One that nobody refers to any more is let go too."""
        held, self._held = self._held, None
        if held is not None:
            held.close()

    def __del__(self) -> None:
        self.close()

    def _connect(self) -> socket.socket | None:
        found = socket.socket(socket.AF_UNIX)
        try:
            found.settimeout(_CONNECT_S)
            found.connect(str(self._path))
            found.sendall(_QUESTION)
        except OSError:
            found.close()
            return None
        found.settimeout(0.0)  # never waits
        return found


def _is_open(held: socket.socket) -> bool:
    """Whether the other side has neither ended the connection nor sent more than one answer could be."""
    try:
        for _ in range(_MOST_READS):
            if not held.recv(_READ_BYTES):
                break
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
