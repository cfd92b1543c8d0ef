"""UnixFS export: walk checked blocks back into files, directory listings and paths.

Every function takes ``get_block``, which returns the bytes of a block whose hash was checked, or raises. Content in a
CID itself (identity hash) is read here and never asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import TypeAlias, TypeVar

from parity_blobs.cid import CODEC_RAW, Block, Cid
from parity_blobs.hamt import HASH_BYTES, ShardLink, name_hash
from parity_blobs.importer import Entry
from parity_blobs.unixfs import Kind, Node, checked_name, read_node
from parity_blobs.verify import DEFAULT_LIMITS, DagLimits
from parity_protocol.errors import BadDocument, InvalidInput, NotFound, TooLarge

__all__ = [
    "GetBlock",
    "Walk",
    "drive",
    "iter_dag",
    "iter_file",
    "list_directory",
    "measure_dag",
    "resolve_path",
    "split_path",
    "walk_directory",
    "walk_path",
]

T = TypeVar("T")

GetBlock = Callable[[Cid], bytes]
Walk: TypeAlias = Generator[Cid, bytes, T]

_MAX_SEGMENTS = 64  # of a path


def iter_file(root: Cid, get_block: GetBlock, *, max_bytes: int, max_depth: int = 32) -> Iterator[bytes]:
    """Yield the content of a file in order, in pieces as large as its blocks, none of them empty.

    Args:
        max_bytes: Content bytes; refused before the first byte when the root already claims more.

    Raises:
        InvalidInput: It is a directory.
        TooLarge: The file is larger, or deeper than ``max_depth`` links.
        BadDocument: Sizes do not add up, or a block is not a piece of a file.
    """
    node = _node(root, get_block)
    if node.kind is not Kind.FILE:
        raise InvalidInput(f"{root} is a directory, not a file")
    if node.size > max_bytes:
        raise TooLarge(f"{root} has {node.size} bytes, at most {max_bytes} are accepted")
    stack: list[Iterator[tuple[Cid, int]]] = []
    while True:
        if node.data:
            yield node.data
        # Each child's claimed size is compared with its own, so that all claims together bound all bytes.
        stack.append(zip((link.cid for link in node.links), node.sizes, strict=True))
        if len(stack) > max_depth + 1:
            raise TooLarge(f"{root}: deeper than {max_depth} links")
        while stack and (step := next(stack[-1], None)) is None:
            stack.pop()
        if not stack or step is None:
            return
        child, claimed = step
        node = _node(child, get_block)
        if node.kind is not Kind.FILE or node.size != claimed:
            raise BadDocument(f"{root}: piece {child} is not a file of {claimed} bytes")


def iter_dag(root: Cid, get_block: GetBlock, *, limits: DagLimits = DEFAULT_LIMITS) -> Iterator[Block]:
    """Yield each different block of a DAG once, depth first, left to right: the order a CAR is streamed in.

    Raises:
        TooLarge: Over the limits on blocks, links or bytes.
    """
    seen: set[tuple[int, int, bytes]] = set()
    stack, total, links = [root], 0, 0
    while stack:
        cid = stack.pop()
        if cid.key in seen:
            continue
        seen.add(cid.key)
        data = cid.inline
        if data is None:
            data = get_block(cid)
            yield Block(cid, data)
        node = read_node(cid, data)
        total += len(data)
        links += len(node.links)
        if len(seen) > limits.max_blocks or links > limits.max_links or total > limits.max_bytes:
            raise TooLarge(f"{root}: over the limits of {limits.max_blocks} blocks or {limits.max_bytes} bytes")
        stack.extend(link.cid for link in reversed(node.links))


def list_directory(cid: Cid, get_block: GetBlock) -> tuple[Entry, ...]:
    """Return the entries of a directory, a sharded one included, sorted as they are stored: by the bytes of names.

    Raises:
        InvalidInput: It is a file.
        BadDocument: A sharded directory is not built as it should be.
    """
    return drive(walk_directory(cid), get_block)


def walk_directory(cid: Cid) -> Walk[tuple[Entry, ...]]:
    """As ``list_directory``, for callers who get blocks in their own way: yields a CID and is sent the block.

    Raises:
        InvalidInput: It is a file.
        BadDocument: A sharded directory is not built as it should be.
        TooLarge: It has more than 2**19 entries.
    """
    node = yield from _step(cid)
    if node.kind is not Kind.DIRECTORY:
        raise InvalidInput(f"{cid} is a file, not a directory")
    if node.shard is None:
        return tuple(Entry(link.name, link.cid, link.tsize) for link in node.links)
    entries: list[Entry] = []
    stack = [(node.shard, b"")]
    while stack:
        shard, prefix = stack.pop()
        for link in shard:
            here = prefix + bytes((link.place,))
            if link.name:
                entries.append(_placed(cid, link, here))
            else:
                stack.append(((yield from _shard_below(cid, link.cid, here)), here))
        if len(entries) + len(stack) > DEFAULT_LIMITS.max_links:
            raise TooLarge(f"{cid}: a directory of more than {DEFAULT_LIMITS.max_links} entries")
    return tuple(sorted(entries, key=lambda entry: entry.name.encode()))


def split_path(text: str) -> tuple[Cid, tuple[str, ...]]:
    """Read ``CID``, ``CID/a/b`` or ``/ipfs/CID/a/b``.

    Raises:
        BadCid: The first segment is not a CID.
        BadDocument: A segment cannot be a name, such as ``..``.
        TooLarge: More than 64 segments.
    """
    first, *rest = text.removeprefix("/ipfs/").removesuffix("/").split("/")
    if len(rest) > _MAX_SEGMENTS:
        raise TooLarge(f"a path has at most {_MAX_SEGMENTS} segments, got {len(rest)}")
    return Cid.parse(first), tuple(checked_name(segment) for segment in rest)


def resolve_path(root: Cid, segments: tuple[str, ...], get_block: GetBlock) -> Cid:
    """Follow names from a directory and return what they lead to; of a sharded one only the shards on the way are read.

    Raises:
        NotFound: A name is not there.
        InvalidInput: A name other than the last is a file.
        BadDocument: A sharded directory is not built as it should be.
    """
    return drive(walk_path(root, segments), get_block)


def walk_path(root: Cid, segments: tuple[str, ...]) -> Walk[Cid]:
    """As ``resolve_path``, for callers who get blocks in their own way: yields a CID and is sent the block."""
    for segment in segments:
        node = yield from _step(root)
        if node.kind is not Kind.DIRECTORY:
            raise InvalidInput(f"{root} is a file, not a directory")
        if node.shard is None:
            found = next((link.cid for link in node.links if link.name == segment), None)
        else:
            found = yield from _look_up(root, node.shard, segment)
        if found is None:
            raise NotFound(f"there is no {segment[:80]!r} in {root}")
        root = found
    return root


def drive(walk: Walk[T], get_block: GetBlock) -> T:
    """Run a walk to its end with blocks from ``get_block``."""
    try:
        wanted = next(walk)
        while True:
            wanted = walk.send(get_block(wanted))
    except StopIteration as end:
        result: T = end.value
        return result


def measure_dag(cid: Cid, get_block: GetBlock, length_of: Callable[[Cid], int]) -> tuple[Kind, int, int, int]:
    """Return kind, content bytes, bytes of different blocks and their number, for a DAG that was verified before.

    Args:
        length_of: Length of a raw block in bytes, which saves reading it.
    """
    sizes: dict[tuple[int, int, bytes], int] = {}
    stored = blocks = 0

    def visit(each: Cid) -> int:  # a verified DAG is at most some tens of links deep
        nonlocal stored, blocks
        if each.key in sizes:
            return sizes[each.key]
        if each.inline is None:
            blocks += 1
            if each.codec == CODEC_RAW:
                sizes[each.key] = length_of(each)
                stored += sizes[each.key]
                return sizes[each.key]
        data = get_block(each) if each.inline is None else each.inline
        stored += 0 if each.inline is not None else len(data)
        node = read_node(each, data)
        below = sum(visit(link.cid) for link in node.links)
        sizes[each.key] = node.size if node.kind is Kind.FILE else below
        return sizes[each.key]

    size = visit(cid)
    kind = Kind.FILE if cid.codec == CODEC_RAW else _node(cid, get_block).kind
    return kind, size, stored, blocks


def _node(cid: Cid, get_block: GetBlock) -> Node:
    inline = cid.inline
    return read_node(cid, get_block(cid) if inline is None else inline)


def _step(cid: Cid) -> Walk[Node]:
    return read_node(cid, (yield cid) if cid.inline is None else cid.inline)


def _look_up(root: Cid, shard: tuple[ShardLink, ...], name: str) -> Walk[Cid | None]:
    wanted = name_hash(name)
    for level in range(HASH_BYTES):
        link = next((each for each in shard if each.place == wanted[level]), None)
        if link is None or link.name:
            return link.cid if link is not None and link.name == name else None
        shard = yield from _shard_below(root, link.cid, wanted[: level + 1])
    return None


def _shard_below(root: Cid, cid: Cid, prefix: bytes) -> Walk[tuple[ShardLink, ...]]:
    node = yield from _step(cid)
    if not node.shard or len(prefix) >= HASH_BYTES:
        raise BadDocument(f"{root}: {cid} is empty, not a shard, or too many levels down")
    return node.shard


def _placed(root: Cid, link: ShardLink, prefix: bytes) -> Entry:
    if not name_hash(link.name).startswith(prefix):
        raise BadDocument(f"{root}: {link.name[:80]!r} does not lie where its hash says")
    return Entry(link.name, link.cid, link.tsize)
