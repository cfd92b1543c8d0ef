"""The chain's process: an event loop that talks, one worker thread that computes, a miner that keeps time."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import anyio
import anyio.to_thread
import structlog
import uvicorn

from parity_contracts.devnet.datadir import DataDir
from parity_contracts.devnet.methods import Method
from parity_contracts.devnet.node import Accepted, ChainNode
from parity_contracts.devnet.rpc import RpcApp
from parity_contracts.files import write_file
from parity_protocol.clock import Clock, SystemClock
from parity_protocol.errors import ConfigInvalid, ParityError

__all__ = ["ChainSettings", "next_block_at", "serve"]

log = structlog.get_logger(__name__)

MIN_BLOCK_INTERVAL = timedelta(seconds=1)  # timestamps are whole seconds: faster blocks would run ahead of the clock
_MAX_REQUESTS = 256  # handled at once; the rest is answered 503
_SHUTDOWN_S = 5

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class ChainSettings:
    """How to run the embedded chain.

    Attributes:
        data: Folder of this chain; made when missing.
        host: Loopback address to listen on.
        port: TCP port; 0 lets the system choose (``ready_file`` says which).
        ready_file: Written once requests are answered: JSON with ``rpc_url``, ``chain_id``, ``genesis_hash``,
            ``faucet`` and ``pid``.
        block_interval: Least time between two blocks.
        idle_interval: Time after which an empty block is made, so that waits on the chain end.

    Raises:
        ConfigInvalid: With every value that is out of range.
    """

    data: Path
    host: str = "127.0.0.1"
    port: int = 0
    ready_file: Path | None = None
    chain_id: int = 31337
    block_interval: timedelta = timedelta(seconds=1)
    idle_interval: timedelta = timedelta(seconds=4)

    def __post_init__(self) -> None:
        problems = []
        if self.host not in ("127.0.0.1", "::1", "localhost"):
            problems.append(f"host: expected a loopback address, got {self.host!r}; the chain gives money to anybody")
        if not 0 <= self.port <= 65535:
            problems.append(f"port: expected 0 to 65535, got {self.port}")
        if not 1 <= self.chain_id < 2**53:
            problems.append(f"chain_id: expected 1 to 2**53 - 1, got {self.chain_id}")
        if self.block_interval < MIN_BLOCK_INTERVAL:
            problems.append(f"block_interval: expected 1s or more, got {self.block_interval.total_seconds()}s")
        if self.idle_interval < self.block_interval:
            problems.append("idle_interval: expected at least block_interval")
        if problems:
            raise ConfigInvalid(problems)


def next_block_at(last: float, *, pending: bool, settings: ChainSettings) -> float:
    """Return when the next block is due, on the same monotonic clock as ``last``, seconds."""
    wait = settings.block_interval if pending else settings.idle_interval
    return last + wait.total_seconds()


def serve(settings: ChainSettings, *, clock: Clock | None = None) -> None:
    """Run the chain until SIGTERM or SIGINT.

    Raises:
        Conflict: Another process has the data folder.
        ConfigInvalid: The folder holds another chain or is damaged, or the port is taken.
    """
    anyio.run(_serve, settings, clock or SystemClock())


class _Engine:
    """Runs the chain's node in one thread at a time, and mines."""

    def __init__(self, node: ChainNode, settings: ChainSettings, clock: Clock) -> None:
        self._node = node
        self._settings = settings
        self._clock = clock
        self._cpu = anyio.CapacityLimiter(1)
        self._disk = anyio.CapacityLimiter(1)
        self._durable_to = 0  # position in the journal
        self._flushing: anyio.Event | None = None
        self._pending = anyio.Event()

    async def run(self, method: Method, params: list[Any]) -> Any:
        return await self._compute(partial(method, self._node, params))

    async def durable(self, accepted: Accepted) -> None:
        """Wait for the fsync that covers a transaction; whoever arrives during one shares the next."""
        self._pending.set()
        while self._durable_to < accepted.position:
            if self._flushing is not None:
                await self._flushing.wait()
                continue
            done = self._flushing = anyio.Event()
            try:
                self._durable_to = await anyio.to_thread.run_sync(self._node.journal.sync, limiter=self._disk)
            finally:
                self._flushing = None
                done.set()

    async def mine(self) -> None:
        """Make blocks until cancelled."""
        idle_since = self._clock.monotonic()
        last = idle_since - self._settings.block_interval.total_seconds()  # the first transaction need not wait
        while True:
            if not len(self._node.pool):
                self._pending = anyio.Event()
                idle_for = next_block_at(idle_since, pending=False, settings=self._settings) - self._clock.monotonic()
                with anyio.move_on_after(max(0.0, idle_for)):
                    await self._pending.wait()
            pending = len(self._node.pool) > 0
            due = next_block_at(last if pending else idle_since, pending=pending, settings=self._settings)
            await self._clock.sleep(max(0.0, due - self._clock.monotonic()))
            last = idle_since = self._clock.monotonic()
            now = int(self._clock.now().timestamp())
            if not pending and now <= self._node.ledger.head.timestamp:
                continue  # the clock was set back: let it catch up
            try:
                sealed = await self._compute(partial(self._node.mine, now))
            except ParityError as exc:
                log.exception("chain_block_failed", reason=exc.message)
                continue
            log.debug("chain_block", number=sealed.header.block_number, transactions=len(sealed.transactions))

    async def _compute(self, work: Callable[[], _T]) -> _T:
        return await anyio.to_thread.run_sync(work, limiter=self._cpu)


