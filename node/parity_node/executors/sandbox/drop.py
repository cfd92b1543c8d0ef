"""Who a task runs as when the node runs as root: one numeric user per slot.

These users have no passwd entry and own nothing else. Not ``nobody``: other services run as it, and one of them could
signal or trace a task, or the other way round. Sandboxing without this is none at all: bwrap started by root leaves the task
root to the kernel, which let it write ``/proc/sys/kernel/core_pattern``.
"""

from __future__ import annotations

import os
from pathlib import Path

from parity_node.executors.process import Identity
from parity_protocol.errors import ExecutionFailed, FailureReason

__all__ = ["FIRST_UID", "make_traversable", "own", "slot_identity"]

FIRST_UID = 61_000
_MAX_SLOTS = 4_096


def slot_identity(slot: int) -> Identity | None:
    """Return the user of a slot, or None when the node is an ordinary user already.

    Raises:
        ExecutionFailed: ``slot`` is out of range (``sandbox_failed``).
    """
    if not 0 <= slot < _MAX_SLOTS:
        raise ExecutionFailed(FailureReason.SANDBOX_FAILED, f"slot must be from 0 to {_MAX_SLOTS - 1}, got {slot}")
    if os.geteuid() != 0:
        return None
    return Identity(FIRST_UID + slot, FIRST_UID + slot)


def make_traversable(folder: Path) -> None:
    """Let slot users pass through the node's own ``folder``, not list it; nothing if it is another user's.

    Raises:
        ExecutionFailed: It cannot be changed (``sandbox_failed``).
    """
    try:
        found = folder.lstat()
        if found.st_uid == os.geteuid() and not found.st_mode & 0o001:
            folder.chmod((found.st_mode & 0o7700) | 0o011)
    except OSError as exc:
        raise ExecutionFailed(FailureReason.SANDBOX_FAILED, f"cannot open {folder}: {exc.strerror}") from exc


def own(path: Path, identity: Identity | None) -> None:
    """Give one file or folder to a slot's user; nothing without one.

    Raises:
        ExecutionFailed: It cannot be changed (``sandbox_failed``).
    """
    if identity is None:
        return
    try:
        os.chown(path, identity.uid, identity.gid, follow_symlinks=False)
    except OSError as exc:
        raise ExecutionFailed(FailureReason.SANDBOX_FAILED, f"cannot give {path} away: {exc.strerror}") from exc
