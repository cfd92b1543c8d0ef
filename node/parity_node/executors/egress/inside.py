"""The proxy's listener inside of a bubblewrap sandbox: opened by a short-lived child of ours, never by the task."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

import anyio

from parity_node.executors.egress import inside_child
from parity_node.executors.egress.handover import received_listener
from parity_node.executors.process import Identity, reap
from parity_node.executors.sandbox.host_python import OPTIONS, interpreter
from parity_protocol.errors import ExecutionFailed, FailureReason

__all__ = ["listen_inside"]

_CHILD_S = 10.0
_MAX_TEXT_BYTES = 1_000


async def listen_inside(pid: int, identity: Identity | None) -> socket.socket:
    """Return a socket that listens on 127.0.0.1:3128 in the network namespace of ``pid``.

    The child enters the sandbox's namespaces; the node itself, which has threads, cannot. Call it before anything of the
    task runs, so that nobody else has the port.

    Args:
        pid: First process of a sandbox that this node started.
        identity: Who the sandbox was started as, and so who may enter it; None is the node's own user.

    Raises:
        ExecutionFailed: The namespace cannot be entered (``sandbox_failed``).
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    user = (identity.uid, identity.gid) if identity is not None else (-1, -1)
    script = Path(inside_child.__file__)
    with ours:
        ours.setblocking(False)  # noqa: FBT003 - the standard library's
        with theirs:
            child = _spawn([str(script), str(pid), *(str(each) for each in user)], theirs)
        try:
            with anyio.move_on_after(_CHILD_S):
                await anyio.wait_readable(ours)
            text = _peek(ours)
            listener = received_listener(ours)
        finally:
            child.kill()
            with anyio.CancelScope(shield=True):
                found = await reap(child.pid)
            child.returncode = found.status if found is not None else 0  # Popen must not wait for a pid that is gone
    if listener is None:
        raise ExecutionFailed(FailureReason.SANDBOX_FAILED, f"the egress proxy cannot enter the sandbox: {text}")
    return listener


def _spawn(words: list[str], channel: socket.socket) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            [str(interpreter()), *OPTIONS, *words],
            stdin=channel.fileno(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={},
            cwd="/",
        )
    except OSError as exc:
        raise ExecutionFailed(FailureReason.SANDBOX_FAILED, f"the egress proxy cannot start: {exc}") from exc


def _peek(channel: socket.socket) -> str:
    try:
        data = channel.recv(_MAX_TEXT_BYTES, socket.MSG_PEEK)
    except OSError as exc:
        return os.strerror(exc.errno or 0)
    return data.decode(errors="replace") or "it ended without a word"
