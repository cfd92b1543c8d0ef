"""Keeps a loop running: what fails is logged and started again after a pause; what is fatal ends the agent."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import structlog

from parity_node.waiting import Backoff
from parity_protocol.clock import Clock
from parity_protocol.errors import ConfigInvalid, NodeInUse

__all__ = ["FATAL", "supervise"]

FATAL = (ConfigInvalid, NodeInUse)  # no retry can help: the operator has to act
STABLE_S = 60.0  # a loop that ran this long starts with the shortest pause again

log = structlog.get_logger(__name__)


async def supervise(
    name: str, loop: Callable[[], Awaitable[None]], *, clock: Clock, base_s: float = 0.5, cap_s: float = 30.0
) -> None:
    """Run ``loop`` until it returns; after an error start it again with backoff.

    Raises:
        ConfigInvalid, NodeInUse: As the loop raised them.
    """
    backoff = Backoff(base_s, cap_s)
    while True:
        started_at = clock.monotonic()
        try:
            await loop()
            return
        except FATAL:
            raise
        except Exception as exc:
            if clock.monotonic() - started_at > STABLE_S:
                backoff.reset()
            pause_s = backoff.after(exc)
            log.exception("loop_failed", loop=name, error=str(exc), restart_in_s=round(pause_s, 3))
            await clock.sleep(pause_s)
