"""``parity node cache``: one request in, one JSON document out; through the agent's socket, or without an agent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from parity_node.cache.keeper import CacheItem, NodeCache
from parity_protocol.errors import BadField

__all__ = ["answer_cache"]

MAX_LISTED = 5_000  # items of one answer
MAX_AGE_S = 10 * 365 * 86_400.0


async def answer_cache(cache: NodeCache, request: Mapping[str, Any]) -> dict[str, Any]:
    """Do what ``request["action"]`` says: ``list``, ``gc``, ``pin`` or ``unpin``.

    ``gc`` takes ``all``, ``older_than_s`` and ``dry_run``; ``pin`` and ``unpin`` take ``name``. Sizes are bytes, times
    unix seconds.

    Raises:
        BadField: The request is malformed.
        NotFound: Nothing here has that name.
        ParityError: The store does not work.
    """
    match request.get("action"):
        case "list":
            items = await cache.items()
        case "gc":
            return await _collect(cache, request)
        case "pin" | "unpin" as action:
            name = request.get("name")
            if not isinstance(name, str) or not 0 < len(name) <= 600:
                raise BadField(f"{action} needs the name of something in the cache", field="name")
            return {"item": _item(await cache.pin(name, keep=action == "pin"))}
        case _:
            raise BadField("expected the action list, gc, pin or unpin", field="action")
    totals = await cache.totals()
    return {
        "items": [_item(item) for item in items[:MAX_LISTED]],
        "not_listed": max(0, len(items) - MAX_LISTED),
        "totals": {
            kind.value: {"used": total.used, "kept": total.kept, "limit": total.limit} for kind, total in totals.items()
        },
    }


async def _collect(cache: NodeCache, request: Mapping[str, Any]) -> dict[str, Any]:
    everything, dry_run, age_s = request.get("all", False), request.get("dry_run", False), request.get("older_than_s")
    if not isinstance(everything, bool) or not isinstance(dry_run, bool):
        raise BadField("all and dry_run are true or false", field="all")
    if age_s is not None and (isinstance(age_s, bool) or not isinstance(age_s, int | float) or age_s < 0):
        raise BadField("older_than_s must be a number of seconds of 0 or more", field="older_than_s")
    gone = await cache.collect(
        everything=everything, older_than_s=None if age_s is None else min(float(age_s), MAX_AGE_S), dry_run=dry_run
    )
    return {
        "items": [_item(item) for item in gone[:MAX_LISTED]],
        "not_listed": max(0, len(gone) - MAX_LISTED),
        "freed_bytes": sum(item.size_bytes for item in gone),
        "dry_run": dry_run,
    }


def _item(item: CacheItem) -> dict[str, Any]:
    return {
        "kind": item.kind.value,
        "name": item.name,
        "label": item.label,
        "size": item.size_bytes,
        "used_at": round(item.used_at, 3),
        "pinned": item.is_pinned,
        "in_use": item.is_used,
    }
