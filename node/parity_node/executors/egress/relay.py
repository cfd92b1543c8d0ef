"""Moving bytes between the task's program and a host: counted, watched, and ended when nothing moves."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Coroutine

import anyio

from parity_node.executors.egress.client_hello import read_hello
from parity_node.executors.egress.meter import Meter
from parity_node.executors.egress.refusals import Refusal
from parity_protocol.clock import Clock

__all__ = ["Tunnel", "linger", "send"]

CHUNK_BYTES = 65_536
IDLE_S = 120.0  # without a byte in either direction
_LINGER_S = 3.0  # for the other side to read the last bytes
_MAX_LINGER_BYTES = 1 << 20


class Tunnel:
    """One connection of a task to one host, after the host was found good.

    Args:
        host: The granted name; a TLS client that asks this host for another name is cut off.
        checks_tls: False for plain HTTP, whose Host header the proxy wrote itself.
    """

    def __init__(
        self,
        client: socket.socket,
        upstream: socket.socket,
        *,
        host: str,
        meter: Meter,
        clock: Clock,
        checks_tls: bool = True,
    ) -> None:
        self._client = client
        self._upstream = upstream
        self._host = host
        self._meter = meter
        self._clock = clock
        self._checks_tls = checks_tls
        self._moved_at = clock.monotonic()
        self._refusal: Refusal | None = None

    async def run(self, first: bytes, *, body_bytes: int | None = None) -> None:
        """Move bytes until the host has said its last, or nothing moves for ``IDLE_S``.

        Args:
            first: What the client has sent already.
            body_bytes: How many bytes the client may send in all; None is no bound.

        Raises:
            Refusal: The byte cap is reached, or the TLS client asks for another host.
        """
        async with anyio.create_task_group() as group:

            async def down() -> None:
                await self._guarded(self._down())
                group.cancel_scope.cancel()

            async def up() -> None:
                if not await self._guarded(self._up(first, body_bytes)):
                    group.cancel_scope.cancel()

            async def watch() -> None:
                await self._watch()
                group.cancel_scope.cancel()

            for each in (down, up, watch):
                group.start_soon(each)
        if self._refusal is not None:
            raise self._refusal
        await linger(self._client)

    async def _guarded(self, work: Coroutine[object, object, None]) -> bool:
        """Return whether ``work`` came to its proper end."""
        try:
            await work
        except Refusal as refusal:
            self._refusal = self._refusal or refusal
        except OSError:  # either side hung up
            return False
        return self._refusal is None

    async def _watch(self) -> None:
        while (left_s := self._moved_at + IDLE_S - self._clock.monotonic()) > 0:
            await self._clock.sleep(left_s)

    async def _up(self, first: bytes, body_bytes: int | None) -> None:
        held = bytearray(first)
        is_checked = not self._checks_tls
        left = body_bytes
        while True:
            if not is_checked:
                is_checked = self._check(bytes(held))
            if is_checked and held:
                data = bytes(held if left is None else held[:left])
                held.clear()
                left = None if left is None else left - len(data)
                await self._pass(self._upstream, data)
            if left == 0:
                return
            data = await self._read(self._client)
            if not data:
                if held and not is_checked:
                    raise ConnectionResetError("ended within its first message")
                self._upstream.shutdown(socket.SHUT_WR)
                return
            held += data

    async def _down(self) -> None:
        while data := await self._read(self._upstream):
            await self._pass(self._client, data)

    async def _read(self, source: socket.socket) -> bytes:
        # A socket that always has data would never let the event loop's other tasks run.
        await asyncio.sleep(0)
        data = await asyncio.get_running_loop().sock_recv(source, CHUNK_BYTES)
        self._moved_at = self._clock.monotonic()
        return data

    async def _pass(self, sink: socket.socket, data: bytes) -> None:
        allowed = self._meter.take(len(data))
        if allowed:
            await asyncio.get_running_loop().sock_sendall(sink, data[:allowed])
            self._moved_at = self._clock.monotonic()
        if allowed < len(data):
            why = f"the task's {self._meter.max_bytes} bytes of network, both directions together, are used up"
            raise Refusal("egress.max_bytes", self._host, why)

    def _check(self, held: bytes) -> bool:
        """Return whether the client's first message is known, and good."""
        hello = read_hello(held)
        if hello is None:
            return False
        if hello.is_tls and not hello.is_readable:
            raise Refusal("egress.server_name", self._host, "its TLS hello cannot be read")
        for name in hello.server_names:
            if name != self._host:
                raise Refusal("egress.server_name", self._host, f"TLS asks this host for another one, {name!r}")
        return True


async def send(sock: socket.socket, data: bytes) -> None:
    """Send all of ``data``; a side that has gone is no error."""
    try:
        await asyncio.get_running_loop().sock_sendall(sock, data)
    except OSError:
        return


async def linger(sock: socket.socket) -> None:
    """Let the other side read what was sent: closing at once, with bytes unread, would take them back."""
    loop = asyncio.get_running_loop()
    try:
        sock.shutdown(socket.SHUT_WR)
        left = _MAX_LINGER_BYTES
        with anyio.move_on_after(_LINGER_S):
            while left > 0 and (data := await loop.sock_recv(sock, CHUNK_BYTES)):
                left -= len(data)
    except OSError:
        return