class _Server(uvicorn.Server):
    """uvicorn without its own signal handling (the chain's journal is closed first), and with word that it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = anyio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _serve(settings: ChainSettings, clock: Clock) -> None:
    data = DataDir.open(settings.data, chain_id=settings.chain_id, now=clock.now())
    try:
        with _listen(settings) as listener:
            node = await anyio.to_thread.run_sync(ChainNode, data)
            try:
                await _run(node, data, settings, clock, listener)
            finally:
                node.close()
    finally:
        data.close()


async def _run(node: ChainNode, data: DataDir, settings: ChainSettings, clock: Clock, listener: socket.socket) -> None:
    engine = _Engine(node, settings, clock)
    server = _Server(
        uvicorn.Config(
            RpcApp(engine),
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            limit_concurrency=_MAX_REQUESTS,
            timeout_graceful_shutdown=_SHUTDOWN_S,
            ws="none",
        )
    )
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_stop_on_signal, server)
        tasks.start_soon(engine.mine)
        tasks.start_soon(_announce, server, node, data, settings, listener)
        await server.serve(sockets=[listener])
        tasks.cancel_scope.cancel()
    if settings.ready_file is not None:
        settings.ready_file.unlink(missing_ok=True)
    log.info("chain_stopped", block=int(node.ledger.head.block_number))


async def _stop_on_signal(server: uvicorn.Server) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            server.should_exit = True


async def _announce(
    server: _Server, node: ChainNode, data: DataDir, settings: ChainSettings, listener: socket.socket
) -> None:
    await server.listening.wait()
    host, port = listener.getsockname()[:2]
    ready = {
        "rpc_url": f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}",
        "chain_id": settings.chain_id,
        "genesis_hash": "0x" + node.ledger.genesis_hash.hex(),
        "faucet": "0x" + data.genesis.faucet.hex(),
        "pid": os.getpid(),
    }
    if settings.ready_file is not None:
        await anyio.to_thread.run_sync(write_file, settings.ready_file, json.dumps(ready).encode() + b"\n")
    log.info("chain_ready", block=int(node.ledger.head.block_number), **ready)


def _listen(settings: ChainSettings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
        listener.listen(128)
    except OSError as exc:
        listener.close()
        raise ConfigInvalid([f"port: cannot listen on {settings.host}:{settings.port}: {exc.strerror}"]) from exc
    return listener
