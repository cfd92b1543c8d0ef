"""Sandboxes whose node was killed while bwrap was setting them up.

bwrap's inner process waits for its outer one before it asks to die with it. If that is killed in between, the inner one
waits for ever: no task runs in it, but a process is left. The next node on this machine ends such processes.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

from parity_node.executors.sandbox.bwrap import GATE

__all__ = ["kill_orphans"]

_PROC = Path("/proc")
_MARK = "\0".join(GATE).encode()


def kill_orphans() -> int:
    """End sandboxes of ours that have lost their outer process, and return how many; blocks for some milliseconds."""
    sandboxes = {pid for pid in _pids() if _MARK in _read(pid, "cmdline")}
    ended = 0
    for pid in sandboxes:
        status = _fields(_read(pid, "status"))
        is_inner = len(status.get("NSpid", "").split()) > 1 and status["NSpid"].split()[-1] == "1"
        if is_inner and status.get("PPid") not in {str(other) for other in sandboxes}:
            ended += _kill(pid)
    return ended


def _pids() -> list[int]:
    try:
        return [int(path.name) for path in _PROC.iterdir() if path.name.isdigit()]
    except OSError:
        return []


def _read(pid: int, file: str) -> bytes:
    try:
        return (_PROC / str(pid) / file).read_bytes()
    except OSError:
        return b""


def _fields(status: bytes) -> dict[str, str]:
    pairs = (line.partition(":") for line in status.decode(errors="replace").splitlines())
    return {name: value.strip() for name, _, value in pairs}


def _kill(pid: int) -> bool:
    """Kill a process if it is still the one that was looked at."""
    try:
        fd = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        if _MARK not in _read(pid, "cmdline"):
            return False
        signal.pidfd_send_signal(fd, signal.SIGKILL)
        return True
    except (ProcessLookupError, PermissionError):  # another user's node looks after its own
        return False
    finally:
        os.close(fd)
