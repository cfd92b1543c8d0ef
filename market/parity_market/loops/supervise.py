"""Keeps a background loop running: it starts again after a failure, later each time."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable

import structlog

from parity_protocol.clock import Clock
from parity_protocol.errors import ConfigInvalid

__all__ = ["FIRST_DELAY_S", "MAX_DELAY_S", "supervise"]

log = structlog.get_logger(__name__)

FIRST_DELAY_S = 0.5
MAX_DELAY_S = 30.0
CALM_S = 60.0  # a loop that ran this long has recovered: its next failure is a first one


async def supervise(
    name: str, loop: Callable[[], Awaitable[None]], clock: Clock, *, jitter: Callable[[], float] = random.random
) -> None:
    """Run ``loop`` until it returns or this is cancelled; start it again when it fails.

    The delay before a new start doubles from half a second to half a minute; of each, at least half is waited.

    Args:
        name: For the log.
        jitter: Returns a number in [0, 1).

    Raises:
        ConfigInvalid: The loop found out that the market must not go on.
    """
    failures = 0
    while True:
        started = clock.monotonic()
        try:
            return await loop()
        except ConfigInvalid as exc:
            log.critical("loop_refused", loop=name, problem=exc.message)
            raise
        except Exception:  # the one place where a loop's bug must not end the market
            if clock.monotonic() - started >= CALM_S:
                failures = 0
            delay = min(FIRST_DELAY_S * 2 ** min(failures, 16), MAX_DELAY_S)
            delay *= 0.5 + jitter() / 2
            failures += 1
            log.exception("loop_failed", loop=name, failures=failures, retry_in_s=round(delay, 3))
        await clock.sleep(delay)
