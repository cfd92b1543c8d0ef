"""Campaign A11: a corpus of hostile URLs and a rebinding zone lead to no connection to a non-public address.

Checked where it counts: an audit hook sees every ``connect`` of this process, whatever code makes it, and stops it.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import re
import socket
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from parity_blobs.https_fetch import HttpsFetcher, HttpsLimits
from parity_blobs.public_address import connect_public, parse_https_url
from parity_node.executors.egress import EgressProxy
from parity_protocol.clock import SystemClock
from parity_protocol.errors import BadField, ParityError, PolicyDenied, Unreachable
from parity_protocol.needs import Egress

CORPUS = json.loads((Path(__file__).parents[1] / "vectors" / "ssrf" / "hostile_urls.json").read_text())
PUBLIC = "93.184.215.14"


class Witness:
    """Sees and stops each TCP connection of this process, but those to its own test listener."""

    def __init__(self) -> None:
        self.is_watching = False
        self.seen: list[str] = []
        self.own: tuple[str, int] | None = None

    def __call__(self, event: str, args: tuple[object, ...]) -> None:
        if event != "socket.connect" or not self.is_watching:
            return
        sock, address = args
        if not isinstance(sock, socket.socket) or sock.type != socket.SOCK_STREAM or not isinstance(address, tuple):
            return
        if address != self.own:
            self.seen.append(str(address[0]))
            raise ConnectionRefusedError("stopped by the test")


WITNESS = Witness()
sys.addaudithook(WITNESS)  # cannot be taken away again; it looks away outside of these tests


@pytest.fixture
def witness() -> Iterator[Witness]:
    WITNESS.seen, WITNESS.own, WITNESS.is_watching = [], None, True
    yield WITNESS
    WITNESS.is_watching = False


class HostileZone:
    """Answers from the corpus; a name that the C library would read as an address is read so; one name rebinds."""

    def __init__(self) -> None:
        self.asked = 0

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        if host == "rebind.example":
            self.asked += 1
            return [PUBLIC if self.asked == 1 else "127.0.0.1"]
        if host in CORPUS["names"]:
            return list(CORPUS["names"][host])
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
        return [str(each[4][0]) for each in found]


def is_private(address: str) -> bool:
    return not ipaddress.ip_address(address.partition("%")[0]).is_global


async def test_hostile_urls_make_no_connection(witness: Witness) -> None:
    zone = HostileZone()
    outcomes: dict[str, int] = {}

    for url in CORPUS["urls"]:
        if "rebind.example" in url:
            continue
        with pytest.raises(ParityError) as caught:
            await connect_public(*parse_https_url(url), resolver=zone)
        outcomes[caught.value.code] = outcomes.get(caught.value.code, 0) + 1

    assert witness.seen == []
    assert sum(outcomes.values()) >= 200
    assert set(outcomes) == {BadField.code, PolicyDenied.code, Unreachable.code}


@dataclass(frozen=True)
class Source:
    url: str
    sha256: str = "0" * 64
    size: int = 1


async def test_inputs_by_url_make_no_connection_either(witness: Witness) -> None:
    zone = HostileZone()

    async def connect(host: str, port: int) -> socket.socket:
        return await connect_public(host, port, resolver=zone)

    async with HttpsFetcher(clock=SystemClock(), limits=HttpsLimits(tries=1), connect=connect) as fetcher:
        for url in CORPUS["urls"]:
            with pytest.raises(ParityError):
                await anext(fetcher.stream(Source(url)))

    assert set(witness.seen) <= {PUBLIC}


async def test_the_guard_below_the_grammar_stops_them_too(witness: Witness) -> None:
    """Every host of the corpus, however a careless parser reads it, and whatever the C library makes of it."""
    zone = HostileZone()
    hosts = {host for url in CORPUS["urls"] for host in _careless_hosts(url)}

    for host in hosts - {"rebind.example"}:
        with pytest.raises(ParityError):
            await connect_public(host, 443, resolver=zone)

    assert len(hosts) >= 150
    assert witness.seen == []


async def test_a_rebinding_name_is_connected_to_where_it_was_checked(witness: Witness) -> None:
    zone = HostileZone()

    for _ in range(3):
        with pytest.raises(ParityError):
            await connect_public("rebind.example", 443, resolver=zone)

    assert witness.seen == [PUBLIC]


async def test_the_witness_sees_what_the_standard_library_would_have_done(witness: Witness) -> None:
    """The negative control: without our guard the same corpus does reach this machine."""
    for text in ("127.1", "2130706433", "0x7f000001", "0177.0.0.1", "::ffff:127.0.0.1"):
        with pytest.raises(OSError, match="stopped"):
            await asyncio.get_running_loop().create_connection(asyncio.Protocol, text, 443)

    assert all(is_private(address) for address in witness.seen)
    assert len(witness.seen) == 5


async def test_the_proxy_makes_no_connection_for_a_hostile_host(tmp_path: Path, witness: Witness) -> None:
    names = sorted(name for name in CORPUS["names"] if re.fullmatch(r"[a-z0-9.-]+\.[a-z]+", name))
    log: list[str] = []
    proxy = EgressProxy(
        Egress(domains=(*names, *(f"{name}:80" for name in names))[:32]),
        folder=tmp_path,
        on_refusal=log.append,
        execution_id="e1",
        clock=SystemClock(),
        resolver=HostileZone(),
    )
    listener = socket.create_server(("127.0.0.1", 0))
    witness.own = listener.getsockname()
    proxy.attach(listener)
    hosts = sorted({host for url in CORPUS["urls"] for host in _careless_hosts(url)})
    asked = 0
    try:
        for host in hosts:
            for request in (f"CONNECT {host}:443 HTTP/1.1", f"GET http://{host}/ HTTP/1.1"):
                reader, writer = await asyncio.open_connection(*witness.own)
                writer.write(f"{request}\r\n\r\n".encode("utf-8", errors="replace"))
                answer = await asyncio.wait_for(reader.read(), 10)
                writer.close()
                assert answer.split(b" ")[1] in {b"400", b"403", b"502"}, (request, answer)
                asked += 1
    finally:
        await proxy.aclose()

    assert asked >= 300
    assert set(witness.seen) <= {PUBLIC}
    assert log


def _careless_hosts(url: str) -> set[str]:
    """Return the hosts that sloppy parsers find in ``url``."""
    found = set()
    try:
        found.add(urlsplit(url).hostname or "")
    except ValueError:
        pass
    after = re.sub(r"^[a-z+]*:?[/\\]*", "", url, flags=re.IGNORECASE)
    for text in (after, after.rpartition("@")[2]):
        host = re.split(r"[/?#\\@\r\n]", text, maxsplit=1)[0]
        found |= {host, host.rpartition(":")[0], host.strip("[]")}
    return {host for host in found if host and "\n" not in host and "\r" not in host}
