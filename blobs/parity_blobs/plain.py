"""A large file as plain bytes: its nodes say where each leaf lies, so what any web server sends can be hashed piece by piece.

A gateway makes CARs at a fraction of the speed at which it sends files. This is as trustless: no byte counts before the
leaf that it belongs to has the hash which a checked node names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from parity_blobs.cid import CODEC_RAW, Block, Cid
from parity_blobs.unixfs import Kind, Node, encode_leaf
from parity_blobs.verify import DagLimits

__all__ = ["MIN_PLAIN_BYTES", "Cutter", "Leaf", "is_leaf_like", "is_worth_it", "layout_of", "leaf_block"]

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


def leaf_block(cid: Cid, content: bytes) -> Block:
    """Return the block whose content this is, as Kubo would have cut it."""
    return Block(cid, content if cid.codec == CODEC_RAW else encode_leaf(content))


class Cutter:
    """Cuts a stream into pieces of given lengths, with one copy a piece at most."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._held = 0

    def feed(self, piece: bytes) -> None:
        """Take the next bytes."""
        self._parts.append(piece)
        self._held += len(piece)

    def take(self, size: int) -> bytes | None:
        """Return the next ``size`` bytes, or None while they are not all here."""
        if self._held < size:
            return None
        taken: list[bytes] = []
        while size:
            first = self._parts[0]
            if len(first) <= size:
                taken.append(self._parts.pop(0))
            else:
                taken.append(first[:size])
                self._parts[0] = first[size:]
            size -= len(taken[-1])
            self._held -= len(taken[-1])
        return taken[0] if len(taken) == 1 else b"".join(taken)
