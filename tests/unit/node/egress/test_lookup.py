from __future__ import annotations

import asyncio
import socket
import threading

import pytest

from parity_node.executors.egress.lookup import Lookups

Answer = tuple[int, int, int, str, tuple[str, int]]


class NameServer:
    """Stands in for the C library: answers when it is told to."""

    def __init__(self) -> None:
        self.may_answer = threading.Event()
        self.asked: list[str] = []

    def __call__(self, host: str, port: int, *, type: int) -> list[Answer]:  # noqa: A002 - the C library's word
        self.asked.append(host)
        self.may_answer.wait(20)
        if host == "unknown.example.":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, type, 6, "", (address, port)) for address in ("192.0.2.7", "192.0.2.7", "192.0.2.8")]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> NameServer:
    made = NameServer()
    monkeypatch.setattr(socket, "getaddrinfo", made)
    return made


async def test_a_name_is_looked_up_as_a_complete_one(server: NameServer) -> None:
    server.may_answer.set()

    assert await Lookups()("example.org", 443) == ["192.0.2.7", "192.0.2.8"]
    assert server.asked == ["example.org."]


async def test_an_unknown_name_is_an_os_error(server: NameServer) -> None:
    server.may_answer.set()

    with pytest.raises(OSError, match="not known"):
        await Lookups()("unknown.example", 443)


async def test_lookups_that_nobody_waits_for_still_count(server: NameServer) -> None:
    lookups = Lookups()
    given_up = [asyncio.create_task(lookups(f"h{each}.example", 443)) for each in range(4)]
    await asyncio.sleep(0)
    for task in given_up:
        task.cancel()
    await asyncio.wait(given_up)

    waiting = asyncio.create_task(lookups("example.org", 443))
    for _ in range(5):
        await asyncio.sleep(0)
    asked_before = list(server.asked)
    server.may_answer.set()
    found = await asyncio.wait_for(waiting, 20)

    assert "example.org." not in asked_before
    assert found == ["192.0.2.7", "192.0.2.8"]
