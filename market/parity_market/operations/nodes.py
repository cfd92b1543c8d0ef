"""Enrolment and presence of nodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from parity_market.store import sql
from parity_market.store.base import ReadTx, Tx
from parity_market.store.rows import NodeRow, from_us, to_us
from parity_protocol.capability import Capability
from parity_protocol.errors import Forbidden, NodeInUse, NotFound

__all__ = ["NewNode", "Seen", "all_nodes", "check_instance", "enrol", "get", "page", "record_seen", "set_capability"]


@dataclass(frozen=True, slots=True)
class NewNode:
    """An enrolment whose two signatures and chain operator were checked."""

    node_id: str
    device_key: str  # raw Ed25519 public key, base64url
    operator: str
    instance: str
    hostname: str
    capability: Capability


@dataclass(frozen=True, slots=True)
class Seen:
    """A node's presence, kept in memory and written about once a second."""

    node_id: str
    last_seen: datetime  # UTC
    draining: bool
    online: bool


def enrol(tx: Tx, new: NewNode, now: datetime, *, heartbeat: timedelta, last_seen: datetime | None = None) -> NodeRow:
    """Enrol a node, or bring a known one up to date.

    Args:
        heartbeat: How often nodes report; an instance silent for twice as long has gone.
        last_seen: When its current instance was last heard, as memory has it; None leaves it to the table.

    Raises:
        NodeInUse: Another machine with this key is active; names it and when it was last seen.
        Forbidden: The id belongs to another device key.
    """
    known = tx.one(sql.NODE, id=new.node_id)
    if known is not None:
        if known.device_key != new.device_key:
            raise Forbidden("this node id is enrolled with another device key")
        seen = max(last_seen or from_us(0), from_us(known.last_seen_us))
        if known.instance != new.instance and known.online and now - seen < 2 * heartbeat:
            where = known.hostname or "another machine"
            raise NodeInUse(f"this node's key is in use on {where}, last seen {seen:%Y-%m-%d %H:%M:%S} UTC")
    now_us = to_us(now)
    row = NodeRow(
        id=new.node_id,
        device_key=new.device_key,
        operator=new.operator,
        instance=new.instance,
        hostname=new.hostname,
        capability_doc=new.capability.model_dump_json(),
        capability_us=now_us,
        draining=0,
        online=1,
        enrolled_us=now_us if known is None else known.enrolled_us,
        last_seen_us=now_us,
        completed=0 if known is None else known.completed,
        failed=0 if known is None else known.failed,
    )
    tx.insert(sql.NODE_PUT, row)
    return row


def check_instance(tx: ReadTx, node_id: str, instance: str) -> NodeRow:
    """Return the node if ``instance`` is the one that enrolled last.

    Raises:
        NotFound: The node is not enrolled.
        NodeInUse: Another machine with the same key enrolled since.
    """
    node = get(tx, node_id)
    if node.instance != instance:
        where = node.hostname or "another machine"
        seen = from_us(node.last_seen_us)
        raise NodeInUse(f"this node's key is in use on {where}, last seen {seen:%Y-%m-%d %H:%M:%S} UTC")
    return node


def get(tx: ReadTx, node_id: str) -> NodeRow:
    """Return a node.

    Raises:
        NotFound: It is not enrolled.
    """
    node = tx.one(sql.NODE, id=node_id)
    if node is None:
        raise NotFound(f"node {node_id} is not enrolled here")
    return node


def page(tx: ReadTx, *, after: str = "", limit: int = 50) -> tuple[list[NodeRow], str | None]:
    """Return nodes by id, and the cursor of the next page."""
    limit = max(1, min(limit, sql.MAX_PAGE))
    found = tx.all(sql.NODES, after=after, limit=limit + 1)
    return found[:limit], found[limit - 1].id if len(found) > limit else None


def all_nodes(tx: ReadTx) -> list[NodeRow]:
    """Return every node, for rebuilding the scheduler at start-up."""
    return tx.all(sql.NODES, after="", limit=1_000_000)


def record_seen(tx: Tx, seen: Sequence[Seen]) -> None:
    """Write what memory knows of nodes' presence."""
    for item in seen:
        tx.run(
            sql.NODE_SEEN,
            key_id=item.node_id,
            last_seen_us=to_us(item.last_seen),
            draining=int(item.draining),
            online=int(item.online),
        )


def set_capability(tx: Tx, node_id: str, capability: Capability, now: datetime) -> None:
    """Store a node's newest fingerprint."""
    tx.run(sql.NODE_CAPABILITY, key_id=node_id, capability_doc=capability.model_dump_json(), capability_us=to_us(now))
