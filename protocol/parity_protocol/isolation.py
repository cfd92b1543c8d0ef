"""How well a task is contained, weakest first."""

from __future__ import annotations

from enum import StrEnum

__all__ = ["IsolationTier"]


class IsolationTier(StrEnum):
    """How well a node's own probe proved that it contains a task, weakest first."""

    NONE = "none"
    PROCESS = "process"
    BWRAP = "bwrap"
    DOCKER = "docker"
    GVISOR = "docker+gvisor"
    VM = "vm"

    @property
    def rank(self) -> int:
        """Position from 0 (weakest)."""
        return list(IsolationTier).index(self)
