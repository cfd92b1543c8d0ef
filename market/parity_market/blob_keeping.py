"""Letting go of content: what nothing here needs may be evicted when room is needed."""

from __future__ import annotations

from contextlib import suppress

from parity_blobs import Cid
from parity_blobs.local import LocalBlobStore
from parity_market.operations.blobs import is_held
from parity_market.store.base import MarketStore
from parity_protocol.errors import NotFound

__all__ = ["let_go"]


async def let_go(store: MarketStore, blobs: LocalBlobStore, cid: Cid) -> None:
    """Keep content no longer, unless somebody needs it; also if somebody begins to just now."""
    text = str(cid)
    if not await store.read(lambda tx: is_held(tx, text)):
        with suppress(NotFound):  # small ones lie in the database
            await blobs.pin(cid, keep=False)
            if await store.read(lambda tx: is_held(tx, text)):
                await blobs.pin(cid)
