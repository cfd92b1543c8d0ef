"""Connections that ask for nothing: they end by themselves, and never keep others out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn

from parity_market.connections import MAX_HEAD_BYTES, ConnectionLimits, limited

GET = b"GET / HTTP/1.1\r\nHost: market\r\n\r\n"
HEAD_TIMEOUT_S = 0.3
WITHIN_S = 5.0


async def _hello(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
    await send({"type": "http.response.body", "body": b"hello"})


@asynccontextmanager
async def _served(max_connections: int = 8) -> AsyncIterator[int]:
    protocol = limited(ConnectionLimits(max_connections), head_timeout_s=HEAD_TIMEOUT_S)
    config = uvicorn.Config(_hello, port=0, http=protocol, ws="none", lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    running = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110  # uvicorn has no event for it
        await asyncio.sleep(0.01)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        await running


async def _exchange(port: int, data: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        async with asyncio.timeout(WITHIN_S):
            return await reader.read(65_536)
    except ConnectionError:
        return b""
    finally:
        writer.close()


async def test_a_head_that_never_ends_costs_its_connection() -> None:
    async with _served() as port:
        assert await _exchange(port, b"GET / HTTP/1.1\r\nHost: market\r\nX-Slow: ") == b""
        assert await _exchange(port, b"") == b""
        assert await _exchange(port, GET) != b""


async def test_a_second_request_has_no_longer_for_its_head() -> None:
    async with _served() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(GET)
        assert b"200" in await reader.readuntil(b"hello")

        writer.write(b"GET / HTTP/1.1\r\n")
        async with asyncio.timeout(WITHIN_S):
            try:
                rest = await reader.read(1)
            except ConnectionError:
                rest = b""

        assert rest == b""
        writer.close()


async def test_a_kept_connection_may_be_idle_between_two_requests() -> None:
    async with _served() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(2):
            writer.write(GET)
            assert b"200" in await reader.readuntil(b"hello")
            await asyncio.sleep(2 * HEAD_TIMEOUT_S)
        writer.close()


async def test_a_head_without_end_is_refused_before_it_fills_the_memory() -> None:
    async with _served() as port:
        head = b"GET / HTTP/1.1\r\nHost: market\r\n"

        answer = await _exchange(port, head + b"X-Long: " + b"a" * (4 * MAX_HEAD_BYTES))
        ordinary = await _exchange(port, head + b"X-Long: " + b"a" * 10_000 + b"\r\n\r\n")

    assert answer == b"" or b"400" in answer
    assert b"200" in ordinary


async def test_one_address_has_half_of_all_connections() -> None:
    async with _served(max_connections=8) as port:
        held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(8)]
        await asyncio.sleep(0.05)
        ended = 0
        for reader, _ in held[4:]:
            try:
                ended += await reader.read(1) == b""
            except ConnectionError:
                ended += 1
        assert ended == 4

        await asyncio.sleep(2 * HEAD_TIMEOUT_S)
        assert b"200" in await _exchange(port, GET)
        for _, writer in held:
            writer.close()


def test_an_address_leaves_room_for_others() -> None:
    limits = ConnectionLimits(4)

    assert [limits.take("a") for _ in range(3)] == [True, True, False]
    assert [limits.take("b") for _ in range(3)] == [True, True, False]
    assert limits.take("c") is False
    limits.give_back("a")
    assert limits.take("c") is True
