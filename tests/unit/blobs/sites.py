"""Gateways in memory that break, lie or dawdle, and what tests ask of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx

from parity_blobs.base import BlobStore
from parity_blobs.car import car_header, car_section_prefix
from parity_blobs.cid import Block, Cid
from parity_blobs.export import iter_dag, iter_file
from parity_blobs.gateway import DEFAULT_FETCH_LIMITS, TrustlessGateway
from parity_blobs.importer import CHUNK_BYTES, DEFAULT_OPTIONS, AddOptions
from parity_blobs.memory import MemoryBlobStore
from parity_blobs.plain import MIN_PLAIN_BYTES
from parity_blobs.testing import deterministic_bytes, in_pieces

__all__ = ["HURRIED", "LARGE", "SMALL", "Body", "Damage", "Net", "Site", "content", "dag_of", "names_in"]

SMALL = deterministic_bytes(500, 9 * CHUNK_BYTES + 17)


LARGE = deterministic_bytes(501, MIN_PLAIN_BYTES + 3 * CHUNK_BYTES + 5)


HURRIED = replace(DEFAULT_FETCH_LIMITS, hedge_s=0.01)


Damage = Callable[[str, bytes], bytes]  # from the form and the honest body to what is sent


@dataclass
class Site:
    """A gateway that has one DAG, and may damage or cut what it sends."""

    blocks: list[Block]
    has_car: bool = True
    has_file: bool = True
    has_ranges: bool = True
    damage: Damage | None = None
    cut_at: int | None = None  # bytes of each answer, after which the connection breaks
    status: int = 200

    def answer(self, request: httpx.Request) -> httpx.Response:
        held = {block.cid.key: block.data for block in self.blocks}
        cid = Cid.parse(request.url.path.rpartition("/")[2])
        form = request.url.params.get("format", "file")
        if self.status != 200:
            return httpx.Response(self.status, headers={"retry-after": "60"})
        if cid.key not in held:
            return httpx.Response(404)
        if (form == "car" and not self.has_car) or (form == "file" and not self.has_file):
            return httpx.Response(406)
        status, kind = 200, "application/octet-stream"
        if form == "raw":
            body = held[cid.key]
        elif form == "car":
            kind = "application/vnd.ipld.car; version=1"
            dag = iter_dag(cid, lambda each: held[each.key])
            body = car_header(cid) + b"".join(car_section_prefix(*_measured(block)) + block.data for block in dag)
        else:
            body = b"".join(iter_file(cid, lambda each: held[each.key], max_bytes=1 << 40))
            if self.has_ranges and (start := request.headers.get("range")):
                status, body = 206, body[int(start.removeprefix("bytes=").removesuffix("-")) :]
        if self.damage is not None:
            body = self.damage(form, body)
        return httpx.Response(status, stream=Body(body, self.cut_at), headers={"content-type": kind})


def _measured(block: Block) -> tuple[Cid, int]:
    return block.cid, len(block.data)


class Body(httpx.AsyncByteStream):
    def __init__(self, body: bytes, cut_at: int | None) -> None:
        self._body = body
        self._cut_at = cut_at

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for piece in in_pieces(self._body[: self._cut_at], 50_001):
            yield piece
        if self._cut_at is not None and self._cut_at < len(self._body):
            raise httpx.ReadError("reset by peer")


class Net:
    """Sites by host; notes who was asked for what."""

    def __init__(self, **sites: Site) -> None:
        self.sites = sites
        self.asked: list[tuple[str, str, str]] = []  # host, form, CID

    async def handle(self, request: httpx.Request) -> httpx.Response:
        host = request.url.host.removesuffix(".example")
        form = request.url.params.get("format", "file")
        self.asked.append((host, form, request.url.path.rpartition("/")[2]))
        return self.sites[host].answer(request)

    def client(self, **options: Any) -> TrustlessGateway:
        return TrustlessGateway(
            [f"https://{host}.example" for host in self.sites], transport=httpx.MockTransport(self.handle), **options
        )

    def hosts(self) -> set[str]:
        return {host for host, _, _ in self.asked}


async def dag_of(data: bytes, options: AddOptions = DEFAULT_OPTIONS) -> list[Block]:
    source = MemoryBlobStore()
    return [block async for block in source.blocks(await source.put_bytes(data, options=options))]


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def content(store: BlobStore, cid: Cid) -> bytes:
    return b"".join([piece async for piece in store.open(cid, max_bytes=1 << 30)])
