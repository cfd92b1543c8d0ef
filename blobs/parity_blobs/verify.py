"""The verifier: nothing counts until its hash was checked, and nothing is complete until every link was visited.

Blocks come from anywhere. A block is accepted only if its bytes hash to its CID and the DAG below the root asks for
it; the DAG is complete only when no link is left open and every size that a node claims is the sum of its parts.
Budgets bound what a hostile peer can cost before it is caught.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import NamedTuple

from parity_blobs.cid import CODEC_RAW, HASH_IDENTITY, Block, Cid
from parity_blobs.hamt import HASH_BYTES, name_hash
from parity_blobs.unixfs import Kind, Node, leaf_frame, read_node
from parity_protocol.errors import BadCid, BadDocument, DigestMismatch, TooLarge

__all__ = [
    "DEFAULT_LIMITS",
    "CheckedBlock",
    "CheckedLeaf",
    "DagLimits",
    "DagSummary",
    "DagVerifier",
    "Order",
    "check_block",
]

_Key = tuple[int, int, bytes]  # Cid.key


@dataclass(frozen=True, slots=True)
class DagLimits:
    """What one DAG may cost.

    Attributes:
        max_bytes: Of all its different blocks together.
        max_blocks: Different blocks.
        max_depth: Links from the root to the deepest block, on the longest way.
        max_links: In all nodes together.
        max_block_bytes: Of one block; 2 MiB is what IPFS peers exchange at most.
    """

    max_bytes: int = 8 << 30
    max_blocks: int = 1 << 17
    max_depth: int = 32
    max_links: int = 1 << 19
    max_block_bytes: int = 2 << 20


DEFAULT_LIMITS = DagLimits()


class Order(StrEnum):
    """In which order blocks must come.

    ``DFS``: depth first, left to right, each block once; a wrong block is refused at once. ``PARENTS_FIRST``: any
    block that an earlier one links to. ``ANY``: whatever comes is hashed and kept, ``finish`` refuses what nobody
    links to.
    """

    DFS = "dfs"
    PARENTS_FIRST = "parents_first"
    ANY = "any"


class DagSummary(NamedTuple):
    """A complete DAG.

    Attributes:
        size: Content bytes of a file, duplicates counted each time; for a directory, of everything in it.
        stored: Bytes of the different blocks.
        blocks: Number of different blocks.
    """

    root: Cid
    kind: Kind
    size: int
    stored: int
    blocks: int


class _Seen(NamedTuple):
    node: Node  # without its content bytes, links and names
    children: tuple[_Key, ...]
    shard: tuple[tuple[int, bytes | None], ...] | None  # per child: its place, and its name's hash unless it is a shard


def check_block(cid: Cid, data: bytes) -> None:
    """Accept ``data`` only if it is the block that ``cid`` names.

    Raises:
        DigestMismatch: It is not; the message holds both hashes.
    """
    found = data if cid.hash_code == HASH_IDENTITY else hashlib.sha256(data).digest()
    if found != cid.digest:
        raise DigestMismatch(
            f"block {cid}: expected sha2-256 {cid.digest.hex()}, got {hashlib.sha256(data).hexdigest()}"
        )


class CheckedBlock(Block):
    """A block whose hash this process has checked, so that the next verifier in a row need not hash it again.

    Made by ``CheckedBlock.of`` and nowhere else.
    """

    __slots__ = ()

    @classmethod
    def of(cls, block: Block) -> CheckedBlock:
        """Hash a block.

        Raises:
            DigestMismatch: Its bytes are not what its CID names.
        """
        check_block(block.cid, block.data)
        return cls(block.cid, block.data)


class CheckedLeaf(NamedTuple):
    """A leaf of a file whose hash this process has checked, without its bytes: they are where they are needed already.

    Made by ``CheckedLeaf.of`` and nowhere else.

    Attributes:
        size: Of its content.
        stored: Of the block.
    """

    cid: Cid
    size: int
    stored: int

    @classmethod
    def of(cls, cid: Cid, content: memoryview) -> CheckedLeaf:
        """Hash the block that has this content, as Kubo would have cut it; not for a CID that holds its block.

        Raises:
            DigestMismatch: It is not what the CID names.
        """
        before, after = (b"", b"") if cid.codec == CODEC_RAW else leaf_frame(len(content))
        hasher = hashlib.sha256(before)
        hasher.update(content)
        hasher.update(after)
        if cid.hash_code == HASH_IDENTITY or hasher.digest() != cid.digest:
            raise DigestMismatch(f"block {cid}: expected sha2-256 {cid.digest.hex()}, got {hasher.hexdigest()}")
        return cls(cid, len(content), len(before) + len(content) + len(after))


class DagVerifier:
    """Checks the blocks of one DAG as they arrive. Keeps links, not content.

    Raises:
        BadCid: The root holds a node with links in itself.
    """

    def __init__(self, root: Cid, limits: DagLimits = DagLimits(), *, order: Order = Order.DFS) -> None:
        self.root = root
        self._limits = limits
        self._order = order
        self._seen: dict[_Key, _Seen] = {}
        self._bytes = self._blocks = self._links = self._content = 0
        self._stack: list[tuple[Cid, int]] = []  # DFS: what comes next is at the end
        self._pending: dict[_Key, tuple[Cid, int]] = {}  # PARENTS_FIRST: linked to, not here yet
        self._want([root], 0)
        if root.inline is not None and self._seen[root.key].children:
            raise BadCid(f"{root} holds a node with links in itself; the root must be named by sha2-256")

    @property
    def is_complete(self) -> bool:
        """Whether every link was visited; with ``Order.ANY`` only ``finish`` knows."""
        self._skip_seen()
        return self.root.key in self._seen and not self._stack and not self._pending

    @property
    def progress(self) -> tuple[int, int | None]:
        """Content bytes that came so far, and of the whole as the root claims: None while that is not known."""
        root = self._seen.get(self.root.key)
        return self._content, root.node.size if root is not None and root.node.kind is Kind.FILE else None

    def has(self, cid: Cid) -> bool:
        """Tell whether this block was accepted."""
        return cid.key in self._seen

    def expects(self, cid: Cid) -> bool:
        """Tell whether ``add`` would take this block now, given the right bytes; for ``Order.DFS``."""
        self._skip_seen()
        return bool(self._stack) and self._stack[-1][0].key == cid.key

    def wanted(self, count: int) -> list[Cid]:
        """Return up to ``count`` different CIDs that are linked to and not here yet, first needed first."""
        if self._order is Order.PARENTS_FIRST:
            return [cid for _, (cid, _) in zip(range(count), self._pending.values(), strict=False)]
        self._skip_seen()
        found: dict[_Key, Cid] = {}
        for cid, _ in reversed(self._stack):
            if len(found) == count:
                break
            if cid.key not in self._seen:
                found.setdefault(cid.key, cid)
        return list(found.values())

    def add(self, block: Block) -> None:
        """Accept one block.

        Raises:
            DigestMismatch: Its bytes are not what its CID names.
            BadDocument: The DAG does not ask for it now, or it is not UnixFS as accepted here.
            TooLarge: A budget is used up.
        """
        cid, data = block
        depth = self._admit(cid, len(data))
        if type(block) is not CheckedBlock:
            check_block(cid, data)
        self._count(len(data))
        self._visit(cid, data, depth)

    def add_leaf(self, leaf: CheckedLeaf) -> None:
        """Accept one block that is a piece of a file and nothing else.

        Raises:
            ParityError: As ``add``.
        """
        self._admit(leaf.cid, leaf.stored)
        self._count(leaf.stored)
        self._content += leaf.size
        self._seen[leaf.cid.key] = _seen_leaf(leaf.size)

    def finish(self) -> DagSummary:
        """End the DAG.

        Raises:
            BadDocument: A link was not visited, a block came that nobody links to, or sizes do not add up.
            TooLarge: Some way through the DAG is longer than ``max_depth``.
        """
        if self._order is not Order.ANY and not self.is_complete:
            missing = self.wanted(1)
            raise BadDocument(f"{self.root}: ended early, block {missing[0]} and maybe more are missing")
        sizes = self._measure()
        self._check_shards()
        if len(sizes) != len(self._seen):
            raise BadDocument(f"{self.root}: {len(self._seen) - len(sizes)} blocks that nothing links to")
        top = self._seen[self.root.key].node
        return DagSummary(self.root, top.kind, sizes[self.root.key], self._bytes, self._blocks)

    def _admit(self, cid: Cid, size: int) -> int:
        """Return the depth at which the DAG asks for a block now."""
        if size > self._limits.max_block_bytes:
            raise TooLarge(f"block {cid} has {size} bytes, at most {self._limits.max_block_bytes} are accepted")
        key = cid.key
        if cid.hash_code == HASH_IDENTITY:
            raise BadDocument(f"{self.root}: a block for {cid}, which holds its content itself")
        match self._order:
            case Order.DFS:
                self._skip_seen()
                if not self._stack:
                    raise BadDocument(f"{self.root}: block {cid} after the end of the DAG")
                expected, depth = self._stack[-1]
                if expected.key != key:
                    raise BadDocument(f"{self.root}: expected block {expected} next, got {cid}")
                self._stack.pop()
                return depth
            case Order.PARENTS_FIRST:
                if key not in self._pending:
                    raise BadDocument(f"{self.root}: block {cid} was not asked for")
                return self._pending.pop(key)[1]
            case Order.ANY:
                if key in self._seen:
                    raise BadDocument(f"{self.root}: block {cid} comes twice")
                return 0

    def _count(self, size: int) -> None:
        self._bytes += size
        self._blocks += 1
        if self._bytes > self._limits.max_bytes:
            raise TooLarge(f"{self.root}: more than {self._limits.max_bytes} bytes of blocks")
        if self._blocks > self._limits.max_blocks:
            raise TooLarge(f"{self.root}: more than {self._limits.max_blocks} blocks")

    def _visit(self, cid: Cid, data: bytes, depth: int) -> None:
        node = read_node(cid, data)
        self._links += len(node.links)
        if self._links > self._limits.max_links:
            raise TooLarge(f"{self.root}: more than {self._limits.max_links} links")
        self._content += len(node.data)
        children = [link.cid for link in node.links]
        bare = Node(node.kind, b"", node.size, (), node.sizes) if node.data or node.links else node
        shard = None
        if node.shard is not None:
            shard = tuple((link.place, name_hash(link.name) if link.name else None) for link in node.shard)
        self._seen[cid.key] = _Seen(bare, tuple(child.key for child in children), shard)
        self._want(children, depth + 1)

    def _want(self, cids: list[Cid], depth: int) -> None:
        if cids and depth > self._limits.max_depth:
            raise TooLarge(f"{self.root}: deeper than {self._limits.max_depth} links")
        for cid in cids:
            # Content inside a link needs no block; depth bounds the recursion.
            if cid.inline is not None and cid.key not in self._seen:
                self._visit(cid, cid.inline, depth)
        if self._order is Order.DFS:
            self._stack.extend((cid, depth) for cid in reversed(cids))
        elif self._order is Order.PARENTS_FIRST:
            for cid in cids:
                if cid.key not in self._seen:
                    self._pending.setdefault(cid.key, (cid, depth))

    def _skip_seen(self) -> None:
        while self._stack and self._stack[-1][0].key in self._seen:
            self._stack.pop()

    def _measure(self) -> dict[_Key, int]:
        """Walk from the root, children first; return the content bytes of every node on the way."""
        sizes: dict[_Key, int] = {}
        heights: dict[_Key, int] = {}
        stack: list[tuple[_Key, bool]] = [(self.root.key, False)]
        while stack:
            key, children_done = stack.pop()
            if key in sizes:
                continue
            seen = self._seen.get(key)
            if seen is None:
                raise BadDocument(f"{self.root}: block {_name(key)} is missing")
            if not children_done and seen.children:
                stack.append((key, True))
                stack.extend((child, False) for child in seen.children if child not in sizes)
                continue
            heights[key] = 1 + max(heights[child] for child in seen.children) if seen.children else 0
            if heights[key] > self._limits.max_depth:
                raise TooLarge(f"{self.root}: deeper than {self._limits.max_depth} links")
            sizes[key] = self._size_of(key, seen, sizes)
        return sizes

    def _check_shards(self) -> None:
        """Check that in sharded directories every name lies where its hash says; so none can be there twice."""
        prefixes: dict[_Key, bytes] = {}
        for key, seen in self._seen.items():
            if key == self.root.key and seen.shard is not None:
                self._check_shard(key, prefixes)
            if seen.node.kind is Kind.DIRECTORY:
                marks = seen.shard or ((0, b""),) * len(seen.children)
                for child, (_, name) in zip(seen.children, marks, strict=True):
                    if name is not None and self._seen[child].shard is not None:
                        self._check_shard(child, prefixes)

    def _check_shard(self, root: _Key, prefixes: dict[_Key, bytes]) -> None:
        stack = [(root, b"")]
        while stack:
            key, prefix = stack.pop()
            # What lies below decides the one place where a shard can be, so each is looked at once.
            if prefixes.setdefault(key, prefix) != prefix:
                raise BadDocument(f"{self.root}: shard {_name(key)} is at two places of a directory")
            seen = self._seen[key]
            if seen.shard is None:
                raise BadDocument(f"{self.root}: {_name(key)} is not a shard but stands where one belongs")
            if prefix and not seen.children:
                raise BadDocument(f"{self.root}: {_name(key)} is an empty shard inside a directory")
            for child, (place, name) in zip(seen.children, seen.shard, strict=True):
                here = prefix + bytes((place,))
                if name is None:
                    if len(here) == HASH_BYTES:
                        raise BadDocument(f"{self.root}: a sharded directory of more than {HASH_BYTES} levels")
                    stack.append((child, here))
                elif not name.startswith(here):
                    raise BadDocument(f"{self.root}: a name in {_name(key)} does not lie where its hash says")

    def _size_of(self, key: _Key, seen: _Seen, sizes: dict[_Key, int]) -> int:
        if seen.node.kind is Kind.DIRECTORY:
            return sum(sizes[child] for child in seen.children)
        for child, claimed in zip(seen.children, seen.node.sizes, strict=True):
            if self._seen[child].node.kind is not Kind.FILE:
                raise BadDocument(f"{self.root}: file {_name(key)} has a directory as its piece")
            if sizes[child] != claimed:
                raise BadDocument(
                    f"{self.root}: {_name(key)} claims {claimed} bytes for {_name(child)}, which has {sizes[child]}"
                )
        return seen.node.size


@lru_cache(maxsize=16)  # a file's leaves are of one size, but for the last
def _seen_leaf(size: int) -> _Seen:
    return _Seen(Node(Kind.FILE, b"", size, (), ()), (), None)


def _name(key: _Key) -> str:
    codec, _, digest = key
    return f"{digest.hex()} (codec 0x{codec:x})"
