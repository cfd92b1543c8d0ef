"""What a disk's refusal means: no room, which time and a broom mend, or something else."""

from __future__ import annotations

import errno

from parity_protocol.errors import FailureReason

__all__ = ["failure_of", "is_full"]

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})


def is_full(exc: BaseException) -> bool:
    """Return whether a call failed because a disk is full, or a quota used up."""
    return isinstance(exc, OSError) and exc.errno in _NO_ROOM


def failure_of(exc: OSError) -> FailureReason:
    """Return why an execution failed that met ``exc`` in the node's own files: a full disk, or the node's fault."""
    return FailureReason.DISK_FULL if is_full(exc) else FailureReason.NODE_FAULT
