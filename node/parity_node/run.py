"""``parity node run``: makes an agent of the settings and runs it."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Protocol, runtime_checkable

import anyio
import anyio.to_thread
import structlog

from parity_blobs.tls import context_for
from parity_node.agent import Agent, AgentParts
from parity_node.cache import NodeCache
from parity_node.cache.opening import cache_of
from parity_node.disk import DiskGuard
from parity_node.executors.base import Executor
from parity_node.folders import Folders, make_folders
from parity_node.keys import NodeKeys, load_keys
from parity_node.lockfile import exclusive_lock
from parity_node.market.http import HttpMarket
from parity_node.observability.logging import configure_logging
from parity_node.observability.metrics import NodeMetrics
from parity_node.settings import NodeSettings
from parity_node.shards import LentData
from parity_node.store.sqlite import SqliteNodeStore
from parity_node.waiting import Backoff
from parity_protocol.clock import Clock, SystemClock
from parity_protocol.errors import Unreachable
from parity_protocol.task import TaskKind

__all__ = ["NodeServices", "run_node"]

LOCK_FILE = "agent.lock"
JOURNAL_FILE = "journal.sqlite"

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class NodeServices:
    """What executors may use."""

    settings: NodeSettings
    keys: NodeKeys
    folders: Folders
    market: HttpMarket
    clock: Clock
    cache: NodeCache
    disk: DiskGuard
    metrics: NodeMetrics
    lent: LentData


@runtime_checkable
class Closing(Protocol):
    """Executors that share something to be closed at the end."""

    async def aclose(self) -> None:
        """Close it; idempotent."""
        ...


ExecutorFactory = Callable[[NodeServices], Mapping[TaskKind, Executor]]


def run_node(settings: NodeSettings, *, executors: ExecutorFactory | None = None) -> None:
    """Run a node until it is drained (SIGTERM, SIGINT or ``parity node drain``); blocks.

    Args:
        executors: Makes the executors; None takes those that this program has.

    Raises:
        NodeInUse: Another agent runs on the state folder, or another machine with this node's key.
        ConfigInvalid: A setting or a file is wrong, or the market is not the one that was pinned.
    """
    configure_logging(settings.runner_log_level, settings.runner_log_format)
    settings.market_url()
    keys = load_keys(settings.state_dir(), hostname=settings.runner_hostname)
    with exclusive_lock(settings.state_dir() / LOCK_FILE, node_id=keys.node_id):
        anyio.run(_run, settings, keys, executors or _own_executors, backend_options={"use_uvloop": _has_uvloop()})


async def _run(settings: NodeSettings, keys: NodeKeys, make_executors: ExecutorFactory) -> None:
    clock = SystemClock()
    folders = make_folders(settings, keys.node_id)
    market = await _connect(settings, keys, clock)
    store = SqliteNodeStore(folders.state / JOURNAL_FILE, ballast_bytes=settings.runner_disk_ballast)
    cache = cache_of(settings, cache_dir=folders.cache, results_dir=folders.results, clock=clock)
    disk = DiskGuard(folders.by_name(), floor_bytes=settings.runner_disk_floor, clock=clock)
    metrics = NodeMetrics()
    lent = LentData(settings.shards())
    executors = make_executors(NodeServices(settings, keys, folders, market, clock, cache, disk, metrics, lent))
    try:
        agent = Agent(
            AgentParts(
                settings=settings,
                keys=keys,
                hostname=settings.runner_hostname or socket.gethostname(),
                folders=folders,
                store=store,
                market=market,
                directory=market,
                executors=executors,
                clock=clock,
                cache=cache,
                disk=disk,
                lent=lent,
                ballast=store.ballast,
                metrics=metrics,
            )
        )
        await agent.run()
    finally:
        with anyio.CancelScope(shield=True):
            await store.close()
            await market.aclose()
            if isinstance(executors, Closing):
                await executors.aclose()
            await cache.aclose()


async def _connect(settings: NodeSettings, keys: NodeKeys, clock: Clock) -> HttpMarket:
    """Return the market's adapter; with a pinned certificate this waits until the market shows it once."""
    join, url = settings.join(), settings.market_url()
    trust = await _trust(url, join.certificate if join is not None else None, clock)
    return HttpMarket(
        url, key=keys.device, clock=clock, identity=join.market if join is not None else None, verify=trust
    )


async def _trust(url: str, fingerprint: str | None, clock: Clock) -> ssl.SSLContext | None:
    backoff = Backoff(0.5, 30.0)
    while True:
        try:
            return await anyio.to_thread.run_sync(context_for, url, fingerprint)
        except Unreachable as exc:
            pause_s = backoff.after(exc)
            log.warning("market_unreachable", url=url, error=exc.message, retry_in_s=round(pause_s, 1))
            await clock.sleep(pause_s)


def _own_executors(services: NodeServices) -> Mapping[TaskKind, Executor]:
    from parity_node.executors.registry import build_executors

    return build_executors(services)


def _has_uvloop() -> bool:
    return find_spec("uvloop") is not None
