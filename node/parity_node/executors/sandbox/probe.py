"""The shell executor's trial run: is the sandbox one, here, today? Present is not working, and configured is not proven."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from parity_node.executors.sandbox.bwrap import find_bwrap
from parity_node.executors.sandbox.limits import PRLIMIT
from parity_node.executors.sandbox.seccomp import machine_architecture
from parity_node.executors.sandbox.tier import prove_bwrap

__all__ = ["Missing", "find_missing", "try_sandbox"]


@dataclass(frozen=True, slots=True)
class Missing:
    """Why no sandbox can be made here."""

    reason: str


def find_missing() -> Missing | None:
    """Return what this machine lacks for a sandbox, or None; runs nothing."""
    if os.uname().sysname != "Linux":
        return Missing("the shell executor needs Linux")
    if machine_architecture() is None:
        return Missing(f"no system-call filter for {os.uname().machine}")
    if find_bwrap() is None:
        return Missing("bubblewrap is not installed (Debian, Ubuntu, Fedora: the package bubblewrap)")
    if not Path(PRLIMIT).is_file():
        return Missing(f"{PRLIMIT} is missing (package util-linux)")
    return None


async def try_sandbox(exec_dir: Path, *, slot: int = 0, hidden: Collection[Path] = ()) -> Missing | None:
    """Make every attempt to escape in a sandbox; return why it proves nothing, or None when all were denied.

    Args:
        exec_dir: Folder of the executions.
        hidden: Files of the node that must not be reachable.
    """
    missing = find_missing()
    if missing is not None:
        return missing
    report = await prove_bwrap(exec_dir, slot=slot, hidden=hidden)
    return None if report.is_proven else Missing(report.problem)
