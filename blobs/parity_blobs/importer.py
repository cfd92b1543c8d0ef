"""UnixFS import: bytes to the blocks and the CID that ``ipfs add`` of Kubo gives, byte for byte.

Chunks of 256 KiB, the balanced layout with at most 174 links a node, directories in one block. Sans-I/O: feed
bytes, take blocks.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from parity_blobs.cid import CODEC_DAG_PB, Block, Cid
from parity_blobs.dag_pb import PbLink
from parity_blobs.unixfs import checked_name, encode_directory, encode_file_node, encode_leaf
from parity_protocol.errors import BadDocument, InvalidInput, TooLarge

__all__ = [
    "CHUNK_BYTES",
    "DEFAULT_OPTIONS",
    "MAX_LINKS",
    "AddOptions",
    "Entry",
    "FileImporter",
    "Imported",
    "build_directory",
    "cid_of_bytes",
]

CHUNK_BYTES = 262_144
MAX_LINKS = 174  # of one node of a file
MAX_DIRECTORY_BYTES = 262_144  # of names and CIDs, beyond which Kubo shards a directory


@dataclass(frozen=True, slots=True)
class AddOptions:
    """The flags of ``ipfs add`` that change a CID.

    Attributes:
        cid_version: ``--cid-version``; 0 is what a bare ``ipfs add`` does.
        raw_leaves: ``--raw-leaves``; None follows Kubo, which turns it on for version 1. Leaves are then CIDv1.
    """

    cid_version: int = 1
    raw_leaves: bool | None = None

    def __post_init__(self) -> None:
        if self.cid_version not in (0, 1):
            raise InvalidInput(f"CID version must be 0 or 1, got {self.cid_version}", field="cid_version")

    @property
    def has_raw_leaves(self) -> bool:
        """Whether chunks become raw blocks."""
        return self.cid_version == 1 if self.raw_leaves is None else self.raw_leaves


DEFAULT_OPTIONS = AddOptions()  # CIDv1 with raw leaves


class Imported(NamedTuple):
    """The end of an import.

    Attributes:
        size: Content bytes; 0 for a directory.
        tsize: Bytes of all blocks, duplicates counted each time: what a directory's link to it carries.
        blocks: Blocks that were not handed out before; the root is the last one made.
    """

    cid: Cid
    size: int
    tsize: int
    blocks: list[Block]


class Entry(NamedTuple):
    """A name in a directory and what it leads to; ``tsize`` as ``Imported`` gives it."""

    name: str
    cid: Cid
    tsize: int


class FileImporter:
    """Cuts one file into blocks. Memory: one chunk, and at most 174 links a level."""

    def __init__(self, options: AddOptions = DEFAULT_OPTIONS) -> None:
        self._version = options.cid_version
        self._raw = options.has_raw_leaves
        self._carry = bytearray()
        self._size = 0
        self._levels: list[list[tuple[PbLink, int]]] = [[]]  # per level: links with their content bytes
        self._finished = False

    def feed(self, data: bytes | bytearray | memoryview) -> list[Block]:
        """Take the next bytes of the file and return the blocks they complete; a short list may be empty."""
        if self._finished:
            raise InvalidInput("feed() after finish()")
        view, at, out = memoryview(data), 0, list[Block]()
        self._size += len(view)
        if self._carry:
            at = min(CHUNK_BYTES - len(self._carry), len(view))
            self._carry += view[:at]
            if len(self._carry) == CHUNK_BYTES:
                self._leaf(bytes(self._carry), out)
                self._carry.clear()
        while len(view) - at >= CHUNK_BYTES:
            self._leaf(bytes(view[at : at + CHUNK_BYTES]), out)
            at += CHUNK_BYTES
        self._carry += view[at:]
        return out

    def finish(self) -> Imported:
        """End the file; return its CID and the last blocks."""
        if self._finished:
            raise InvalidInput("finish() twice")
        self._finished = True
        out: list[Block] = []
        if self._carry or not self._size:
            self._leaf(bytes(self._carry), out)
        level = 0
        # A level of one link is the root only at the top: below it the layout keeps every leaf at one depth.
        while level < len(self._levels) - 1 or len(self._levels[level]) > 1:
            self._join(level, out)
            level += 1
        link, _ = self._levels[level][0]
        return Imported(link.cid, self._size, link.tsize, out)

    def _leaf(self, chunk: bytes, out: list[Block]) -> None:
        if self._raw:
            block = Block(Cid.of_block(chunk), chunk)
        else:
            data = encode_leaf(chunk)
            block = Block(Cid.of_block(data, codec=CODEC_DAG_PB, version=self._version), data)
        out.append(block)
        self._push(0, PbLink(block.cid, "", len(block.data)), len(chunk), out)

    def _push(self, level: int, link: PbLink, size: int, out: list[Block]) -> None:
        if len(self._levels) == level:
            self._levels.append([])
        if len(self._levels[level]) == MAX_LINKS:
            self._join(level, out)
        self._levels[level].append((link, size))

    def _join(self, level: int, out: list[Block]) -> None:
        pending = self._levels[level]
        links, sizes = [link for link, _ in pending], [size for _, size in pending]
        self._levels[level] = []
        data = encode_file_node(links, sizes)
        cid = Cid.of_block(data, codec=CODEC_DAG_PB, version=self._version)
        out.append(Block(cid, data))
        self._push(level + 1, PbLink(cid, "", len(data) + sum(link.tsize for link in links)), sum(sizes), out)


def build_directory(entries: Iterable[Entry], options: AddOptions = DEFAULT_OPTIONS) -> Imported:
    """Return the block of a directory.

    Raises:
        TooLarge: Kubo would shard a directory with that many names, which is not supported here.
        BadDocument: A name cannot be used, or comes twice.
    """
    links = sorted((PbLink(e.cid, checked_name(e.name), e.tsize) for e in entries), key=lambda link: link.name.encode())
    for first, second in pairwise(links):
        if first.name == second.name:
            raise BadDocument(f"two directory entries are named {first.name[:80]!r}")
    weight = sum(len(link.name.encode()) + len(bytes(link.cid)) for link in links)
    if weight > MAX_DIRECTORY_BYTES:
        raise TooLarge(
            f"a directory of {len(links)} entries needs sharding: names and CIDs take {weight} bytes, "
            f"at most {MAX_DIRECTORY_BYTES} fit one block",
            hint="Split it into sub-directories, or pack it into one file.",
        )
    data = encode_directory(links)
    cid = Cid.of_block(data, codec=CODEC_DAG_PB, version=options.cid_version)
    return Imported(cid, 0, len(data) + sum(link.tsize for link in links), [Block(cid, data)])


def cid_of_bytes(data: bytes, *, version: int = 1, raw: bool | None = None) -> Cid:
    """Return the CID that ``ipfs add`` gives a file of these bytes; the default is that of every store here."""
    importer = FileImporter(AddOptions(version, raw))
    importer.feed(data)
    return importer.finish().cid
