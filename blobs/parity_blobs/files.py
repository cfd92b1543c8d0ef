"""Between stores and the file system: the CID of a path, a path into a store, and content back out into a path."""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from functools import partial
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import TypeVar

import anyio
import anyio.to_thread

from parity_blobs.base import BlobStat, BlobStore
from parity_blobs.cid import Block, Cid
from parity_blobs.export import Walk, walk_directory, walk_path
from parity_blobs.importer import DEFAULT_OPTIONS, AddOptions, Entry, FileImporter, Imported, build_directory
from parity_blobs.local_threads import translate_os
from parity_blobs.spool import fsync_file, fsync_folder
from parity_blobs.unixfs import Kind
from parity_blobs.verify import DEFAULT_LIMITS, DagLimits, Order
from parity_protocol.errors import InvalidInput, NotFound, TooLarge, Unavailable

__all__ = ["add_path", "cid_of_path", "export_path", "import_path", "list_folder", "resolve_in"]

T = TypeVar("T")

_READ_BYTES = 4 << 20
_MAX_ENTRIES = 100_000  # files and folders in one import


def import_path(
    path: Path,
    options: AddOptions = DEFAULT_OPTIONS,
    *,
    hidden: bool = False,
) -> Iterator[Block | Imported]:
    """Yield the blocks of a file or a folder, and last its ``Imported``; blocking, so call it on a thread.

    The ``size`` of a folder is that of all files in it.

    Args:
        hidden: Take files whose names start with a dot, as ``ipfs add --hidden``; the path itself is always taken.

    Raises:
        NotFound: There is nothing at ``path``.
        InvalidInput: Something is neither a file nor a folder (a symbolic link, a socket), or changed meanwhile.
        TooLarge: A folder is too large for one block, or there are too many files.
        BadDocument: A name cannot be used.
        Unavailable: A file cannot be read.
    """
    yield from _Walk(options, hidden=hidden).import_any(path, follow=True)


async def cid_of_path(
    path: Path, *, cid_version: int = 0, raw_leaves: bool | None = None, hidden: bool = False
) -> Imported:
    """Return the CID that ``ipfs add -r`` with the same flags would print, without storing anything.

    Raises:
        ParityError: As ``import_path``.
    """
    options = AddOptions(cid_version, raw_leaves)

    def run() -> Imported:
        ends = [item for item in import_path(path, options, hidden=hidden) if isinstance(item, Imported)]
        return ends[-1]

    return await anyio.to_thread.run_sync(run, abandon_on_cancel=True)


async def add_path(
    store: BlobStore,
    path: Path,
    *,
    options: AddOptions = DEFAULT_OPTIONS,
    hidden: bool = False,
    limits: DagLimits = DEFAULT_LIMITS,
    pin: bool = False,
) -> BlobStat:
    """Put a file or a folder into ``store``.

    The path is read twice, since a store wants to know the root first; a file that changes in between is refused.

    Raises:
        ParityError: As ``import_path`` and ``BlobStore.put_blocks``.
    """
    done = await cid_of_path(path, cid_version=options.cid_version, raw_leaves=options.raw_leaves, hidden=hidden)
    async with aclosing(_blocks(path, options, hidden=hidden)) as blocks:
        return await store.put_blocks(done.cid, blocks, limits=limits, order=Order.ANY, pin=pin)


async def export_path(store: BlobStore, cid: Cid, target: Path, *, max_bytes: int, is_durable: bool = True) -> BlobStat:
    """Write content to ``target``, a file or a whole folder; it appears complete or not at all.

    Args:
        target: Must not exist; its parent must.
        max_bytes: Content bytes, counted as they are written.
        is_durable: Whether that holds after a power cut too, which costs one fsync a file.

    Raises:
        NotFound: ``cid`` is not in the store.
        InvalidInput: ``target`` exists.
        TooLarge: The content is larger.
        DigestMismatch: What lies in the store has rotted.
        Unavailable: The disk does not take it.
    """
    stat = await store.stat(cid)
    if stat is None:
        raise NotFound(f"{cid} is not in this store")
    if stat.size > max_bytes:
        raise TooLarge(f"{cid} has {stat.size} bytes, at most {max_bytes} are accepted")
    temporary = target.with_name(f".{target.name[:80]}.{uuid.uuid4().hex}")
    export = _Export(store, max_bytes, is_durable=is_durable)

    def place() -> None:
        if target.exists() or target.is_symlink():
            raise InvalidInput(f"{target} exists already")
        temporary.rename(target)
        export.sync_folder(target.parent)

    try:
        await export.write(cid, stat.kind, temporary)
        await _on_disk(place)
    except BaseException:
        with anyio.CancelScope(shield=True):
            await _on_disk(lambda: _remove(temporary))
        raise
    return stat


async def list_folder(store: BlobStore, cid: Cid) -> tuple[Entry, ...]:
    """Return the entries of a directory in ``store``, a sharded one included, sorted by the bytes of names.

    Raises:
        NotFound: It is not in the store.
        InvalidInput: It is a file.
    """
    return await _drive(store, walk_directory(cid))


