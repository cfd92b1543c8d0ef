"""Who may read which blob, and small results in the database."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from parity_blobs import Cid
from parity_blobs.spec_cids import names_of
from parity_market.store import sql_blobs
from parity_market.store.base import ReadTx, Tx
from parity_market.store.rows import BlobRefRow, SmallBlobRow, to_us
from parity_protocol.errors import Conflict, NotFound

__all__ = [
    "add_ref",
    "bytes_of_owner",
    "hand_over",
    "info",
    "is_held",
    "link_inputs",
    "owned",
    "pin",
    "put_small",
    "readable",
    "size_from_node",
    "small_blob",
    "unpin",
]

PUBLIC, PRIVATE = "public", "private"


def add_ref(
    tx: Tx, cid: str, owner: str, *, visibility: str, size: int, now: datetime, task_id: str = ""
) -> BlobRefRow:
    """Note that ``owner`` has stored a blob, or that it belongs to a task; a repetition can only make it public."""
    row = BlobRefRow(cid, owner, task_id, visibility, size, 0, to_us(now))
    if not tx.insert(sql_blobs.BLOB_REF_PUT, row) and visibility == PUBLIC:
        tx.run(sql_blobs.BLOB_PUBLISH, key_cid=cid, key_owner=owner, visibility=PUBLIC)
    return row


def link_inputs(tx: Tx, creator: str, cids: Sequence[Cid], task_ids: Sequence[str], now: datetime) -> None:
    """Let whoever holds a lease on one of ``task_ids`` read those of the inputs that ``creator`` may read here."""
    now_us = to_us(now)
    for cid in cids:
        for name in names_of(cid):
            try:
                ref = readable(tx, name, creator)
            except NotFound:
                continue  # not ours to give: the node fetches it elsewhere
            for task_id in task_ids:
                tx.insert(sql_blobs.BLOB_REF_PUT, BlobRefRow(ref.cid, creator, task_id, PRIVATE, ref.size, 0, now_us))
            break


def readable(tx: ReadTx, cid: str, reader: str | None) -> BlobRefRow:
    """Return the reference by which ``reader`` may read a blob.

    Args:
        reader: A node's or submitter's id; None is anybody.

    Raises:
        NotFound: There is no such blob, or it is not for this reader: the answers are the same on purpose.
    """
    refs = tx.all(sql_blobs.BLOB_REFS, cid=cid)
    for ref in refs:
        if ref.visibility == PUBLIC or ref.owner == reader:
            return ref
    if refs and reader is not None and tx.one(sql_blobs.BLOB_INPUT_OF_LIVE_LEASE, cid=cid, node_id=reader):
        return refs[0]
    raise NotFound(f"there is no blob {cid} here")


def info(tx: ReadTx, cid: str, reader: str | None) -> BlobRefRow:
    """Return what ``reader`` may know of a blob, with ``pinned`` of the reader's own reference.

    Raises:
        NotFound: As of ``readable``.
    """
    ref = readable(tx, cid, reader)
    own = tx.one(sql_blobs.BLOB_REF, cid=cid, owner=reader, task_id="") if reader is not None else None
    return own or ref


def pin(tx: Tx, cid: str, owner: str) -> None:
    """Keep a blob for its owner.

    Raises:
        NotFound: ``owner`` has no such blob.
    """
    if not tx.run(sql_blobs.BLOB_PIN, key_cid=cid, key_owner=owner, pinned=1):
        raise NotFound(f"there is no blob {cid} of yours here")


def unpin(tx: Tx, cid: str, owner: str) -> bool:
    """Keep a blob no longer for its owner, whose quota it leaves; a result of a task stays that task's.

    Returns:
        Whether nothing else here needs the content, which may then be evicted.

    Raises:
        NotFound: ``owner`` has no such blob.
        Conflict: A task that has not ended reads it.
    """
    if (task_id := tx.one(sql_blobs.BLOB_NEEDED_BY, cid=cid, owner=owner)) is not None:
        raise Conflict(f"task {task_id} has not ended and needs {cid}", hint="Wait for it, or cancel it first.")
    unpinned = tx.run(sql_blobs.BLOB_PIN, key_cid=cid, key_owner=owner, pinned=0)
    if not tx.run(sql_blobs.BLOB_REF_DELETE, cid=cid, owner=owner) and not unpinned:
        raise NotFound(f"there is no blob {cid} of yours here")
    return not is_held(tx, cid)


def size_from_node(tx: ReadTx, cid: str, node_id: str) -> int | None:
    """Return the size of a result that a node stored here, for this task or for one before; None if it did not."""
    own = tx.one(sql_blobs.BLOB_REF, cid=cid, owner=node_id, task_id="")
    if own is not None:
        return int(own.size)
    found: int | None = tx.one(sql_blobs.BLOB_RESULT_OF_NODE, cid=cid, node_id=node_id)
    return found


def hand_over(tx: Tx, cid: str, node_id: str) -> None:
    """Take a result off the quota of the node that stored it: its task has it now."""
    tx.run(sql_blobs.BLOB_REF_DELETE, cid=cid, owner=node_id)


def is_held(tx: ReadTx, cid: str) -> bool:
    """Return whether somebody stored a blob, a task brought it, or one that has not ended reads it."""
    return tx.one(sql_blobs.BLOB_HELD, cid=cid) is not None


def owned(tx: ReadTx, owner: str, *, after: str = "", limit: int) -> list[BlobRefRow]:
    """Return what ``owner`` has stored, by CID, from after ``after``."""
    return tx.all(sql_blobs.BLOBS_OF_OWNER, owner=owner, after=after, limit=limit)


def bytes_of_owner(tx: ReadTx, owner: str) -> int:
    """Return how many bytes ``owner`` has stored, for the upload quota."""
    found: int | None = tx.one(sql_blobs.BLOB_BYTES_OF_OWNER, owner=owner)
    return int(found or 0)


def fits(tx: ReadTx, cid: str, owner: str, *, size: int, quota: int) -> bool:
    """Return whether ``owner`` may store ``size`` more bytes, or has this very blob already."""
    is_there = tx.one(sql_blobs.BLOB_REF, cid=cid, owner=owner, task_id="") is not None
    return is_there or bytes_of_owner(tx, owner) + size <= quota


def put_small(tx: Tx, cid: str, data: bytes) -> None:
    """Store a small blob; its CID was checked."""
    tx.insert(sql_blobs.SMALL_BLOB_PUT, SmallBlobRow(cid, data))


def small_blob(tx: ReadTx, cid: str) -> bytes | None:
    """Return a small blob, or None when it is not in the database."""
    found: bytes | None = tx.one(sql_blobs.SMALL_BLOB, cid=cid)
    return found
