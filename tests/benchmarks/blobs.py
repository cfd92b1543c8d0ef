"""Reading a large blob with every block verified, beside reading it without: same file, same server, in turns."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from benchmarks.figures import Aim, Figure
from benchmarks.stage import open_stage
from parity_blobs.cid import Cid
from parity_blobs.files import add_path
from parity_blobs.gateway import TrustlessGateway
from parity_blobs.local import LocalBlobStore
from parity_blobs.testing_kubo import private_kubo
from parity_protocol.api import paths

__all__ = ["measure"]

MIB = 1 << 20
SIZE_BYTES = 128 * MIB
QUICK_SIZE_BYTES = 32 * MIB
RUNS = 3
PAIRS = 7
SHARE = Aim(70, "at least")
SERVICES = Path(__file__).resolve().parents[2] / "scripts" / "services"


async def measure(*, quick: bool) -> list[Figure]:
    """Return MB/s of verified reads from the market, from a Kubo and from disk, and of curl beside the first two."""
    size = QUICK_SIZE_BYTES if quick else SIZE_BYTES
    with TemporaryDirectory(prefix="parity-bench-") as name:
        folder = Path(name)
        source = folder / "source"
        source.write_bytes(os.urandom(size))
        local = await _local(folder, source, size)
        market = await _from_market(folder, source)
        kubo = await _from_kubo(folder, source)
    how = f"{size // MIB} MiB, median of {RUNS}"
    return [
        *market,
        *kubo,
        Figure("verified blob, local", local, "MB/s", note=f"{how}; from the node's own store"),
    ]


async def _from_market(folder: Path, source: Path) -> list[Figure]:
    async with open_stage() as stage, stage.client() as market:
        cid = (await market.data.add(source, visibility="public")).cid
        url = stage.stack.join.url + paths.gateway_path(cid)
        async with TrustlessGateway([stage.stack.join.url]) as gateway:
            return await _paired("from the market", gateway, Cid.parse(cid), url, source, folder)


async def _from_kubo(folder: Path, source: Path) -> list[Figure]:
    command = [str(SERVICES), "path", "kubo"]
    found = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False)
    if found.returncode != 0:
        return [Figure("verified blob, from Kubo", None, "MB/s", note=found.stderr.strip())]
    with ExitStack() as stack:
        place = Path(stack.enter_context(TemporaryDirectory(prefix="parity-bench-kubo-")))
        kubo = await asyncio.to_thread(stack.enter_context, private_kubo(Path(found.stdout.strip()), place))
        cid = await asyncio.to_thread(kubo.add, source, "--cid-version=1")
        async with TrustlessGateway([kubo.gateway]) as gateway:
            return await _paired("from Kubo", gateway, cid, f"{kubo.gateway}/ipfs/{cid}", source, folder)


async def _paired(
    where: str, gateway: TrustlessGateway, cid: Cid, url: str, source: Path, folder: Path
) -> list[Figure]:
    """Read with and without verification in turns, both into a new file, neither synced.

    The share is the median over the pairs: the two halves of one pair see the same machine, more or less.
    """
    data = await asyncio.to_thread(source.read_bytes)
    size = len(data)
    curl = shutil.which("curl")
    target = folder / "out"

    async def verified() -> None:
        await gateway.fetch_to(cid, target, max_bytes=size, is_durable=False)

    async def plain() -> None:
        await _curl(str(curl), url, target)

    ours, theirs = list[float](), list[float]()
    for _ in range(PAIRS):
        ours.append(await _speed(size, target, verified))
        if await asyncio.to_thread(target.read_bytes) != data:
            raise AssertionError("the blob that was fetched is not the one that was added")
        if curl is not None:
            theirs.append(await _speed(size, target, plain))
    how = f"{size // MIB} MiB, median of {PAIRS} turns; into a file, each block hashed; shares the processors with its server"
    figures = [Figure(f"verified blob, {where}", median(ours), "MB/s", note=how)]
    if curl is None:
        return [*figures, Figure(f"same file by curl, {where}", None, "MB/s", note="curl is not installed")]
    share = 100 * median(mine / yours for mine, yours in zip(ours, theirs, strict=True))
    return [
        *figures,
        Figure(f"same file by curl, {where}", median(theirs), "MB/s", note="the same turns, into a file"),
        Figure(f"verified share of curl, {where}", share, "%", SHARE, "median over the pairs"),
    ]


async def _local(folder: Path, source: Path, size: int) -> float:
    async with LocalBlobStore(folder / "blobs", max_bytes=4 * size) as store:
        added = await add_path(store, source)

        async def read() -> None:
            got = 0
            async for piece in store.open(added.cid, max_bytes=size):
                got += len(piece)
            assert got == size

        return median([await _speed(size, folder / "none", read) for _ in range(RUNS)])


async def _curl(program: str, url: str, target: Path) -> None:
    process = await asyncio.create_subprocess_exec(program, "-sf", "-o", str(target), url)
    if await process.wait() != 0:
        raise AssertionError(f"curl ended with status {process.returncode}")


async def _speed(size: int, target: Path, once: Callable[[], Awaitable[None]]) -> float:
    """Return the speed of one run, in 10^6 bytes a second."""
    await asyncio.to_thread(target.unlink, missing_ok=True)
    started = time.perf_counter()
    await once()
    return size / 1e6 / (time.perf_counter() - started)
