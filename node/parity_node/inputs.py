"""A task's inputs from wherever they are: by CID, by https with a signed digest, or a data set of the operator's own."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from types import MappingProxyType
from typing import Protocol, assert_never

import anyio
import anyio.to_thread
import structlog

from parity_blobs.base import BlobStore
from parity_blobs.cid import CODEC_RAW, Cid
from parity_blobs.files import export_path
from parity_blobs.importer import CHUNK_BYTES
from parity_node.data import ByCid, OpenStore, reason_of
from parity_node.shards import usable_shards
from parity_protocol.clock import Clock
from parity_protocol.errors import BadCid, DigestMismatch, ExecutionFailed, FailureReason, ParityError
from parity_protocol.needs import CidInput, HttpsInput, ShardInput

__all__ = ["BytesByHttps", "TaskInputs", "make_readable"]

MAX_KNOWN = 4_096  # digests of https inputs whose CID is remembered
NO_SHARDS: Mapping[str, Path] = MappingProxyType({})

log = structlog.get_logger(__name__)


class BytesByHttps(Protocol):
    """Fetches by https; ``parity_blobs.https_fetch.HttpsFetcher`` is one."""

    def stream(self, source: HttpsInput) -> AsyncGenerator[bytes]:
        """Yield the content; right only if it ends by itself."""
        ...


class TaskInputs:
    """Brings inputs of every kind to where a task reads them. ``aclose`` when done.

    Args:
        by_cid: Fetches content by CID.
        store: Opens the node's store, where https inputs are kept as well, under the same caps.
        known: Folder in which the CIDs of https inputs are noted by their digest.
        shards: The operator's data sets by the names that tasks use; each is looked at when a task asks for it.
        https: Fetches by https; None makes one when the first such input comes.
    """

    def __init__(
        self,
        by_cid: ByCid,
        *,
        store: OpenStore,
        known: Path,
        clock: Clock,
        shards: Mapping[str, Path] = NO_SHARDS,
        https: BytesByHttps | None = None,
    ) -> None:
        self._by_cid = by_cid
        self._store = store
        self._known = known
        self._clock = clock
        self._shards = shards
        self._https = https
        self._fetching: dict[str, anyio.Lock] = {}  # by digest: what two tasks need at once is fetched once
        self._resources = AsyncExitStack()

    async def fetch(self, cid: str, target: Path, *, max_bytes: int) -> int:
        """See ``ByCid.fetch``."""
        return await self._by_cid.fetch(cid, target, max_bytes=max_bytes)

    async def bring(self, item: CidInput | HttpsInput | ShardInput, target: Path) -> int:
        """See ``InputSource.bring``."""
        match item:
            case CidInput():
                size = await self.fetch(item.cid, target, max_bytes=item.max_bytes)
            case HttpsInput():
                size = await self._bring_by_https(item, target)
            case ShardInput():
                await anyio.to_thread.run_sync(self._link_shard, item, target)
                return 0
            case _:
                assert_never(item)
        await anyio.to_thread.run_sync(make_readable, target)
        return size

    async def aclose(self) -> None:
        """Close the connections; idempotent."""
        with anyio.CancelScope(shield=True):
            await self._resources.aclose()

    async def _bring_by_https(self, item: HttpsInput, target: Path) -> int:
        lock = self._fetching.setdefault(item.sha256, anyio.Lock())
        try:
            async with lock:
                store = await self._store()
                root = await self._here(store, item)
                if root is None:
                    root = await self._download(store, item)
                return (await export_path(store, root, target, max_bytes=item.size, is_durable=False)).size
        except ParityError as exc:
            raise ExecutionFailed(reason_of(exc), f"input {item.name}: {exc.message}") from exc
        finally:
            if not lock.locked():
                self._fetching.pop(item.sha256, None)

    async def _here(self, store: BlobStore, item: HttpsInput) -> Cid | None:
        """Return under which CID the content of a digest is in the store, or None."""
        if item.size <= CHUNK_BYTES:  # one block, whose CID is its digest
            root = Cid(1, CODEC_RAW, bytes.fromhex(item.sha256))
        else:
            found = await anyio.to_thread.run_sync(_read_note, self._known / item.sha256)
            if found is None:
                return None
            root = found
        stat = await store.stat(root)
        return root if stat is not None and stat.size == item.size else None

    async def _download(self, store: BlobStore, item: HttpsInput) -> Cid:
        if self._https is None:
            from parity_blobs.https_fetch import HttpsFetcher  # TLS trust takes 20 ms to load

            self._https = await self._resources.enter_async_context(HttpsFetcher(clock=self._clock))
        # Nothing is stored before the stream ends by itself, which it does only with the right digest.
        async with aclosing(self._https.stream(item)) as pieces:
            stat = await store.put(pieces, max_bytes=item.size)
        if stat.size != item.size:
            raise DigestMismatch(f"it has {stat.size} bytes, the spec states {item.size}")
        if item.size > CHUNK_BYTES:
            await anyio.to_thread.run_sync(_write_note, self._known / item.sha256, stat.cid)
        return stat.cid

    def _link_shard(self, item: ShardInput, target: Path) -> None:
        """Let ``target`` lead to the operator's data: sandboxes mount it read-only, and nothing is copied."""
        path = self._shards.get(item.shard)
        usable, problems = usable_shards({} if path is None else {item.shard: path})
        if problem := problems.get(item.shard):
            log.warning("shard_not_usable", shard=item.shard, problem=problem)
        if item.shard not in usable:  # the task is not told where it would be
            raise ExecutionFailed(
                FailureReason.EXECUTOR_UNAVAILABLE, f"input {item.name}: this node has no data set {item.shard!r}"
            )
        try:
            target.symlink_to(usable[item.shard])
        except OSError as exc:
            raise ExecutionFailed(FailureReason.NODE_FAULT, f"input {item.name}: {exc.strerror}") from exc


def make_readable(path: Path) -> None:
    """Let a sandbox's user read what the node wrote; nothing is followed out of it."""
    if path.is_symlink():
        return
    if path.is_dir():
        path.chmod(0o755)
        for child in path.iterdir():
            make_readable(child)
    else:
        path.chmod(0o444)


def _read_note(path: Path) -> Cid | None:
    try:
        return Cid.parse(path.read_text(encoding="ascii"))
    except (OSError, ValueError, BadCid):
        return None


def _write_note(path: Path, cid: Cid) -> None:
    """Remember a CID; a lost note only costs another download."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        notes = sorted(path.parent.iterdir(), key=lambda each: each.stat().st_mtime_ns)
        for old in notes[: max(0, len(notes) - MAX_KNOWN + 1)]:
            old.unlink(missing_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text(str(cid), encoding="ascii")
        temporary.replace(path)
    except OSError:
        return
