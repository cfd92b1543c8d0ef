"""Start-up: asks the market about the leases in the journal and does what ``recovery.decide`` says."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import assert_never

import anyio.to_thread
import structlog
from anyio.abc import TaskGroup

from parity_node.cache.results import remove_path
from parity_node.crashpoints import crashpoint
from parity_node.execution import ExecutionRunner, Work, work_of
from parity_node.folders import Folders
from parity_node.market.base import MarketClient
from parity_node.recovery import LeaseState, RecoveryAction, decide
from parity_node.store.base import Execution, NodeStore, Phase, Snapshot
from parity_node.waiting import within
from parity_protocol.api.leases import MAX_BATCH, RenewItem, RenewReply, RenewRequest
from parity_protocol.clock import Clock
from parity_protocol.errors import ParityError
from parity_protocol.lease import local_deadline

__all__ = ["Resumer"]

ASK_TIMEOUT_S = 10.0
_HAS_LEASE = frozenset({Phase.CLAIMED, Phase.PREPARED, Phase.STARTED})

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Found:
    """What is known of an execution's lease now; the row has its new deadline."""

    state: LeaseState
    row: Execution
    sent_at: float  # Clock.monotonic() that the deadline counts from


class Resumer:
    """Takes up what an earlier process left.

    Args:
        boot_id: Of this boot; a deadline of another one says nothing.
    """

    def __init__(
        self,
        *,
        store: NodeStore,
        market: MarketClient,
        clock: Clock,
        runner: ExecutionRunner,
        folders: Folders,
        boot_id: str,
    ) -> None:
        self._store = store
        self._market = market
        self._clock = clock
        self._runner = runner
        self._folders = folders
        self._boot_id = boot_id

    async def resume(self, snapshot: Snapshot, group: TaskGroup, *, can_ask: bool) -> None:
        """Decide on every execution in ``snapshot`` and act; what takes long goes on in ``group``.

        Args:
            can_ask: The market's keys are known, so it can be asked about leases.
        """
        await anyio.to_thread.run_sync(self._sweep, snapshot)
        answers = await self._ask([row for row in snapshot.executions if row.phase in _HAS_LEASE], can_ask=can_ask)
        for row in snapshot.executions:
            found = answers.get(row.id) or self._unasked(row)
            action = decide(row.phase, found.state)
            log.info("execution_found", task_id=row.task_id, phase=row.phase, lease=found.state, action=action)
            crashpoint("recovery.decided")
            self._act(action, found, group)

    def _act(self, action: RecoveryAction, found: _Found, group: TaskGroup) -> None:
        row = found.row
        match action:
            case RecoveryAction.DROP:  # killed while it was prepared: what was fetched for it is in its folder
                shutil.rmtree(self._folders.executions / row.id, ignore_errors=True)
                self._store.forget(row.id)
            case RecoveryAction.CONTINUE | RecoveryAction.RECOVER:
                work = self._work(row)
                if work is None:
                    group.start_soon(self._runner.discard_recovered, row)
                    return
                self._store.note(row.id, deadline=row.deadline, ttl_s=row.ttl_s, boot_id=self._boot_id)
                live = self._runner.begin(row, work, found.sent_at)
                is_recovered = action is RecoveryAction.RECOVER
                group.start_soon(partial(self._runner.run, live, is_recovered=is_recovered))
            case RecoveryAction.DISCARD:
                group.start_soon(self._runner.discard_recovered, row)
            case RecoveryAction.DELIVER | RecoveryAction.CLEAN_UP:
                is_answered = action is RecoveryAction.CLEAN_UP
                group.start_soon(partial(self._runner.finish_recovered, row, is_answered=is_answered))
            case _ as never:
                assert_never(never)

    def _work(self, row: Execution) -> Work | None:
        """Return what the journalled manifest permits, or None when it cannot go on here."""
        if not self._runner.can_run(row.kind):
            log.warning("execution_cannot_go_on", task_id=row.task_id, kind=row.kind)
            return None
        try:
            return work_of(row)
        except ParityError as exc:
            log.warning("execution_cannot_go_on", task_id=row.task_id, error=exc.message)
            return None

    async def _ask(self, rows: list[Execution], *, can_ask: bool) -> dict[str, _Found]:
        """Renew the leases of ``rows``; those that nobody could be asked about are absent."""
        answers: dict[str, _Found] = {}
        if not can_ask:
            return answers
        for start in range(0, len(rows), MAX_BATCH):
            batch = rows[start : start + MAX_BATCH]
            items = tuple(RenewItem(task_id=row.task_id, lease_id=row.lease_id, fence=row.fence) for row in batch)
            sent_at = self._clock.monotonic()
            try:
                call = partial(self._market.renew, RenewRequest(renewals=items))
                reply = await within(self._clock, ASK_TIMEOUT_S, call)
            except (ParityError, TimeoutError) as exc:
                log.warning("leases_not_confirmed", leases=len(batch), error=str(exc))
                return answers
            for row, answer in zip(batch, reply.renewals, strict=True):
                found = _judge(row, answer, sent_at)
                if found is not None:
                    answers[row.id] = found
        return answers

    def _unasked(self, row: Execution) -> _Found:
        """Judge by the persisted deadline, which counts in the boot that wrote it only."""
        is_current = row.boot_id == self._boot_id and self._clock.monotonic() < row.deadline
        state = LeaseState.UNREACHABLE if is_current else LeaseState.LOST
        return _Found(state, row, row.deadline - row.ttl_s)

    def _sweep(self, snapshot: Snapshot) -> None:
        """Remove folders and results that no row speaks of: their rows were forgotten first."""
        kept = {row.id for row in snapshot.executions}
        for folder in self._folders.executions.iterdir():
            if folder.name not in kept and folder.is_dir() and not folder.is_symlink():
                shutil.rmtree(folder, ignore_errors=True)
        waiting = {Path(entry.result_path) for entry in snapshot.outbox if entry.result_path}
        for file in self._folders.results.iterdir():
            if file not in waiting:
                remove_path(file)


def _judge(row: Execution, answer: RenewReply, sent_at: float) -> _Found | None:
    if answer.status == 200 and answer.ttl_s > 0:
        renewed = replace(row, ttl_s=answer.ttl_s, deadline=local_deadline(sent_at, answer.ttl_s))
        return _Found(LeaseState.OURS, renewed, sent_at)
    if answer.status in (404, 409):
        return _Found(LeaseState.LOST, row, sent_at)
    return None
