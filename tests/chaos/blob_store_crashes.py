"""Runs a store in forked processes, each killed at one system call later than the one before; see test_blob_store."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from parity_blobs.cid import Cid
from parity_blobs.importer import CHUNK_BYTES, cid_of_bytes
from parity_blobs.local import LocalBlobStore
from parity_blobs.local_index import LocalIndex
from parity_blobs.testing import deterministic_bytes, in_pieces

MAX_BYTES = 2 << 20
OLD = deterministic_bytes(80, 900_000)
LARGE = deterministic_bytes(81, 3 * CHUNK_BYTES + 5)
SMALL = deterministic_bytes(82, 1000)
ROOM = deterministic_bytes(83, 1_100_000)  # evicts OLD
WATCHED = ("open", "write", "writev", "pwrite", "fsync", "replace", "unlink", "mkdir", "close")
MAX_POINTS = 400


def die_at(count: int) -> None:
    """Replace what matters with itself plus a counter; the process ends itself, as by ``kill -9``, at ``count``."""
    left = count

    def watched(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return call

    for name in WATCHED:
        setattr(os, name, watched(getattr(os, name)))
    LocalIndex._run_one = staticmethod(watched(LocalIndex._run_one))  # type: ignore[method-assign] # before a commit
    Future.set_result = watched(Future.set_result)  # type: ignore[method-assign] # after it


async def work(folder: Path, done: int) -> None:
    """Put three objects, evict one and delete one; each step that was acknowledged is one byte on ``done``."""
    async with LocalBlobStore(folder, max_bytes=MAX_BYTES) as store:
        for step in (
            lambda: store.put_bytes(SMALL, pin=True),
            lambda: store.put(in_pieces(LARGE, CHUNK_BYTES), max_bytes=len(LARGE)),
            lambda: store.put_bytes(ROOM),
            lambda: store.delete(cid_of_bytes(LARGE)),
        ):
            await step()
            os.truncate(done, os.fstat(done).st_size + 1)


async def check(folder: Path, steps: int) -> None:
    """Every acknowledged step holds; whatever is here is whole; nothing else lies about."""
    async with LocalBlobStore(folder, max_bytes=MAX_BYTES) as store:
        here = {}
        for name, data in (("OLD", OLD), ("SMALL", SMALL), ("LARGE", LARGE), ("ROOM", ROOM)):
            cid = cid_of_bytes(data)
            here[name] = await store.stat(cid) is not None
            if here[name]:
                assert await read(store, cid) == data, f"{name} is not whole"
        assert here["SMALL"] or steps < 1, "an acknowledged small object is gone"
        assert here["LARGE"] or steps != 2, "an acknowledged large object is gone"
        assert here["ROOM"] or steps < 3, "an acknowledged object is gone"
        assert not here["LARGE"] or steps < 4, "an acknowledged delete came back"
        assert not list((folder / "tmp").iterdir()), "a temporary file was left"
        packs = {path.name for path in (folder / "packs").glob("*/*")}
        expected = {f"70-{cid_of_bytes(d).digest.hex()}.car" for n, d in NAMED if n != "SMALL" and here[n]}
        assert packs == expected, f"{packs} instead of {expected}"
        usage = await store.usage()
        stored = sum(len(path.read_bytes()) for path in (folder / "packs").glob("*/*"))
        assert usage.used == stored + (len(SMALL) if here["SMALL"] else 0), "the accounts are wrong"
        await store.put_bytes(SMALL)
        await store.put(in_pieces(LARGE), max_bytes=len(LARGE))
        assert await read(store, cid_of_bytes(LARGE)) == LARGE


NAMED = (("OLD", OLD), ("SMALL", SMALL), ("LARGE", LARGE), ("ROOM", ROOM))


async def read(store: LocalBlobStore, cid: Cid) -> bytes:
    return b"".join([piece async for piece in store.open(cid, max_bytes=1 << 30)])


async def prepare(folder: Path) -> None:
    async with LocalBlobStore(folder, max_bytes=MAX_BYTES) as store:
        await store.put_bytes(OLD)


def main(place: Path) -> int:
    template = place / "template"
    asyncio.run(prepare(template))
    for point in range(1, MAX_POINTS):
        folder = place / f"at-{point}"
        shutil.copytree(template, folder)
        done = os.open(place / f"done-{point}", os.O_RDWR | os.O_CREAT)
        child = os.fork()
        if child == 0:
            die_at(point)
            asyncio.run(work(folder, done))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        survived = os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0
        if not survived and not os.WIFSIGNALED(status):
            print(f"point {point}: the child failed with status {status}")
            return 1
        try:
            asyncio.run(check(folder, os.fstat(done).st_size))
        except AssertionError as exc:
            print(f"point {point}, after {os.fstat(done).st_size} steps: {exc}")
            return 1
        os.close(done)
        shutil.rmtree(folder)
        if survived:
            print(f"{point - 1} crash points")
            return 0
    return 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
