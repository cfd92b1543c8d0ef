"""What a starting node does with each execution it finds: the table of design §6, as a pure function."""

from __future__ import annotations

from enum import StrEnum
from typing import assert_never

from parity_node.store.base import Phase

__all__ = ["LeaseState", "RecoveryAction", "decide"]


class LeaseState(StrEnum):
    """What is known of an execution's lease at start-up."""

    OURS = "ours"  # the market renewed it
    LOST = "lost"  # the market refused, or its deadline passed while nobody could be asked
    UNREACHABLE = "unreachable"  # nobody could be asked, and the deadline has not passed


class RecoveryAction(StrEnum):
    """What to do with an execution."""

    DROP = "drop"  # never claimed as far as we know: forget it, its jti stays used
    CONTINUE = "continue"  # go on from the journalled phase
    RECOVER = "recover"  # ask the executor; if it cannot, report ``node_restarted``
    DISCARD = "discard"  # stop, clean up, forget; nothing is reported
    DELIVER = "deliver"  # the result waits in the outbox: clean up, let the outbox send it
    CLEAN_UP = "clean_up"  # answered: clean up and forget


def decide(phase: Phase, lease: LeaseState) -> RecoveryAction:
    """Return what to do with an execution found in ``phase`` whose lease is in state ``lease``.

    UNREACHABLE goes on until the persisted deadline: the lease keeper enforces it like any other. A collected result
    whose lease was lost stays in the outbox: the market decides by the fence.
    """
    match phase:
        case Phase.VERIFIED:
            return RecoveryAction.DROP
        case Phase.CLAIMED | Phase.PREPARED:
            return RecoveryAction.DISCARD if lease is LeaseState.LOST else RecoveryAction.CONTINUE
        case Phase.STARTED:
            return RecoveryAction.DISCARD if lease is LeaseState.LOST else RecoveryAction.RECOVER
        case Phase.COLLECTED:
            return RecoveryAction.DELIVER
        case Phase.REPORTED:
            return RecoveryAction.CLEAN_UP
        case _ as never:
            assert_never(never)
