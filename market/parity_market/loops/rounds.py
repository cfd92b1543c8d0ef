"""Federated sessions on their way: each part's result is checked before it is paid, then all are merged."""

from __future__ import annotations

import asyncio
from datetime import datetime
from functools import partial
from typing import Protocol

import structlog

from parity_market.domain.federation import why_lost
from parity_market.federation import Federation, WorkerLost
from parity_market.metrics import VERIFY_SECONDS
from parity_market.operations import groups, reports, rounds
from parity_market.operations.context import Market
from parity_market.operations.groups import Group
from parity_market.round_engine import rounds_of
from parity_market.state import MarketState
from parity_market.store.base import Tx
from parity_market.store.rows import TaskRow
from parity_protocol.errors import ExecutionFailed, InvalidInput, InvalidTransition, ParityError
from parity_protocol.task import GroupState, TaskKind, TaskState

__all__ = ["Rounds", "run"]

log = structlog.get_logger(__name__)

LOOK_S = 1.0  # at most between two looks at the store
SCAN_S = 2.0  # at most between two looks at every running group
PAGE = 64
FIRST_RETRY_S = 1.0  # after a check or merge that could not be done, doubled by each further one
MAX_RETRY_S = 60.0
MAX_LOST = 2  # workers that one result may take with it before it counts as garbage
MAX_MERGES = 5  # attempts


async def run(state: MarketState) -> None:
    """Check and merge for as long as the market runs; what a restart interrupted is found in the store."""
    loop = Rounds(state)
    while True:
        await loop.step()
        await state.federation.wait(LOOK_S)


def _name(task: TaskRow) -> str:
    return f"{task.id} {task.fence}"


class _Operation(Protocol):
    """Ends one verification, in the writer."""

    def __call__(self, tx: Tx, market: Market, task_id: str, fence: int, /, *, now: datetime) -> TaskRow: ...


