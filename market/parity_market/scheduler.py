"""Who gets which pending task: an index in memory, rebuilt from the store at start-up.

Nothing here is an authority. An offer is a hint that is softly reserved for two seconds; the claim decides, in the
writer. Tasks are handed out oldest first, one at a time to each waiting node in turn, so that nodes with free slots
share them.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial

from parity_market.domain.dispatch import Needs, check_fit
from parity_market.followers import Followers, end_of
from parity_market.operations import leases, nodes
from parity_market.operations.leases import Offer
from parity_market.operations.steps import read_names
from parity_market.presence import MISSED_HEARTBEATS, Presence, PresentNode
from parity_market.refusals import OwnRefusals, RefusalCounts, shared_rule, why_no_work, why_pending
from parity_market.store import sql
from parity_market.store.base import MarketStore, ReadTx
from parity_market.store.rows import TaskRow
from parity_protocol.api.leases import OfferRefusal
from parity_protocol.api.nodes import WhyNoWorkReply
from parity_protocol.api.tasks import WhyPendingReply
from parity_protocol.capability import MAX_CAPABILITY_AGE_S
from parity_protocol.clock import Clock
from parity_protocol.errors import NotFound, Overloaded
from parity_protocol.policy import Denial
from parity_protocol.task import TaskState

__all__ = ["Scheduler"]

RESERVATION_S = 2.0  # how long an offer is kept for the node that got it
AHEAD_S = 0.3  # the same of one that came with a claim's answer, before there is a slot for it
TICK_S = 0.1  # between looks at what has timed out
RESCAN_S = 1.0  # between looks at the store for tasks that no signal brought
RESCAN_ROWS = 200
MAX_WAITING_POLLS = 10_000
_LOAD_ROWS = 1_000
_COMPARISONS_A_TURN = 1_000  # of a node with a kind of need that it was not compared with: 10 to 30 ms
_WITHHELD_A_LOOK = 1_000  # tasks of one kind of need that are passed over for a node at a time: 1 to 2 ms
_BUCKETS_A_TURN = 64  # that are looked at for emptiness, on average


@dataclass(slots=True)
class _Pending:
    task_id: str
    needs_doc: str
    created_us: int
    excluded: frozenset[str]
    lost_by: str | None  # node whose attempt at it came to nothing last
    back_since: float  # monotonic: since when it has been pending
    refused: OwnRefusals = field(default_factory=OwnRefusals)


@dataclass(slots=True)
class _Bucket:
    """Pending tasks that need the same."""

    needs: Needs
    heap: list[tuple[int, str]] = field(default_factory=list)  # (created, task id); entries may be out of date
    refusals: RefusalCounts = field(default_factory=RefusalCounts)


@dataclass(slots=True)
class _Fitting:
    """What a node may have of the buckets that it was compared with."""

    version: int  # of the node then
    seen: int  # so many of the scheduler's buckets, in the order they were made
    buckets: list[_Bucket] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class _Waiter:
    node: PresentNode
    slots: int
    until: float  # monotonic
    future: asyncio.Future[None]
    hold_s: float = RESERVATION_S
    taken: list[str] = field(default_factory=list)


class Scheduler:
    """Matches pending tasks with polling nodes; a ``Signals``. Call ``load`` once and keep ``run`` running."""

    def __init__(
        self,
        store: MarketStore,
        clock: Clock,
        *,
        lease_ttl: timedelta,
        heartbeat: timedelta,
        min_bond: int,
        chain: str,
        spender: str,
    ) -> None:
        self._store = store
        self._clock = clock
        self._lease_ttl_s = lease_ttl.total_seconds()
        self._chain = chain
        self._spender = spender
        self.presence = Presence(clock, heartbeat=heartbeat, min_bond=min_bond)
        self.followers = Followers(clock)
        self._pending: dict[str, _Pending] = {}
        self._buckets: dict[str, _Bucket] = {}
        self._made: list[_Bucket] = []  # every bucket since the last tidying, emptied ones too
        self._fits: dict[str, _Fitting] = {}  # by node
        self._turns_until_tidy = 0
        self._comparisons_left = _COMPARISONS_A_TURN
        self._reserved: dict[str, tuple[str, float]] = {}  # task → (node, until when)
        self._waiters: deque[_Waiter] = deque()
        self._matching = False
        self._rescan_at = 0.0
        self._settled_at = clock.monotonic() + MISSED_HEARTBEATS * heartbeat.total_seconds()
        self._node_refusals: dict[str, RefusalCounts] = {}
        self._is_closing = False

    # -- life -----------------------------------------------------------------------------------------------------

    async def load(self) -> None:
        """Fill the index from the store."""
        for row in await self._store.read(nodes.all_nodes):
            bond, running = await self._store.read(partial(self._facts, node_id=row.id))
            self.presence.load(row, bond=bond, running=running)
        after = ""
        while True:
            page = await self._store.read(partial(_pending_page, after=after, limit=_LOAD_ROWS))
            for task in page:
                self._add(task)
            if len(page) < _LOAD_ROWS:
                return
            after = page[-1].id

    def _facts(self, tx: ReadTx, node_id: str) -> tuple[int, int]:
        account = tx.one(sql.CHAIN_ACCOUNT, chain=self._chain, account=node_id)
        bond = 0 if account is None else account.bond
        return bond, len(tx.all(sql.LEASES_OF_NODE, node_id=node_id, limit=_LOAD_ROWS))

    async def run(self) -> None:
        """Look after time-outs until cancelled."""
        while True:
            await self._clock.sleep(TICK_S)
            await self.tick()

    def close(self) -> None:
        """Answer everybody who waits, now and from now on: the market is about to stop."""
        self._is_closing = True
        for waiter in self._waiters:
            if not waiter.future.done():
                waiter.future.set_result(None)
        self.followers.close()

    async def tick(self) -> None:
        """End what has timed out: reservations, polls, followers; once a second look at the store."""
        now = self._clock.monotonic()
        for task_id in [task_id for task_id, (_, until) in self._reserved.items() if until <= now]:
            del self._reserved[task_id]
            self._push(self._pending.get(task_id))
        if self._waiters and now >= self._rescan_at:
            self._rescan_at = now + RESCAN_S
            for task in await self._store.read(partial(_pending_page, after="", limit=RESCAN_ROWS)):
                self._add(task)
        self._match()
        for waiter in self._waiters:
            if waiter.until <= now and not waiter.future.done():
                waiter.future.set_result(None)
        self.followers.tick()

    # -- polling --------------------------------------------------------------------------------------------------

    async def poll(self, node_id: str, slots: int, wait_s: float) -> list[Offer]:
        """Wait for work for a node; an earlier poll of the same node ends.

        Args:
            slots: How many tasks it can start now; it gets at most so many.
            wait_s: How long to wait for the first one.

        Returns:
            Pending tasks, each reserved for this node for two seconds; empty when the time is over.

        Raises:
            NotFound: The node is not enrolled.
            Overloaded: Too many polls wait already.
        """
        self.presence.heard(node_id, free_slots=slots)
        node = self.presence.get(node_id)
        if node is None:
            raise NotFound(f"node {node_id} is not enrolled here")
        if len(self._waiters) >= MAX_WAITING_POLLS:
            raise Overloaded(f"{len(self._waiters)} polls wait already", retry_after_s=1.0)
        until = self._clock.monotonic() + wait_s
        self._supersede(node_id)
        while True:
            waiter = _Waiter(node, slots, until, asyncio.get_running_loop().create_future())
            self._waiters.append(waiter)
            try:
                self._kick()
                if wait_s > 0 and not self._is_closing:
                    await waiter.future
                else:
                    self._match()
                offered = await self._store.read(partial(self._offers, task_ids=tuple(waiter.taken)))
            except BaseException:  # cancelled, as a rule: the caller has gone, the tasks are for others
                for task_id in waiter.taken:
                    self._reserved.pop(task_id, None)
                    self._push(self._pending.get(task_id))
                self._kick()
                raise
            finally:
                self._waiters.remove(waiter)
            kept = {offer.task.id for offer in offered}
            for task_id in waiter.taken:
                if task_id not in kept:  # the store knows better: it is not pending any more
                    self.task_gone(task_id)
            if offered or self._is_closing or self._clock.monotonic() >= waiter.until:
                return offered

    async def ahead(self, node_id: str, slots: int) -> list[Offer]:
        """Return a node's share of what is pending beyond free slots; a poll of its own goes on."""
        node, pending = self.presence.get(node_id), len(self._pending) - len(self._reserved)
        share = self.presence.share_ahead(node_id, pending, (waiter.node.node_id for waiter in self._waiters))
        if node is None or min(slots, share) <= 0 or self._is_closing:
            return []
        waiter = _Waiter(node, min(slots, share), 0.0, asyncio.get_running_loop().create_future(), AHEAD_S)
        self._waiters.append(waiter)
        self._match()
        self._waiters.remove(waiter)
        return await self._store.read(partial(self._offers, task_ids=tuple(waiter.taken))) if waiter.taken else []

    def refused(self, node_id: str, policy: str, refusals: Iterable[OfferRefusal]) -> None:
        """Take note of what a node itself refused since its last poll; the tasks are for others at once.

        Args:
            policy: Digest of the policy that is in force there; with another one the node may be offered them again.
        """
        node, now, seconds = self.presence.get(node_id), self._clock.now(), self._clock.monotonic()
        if node is None:
            return
        node.policy = policy
        for refusal in refusals:
            denial = Denial(refusal.rule, refusal.message)
            self._counts_of(node_id).add(denial, task_id=refusal.task_id, node_id=None, at=now)
            if (entry := self._pending.get(refusal.task_id or "")) is None:
                continue
            entry.refused.add(denial, node_id=node_id, policy=policy, now=seconds)
            if (bucket := self._buckets.get(entry.needs_doc)) is not None:
                bucket.refusals.add(shared_rule(denial), task_id=entry.task_id, node_id=node_id, at=now)
            if self._reserved.get(entry.task_id, ("", 0.0))[0] == node_id:
                del self._reserved[entry.task_id]
                self._push(entry)

    def _offers(self, tx: ReadTx, task_ids: tuple[str, ...]) -> list[Offer]:
        return leases.offers(tx, self._chain, self._spender, task_ids)

    def _supersede(self, node_id: str) -> None:
        """End an earlier poll of a node: it was killed or lost its connection, and would be offered what nobody reads."""
        for waiter in self._waiters:
            if waiter.node.node_id == node_id and not waiter.future.done():
                waiter.until = self._clock.monotonic()
                waiter.future.set_result(None)

    # -- signals --------------------------------------------------------------------------------------------------

    def task_pending(self, task: TaskRow) -> None:
        """A task can be claimed."""
        self._reserved.pop(task.id, None)
        self._pending.pop(task.id, None)
        self._add(task)
        self._kick()

    def task_taken(self, task_id: str, node_id: str) -> None:
        """A task was claimed."""
        self._reserved.pop(task_id, None)
        self._pending.pop(task_id, None)
        self.presence.add_running(node_id, +1)

    def task_gone(self, task_id: str) -> None:
        """A task will not be claimed any more."""
        self._reserved.pop(task_id, None)
        self._pending.pop(task_id, None)
        self.followers.changed(end_of(task_id))

    def task_changed(self, task_id: str) -> None:
        """A task has a new event."""
        self.followers.changed(task_id)

    def lease_ended(self, task_id: str, node_id: str) -> None:  # noqa: ARG002  # the port's signature
        """A node has a slot more; it polls when it has cleaned up."""
        self.presence.add_running(node_id, -1)

    def other_can_run(self, needs: Needs, excluded: AbstractSet[str]) -> bool:
        """Return whether a node outside ``excluded`` could run such a task.

        Just after the start nobody has been heard yet; a node that spoke first must not be able to say that a task is
        faulty with nobody there to disagree, so until the others had time to come they count as there.
        """
        if self._clock.monotonic() < self._settled_at:
            return any(
                node.node_id not in excluded
                and check_fit(needs, replace(self.presence.view(node), capability_age_s=0.0)) is None
                for node in self.presence.enrolled_and_not_left()
            )
        return self._online_other(needs, excluded)

    def _online_other(self, needs: Needs, excluded: AbstractSet[str]) -> bool:
        return any(
            node.node_id not in excluded and check_fit(needs, self.presence.view(node)) is None
            for node in self.presence.online()
        )

    def node_changed(self, node_id: str, *, bond: int | None = None) -> None:
        """A node's bond or capability changed: it may fit now."""
        if bond is not None:
            self.presence.set_bond(node_id, bond)
        self._kick()

    # -- matching -------------------------------------------------------------------------------------------------

    def _add(self, task: TaskRow) -> None:
        if task.id in self._pending:
            return
        lost = task.last_node if task.failure is not None else None
        entry = _Pending(
            task.id,
            task.needs_doc,
            task.created_us,
            read_names(task.excluded_doc),
            lost,
            self._clock.monotonic(),
        )
        self._pending[task.id] = entry
        self._push(entry)

    def _push(self, entry: _Pending | None) -> None:
        if entry is None or entry.task_id in self._reserved:
            return
        bucket = self._buckets.get(entry.needs_doc)
        if bucket is None:
            bucket = self._buckets[entry.needs_doc] = _Bucket(Needs.from_doc(entry.needs_doc))
            self._made.append(bucket)
        heapq.heappush(bucket.heap, (entry.created_us, entry.task_id))

    def _kick(self) -> None:
        """Match one turn of the loop later, so that everything which is ready now is shared out together."""
        if not self._matching:
            self._matching = True
            asyncio.get_running_loop().call_soon(self._match)

    def _match(self) -> None:
        self._matching = False
        self._drop_empty_buckets()
        if not self._buckets:
            return
        hungry = deque(waiter for waiter in self._waiters if not waiter.future.done())
        for waiter in hungry:
            waiter.node = self.presence.get(waiter.node.node_id) or waiter.node  # it may have enrolled again
        self._comparisons_left = _COMPARISONS_A_TURN
        fitting = {id(waiter): self._fitting(waiter.node) for waiter in hungry}
        if self._comparisons_left <= 0:
            self._kick()  # there may be more to compare, after others had their turn of the event loop
        while hungry:
            waiter = hungry.popleft()
            task_id = self._oldest(waiter.node, fitting[id(waiter)])
            if task_id is None:
                continue
            self._reserved[task_id] = (waiter.node.node_id, self._clock.monotonic() + waiter.hold_s)
            waiter.taken.append(task_id)
            if len(waiter.taken) < waiter.slots:
                hungry.append(waiter)
        for waiter in self._waiters:
            if waiter.taken and not waiter.future.done():
                waiter.future.set_result(None)

    def _fitting(self, node: PresentNode) -> list[_Bucket]:
        # Anybody can submit thousands of tasks that each need something else: a node is compared with each kind of need
        # once, not at every turn, else they stop the event loop for everybody.
        view, counts, now = self.presence.view(node), self._counts_of(node.node_id), self._clock.now()
        if view.capability_age_s > MAX_CAPABILITY_AGE_S:  # nothing fits, and the reason is always the same
            denial = check_fit(self._made[0].needs, view)
            if denial is not None:
                counts.add(denial, task_id=None, node_id=None, at=now)
            return []
        known = self._fits.get(node.node_id)
        if known is None or known.version != node.version:
            known = self._fits[node.node_id] = _Fitting(node.version, 0)
        new = self._made[known.seen : known.seen + max(self._comparisons_left, 0)]
        for bucket in new:  # also one that is empty now: a task may come back to it
            denial = check_fit(bucket.needs, view)
            if denial is None:
                known.buckets.append(bucket)
            else:
                counts.add(denial, task_id=bucket.heap[0][1] if bucket.heap else None, node_id=None, at=now)
                bucket.refusals.add(denial, task_id=None, node_id=node.node_id, at=now)
        known.seen += len(new)
        self._comparisons_left -= len(new)
        return known.buckets

    def _oldest(self, node: PresentNode, buckets: list[_Bucket]) -> str | None:
        """Take the oldest task that ``node`` may have out of the index."""
        best: _Bucket | None = None
        aside: list[tuple[_Bucket, tuple[int, str]]] = []
        for bucket in buckets:
            left = _WITHHELD_A_LOOK
            while bucket.heap and left:
                entry = self._pending.get(bucket.heap[0][1])
                if entry is None or entry.task_id in self._reserved:
                    heapq.heappop(bucket.heap)
                    continue
                denial = self._withheld(node, entry, bucket.needs)
                if denial is None:
                    break
                aside.append((bucket, heapq.heappop(bucket.heap)))
                left -= 1
                if self._refused_by(node, entry) is None:  # else it was counted when it was refused
                    now = self._clock.now()
                    self._counts_of(node.node_id).add(denial, task_id=entry.task_id, node_id=None, at=now)
            if bucket.heap and left and (best is None or bucket.heap[0] < best.heap[0]):
                best = bucket
        taken = heapq.heappop(best.heap)[1] if best is not None else None
        for bucket, item in aside:
            heapq.heappush(bucket.heap, item)
        if taken is not None:
            self._counts_of(node.node_id).taken += 1
        return taken

    def _withheld(self, node: PresentNode, entry: _Pending, needs: Needs) -> Denial | None:
        """Return why a node that fits does not get this task all the same."""
        if node.node_id in entry.excluded:
            return Denial("excluded", "it failed this task before")
        refused = self._refused_by(node, entry)
        if refused is not None:
            return refused
        if (
            entry.lost_by == node.node_id
            and self._clock.monotonic() - entry.back_since < self._lease_ttl_s
            and self._online_other(needs, {node.node_id})
        ):
            return Denial("lost_lease", "its last attempt came to nothing, so other nodes go first for one lease time")
        return None

    def _refused_by(self, node: PresentNode, entry: _Pending) -> Denial | None:
        return entry.refused.of(node.node_id, policy=node.policy, now=self._clock.monotonic())

    def _drop_empty_buckets(self) -> None:
        """Forget what nothing pending needs; in full about as seldom as there are many, so that a turn stays short."""
        self._turns_until_tidy -= 1
        if self._turns_until_tidy > 0:
            return
        for key, bucket in list(self._buckets.items()):
            heap = bucket.heap
            while heap and (heap[0][1] not in self._pending or heap[0][1] in self._reserved):
                heapq.heappop(heap)
            if not heap:
                del self._buckets[key]
        if len(self._made) > 2 * len(self._buckets):
            self._made = list(self._buckets.values())
            self._fits.clear()
        self._turns_until_tidy = len(self._buckets) // _BUCKETS_A_TURN

    # -- why --------------------------------------------------------------------------------------------------------

    def _counts_of(self, node_id: str) -> RefusalCounts:
        return self._node_refusals.setdefault(node_id, RefusalCounts())

    def why_pending(self, task: TaskRow) -> WhyPendingReply:
        """Return, for each online node that did not get ``task``, the constraint that failed, as of now."""
        needs, entry = Needs.from_doc(task.needs_doc), self._pending.get(task.id)
        verdicts: list[tuple[str, Denial | None]] = []
        for node in self.presence.online():
            denial = check_fit(needs, self.presence.view(node))
            if denial is None and entry is not None:
                denial = self._withheld(node, entry, needs)
                denial = None if denial is None else shared_rule(denial)
            if denial is None and node.free_slots == 0:
                denial = Denial("busy", "all its slots are taken")
            verdicts.append((node.node_id, denial))
        bucket = self._buckets.get(task.needs_doc)
        return why_pending(task, verdicts, bucket.refusals if bucket is not None else None, now=self._clock.now())

    def why_no_work(self, node_id: str) -> WhyNoWorkReply:
        """Return the constraint that failed for each recent refusal of a node.

        Raises:
            NotFound: The node is not enrolled.
        """
        if self.presence.get(node_id) is None:
            raise NotFound(f"node {node_id} is not enrolled here")
        return why_no_work(node_id, self._counts_of(node_id), pending=len(self._pending))


def _pending_page(tx: ReadTx, *, after: str, limit: int) -> list[TaskRow]:
    return tx.all(sql.TASKS_IN_STATE, state=TaskState.PENDING, after=after, limit=limit)
