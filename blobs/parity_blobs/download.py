"""Content straight from gateways into a file: each block hashed, written once, and a broken transfer taken up again."""

from __future__ import annotations

import fcntl
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from parity_blobs.base import BlobStat
from parity_blobs.bulk import write_at
from parity_blobs.cid import Cid
from parity_blobs.files import export_path
from parity_blobs.local import LocalBlobStore
from parity_blobs.local_threads import Worker, translate_os
from parity_blobs.plain import leaf_block
from parity_blobs.spool import fsync_file, fsync_folder
from parity_blobs.unixfs import Kind, read_node
from parity_blobs.verify import CheckedBlock, CheckedLeaf
from parity_protocol.errors import Conflict, DigestMismatch, InvalidInput, TooLarge, Unavailable

if TYPE_CHECKING:
    from parity_blobs.gateway import Progress, TrustlessGateway

__all__ = ["download", "partial_path"]

_Key = tuple[int, int, bytes]  # Cid.key

_BATCH_BYTES = 1 << 20  # written in one go on a thread
_COPY_BYTES = 1 << 20
_MAX_LEAF_BYTES = 2 << 20


async def download(
    gateway: TrustlessGateway,
    cid: Cid,
    target: Path,
    *,
    max_bytes: int,
    progress: Progress | None = None,
    is_durable: bool = True,
) -> BlobStat:
    """See ``TrustlessGateway.fetch_to``."""
    _check_free(target)
    try:
        return await _download_file(gateway, cid, target, max_bytes, progress, is_durable=is_durable)
    except _IsFolder:
        return await _download_folder(gateway, cid, target, max_bytes, progress, is_durable=is_durable)
    except OSError as exc:
        raise translate_os(exc) from exc


def partial_path(target: Path) -> Path:
    """Return where a broken transfer to ``target`` waits to be taken up again."""
    return target.with_name(f".{target.name[:200]}.parity-part")


def _check_free(target: Path) -> None:
    if target.exists() or target.is_symlink():
        raise InvalidInput(f"{target} exists already")


class _IsFolder(Exception):
    """The root is a directory."""


async def _download_file(
    gateway: TrustlessGateway,
    cid: Cid,
    target: Path,
    max_bytes: int,
    progress: Progress | None,
    *,
    is_durable: bool,
) -> BlobStat:
    with ThreadPoolExecutor(1, thread_name_prefix="blob-download") as pool:
        part = _Part(partial_path(target), cid, max_bytes)
        worker = Worker(pool)
        try:
            async with aclosing(gateway.stream(cid, max_bytes=max_bytes, progress=progress, partial=part)) as blocks:
                async for block in blocks:
                    part.take(block)
                    if part.waiting_bytes >= _BATCH_BYTES:
                        await worker.push(part.write, part.waiting())
            await worker.push(part.write, part.waiting())
            await worker.last(lambda: part.place(target, is_durable=is_durable))
            return part.stat()
        except BaseException as exc:
            with anyio.CancelScope(shield=True):
                await worker.settle()
            part.abandon(keep=isinstance(exc, Unavailable) or not isinstance(exc, Exception))
            raise
        finally:
            part.close()


