"""What a node's record counts; no score yet, so nothing can be gamed by it."""

from __future__ import annotations

from dataclasses import dataclass

from parity_protocol.errors import Blame

__all__ = ["Record", "counts_against"]


@dataclass(frozen=True, slots=True)
class Record:
    """How a node's executions ended."""

    completed: int  # accepted by the market
    failed: int  # that count against the node


def counts_against(blame: Blame) -> bool:
    """Return whether a failure with this blame counts against the node that reports it."""
    return blame is Blame.NODE
