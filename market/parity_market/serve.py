"""``parity market serve``: the composition root. Everything is opened here, in order, and closed in reverse."""

from __future__ import annotations

import asyncio
import fcntl
import gc
import os
import resource
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import structlog
import uvicorn
from fastapi import FastAPI

from parity_contracts.chain.web3_chain import Web3Chain
from parity_contracts.deployment import Deployment
from parity_fl.settings import FlSettings
from parity_market import loops
from parity_market.app import Lifespan, create_app
from parity_market.assembly import assemble
from parity_market.connections import ConnectionLimits, limited
from parity_market.identity import load_identity
from parity_market.init import load_deployment
from parity_market.keys import CERTIFICATE, CERTIFICATE_KEY, load_keys
from parity_market.logging import configure_logging
from parity_market.settings import MarketSettings
from parity_market.state import MarketState
from parity_protocol.clock import Clock, SystemClock
from parity_protocol.errors import ChainUnavailable, ConfigInvalid

__all__ = ["open_market", "serve"]

log = structlog.get_logger(__name__)

CHAIN_WAIT_S = 60.0  # for the chain to answer at start-up
KEEP_ALIVE_S = 75  # longer than the longest poll, so that idle connections survive between two
GC_THRESHOLD = 10_000  # new objects between two looks for cycles
OWN_FILES = 512  # database, blobs, chain and child processes
GRACE_S = 10  # for open requests at shutdown


@asynccontextmanager
async def open_market(
    settings: MarketSettings,
    *,
    port: int,
    version: str,
    clock: Clock | None = None,
    training: FlSettings | None = None,
) -> AsyncIterator[MarketState]:
    """Open a market's parts; its loops are not running yet.

    Args:
        settings: As loaded.
        port: That will be listened on.
        version: This program's.
        clock: Source of time.
        training: As of ``assemble``.

    Raises:
        ConfigInvalid: Keys, contracts or database are missing, malformed or of another chain.
        ChainUnavailable: The chain did not answer for a minute.
    """
    clock = clock or SystemClock()
    folder = settings.state_dir()
    keys, deployment = load_keys(folder), load_deployment(folder)
    identity = load_identity(keys, settings, deployment, port=port, version=version, now=clock.now())
    async with AsyncExitStack() as stack:
        chain = await _connect(settings, deployment, clock)
        stack.push_async_callback(chain.aclose)
        yield await stack.enter_async_context(
            assemble(
                settings,
                port=port,
                version=version,
                keys=keys,
                identity=identity,
                deployment=deployment,
                chain=chain,
                clock=clock,
                training=training,
            )
        )


async def _connect(settings: MarketSettings, deployment: Deployment, clock: Clock) -> Web3Chain:
    deadline = clock.monotonic() + CHAIN_WAIT_S
    while True:
        try:
            return await Web3Chain.connect(settings.blockchain_rpc, deployment)
        except ChainUnavailable as exc:
            if clock.monotonic() >= deadline:
                raise
            log.warning("chain_unavailable", rpc=settings.blockchain_rpc, problem=exc.message)
        await clock.sleep(1.0)


def serve(
    settings: MarketSettings,
    *,
    version: str,
    ready: Callable[[str], None] | None = None,
    training: FlSettings | None = None,
) -> None:
    """Run the market until it is told to stop (SIGINT or SIGTERM).

    Args:
        settings: As loaded.
        version: This program's.
        ready: Told the join string once requests are answered.
        training: As of ``assemble``.

    Raises:
        ConfigInvalid: The settings or the state folder are not usable, or another market runs on it.
        ChainUnavailable: The chain did not answer for a minute.
    """
    configure_logging(settings.market_log_level, settings.market_log_format)
    lock = _lock(settings.state_dir())
    try:
        listener = _listen(settings)
        try:
            with asyncio.Runner(loop_factory=_loop) as runner:
                runner.run(_serve(settings, listener, version, ready, training))
        finally:
            listener.close()
    finally:
        os.close(lock)


def _loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:  # not on every platform; the standard loop is slower, not wrong
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


async def _serve(
    settings: MarketSettings,
    listener: socket.socket,
    version: str,
    ready: Callable[[str], None] | None,
    training: FlSettings | None,
) -> None:
    port = listener.getsockname()[1]
    folder = settings.state_dir()
    async with open_market(settings, port=port, version=version, training=training) as state:
        await state.scheduler.load()
        await loops.start_up(state)
        failure: list[ConfigInvalid] = []

        def refuse(error: ConfigInvalid) -> None:
            failure.append(error)
            server.should_exit = True

        server = _Server(
            state.scheduler.close,
            uvicorn.Config(
                create_app(state, _lifespan(state, ready, port, refuse)),
                http=limited(ConnectionLimits(settings.market_max_connections)),
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
                date_header=False,
                limit_concurrency=settings.market_max_connections + 1,  # the protocol refuses before that
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=GRACE_S,
                ssl_certfile=str(folder / CERTIFICATE) if settings.serves_tls() else None,
                ssl_keyfile=str(folder / CERTIFICATE_KEY) if settings.serves_tls() else None,
            ),
        )
        _settle_memory()
        _allow_files(settings.market_max_connections + OWN_FILES)
        await server.serve(sockets=[listener])
        if failure:
            raise failure[0]
        if not server.started:
            raise ConfigInvalid(["the market could not start; the log says why"])


class _Server(uvicorn.Server):
    """Ends the long polls before it waits for open requests to end."""

    def __init__(self, stop_waiting: Callable[[], None], config: uvicorn.Config) -> None:
        super().__init__(config)
        self._stop_waiting = stop_waiting

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop serving."""
        self._stop_waiting()
        await super().shutdown(sockets)
        self._captured_signals.clear()  # else the signal that asked for this is raised again, and the exit status is its


def _allow_files(wanted: int) -> None:
    """Raise this process's limit of open files: a connection is one, and many systems begin with 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _settle_memory() -> None:
    """Leave modules and other lasting things to themselves, and look for cycles seldom: hardly anything here has any."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD, 20, 20)


def _lifespan(
    state: MarketState, ready: Callable[[str], None] | None, port: int, refuse: Callable[[ConfigInvalid], None]
) -> Lifespan:
    async def work() -> None:
        try:
            await loops.run_all(state)
        except ConfigInvalid as exc:  # the endpoint has another chain now: nothing more may be promised or paid
            log.critical("market_stops", problem=exc.message)
            refuse(exc)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            running = group.create_task(work())
            join = state.identity.join(state.settings, port)
            log.info("market_ready", url=state.public_url, join=str(join), version=state.version)
            if ready is not None:
                ready(str(join))
            yield
            running.cancel()

    return lifespan


def _listen(settings: MarketSettings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.server_host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # named, or asyncio sets no TCP_NODELAY
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((settings.server_host, settings.server_port))
        listener.listen(1024)
    except OSError as exc:
        listener.close()
        place = f"{settings.server_host}:{settings.server_port}"
        raise ConfigInvalid([f"SERVER_HOST, SERVER_PORT: cannot listen on {place}: {exc.strerror}"]) from exc
    return listener


def _lock(folder: Path) -> int:
    """Keep a second market off this state folder; the lock goes with the process."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        os.close(descriptor)
        raise ConfigInvalid([f"another market runs on {folder}"]) from exc
    return descriptor
