"""Giving leases back to the market before their time."""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from parity_node.crashpoints import crashpoint
from parity_node.market.base import MarketClient
from parity_node.store.base import Execution
from parity_node.waiting import within
from parity_protocol.api.leases import ReleaseItem, ReleaseRequest
from parity_protocol.clock import Clock
from parity_protocol.errors import FailureReason, ParityError

__all__ = ["RELEASE_TIMEOUT_S", "give_back"]

RELEASE_TIMEOUT_S = 5.0

log = structlog.get_logger(__name__)


async def give_back(
    market: MarketClient, clock: Clock, rows: Sequence[Execution], reason: FailureReason, *, message: str = ""
) -> None:
    """Give the leases of ``rows`` back in one message; those that the market does not hear of end by themselves.

    Args:
        rows: At most ``MAX_BATCH``, with their leases.
        message: In words, for who waits for the task; empty says the reason alone.
    """
    items = tuple(
        ReleaseItem(task_id=row.task_id, lease_id=row.lease_id, fence=row.fence, reason=reason.value, message=message)
        for row in rows
    )
    try:
        await within(clock, RELEASE_TIMEOUT_S, lambda: market.release(ReleaseRequest(releases=items)))
        crashpoint("release.sent")
    except (ParityError, TimeoutError) as exc:
        log.info("leases_not_released", tasks=[row.task_id for row in rows], error=str(exc))
