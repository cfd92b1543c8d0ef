"""Taking the listener of a sidecar container over a Unix socket.

The sidecar listens in the network namespace that the task shares, and sends the listening socket itself to the node: no byte
of the task's traffic passes through the sidecar. When the node ends, the sidecar waits for the next one and sends it again;
connections wait in the listener's queue meanwhile.
"""

from __future__ import annotations

import array
import asyncio
import os
import socket
from collections.abc import Callable
from pathlib import Path

import anyio

from parity_protocol.errors import ExecutionFailed, FailureReason

__all__ = ["SOCKET_NAME", "Handover"]

SOCKET_NAME = "node.sock"
_QUEUE = 8
_ANSWER_S = 5.0
_PAUSE_S = 0.2
_MAX_SIDECARS = 4  # connections at once; there is one sidecar


class Handover:
    """A Unix socket in a folder that only the sidecar sees.

    Args:
        folder: Made if it is not there. The socket has a fixed name in it, so that the folder can stay mounted while
            the node restarts.

    Raises:
        ExecutionFailed: It cannot be made (``node_fault``).
    """

    def __init__(self, folder: Path, *, on_listener: Callable[[socket.socket], None]) -> None:
        self.folder = folder
        self.arrived = anyio.Event()
        self._on_listener = on_listener
        self._kept: list[socket.socket] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.setblocking(False)  # noqa: FBT003 - the standard library's
        try:
            # The folder is the sidecar's alone, whatever its user is called outside of the container.
            folder.mkdir(mode=0o700, exist_ok=True)
            folder.chmod(0o711)
            (folder / SOCKET_NAME).unlink(missing_ok=True)
            _bind(self._socket, folder)
            (folder / SOCKET_NAME).chmod(0o666)
            self._socket.listen(_QUEUE)
        except OSError as exc:
            self._socket.close()
            raise ExecutionFailed(FailureReason.NODE_FAULT, f"{folder}: {exc.strerror}") from exc

    async def serve(self) -> None:
        """Take listeners until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                sidecar, _ = await loop.sock_accept(self._socket)
            except OSError:  # no descriptors left
                await asyncio.sleep(_PAUSE_S)
                continue
            listener = await _take(sidecar)
            if listener is None:
                sidecar.close()
                continue
            if len(self._kept) >= _MAX_SIDECARS:
                self._kept.pop(0).close()
            self._kept.append(sidecar)  # its end tells the sidecar that the node is gone
            self._on_listener(listener)
            self.arrived.set()

    def close(self) -> None:
        """Close everything; idempotent."""
        for sock in (self._socket, *self._kept):
            sock.close()


def _bind(sock: socket.socket, folder: Path) -> None:
    """Bind below ``folder``, whose own path may be longer than a socket's name can be (108 bytes)."""
    fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sock.bind(f"/proc/self/fd/{fd}/{SOCKET_NAME}")
    finally:
        os.close(fd)


async def _take(sidecar: socket.socket) -> socket.socket | None:
    """Return the listening socket that a sidecar sends, or None when it sends anything else."""
    sidecar.setblocking(False)  # noqa: FBT003 - the standard library's
    with anyio.move_on_after(_ANSWER_S):
        await anyio.wait_readable(sidecar)
        return received_listener(sidecar)
    return None


def received_listener(channel: socket.socket) -> socket.socket | None:
    """Return the listening TCP socket that waits in a Unix socket, or None; anything else that came is closed."""
    try:
        _, ancillary, _, _ = channel.recvmsg(64, socket.CMSG_SPACE(4 * 4), socket.MSG_CMSG_CLOEXEC)
    except OSError:
        return None
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    found: socket.socket | None = None
    for fd in fds:
        try:
            sock = socket.socket(fileno=fd)
        except OSError:  # not a socket
            os.close(fd)
            continue
        if found is None and _is_listener(sock):
            found = sock
        else:
            sock.close()
    return found


def _is_listener(sock: socket.socket) -> bool:
    return (
        sock.family == socket.AF_INET
        and sock.type == socket.SOCK_STREAM
        and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
    )