class Rounds:
    """What waits for a check or a merge, and what failed how often."""

    def __init__(self, state: MarketState) -> None:
        self._state = state
        self._federation: Federation = state.federation
        self._failures: dict[str, int] = {}  # by task and fence, or group
        self._not_before: dict[str, float] = {}  # monotonic
        self._kept: dict[str, tuple[str, ...]] = {}  # group → blobs that it needs, its data set first
        self._next_scan = 0.0  # monotonic

    async def step(self) -> None:
        """Check every waiting result, then end every group that can end."""
        waiting = await self._state.store.read(partial(reports.waiting_for_verification, limit=PAGE))
        ready = [task for task in waiting if self._is_due(_name(task))]
        async with asyncio.TaskGroup() as turn:
            for task in ready:
                turn.create_task(self._verify(task))
        now = self._state.clock.monotonic()
        if ready or now >= self._next_scan:
            self._next_scan = now + SCAN_S
            await self._scan()

    async def _scan(self) -> None:
        """Look at every group that has not ended."""
        running: set[str] = set()
        after = ""
        while page := await self._state.store.read(partial(groups.running, after=after, limit=PAGE)):
            for row in page:
                if not self._is_due(row.id) or not await self._look_at(row.id):
                    running.add(row.id)
            after = page[-1].id
        await self._let_go(running)

    def _is_due(self, name: str) -> bool:
        return self._state.clock.monotonic() >= self._not_before.get(name, 0.0)

    def _failed(self, name: str) -> int:
        """Note a failure and when to try again; return how many there were."""
        count = self._failures[name] = self._failures.get(name, 0) + 1
        delay = min(FIRST_RETRY_S * 2 ** (count - 1), MAX_RETRY_S)
        self._not_before[name] = self._state.clock.monotonic() + delay
        return count

    def _forget(self, name: str) -> None:
        self._failures.pop(name, None)
        self._not_before.pop(name, None)

    # -- one result ---------------------------------------------------------------------------------------------------

    async def _verify(self, task: TaskRow) -> None:
        name = _name(task)
        try:
            garbage = await self._check(task)
        except ParityError as exc:  # our own fault: the node is not blamed
            log.warning("verification_postponed", task_id=task.id, fence=task.fence, problem=exc.message)
            failures = max(self._failed(name), task.verify_attempts + 1)
            if not isinstance(exc, WorkerLost) or failures < MAX_LOST:
                await self._settle(task, partial(reports.verify_later, reason=exc.message[:500]))
                return
            garbage = "the result cannot be checked: each attempt ended the process that tried"
        if garbage:
            log.warning("result_rejected", task_id=task.id, fence=task.fence, node_id=task.last_node, reason=garbage)
            await self._settle(task, partial(reports.reject, reason=garbage[:500]))
        else:
            log.info("result_accepted", task_id=task.id, fence=task.fence, node_id=task.last_node)
            is_in_rounds = await self._state.store.read(partial(rounds.has_session, group_id=task.group_id or ""))
            await self._settle(task, rounds.accept if is_in_rounds else reports.accept)

    async def _check(self, task: TaskRow) -> str:
        """Return why a result is garbage, empty when it is good."""
        if task.group_id is None or task.kind != TaskKind.FEDERATED_LEARNING:
            return f"a {task.kind} task cannot be verified here"
        group = await self._state.store.read(partial(groups.load, group_id=task.group_id))
        with VERIFY_SECONDS.time():
            if rounds_of(group.value.spec):
                return await self._state.rounds.check(group, task)
            return await self._federation.check(group, task)

    async def _settle(self, task: TaskRow, operation: _Operation) -> None:
        market, now = self._state.market, self._state.clock.now()
        try:
            changed = await self._state.store.write(lambda tx: operation(tx, market, task.id, task.fence, now=now))
        except InvalidTransition as exc:
            log.info("verification_overtaken", task_id=task.id, fence=task.fence, problem=exc.message)
            self._forget(_name(task))
            return
        if changed.state is not TaskState.VERIFYING:
            self._forget(_name(task))

    # -- one group ----------------------------------------------------------------------------------------------------

    async def _look_at(self, group_id: str) -> bool:
        """End a group if its tasks allow it; return whether it has ended."""
        group = await self._state.store.read(partial(groups.load, group_id=group_id))
        await self._keep(group)
        if rounds_of(group.value.spec):
            return await self._finish(group)
        due = group.value.due([task.state for task in group.tasks])
        if due is GroupState.FAILED:
            return await self._fail(group, why_lost(group.tasks))
        return due is GroupState.COMPLETED and await self._merge(group)

    async def _finish(self, group: Group) -> bool:
        """End a session that trained in rounds once its parts have reported, or had the time to."""
        state, group_id = self._state, group.value.id
        try:
            merged = await state.rounds.finish(group)
        except ParityError as exc:
            log.warning("finish_postponed", group_id=group_id, problem=exc.message)
            if self._failed(group_id) < MAX_MERGES:
                return False
            return await self._fail(group, f"the market could not finish the session: {exc.message}")
        if merged is None:
            return False
        now = state.clock.now()
        await state.store.write(
            lambda tx: groups.complete(
                tx, state.market, group_id, cid=merged.cid, size=merged.size, metrics=merged.metrics, now=now
            )
        )
        log.info("group_completed", group_id=group_id, cid=merged.cid, size=merged.size)
        await state.rounds.remove(group_id)
        return True

    async def _merge(self, group: Group) -> bool:
        state, group_id = self._state, group.value.id
        try:
            with VERIFY_SECONDS.time():
                merged = await self._federation.merge(group)
        except (InvalidInput, ExecutionFailed) as exc:
            return await self._fail(group, f"the parts cannot be merged: {exc.message}")
        except ParityError as exc:
            log.warning("merge_postponed", group_id=group_id, problem=exc.message)
            if self._failed(group_id) < MAX_MERGES:
                return False
            return await self._fail(group, f"the market could not merge the parts: {exc.message}")
        now = state.clock.now()
        await state.store.write(
            lambda tx: groups.complete(
                tx, state.market, group_id, cid=merged.cid, size=merged.size, metrics=merged.metrics, now=now
            )
        )
        log.info("group_completed", group_id=group_id, cid=merged.cid, size=merged.size)
        return True

    async def _fail(self, group: Group, why: str) -> bool:
        state, now = self._state, self._state.clock.now()
        await state.store.write(partial(groups.fail, market=state.market, group_id=group.value.id, reason=why, now=now))
        log.warning("group_failed", group_id=group.value.id, reason=why)
        return True

    # -- what running groups need -------------------------------------------------------------------------------------

    async def _keep(self, group: Group) -> None:
        """Spare the data set and the accepted results of a running group from eviction."""
        known = self._kept.get(group.value.id)
        needed = [_dataset(group) if known is None else known[0]]
        needed += [task.result_cid or "" for task in group.tasks if task.state is TaskState.COMPLETED]
        for cid in set(needed) - set(known or ()) - {""}:
            await self._federation.keep(cid, keep=True)
        self._kept[group.value.id] = tuple(needed)

    async def _let_go(self, running: set[str]) -> None:
        ended = [group_id for group_id in self._kept if group_id not in running]
        released = {cid for group_id in ended for cid in self._kept.pop(group_id)}
        for cid in released - {cid for cids in self._kept.values() for cid in cids} - {""}:
            await self._federation.keep(cid, keep=False)
        for group_id in ended:
            self._forget(group_id)


def _dataset(group: Group) -> str:
    spec = group.value.spec
    return str(getattr(spec, "dataset_cid", "") or getattr(spec, "eval_cid", ""))
