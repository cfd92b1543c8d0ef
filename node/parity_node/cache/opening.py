"""Opens the cache that the settings describe: for the agent, and for a command while no agent runs."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio

from parity_node.cache.keeper import NodeCache
from parity_node.lockfile import exclusive_lock
from parity_node.operator_policy import OperatorPolicy
from parity_node.settings import NodeSettings
from parity_protocol.clock import Clock, SystemClock
from parity_protocol.errors import NotFound

__all__ = ["cache_of", "idle_cache"]

AGENT_LOCK = "agent.lock"
JOURNAL = "journal.sqlite"


def cache_of(settings: NodeSettings, *, cache_dir: Path, results_dir: Path, clock: Clock) -> NodeCache:
    """Return the cache of a node; nothing is opened yet."""
    return NodeCache(
        cache_dir=cache_dir,
        results_dir=results_dir,
        max_data_bytes=settings.runner_cache_max_bytes,
        max_image_bytes=settings.runner_image_cache_max_bytes,
        max_result_bytes=settings.runner_result_max_bytes,
        floor_bytes=settings.runner_disk_floor,
        clock=clock,
    )


@asynccontextmanager
async def idle_cache(settings: NodeSettings) -> AsyncGenerator[NodeCache]:
    """Use the cache of a node that does not run, under its lock. Images cannot be removed: no engine is asked.

    Raises:
        NotFound: There is no such node on this machine.
        NodeInUse: Its agent runs.
    """
    state = settings.state_dir()
    if not state.is_dir():
        raise NotFound(f"there is no node in {state}", hint="Set one up with `parity node init`.")
    with exclusive_lock(state / AGENT_LOCK):
        cache = cache_of(settings, cache_dir=state / "cache", results_dir=state / "results", clock=SystemClock())
        cache.narrow(OperatorPolicy(settings, SystemClock()).current.max_cache_bytes)
        waiting = await _waiting_results(state / JOURNAL)
        cache.results_wait(lambda: waiting)
        try:
            yield cache
        finally:
            await cache.aclose()


async def _waiting_results(journal: Path) -> frozenset[str]:
    if not await anyio.Path(journal).exists():
        return frozenset()
    from parity_node.store.sqlite import SqliteNodeStore

    store = SqliteNodeStore(journal)
    try:
        return frozenset(entry.result_path for entry in (await store.load()).outbox if entry.result_path)
    finally:
        await store.close()
