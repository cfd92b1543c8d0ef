"""Named places at which a test can kill the process, to prove that every step survives it.

Free in production: one comparison with None. ``PARITY_CRASHPOINT=name`` or ``name:n`` (the n-th time) makes the process
send itself SIGKILL there, and only under ``PARITY_TESTING=1``.
"""

from __future__ import annotations

import os
import signal

__all__ = ["CRASHPOINTS", "DOCKER_CRASHPOINTS", "arm", "crashpoint"]

CRASHPOINTS = (
    "claim.intent.journalled",
    "claim.sent",
    "claim.journalled",
    "prepared",
    "started",
    "start.handle.journalled",
    "ended",
    "result.written",
    "result.journalled",
    "report.enqueued",
    "result.uploaded",
    "report.sent",
    "report.acked",
    "cleanup.begun",
    "cleanup.done",
    "recovery.decided",
    "release.sent",
)
"""Those that every kind of task passes."""

DOCKER_CRASHPOINTS = (
    "docker.resolved",
    "docker.journalled",
    "docker.created",
    "docker.attached",
    "docker.started",
    "docker.gathered",
    "docker.ended",
    "docker.removed",
)
"""Those inside the Docker executor; ``docker.gathered`` only with an output folder."""

_armed: str | None = None
_left = 0


def arm(text: str | None) -> None:
    """Choose the place: ``name`` or ``name:n``; None disarms.

    Raises:
        ValueError: No such place, or ``n`` is not a positive number: a typing error must not pass for survival.
    """
    global _armed, _left
    if not text:
        _armed, _left = None, 0
        return
    name, _, count = text.partition(":")
    known = (*CRASHPOINTS, *DOCKER_CRASHPOINTS)
    if name not in known or (count and not (count.isdigit() and int(count) > 0)):
        raise ValueError(f"no crash point {text!r}; there are {', '.join(known)}")
    _armed, _left = name, int(count or 1)


def crashpoint(name: str) -> None:
    """Die here if this is the chosen place."""
    global _left
    if _armed is None or name != _armed:
        return
    _left -= 1
    if _left <= 0:
        os.kill(os.getpid(), signal.SIGKILL)


if os.environ.get("PARITY_TESTING") == "1":
    arm(os.environ.get("PARITY_CRASHPOINT"))
