"""Which nodes are there, as memory knows it: heartbeats are many, and a lost one does no harm."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from parity_market.domain.dispatch import NodeView
from parity_market.operations.nodes import Seen
from parity_market.store.rows import NodeRow, from_us
from parity_protocol.capability import Capability
from parity_protocol.clock import Clock

__all__ = ["Presence", "PresentNode"]

MISSED_HEARTBEATS = 3  # after so many a node counts as offline

_COUNT_S = 0.1  # between two counts of free slots and working nodes


@dataclass(slots=True)
class PresentNode:
    """A node as it last spoke."""

    node_id: str
    instance: str
    hostname: str
    capability: Capability
    last_seen: datetime  # UTC
    free_slots: int
    draining: bool
    online: bool  # False after a graceful stop
    bond: int  # base units
    running: int = 0  # live leases
    policy: str = ""  # digest of its operator's policy, as it said when it polled last
    version: int = 0  # grows with every change of what dispatch compares, age apart


class Presence:
    """Every enrolled node's last word.

    Args:
        heartbeat: How often nodes report.
        min_bond: What a node must have bonded, base units.
    """

    def __init__(self, clock: Clock, *, heartbeat: timedelta, min_bond: int) -> None:
        self._clock = clock
        self._heartbeat = heartbeat
        self._min_bond = min_bond
        self._nodes: dict[str, PresentNode] = {}
        self._dirty: set[str] = set()
        self._free: dict[str, int] = {}  # free slots of the online nodes that have some, at the last count
        self._all_free = 0
        self._working: set[str] = set()  # online nodes that hold leases, at the last count
        self._count_at = 0.0  # monotonic, seconds

    @property
    def heartbeat(self) -> timedelta:
        """How often nodes report."""
        return self._heartbeat

    def load(self, row: NodeRow, *, bond: int, running: int) -> None:
        """Take a node over from the store at start-up."""
        capability = Capability.model_validate_json(row.capability_doc)
        known = self._nodes.get(row.id)
        self._nodes[row.id] = PresentNode(
            node_id=row.id,
            instance=row.instance,
            hostname=row.hostname,
            capability=capability,
            last_seen=from_us(row.last_seen_us),
            free_slots=capability.slots,
            draining=bool(row.draining),
            online=bool(row.online),
            bond=bond,
            running=running,
            version=0 if known is None else known.version + 1,
        )

    def enrolled(self, row: NodeRow, *, bond: int) -> None:
        """Note a committed enrolment."""
        known = self._nodes.get(row.id)
        self.load(row, bond=bond, running=known.running if known is not None else 0)

    def heard(
        self,
        node_id: str,
        *,
        free_slots: int | None = None,
        draining: bool | None = None,
        going_offline: bool = False,
        capability: Capability | None = None,
    ) -> bool:
        """Note that a node spoke (heartbeat or poll); None leaves a value. Returns False when it is not known."""
        node = self._nodes.get(node_id)
        if node is None:
            return False
        node.last_seen = self._clock.now()
        node.online = not going_offline
        if free_slots is not None:
            node.free_slots = free_slots
        if draining is not None and draining != node.draining:
            node.draining = draining
            node.version += 1
        if capability is not None:
            node.capability = capability
            node.version += 1
        self._dirty.add(node_id)
        return True

    def set_bond(self, node_id: str, bond: int) -> bool:
        """Note a node's bond; returns whether that changed it."""
        node = self._nodes.get(node_id)
        if node is None or node.bond == bond:
            return False
        node.bond = bond
        node.version += 1
        return True

    def add_running(self, node_id: str, change: int) -> None:
        """Count a node's live leases."""
        node = self._nodes.get(node_id)
        if node is not None:
            node.running = max(node.running + change, 0)

    def get(self, node_id: str) -> PresentNode | None:
        """Return a node, online or not."""
        return self._nodes.get(node_id)

    def last_seen(self, node_id: str) -> datetime | None:
        """Return when a node last spoke, UTC; None when it never did."""
        node = self._nodes.get(node_id)
        return None if node is None else node.last_seen

    def is_online(self, node: PresentNode) -> bool:
        """Return whether a node counts as there."""
        return node.online and self._clock.now() - node.last_seen <= MISSED_HEARTBEATS * self._heartbeat

    def online(self) -> Iterator[PresentNode]:
        """Yield the nodes that count as there."""
        return (node for node in self._nodes.values() if self.is_online(node))

    def share_ahead(self, node_id: str, pending: int, waiting: Iterable[str]) -> int:
        """Return how many of ``pending`` tasks a node may be offered before it has slots for them.

        First come the free slots of nodes that do not wait for an offer: they ask in a moment. (Who waits has been
        compared with all that is pending.) What is left over is for all nodes that work, in equal shares, so that a
        short queue keeps all of them busy to its end.

        Args:
            waiting: Nodes that wait; read only for a new count, ten times a second at most.
        """
        now = self._clock.monotonic()
        if now >= self._count_at:
            self._count_at, served = now + _COUNT_S, set(waiting)
            online = list(self.online())
            self._working = {node.node_id for node in online if node.running}
            self._free = {
                node.node_id: node.capability.slots - node.running
                for node in online
                if node.running < node.capability.slots and not node.draining and node.node_id not in served
            }
            self._all_free = sum(self._free.values())
        left = pending - (self._all_free - self._free.get(node_id, 0))
        return max(0, left) // (len(self._working) + (node_id not in self._working))

    def unbonded(self) -> int:
        """Return how many enrolled nodes have less than the minimum bond."""
        return sum(node.bond < self._min_bond for node in self._nodes.values())

    def enrolled_and_not_left(self) -> Iterator[PresentNode]:
        """Yield the nodes that did not stop gracefully, heard lately or not."""
        return (node for node in self._nodes.values() if node.online)

    def __len__(self) -> int:
        return len(self._nodes)

    def view(self, node: PresentNode) -> NodeView:
        """Return what dispatch compares. A heartbeat without a capability confirms the last one, so it has its age."""
        return NodeView(
            node_id=node.node_id,
            capability=node.capability,
            capability_age_s=(self._clock.now() - node.last_seen).total_seconds(),
            free_slots=node.free_slots,
            draining=node.draining,
            bond=node.bond,
            min_bond=self._min_bond,
        )

    def take_dirty(self) -> list[Seen]:
        """Return who spoke since the last call, to be written by ``operations.nodes.record_seen``."""
        taken, self._dirty = self._dirty, set()
        return [
            Seen(node.node_id, node.last_seen, node.draining, node.online)
            for node in (self._nodes[node_id] for node_id in taken)
        ]
