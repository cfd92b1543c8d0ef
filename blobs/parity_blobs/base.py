"""The ``BlobStore`` port: content in and out by CID."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass
from typing import Literal, Protocol

from parity_blobs.cid import Block, Cid
from parity_blobs.importer import DEFAULT_OPTIONS, AddOptions
from parity_blobs.unixfs import Kind
from parity_blobs.verify import DEFAULT_LIMITS, DagLimits, Order

__all__ = ["BlobStat", "BlobStore", "Scope"]

Scope = Literal["block", "all"]  # as the trustless gateway's dag-scope


@dataclass(frozen=True, slots=True)
class BlobStat:
    """What a store knows about content it holds completely.

    Attributes:
        cid: As it was asked for, or as ``put`` made it.
        size: Content bytes of a file; for a directory, of everything in it.
        stored: Bytes of its different blocks.
        blocks: Number of its different blocks.
        is_pinned: Whether eviction spares it.
    """

    cid: Cid
    kind: Kind
    size: int
    stored: int
    blocks: int
    is_pinned: bool


class BlobStore(Protocol):
    """Keeps content by CID; all of it or nothing, and never a byte that does not match.

    Every method MUST be safe to call from many tasks at once. A ``put`` MUST be durable when it returns, MUST leave
    nothing behind when it fails or is cancelled, and MUST be idempotent. Reads MUST check every block's hash before
    they hand it out. Content that is not here is ``None`` from ``stat`` and ``NotFound`` from the readers.
    Stores are bounded: content that nobody pinned MAY be evicted, least recently used first, to make room.
    """

    async def put(
        self,
        data: AsyncIterable[bytes],
        *,
        max_bytes: int,
        options: AddOptions = DEFAULT_OPTIONS,
        pin: bool = False,
    ) -> BlobStat:
        """Store a file as ``ipfs add`` would cut it.

        Args:
            max_bytes: Content bytes accepted.
            pin: Pin it in the same step, so that it cannot be evicted in between.

        Raises:
            TooLarge: More than ``max_bytes`` came.
            StorageFull: No room, even without everything that is not pinned.
        """
        ...

    async def put_bytes(self, data: bytes, *, options: AddOptions = DEFAULT_OPTIONS, pin: bool = False) -> Cid:
        """Store a file that is in memory already; MUST be cheap for small ones (one fsync, shared when busy)."""
        ...

    async def put_blocks(
        self,
        root: Cid,
        blocks: AsyncIterable[Block],
        *,
        limits: DagLimits = DEFAULT_LIMITS,
        order: Order = Order.DFS,
        pin: bool = False,
    ) -> BlobStat:
        """Store a DAG whose blocks come from somebody who is not trusted.

        Raises:
            DigestMismatch: A block's bytes do not match its CID.
            BadDocument: Blocks are missing, not asked for, out of order, or not UnixFS.
            TooLarge: Over ``limits``.
            StorageFull: No room.
        """
        ...

    def open(self, cid: Cid, *, max_bytes: int) -> AsyncIterator[bytes]:
        """Yield a file's content in order; nothing is read before the first step.

        Raises:
            NotFound: Not here.
            InvalidInput: It is a directory.
            TooLarge: The file has more than ``max_bytes``; raised before the first byte.
            DigestMismatch: What lies here has rotted. What was handed out before is right; the rest is set aside.
        """
        ...

    def blocks(self, cid: Cid, *, scope: Scope = "all") -> AsyncIterator[Block]:
        """Yield each different block below ``cid`` once, depth first; with scope ``block``, only that one.

        Raises:
            NotFound: Not here.
            DigestMismatch: As ``open``.
        """
        ...

    async def stat(self, cid: Cid) -> BlobStat | None:
        """Return what is known about ``cid``, or None when it is not here."""
        ...

    async def pin(self, cid: Cid, *, keep: bool = True) -> None:
        """Spare content from eviction, or with ``keep=False`` no longer; idempotent, pins are not counted.

        A CID inside a larger DAG pins the whole of it.

        Raises:
            NotFound: Not here.
        """
        ...

    async def delete(self, cid: Cid) -> bool:
        """Remove content that was put under exactly this CID, and return whether it was here.

        Readers that are under way finish undisturbed.

        Raises:
            Conflict: It is pinned.
        """
        ...
