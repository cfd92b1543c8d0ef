"""Work for a caller who may go away while it waits."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from starlette.requests import ClientDisconnect, Request

from parity_market.waiting import while_connected

Receive = Callable[[], Awaitable[dict[str, Any]]]


def request_from(receive: Receive) -> Request:
    return Request({"type": "http", "method": "POST", "path": "/", "headers": []}, receive)


async def stays() -> dict[str, Any]:
    await asyncio.Event().wait()
    raise AssertionError


async def test_work_of_a_caller_who_stays_returns_its_value() -> None:
    async def work() -> str:
        return "done"

    assert await while_connected(request_from(stays), work()) == "done"


async def test_error_of_the_work_comes_through() -> None:
    async def work() -> None:
        raise ValueError("as it was")

    with pytest.raises(ValueError, match="as it was"):
        await while_connected(request_from(stays), work())


async def test_work_is_cancelled_when_the_caller_goes_away() -> None:
    cancelled = asyncio.Event()
    messages = [{"type": "http.request", "body": b"", "more_body": False}, {"type": "http.disconnect"}]

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(0)
        return messages.pop(0)

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    with pytest.raises(ClientDisconnect):
        await while_connected(request_from(receive), work())
    assert cancelled.is_set()
