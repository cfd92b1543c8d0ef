"""A large file as plain bytes: its nodes say where each leaf lies, so what any web server sends can be hashed piece by piece.

A gateway makes CARs at a fraction of the speed at which it sends files. This is as trustless: no byte counts before the
leaf that it belongs to has the hash which a checked node names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from parity_blobs.cid import CODEC_RAW, Block, Cid
from parity_blobs.unixfs import Kind, Node, encode_leaf
from parity_blobs.verify import CheckedBlock, DagLimits, DagVerifier
from parity_protocol.errors import DigestMismatch

__all__ = ["MIN_PLAIN_BYTES", "Cutter", "Leaf", "are_new", "is_leaf_like", "is_worth_it", "layout_of", "leaf_block"]

MIN_PLAIN_BYTES = 8 << 20  # below it one CAR is one request less

_MAX_LEAF_BYTES = 1 << 20
_MIN_UNIQUE = 0.75  # of a file's bytes: one that repeats itself more is cheaper as different blocks


class Leaf(NamedTuple):
    """A piece of a file: where its content starts, and its length in bytes."""

    start: int
    size: int
    cid: Cid


def is_worth_it(root: Node) -> bool:
    """Tell whether content should be fetched in this way, from its root."""
    if root.kind is not Kind.FILE or root.size < MIN_PLAIN_BYTES or root.data or len(root.links) < 2:
        return False
    different = {link.cid: size for link, size in zip(root.links, root.sizes, strict=True)}
    return sum(different.values()) >= _MIN_UNIQUE * root.size


def is_leaf_like(cid: Cid, size: int) -> bool:
    """Guess from a link whether a leaf is behind it; a wrong guess is found out by its hash."""
    return cid.inline is not None or cid.codec == CODEC_RAW or size <= _MAX_LEAF_BYTES


def layout_of(root: Cid, nodes: Mapping[Cid, Node], limits: DagLimits) -> list[Leaf] | None:
    """Return the leaves of a file in order, or None when it is better fetched block by block.

    Args:
        nodes: The root and everything below that is not a leaf.
    """
    leaves: list[Leaf] = []
    unique, different = 0, set[Cid]()
    start = 0
    stack = [(root, nodes[root].size)]
    while stack:
        cid, size = stack.pop()
        node = nodes.get(cid)
        if node is None:
            if not 0 < size <= _MAX_LEAF_BYTES or cid.inline is not None or len(leaves) == limits.max_blocks:
                return None
            leaves.append(Leaf(start, size, cid))
            start += size
            if cid not in different:
                different.add(cid)
                unique += size
        elif node.data or node.size != size:
            return None
        else:
            stack.extend(zip([link.cid for link in node.links][::-1], node.sizes[::-1], strict=True))
    return leaves if start == nodes[root].size and unique >= _MIN_UNIQUE * start else None


def are_new(leaves: list[Leaf], walk: DagVerifier) -> bool:
    """Tell whether these leaves are all different and none is here yet."""
    keys = {leaf.cid.key for leaf in leaves}
    return len(keys) == len(leaves) and not any(walk.has(leaf.cid) for leaf in leaves)


def leaf_block(cid: Cid, content: bytes) -> Block:
    """Return the block whose content this is, as Kubo would have cut it."""
    return Block(cid, content if cid.codec == CODEC_RAW else encode_leaf(content))


class Cutter:
    """Cuts a file's bytes into leaves, copying each byte once, and hashes those that are not here yet.

    Attributes:
        problem: The first leaf that was not what it should be; nothing after it counts. One of the old form need not
            be a leaf, so that nobody lied.
    """

    def __init__(self, walk: DagVerifier, leaves: list[Leaf]) -> None:
        self._walk = walk
        self._leaves = leaves
        self._at = 0  # the leaf that the next byte belongs to
        self._missing = leaves[0].size
        self._parts: list[memoryview] = []  # of that leaf
        self.problem: DigestMismatch | None = None

    @property
    def is_complete(self) -> bool:
        """Whether every byte came."""
        return self._at == len(self._leaves)

    def feed(self, piece: bytes) -> Iterator[CheckedBlock]:
        """Take the next bytes and yield the leaves that they complete."""
        view, at = memoryview(piece), 0
        while at < len(view) and not self.is_complete and self.problem is None:
            part = view[at : at + self._missing]
            self._parts.append(part)
            self._missing -= len(part)
            at += len(part)
            if not self._missing:
                yield from self._end_leaf()

    def _end_leaf(self) -> Iterator[CheckedBlock]:
        cid, parts = self._leaves[self._at].cid, self._parts
        self._at += 1
        self._parts = []
        if self._at < len(self._leaves):
            self._missing = self._leaves[self._at].size
        if self._walk.has(cid):
            return
        try:
            yield CheckedBlock.of(leaf_block(cid, b"".join(parts)))
        except DigestMismatch as exc:
            self.problem = exc
