"""Keeps the node's disks usable: the cache gives way at the floor, the ballast comes back, leftovers go."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio.to_thread
import structlog

from parity_node.cache.keeper import NodeCache
from parity_node.disk import Ballast, DiskGuard
from parity_protocol.clock import Clock
from parity_protocol.errors import ParityError

__all__ = ["Housekeeper"]

T = TypeVar("T")

LOOK_S = 1.0  # between two looks at the disks
COUNT_S = 10.0  # between two counts of the results that wait
COLLECT_S = 600.0  # between two collections of leftovers and of what is over a cap

log = structlog.get_logger(__name__)


class Housekeeper:
    """Looks after one node's disks.

    Args:
        ballast: None when the journal has none.
        give_back: Hands the leases of tasks back that have not started, and returns how many there were: what they
            fetch would only be in the way of those that run.
        cap: Returns the policy's cap on data and images together, in bytes; None when it has none.
    """

    def __init__(
        self,
        *,
        disk: DiskGuard,
        cache: NodeCache,
        ballast: Ballast | None,
        give_back: Callable[[], int],
        cap: Callable[[], int | None],
        clock: Clock,
    ) -> None:
        self._disk = disk
        self._cache = cache
        self._ballast = ballast
        self._give_back = give_back
        self._cap = cap
        self._clock = clock
        self._was_short = False

    async def begin(self) -> None:
        """Count what is there and remove what an earlier process left. Before any task begins."""
        self._cache.narrow(self._cap())
        await self._guarded(self._cache.data.sweep)
        await self._guarded(self._cache.count_results)
        await self._guarded(self._cache.collect)
        await self.look()

    async def run(self) -> None:
        """Look again and again until cancelled."""
        counted_at = collected_at = self._clock.monotonic()
        while True:
            await self._clock.sleep(LOOK_S)
            await self.look()
            now = self._clock.monotonic()
            if now - counted_at >= COUNT_S:
                counted_at = now
                await self._guarded(self._cache.count_results)
            if self._cache.narrow(self._cap()) or now - collected_at >= COLLECT_S:
                collected_at = now
                await self._guarded(self._cache.collect)

    async def look(self) -> None:
        """Free what a disk below its floor needs, or take the ballast again when there is room for it."""
        short = self._disk.shortage_bytes()
        if not short:
            if self._was_short:
                self._was_short = False
                log.info("disk_has_room_again")
            await self._take_ballast()
            return
        if not self._was_short:
            self._was_short = True
            log.warning("disk_below_floor", missing_bytes=max(short.values()), folders=sorted(short))
        freed = await self._guarded(self._relieve)
        if self._disk.shortage_bytes():
            stopped = self._give_back()
            if stopped or freed:
                log.warning("disk_still_below_floor", freed_bytes=freed or 0, given_back=stopped)

    async def _relieve(self) -> int:
        return await self._cache.relieve(self._disk)

    async def _take_ballast(self) -> None:
        ballast = self._ballast
        if ballast is None or ballast.is_whole:
            return
        if self._disk.volume_of("state").free_bytes >= self._disk.floor_bytes + ballast.size_bytes:
            await anyio.to_thread.run_sync(ballast.fill)

    async def _guarded(self, step: Callable[[], Awaitable[T]]) -> T | None:
        """Do one step; a cache that does not work must not keep the node from working."""
        try:
            return await step()
        except ParityError as exc:
            log.warning("housekeeping_failed", error=exc.message)
            return None