async def resolve_in(store: BlobStore, root: Cid, segments: tuple[str, ...]) -> Cid:
    """Follow names from a directory in ``store`` and return what they lead to.

    Raises:
        NotFound: A name is not there, or the directory is not in the store.
        InvalidInput: A name other than the last is a file.
    """
    return await _drive(store, walk_path(root, segments))


async def _drive(store: BlobStore, walk: Walk[T]) -> T:
    try:
        wanted = next(walk)
        while True:
            (block,) = [block async for block in store.blocks(wanted, scope="block")]
            wanted = walk.send(block.data)
    except StopIteration as end:
        result: T = end.value
        return result


class _Walk:
    def __init__(self, options: AddOptions, *, hidden: bool) -> None:
        self._options = options
        self._hidden = hidden
        self._entries = 0

    def import_any(self, path: Path, *, follow: bool, depth: int = 0) -> Iterator[Block | Imported]:
        self._entries += 1
        if self._entries > _MAX_ENTRIES:
            raise TooLarge(f"more than {_MAX_ENTRIES} files and folders")
        if depth > DEFAULT_LIMITS.max_depth:
            raise TooLarge(f"{path}: more than {DEFAULT_LIMITS.max_depth} folders deep")
        try:
            mode = path.stat(follow_symlinks=follow).st_mode
            if S_ISDIR(mode):
                yield from self._folder(path, depth)
            elif S_ISREG(mode):
                yield from self._file(path, follow=follow)
            else:
                raise InvalidInput(f"{path} is neither a file nor a folder; symbolic links are not followed")
        except FileNotFoundError as exc:
            raise NotFound(f"{path} does not exist") from exc
        except OSError as exc:
            raise Unavailable(f"{path}: {exc.strerror}") from exc

    def _file(self, path: Path, *, follow: bool) -> Iterator[Block | Imported]:
        importer = FileImporter(self._options)
        # O_NOFOLLOW and O_NONBLOCK: the file may have become a link or a pipe since it was looked at.
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW)
        with os.fdopen(os.open(path, flags), "rb", buffering=0) as file:
            while piece := file.read(_READ_BYTES):
                yield from importer.feed(piece)
        done = importer.finish()
        yield from done.blocks
        yield done

    def _folder(self, path: Path, depth: int) -> Iterator[Block | Imported]:
        entries, size = [], 0
        for name in sorted(child.name for child in path.iterdir()):
            if name.startswith(".") and not self._hidden:
                continue
            for item in self.import_any(path / name, follow=False, depth=depth + 1):
                if isinstance(item, Imported):
                    entries.append(Entry(name, item.cid, item.tsize))
                    size += item.size
                else:
                    yield item
        done = build_directory(entries, self._options)
        yield from done.blocks
        yield done._replace(size=size)


async def _blocks(path: Path, options: AddOptions, *, hidden: bool) -> AsyncGenerator[Block]:
    """Yield the different blocks of a path, read some at a time on a thread."""
    items = import_path(path, options, hidden=hidden)
    seen: set[tuple[int, int, bytes]] = set()

    def some() -> list[Block]:
        batch: list[Block] = []
        weight = 0
        for item in items:
            if isinstance(item, Block) and item.cid.key not in seen:
                seen.add(item.cid.key)
                batch.append(item)
                weight += len(item.data)
                if weight >= _READ_BYTES:
                    break
        return batch

    while batch := await anyio.to_thread.run_sync(some):
        for block in batch:
            yield block


class _Export:
    def __init__(self, store: BlobStore, max_bytes: int, *, is_durable: bool) -> None:
        self._store = store
        self._bytes_left = max_bytes
        self._entries_left = _MAX_ENTRIES
        self._is_durable = is_durable

    async def write(self, cid: Cid, kind: Kind, target: Path) -> None:
        self._entries_left -= 1
        if self._entries_left < 0:
            raise TooLarge(f"more than {_MAX_ENTRIES} files and folders")
        if kind is Kind.FILE:
            await self._file(cid, target)
            return
        await _on_disk(lambda: target.mkdir(mode=0o755))
        for entry in await list_folder(self._store, cid):
            stat = await self._store.stat(entry.cid)
            if stat is None:
                raise NotFound(f"{entry.cid} is not in this store")
            await self.write(entry.cid, stat.kind, target / entry.name)
        await _on_disk(lambda: self.sync_folder(target))

    def sync_folder(self, path: Path) -> None:
        if self._is_durable:
            fsync_folder(path)

    async def _file(self, cid: Cid, target: Path) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        file = await _on_disk(lambda: os.open(target, flags, 0o644))
        try:
            async for piece in self._store.open(cid, max_bytes=self._bytes_left):
                self._bytes_left -= len(piece)
                await _on_disk(partial(_write_all, file, piece))
            if self._is_durable:
                await _on_disk(partial(fsync_file, file))
        finally:
            os.close(file)


async def _on_disk(step: Callable[[], T]) -> T:
    """Run a step on a thread; what the disk says comes back as our errors."""
    try:
        return await anyio.to_thread.run_sync(step)
    except OSError as exc:
        raise translate_os(exc) from exc


def _write_all(file: int, piece: bytes) -> None:
    rest = memoryview(piece)
    while rest:
        rest = rest[os.write(file, rest) :]


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        for child in path.iterdir():
            _remove(child)
        path.rmdir()
    else:
        path.unlink(missing_ok=True)
