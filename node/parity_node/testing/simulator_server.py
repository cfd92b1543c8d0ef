"""The simulated market on a port of this process, for nodes in processes of their own."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import anyio
import uvicorn

from parity_node.testing.market import MarketSimulator
from parity_node.testing.simulator_app import simulator_app

__all__ = ["serving"]


class _QuietServer(uvicorn.Server):
    """Leaves the test process's signals alone."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextlib.asynccontextmanager
async def serving(
    market: MarketSimulator, listener: socket.socket, *, certificate: tuple[Path, Path] | None = None
) -> AsyncIterator[None]:
    """Answer on ``listener`` inside the block; after it the market is offline, which ends the polls that wait.

    Args:
        certificate: Files of a certificate and its key; None speaks plain HTTP.
    """
    config = uvicorn.Config(
        simulator_app(market),
        log_level="critical",
        lifespan="off",
        ssl_certfile=None if certificate is None else certificate[0],
        ssl_keyfile=None if certificate is None else certificate[1],
    )
    server = _QuietServer(config)
    async with anyio.create_task_group() as group:
        group.start_soon(server.serve, [listener])
        try:
            yield
        finally:
            market.go_offline()
            server.should_exit = True
