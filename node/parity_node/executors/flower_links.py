"""The two Unix sockets of a SuperNode: to the part's trainer, and to the one SuperLink that its manifest names.

A sandboxed SuperNode has no network. Its way out is a socket whose other end is here, and leads to that address alone.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
from anyio.abc import ByteReceiveStream, ByteSendStream, ByteStream, SocketStream
from anyio.streams.buffered import BufferedByteReceiveStream

from parity_blobs.public_address import Resolver, resolve_public, system_resolver
from parity_fl.limits import MAX_UPDATE_BYTES
from parity_protocol.errors import ParityError
from parity_protocol.join import is_loopback

__all__ = ["Asked", "relay", "serve_trainer", "superlink_address"]

MAX_HEADER_BYTES = 1 << 16
MAX_CONNECTIONS = 64  # of a SuperNode to its SuperLink at once
CONNECT_S = 20.0
PIECE_BYTES = 1 << 16
_BROKEN = (anyio.BrokenResourceError, anyio.EndOfStream, anyio.ClosedResourceError, anyio.IncompleteRead, OSError)


@dataclass
class Asked:
    """A ClientApp's question, and room for its answer."""

    header: Mapping[str, Any]
    body: bytes
    answered: anyio.Event = field(default_factory=anyio.Event)
    reply: tuple[dict[str, Any], bytes] = ({}, b"")

    def answer(self, header: Mapping[str, Any], body: bytes = b"") -> None:
        """Answer it; only the first answer counts."""
        if not self.answered.is_set():
            self.reply = ({**header}, body)
            self.answered.set()


async def serve_trainer(path: Path, take: Callable[[Asked], Awaitable[None]]) -> None:
    """Answer ClientApps until cancelled; ``take`` gets each question, and somebody answers it."""

    async def talk(stream: SocketStream) -> None:
        async with stream:
            with suppress(*_BROKEN, ValueError):
                reader = BufferedByteReceiveStream(stream)
                while True:
                    asked = await _question(reader)
                    await take(asked)
                    await asked.answered.wait()
                    header, body = asked.reply
                    text = json.dumps({**header, "size": len(body)}).encode()
                    await stream.send(struct.pack(">I", len(text)) + text)
                    await stream.send(body)

    await _listen(path, talk)


async def _question(reader: BufferedByteReceiveStream) -> Asked:
    (length,) = struct.unpack(">I", await reader.receive_exactly(4))
    if length > MAX_HEADER_BYTES:
        raise ValueError(f"a header of {length} bytes")
    header = json.loads(await reader.receive_exactly(length))
    size = header.get("size") if isinstance(header, dict) else None
    if not isinstance(size, int) or not 0 <= size <= MAX_UPDATE_BYTES:
        raise ValueError("a header without a size")
    return Asked(header, await reader.receive_exactly(size))


async def superlink_address(host: str, port: int, *, market_host: str, resolver: Resolver = system_resolver) -> str:
    """Return what to connect to: the market's own host as it is, any other one by an address that is public.

    A manifest must not make a node knock on the doors of its operator's network.

    Raises:
        PolicyDenied: The host is another one, and not public.
        Unreachable: It has no address.
    """
    if host.lower() == market_host.lower() or (is_loopback(host) and is_loopback(market_host)):
        return host
    return (await resolve_public(host, port, resolver=resolver))[0]


async def relay(path: Path, host: str, port: int, *, market_host: str) -> None:
    """Carry connections to one SuperLink until cancelled; the bytes are TLS between others."""
    room = anyio.CapacityLimiter(MAX_CONNECTIONS)

    async def carry(inner: SocketStream) -> None:
        async with inner, room:
            with suppress(*_BROKEN, TimeoutError, ParityError):
                with anyio.fail_after(CONNECT_S):
                    outer = await anyio.connect_tcp(await superlink_address(host, port, market_host=market_host), port)
                async with outer:
                    await _both_ways(inner, outer)

    await _listen(path, carry)


async def _both_ways(inner: ByteStream, outer: ByteStream) -> None:
    async with anyio.create_task_group() as group:

        async def pump(source: ByteReceiveStream, target: ByteSendStream) -> None:
            with suppress(*_BROKEN):
                while True:
                    await target.send(await source.receive(PIECE_BYTES))
            group.cancel_scope.cancel()

        group.start_soon(pump, inner, outer)
        group.start_soon(pump, outer, inner)


async def _listen(path: Path, handle: Callable[[SocketStream], Awaitable[None]]) -> None:
    await anyio.Path(path).unlink(missing_ok=True)
    listener = await anyio.create_unix_listener(path, mode=0o600)  # in a folder of mode 0700
    try:
        await listener.serve(handle)
    finally:
        with anyio.CancelScope(shield=True):
            await listener.aclose()
            await anyio.Path(path).unlink(missing_ok=True)