async def _download_folder(
    gateway: TrustlessGateway,
    cid: Cid,
    target: Path,
    max_bytes: int,
    progress: Progress | None,
    *,
    is_durable: bool,
) -> BlobStat:
    room = 2 * (max_bytes + max_bytes // 8) + (1 << 20)
    with tempfile.TemporaryDirectory(prefix=".parity-get-", dir=target.parent) as folder:
        async with LocalBlobStore(Path(folder) / "blobs", max_bytes=room) as store:
            await gateway.fetch_into(cid, store, max_bytes=max_bytes, progress=progress)
            return await export_path(store, cid, target, max_bytes=max_bytes, is_durable=is_durable)


class _Part:
    """A file on its way in, and what an earlier transfer left of it; implements ``gateway.Partial``.

    Its bytes are the content of each different block in the order of the file. That is the file itself unless a block
    occurs twice, or inside a link; then the end is one pass that copies.
    """

    def __init__(self, path: Path, root: Cid, max_bytes: int) -> None:
        self._path = path
        self._root = root
        self._max_bytes = max_bytes
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            os.close(self._fd)
            raise Conflict(f"{path} is in use: another process fetches this file") from exc
        self._left = os.fstat(self._fd).st_size  # where the file on the disk ends
        self._end = 0  # where what is right ends
        self._size: int | None = None
        self._stored = self._blocks = 0
        self._claims: dict[_Key, int] = {}  # content bytes of a block that a node above it claims
        self._places: dict[_Key, tuple[int, int]] = {}  # own content of a block: position and length
        self._children: dict[_Key, tuple[Cid, ...]] = {}
        self._writes: list[tuple[int, bytes]] = []
        self.waiting_bytes = 0

    @property
    def is_exhausted(self) -> bool:
        """See ``gateway.Partial``."""
        return self._end >= self._left

    def block(self, cid: Cid) -> CheckedBlock | None:
        """See ``gateway.Partial``."""
        size = self._claims.get(cid.key)
        if size is None or size > _MAX_LEAF_BYTES or self._end + size > self._left:
            return None
        content = os.pread(self._fd, size, self._end)
        try:
            block = CheckedBlock.of(leaf_block(cid, content))
        except DigestMismatch:
            return None
        self._places[cid.key] = (self._end, size)
        self._end += size
        return block

    def take(self, block: CheckedBlock) -> None:
        """Note a block and what of it is to be written.

        Raises:
            TooLarge: The root claims more than is accepted.
        """
        key = block.cid.key
        node = read_node(block.cid, block.data)
        self._stored += len(block.data)
        self._blocks += 1
        if self._size is None:
            if node.kind is Kind.DIRECTORY:
                raise _IsFolder
            if node.size > self._max_bytes:
                raise TooLarge(f"{self._root} has {node.size} bytes, at most {self._max_bytes} are accepted")
            self._size = node.size
        if node.links:
            self._children[key] = tuple(link.cid for link in node.links)
            self._claims.update((link.cid.key, size) for link, size in zip(node.links, node.sizes, strict=True))
        if key not in self._places:
            self._places[key] = (self._end, len(node.data))
            if node.data:
                self._writes.append((self._end, node.data))
                self.waiting_bytes += len(node.data)
                self._end += len(node.data)
                self._left = min(self._left, self._end)  # the first new byte ends what an earlier transfer is good for

    def room(self) -> tuple[int, int]:
        """See ``gateway.Partial``."""
        return self._fd, self._end

    def wrote(self, leaf: CheckedLeaf) -> None:
        """See ``gateway.Partial``."""
        self._stored += leaf.stored
        self._blocks += 1
        self._places[leaf.cid.key] = (self._end, leaf.size)
        self._end += leaf.size
        self._left = min(self._left, self._end)

    def waiting(self) -> list[tuple[int, bytes]]:
        """Take what is to be written."""
        writes, self._writes, self.waiting_bytes = self._writes, [], 0
        return writes

    def write(self, writes: list[tuple[int, bytes]]) -> None:
        """Write it; blocking."""
        start = 0
        for number, (at, data) in enumerate(writes, 1):  # each range in one go
            if number == len(writes) or writes[number][0] != at + len(data):
                write_at(self._fd, [each for _, each in writes[start:number]], writes[start][0])
                start = number

    def place(self, target: Path, *, is_durable: bool) -> None:
        """Give the complete file its name; blocking."""
        if self._size is None:  # all of it lies in its name
            node = read_node(self._root, self._root.inline or b"")
            if node.kind is Kind.DIRECTORY:
                raise _IsFolder
            self._children[self._root.key] = tuple(link.cid for link in node.links)
            self._size = node.size
        if self._end == self._size:
            os.ftruncate(self._fd, self._end)
        else:
            self._assemble()
        os.fchmod(self._fd, 0o644)
        if is_durable:
            fsync_file(self._fd)
        _check_free(target)
        self._path.rename(target)
        if is_durable:
            fsync_folder(target.parent)

    def stat(self) -> BlobStat:
        """Return what came, once it is complete."""
        return BlobStat(self._root, Kind.FILE, self._size or 0, self._stored, self._blocks, is_pinned=False)

    def abandon(self, *, keep: bool) -> None:
        """End a transfer that broke: keep what is right for the next one, or remove it."""
        with suppress(OSError):
            if keep and self._end:
                self.write(self.waiting())
                os.ftruncate(self._fd, self._end)
            else:
                self._path.unlink(missing_ok=True)

    def close(self) -> None:
        """Let the file and its lock go."""
        os.close(self._fd)

    def _assemble(self) -> None:
        """Write content that repeats itself in full; a part that was written once is copied, not walked again."""
        whole = self._path.with_suffix(".parity-whole")
        fd = os.open(whole, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            end, written = 0, dict[_Key, tuple[int, int]]()
            stack: list[tuple[Cid, int]] = [(self._root, -1)]  # a position means: the children are done
            while stack:
                cid, start = stack.pop()
                if start >= 0:
                    written[cid.key] = (start, end - start)
                elif cid.key in written:
                    end = _copy(fd, fd, *written[cid.key], end)
                else:
                    stack.append((cid, end))
                    stack.extend((child, -1) for child in reversed(self._children_of(cid)))
                    end = self._own(cid, fd, end)
            whole.replace(self._path)
        except BaseException:
            whole.unlink(missing_ok=True)
            os.close(fd)
            raise
        os.close(self._fd)
        self._fd = fd

    def _children_of(self, cid: Cid) -> tuple[Cid, ...]:
        if cid.inline is None:
            return self._children.get(cid.key, ())
        return tuple(link.cid for link in read_node(cid, cid.inline).links)

    def _own(self, cid: Cid, fd: int, end: int) -> int:
        if cid.inline is None:
            return _copy(self._fd, fd, *self._places[cid.key], end)
        data = read_node(cid, cid.inline).data
        write_at(fd, [data], end)
        return end + len(data)


def _copy(source: int, target: int, at: int, length: int, end: int) -> int:
    """Copy a range to ``end`` of ``target``; return the new end."""
    while length:
        data = os.pread(source, min(length, _COPY_BYTES), at)
        if not data:
            raise Unavailable("a temporary file became shorter while it was read")
        write_at(target, [data], end)
        at, end, length = at + len(data), end + len(data), length - len(data)
    return end
