"""Answers leave in one piece."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from parity_market.http_protocol import FLUSH_BYTES, _JoiningTransport


class _Recorder:
    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.is_closed = False

    def write(self, data: bytes) -> None:
        self.writes.append(data)

    def close(self) -> None:
        self.is_closed = True

    def is_closing(self) -> bool:
        return self.is_closed

    def get_extra_info(self, name: str) -> Any:
        return f"the {name}"


@pytest.fixture
def under() -> _Recorder:
    return _Recorder()


def _joining(under: _Recorder) -> _JoiningTransport:
    return _JoiningTransport(cast("asyncio.Transport", under), asyncio.get_running_loop())


async def test_what_is_written_in_one_turn_goes_out_together(under: _Recorder) -> None:
    transport = _joining(under)

    transport.write(b"head ")
    transport.write(b"body")
    assert under.writes == []
    await asyncio.sleep(0)
    transport.write(b"next")
    await asyncio.sleep(0)

    assert under.writes == [b"head body", b"next"]


async def test_closing_sends_what_waits_first(under: _Recorder) -> None:
    transport = _joining(under)

    transport.write(b"last words")
    transport.close()
    await asyncio.sleep(0)

    assert (under.writes, under.is_closed) == ([b"last words"], True)


async def test_much_is_not_held_back(under: _Recorder) -> None:
    transport = _joining(under)

    transport.write(b"x" * FLUSH_BYTES)

    assert under.writes == [b"x" * FLUSH_BYTES]


async def test_nothing_is_written_to_a_connection_that_has_gone(under: _Recorder) -> None:
    transport = _joining(under)

    transport.write(b"too late")
    under.is_closed = True
    await asyncio.sleep(0)

    assert under.writes == []


async def test_the_rest_is_the_transport_underneath(under: _Recorder) -> None:
    assert _joining(under).get_extra_info("peername") == "the peername"
