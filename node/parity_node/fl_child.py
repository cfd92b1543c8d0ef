"""The training process: ``python -m parity_node.fl_child NODE_PID FOLDER``, or ``NODE_PID --trial``.

Imports nothing but the standard library until it is sure to end when the node ends: the rest takes a second to load.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from contextlib import suppress

__all__ = ["main"]

NICENESS = 10
_PR_SET_PDEATHSIG = 1
_CLONE_NEWUSER = 0x1000_0000
_CLONE_NEWNET = 0x4000_0000
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_NEVER = (1 << 31) - 1  # bytes
_PARENT_POLL_S = 1.0


def main(arguments: list[str]) -> int:
    """Run; return the exit status: 0 when ``outcome.json`` says how it went, or the trial went well."""
    node_pid, task = int(arguments[0]), arguments[1]
    if not _die_with(node_pid):
        return 1
    os.nice(NICENESS)
    _leave_networks()
    _keep_memory()

    from parity_node.executors import training

    return training.try_models() if task == "--trial" else training.train_in(task)


def _die_with(node_pid: int) -> bool:
    """End when the node does; return False when it has ended already."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    else:
        threading.Thread(target=_watch, args=(node_pid,), daemon=True).start()
    return os.getppid() == node_pid


def _leave_networks() -> None:
    """Go where there is no network, if this user may: training reads one file and writes two."""
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET) != 0:  # not root: with a user namespace of its own it may, unless that is forbidden
        libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET)


def _keep_memory() -> None:
    """Keep what a round has used for the next: the system would fill every page of a large model with zeros again."""
    if sys.platform == "linux":
        with suppress(AttributeError):  # another C library than GNU's
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(_M_MMAP_MAX, 0)
            mallopt(_M_TRIM_THRESHOLD, _NEVER)


def _watch(node_pid: int) -> None:
    while os.getppid() == node_pid:
        time.sleep(_PARENT_POLL_S)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
