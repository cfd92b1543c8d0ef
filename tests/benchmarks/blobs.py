"""Reading a large blob with every block verified, beside reading it without."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from benchmarks.figures import Figure
from benchmarks.stage import open_stage
from parity_blobs.files import add_path
from parity_blobs.local import LocalBlobStore
from parity_protocol.api import paths

__all__ = ["measure"]

MIB = 1 << 20
SIZE_BYTES = 128 * MIB
QUICK_SIZE_BYTES = 32 * MIB
RUNS = 3


async def measure(*, quick: bool) -> list[Figure]:
    """Return MB/s of the client through the market's gateway, of a local verified read, and of curl."""
    size = QUICK_SIZE_BYTES if quick else SIZE_BYTES
    how = f"{size // MIB} MiB, median of {RUNS}"
    with TemporaryDirectory(prefix="parity-bench-") as name:
        folder = Path(name)
        source = folder / "source"
        source.write_bytes(os.urandom(size))
        local = await _local(folder, source, size)
        async with open_stage() as stage, stage.client() as market:
            cid = (await market.data.add(source, visibility="public")).cid
            url = stage.stack.join.url + paths.gateway_path(cid)
            curl = shutil.which("curl")
            plain = None if curl is None else await _speed(size, lambda: _curl(str(curl), url, folder))

            async def fetch() -> None:
                await market.data.get(cid, _fresh(folder))

            verified = await _speed(size, fetch)
        if (folder / "out").read_bytes() != source.read_bytes():
            raise AssertionError("the blob that was fetched is not the one that was added")
    return [
        Figure("verified blob, from the market", verified, "MB/s", note=f"{how}; to a file, each block hashed"),
        Figure("verified blob, local", local, "MB/s", note=f"{how}; from the node's own store"),
        Figure("same file by curl", plain, "MB/s", note=how if curl else "curl is not installed"),
    ]


async def _local(folder: Path, source: Path, size: int) -> float:
    async with LocalBlobStore(folder / "blobs", max_bytes=4 * size) as store:
        added = await add_path(store, source)

        async def read() -> None:
            got = 0
            async for piece in store.open(added.cid, max_bytes=size):
                got += len(piece)
            assert got == size

        return await _speed(size, read)


async def _curl(program: str, url: str, folder: Path) -> None:
    process = await asyncio.create_subprocess_exec(program, "-sf", "-o", str(_fresh(folder)), url)
    if await process.wait() != 0:
        raise AssertionError(f"curl ended with status {process.returncode}")


def _fresh(folder: Path) -> Path:
    target = folder / "out"
    target.unlink(missing_ok=True)
    return target


async def _speed(size: int, once: Callable[[], Awaitable[None]]) -> float:
    """Return the median speed of a few runs, in 10^6 bytes a second."""
    took = []
    for _ in range(RUNS):
        started = time.perf_counter()
        await once()
        took.append(time.perf_counter() - started)
    return size / 1e6 / median(took)
