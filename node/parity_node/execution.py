"""One execution from its lease to its report: each step journalled before the next one's side effect."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import anyio
import anyio.lowlevel
import structlog
from pydantic import ValidationError

from parity_contracts.files import make_private_dir
from parity_node.admission import Committed, limits_of, narrowed
from parity_node.cache.uses import Uses, names_of
from parity_node.crashpoints import crashpoint
from parity_node.disk_need import DiskNeed, need_of
from parity_node.executors.base import ExecutionResult, Executor, Handle, Job, Limits
from parity_node.giving_back import give_back
from parity_node.leases import HeldLease, LeaseKeeper, LossReason
from parity_node.market.base import MarketClient
from parity_node.notices import LogFeed, LogShipper, StartNotices
from parity_node.outbox import Outbox, Settled
from parity_node.removal import FolderRemover, remove_folder
from parity_node.results import StoredResult, build_report, failure_of, store_result
from parity_node.slots import Slots
from parity_node.store.base import Execution, NodeStore, OutboxEntry, Phase
from parity_node.waiting import Signal, within
from parity_protocol.api.leases import FinalReport, StartItem
from parity_protocol.capability import Capability
from parity_protocol.clock import Clock
from parity_protocol.errors import ExecutionFailed, FailureReason, ParityError, StorageFull
from parity_protocol.ids import NodeId
from parity_protocol.manifest import Manifest, spec_of
from parity_protocol.policy import Policy
from parity_protocol.report import Outcome
from parity_protocol.signing.jws import b64url_decode
from parity_protocol.signing.keys import EvmKey
from parity_protocol.task import CommandSpec, DockerSpec, FederatedLearningSpec, LlmSpec, TaskKind
from parity_protocol.wire import parse_as

__all__ = ["ExecutionRunner", "Running", "Work", "work_of"]

STOP_TIMEOUT_S = 15.0
WALL_TIME_GRACE_S = 30.0  # executors enforce the wall time; the agent steps in when one hangs
FULL_DISK_RETRY_S = 1.0
FULL_DISK_PATIENCE_S = 30.0

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Work:
    """What a verified manifest permits."""

    manifest: Manifest
    spec: CommandSpec | DockerSpec | LlmSpec | FederatedLearningSpec


@dataclass(slots=True)
class Running:
    """An execution that runs here now."""

    row: Execution
    work: Work
    executor: Executor
    limits: Limits
    slot: int
    handle: Handle | None
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    stop_reason: LossReason | FailureReason | None = None  # why we ended it
    has_ended: bool = False  # its process; the result may not be durable yet

    def stop(self, reason: LossReason | FailureReason) -> None:
        """End it for ``reason``, unless its result is collected already."""
        if self.row.phase.rank < Phase.COLLECTED.rank and self.stop_reason is None:
            self.stop_reason = reason
            self.scope.cancel()


def work_of(execution: Execution) -> Work:
    """Read a journalled manifest again. It was verified before it was journalled, and its window may be over by now.

    Raises:
        ParityError: The journal's copy is damaged.
    """
    manifest = parse_as(Manifest, b64url_decode(execution.manifest.split(".")[1]))
    return Work(manifest, spec_of(manifest))


class ExecutionRunner:
    """Runs executions; holds what they share.

    Args:
        exec_dir: Each execution gets a folder of its own in it.
        results_dir: Where large results wait for their upload.
        capability: Returns what was measured last.
        on_ended: Told of each execution's outcome, for counters: kind, outcome or reason, seconds.
        uses: Told what each execution uses of the cache, from its begin to its end.
        on_full: Told when an execution met a full disk.
    """

    def __init__(
        self,
        *,
        executors: Mapping[TaskKind, Executor],
        store: NodeStore,
        market: MarketClient,
        clock: Clock,
        leases: LeaseKeeper,
        outbox: Outbox,
        starts: StartNotices,
        logs: LogShipper,
        slots: Slots,
        policy: Callable[[], Policy],
        capability: Callable[[], Capability],
        node_id: NodeId,
        operator: EvmKey,
        exec_dir: Path,
        results_dir: Path,
        boot_id: str,
        on_ended: Callable[[str, str, float], None],
        uses: Uses,
        on_full: Callable[[], None],
    ) -> None:
        self._executors = executors
        self._store = store
        self._market = market
        self._clock = clock
        self._leases = leases
        self._outbox = outbox
        self._starts = starts
        self._logs = logs
        self._slots = slots
        self._policy = policy
        self._capability = capability
        self._node_id = node_id
        self._operator = operator
        self._exec_dir = exec_dir
        self._results_dir = results_dir
        self._boot_id = boot_id
        self._on_ended = on_ended
        self._uses = uses
        self._on_full = on_full
        self._running: dict[str, Running] = {}
        self._half_done: dict[str, set[str]] = {}  # what of cleanup and answer is there, by execution
        self._ended = Signal()
        self._remover = FolderRemover()

    @property
    def running(self) -> tuple[Running, ...]:
        """What runs now."""
        return tuple(self._running.values())

    def can_run(self, kind: str) -> bool:
        """Whether there is an executor for ``kind``."""
        return TaskKind(kind) in self._executors

    def begin(self, row: Execution, work: Work, sent_at: float) -> Running:
        """Take a slot for an execution whose lease is ours, and keep the lease; ``run`` must follow.

        Args:
            sent_at: ``Clock.monotonic()`` before the claim or renewal that gave the lease was sent.
        """
        executor = self._executors[TaskKind(row.kind)]
        policy = self._policy()
        limits = limits_of(work.spec, policy, self._capability())
        asked = replace(work, spec=narrowed(work.spec, policy))
        handle = _handle_of(row)
        slot = self._slots.take(handle.slot if handle is not None else None)
        live = Running(row, asked, executor, limits, slot, handle)
        self._running[row.id] = live
        self._uses.take(row.id, names_of(work.spec))
        self._keep_lease(live, sent_at)
        return live

    async def run(self, live: Running, *, is_recovered: bool = False) -> None:
        """Take an execution from its phase to its report, or stop it when its lease is lost.

        Args:
            is_recovered: It was STARTED by an earlier process; ask the executor for it.
        """
        try:
            with live.scope:
                result = await self._execute(live, is_recovered=is_recovered)
                live.has_ended = True
                self._slots.end(live.slot)
                await self._collect(live, result)
            if live.row.phase is Phase.COLLECTED:
                await self._clean_up(live.row, live.executor, live.handle)
            elif live.stop_reason is not None:
                with anyio.CancelScope(shield=True):
                    await self._abandon(live, live.stop_reason)
        finally:
            self._running.pop(live.row.id, None)
            self._uses.drop(live.row.id)
            self._slots.release(live.slot)
            self._ended.set()

    async def finish_recovered(self, row: Execution, *, is_answered: bool) -> None:
        """Clean up after an execution whose report waits, or was answered."""
        if is_answered:
            self._complete(row.id, "answered")
        await self._clean_up(row, self._executors.get(TaskKind(row.kind)), _handle_of(row))

    async def discard_recovered(self, row: Execution) -> None:
        """Stop and forget an execution whose lease was lost while this process was away."""
        executor, handle = self._executors.get(TaskKind(row.kind)), _handle_of(row)
        if executor is not None and handle is not None:
            await self._bounded("stop", lambda: executor.stop(handle))
        await self._clean_up(row, executor, handle)
        self._forget(row)

    def settled(self, answer: Settled) -> None:
        """Take note that the market has answered a final report."""
        lease_id = answer.entry_id.split(":", 1)[0]
        self._leases.remove(lease_id)
        self._complete(answer.execution_id, "answered")

    def committed(self) -> Committed:
        """Return what the running executions may still use."""
        return Committed(
            sum(live.limits.memory_bytes for live in self._running.values() if not live.has_ended),
            sum((need_of(live.work.spec) for live in self._running.values()), DiskNeed()),
        )

    def give_back(self, reason: FailureReason) -> int:
        """Stop executions that have not started and give their leases back; return how many that are."""
        early = [live for live in self._running.values() if live.row.phase.rank < Phase.STARTED.rank]
        for live in early:
            live.stop(reason)
        return len(early)

    async def wait_idle(self) -> None:
        """Return when nothing runs."""
        while self._running:
            await self._ended.wait()

    # -- the phases ----------------------------------------------------------------------------------------------

    async def _execute(self, live: Running, *, is_recovered: bool) -> ExecutionResult:
        """Prepare, start and wait, from wherever the journal says; an executor's errors become a failed result."""
        try:
            handle = await (self._recover(live) if is_recovered else self._start(live))
            self._follow(live, handle)
            limit_s = live.limits.wall_time_s + WALL_TIME_GRACE_S
            return await within(self._clock, limit_s, lambda: live.executor.wait(handle))
        except TimeoutError:
            await self._stop(live)
            text = f"the task did not end within its {live.limits.wall_time_s:g} s"
            return ExecutionResult(Outcome.FAILED, FailureReason.TIMEOUT, text)
        except Exception as exc:
            log.warning(
                "execution_failed", task_id=live.row.task_id, error=str(exc), exc_info=not isinstance(exc, ParityError)
            )
            await self._stop(live)
            result = failure_of(exc)
            if result.reason is FailureReason.DISK_FULL:
                self._on_full()
                if live.row.phase.rank < Phase.STARTED.rank:  # it did nothing yet: another node may have room
                    live.stop(FailureReason.DISK_FULL)
                    await anyio.lowlevel.checkpoint()  # ends here
            return result

    async def _recover(self, live: Running) -> Handle:
        if live.handle is None or not await live.executor.recover(live.handle):
            raise ExecutionFailed(FailureReason.NODE_RESTARTED, "the node restarted while the task ran")
        log.info("execution_recovered", task_id=live.row.task_id, execution_id=live.row.id)
        return live.handle

    async def _start(self, live: Running) -> Handle:
        row = live.row
        prepared = live.handle if row.phase is Phase.PREPARED else None
        if prepared is None:
            live.handle = prepared = await live.executor.prepare(self._job(live))
            self._note(live, phase=Phase.PREPARED, handle=prepared.to_json())
            crashpoint("prepared")
        live.handle = started = await live.executor.start(prepared)
        crashpoint("started")
        started_at = self._clock.now().timestamp()
        self._note(live, phase=Phase.STARTED, handle=started.to_json(), started_at=started_at)
        crashpoint("start.handle.journalled")
        self._starts.add(StartItem(task_id=row.task_id, lease_id=row.lease_id, fence=row.fence, started_at=started_at))
        return started

    async def _collect(self, live: Running, result: ExecutionResult) -> None:
        """Make the result and its report durable and queue it."""
        crashpoint("ended")
        row = live.row
        stored: StoredResult | None = None
        if result.outcome is Outcome.SUCCEEDED:
            try:
                stored = await self._store_result(result, row.id)
            except ParityError as exc:
                result = replace(failure_of(exc), usage=result.usage)
        finished_at = self._clock.now().timestamp()
        try:
            entry, report = self._report(live, result, stored, finished_at)
        except (ValidationError, ParityError) as exc:
            log.error("result_malformed", task_id=row.task_id, error=str(exc)[:500])  # noqa: TRY400 - says enough
            broken = ExecutionResult(Outcome.FAILED, FailureReason.NODE_FAULT, "the executor's result is malformed")
            entry, report = self._report(live, broken, None, finished_at)
        crashpoint("result.written")
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._logs.finish, row.id)
                await self._journal(live, entry)
        finally:
            if (
                live.row.phase is Phase.COLLECTED
            ):  # even when the lease was lost meanwhile: the market decides by the fence
                crashpoint("result.journalled")
                self._starts.discard(row.lease_id)
                self._outbox.add(entry, report)
        crashpoint("report.enqueued")
        outcome = "succeeded" if report.report.outcome is Outcome.SUCCEEDED else str(report.report.reason)
        self._on_ended(row.kind, outcome, max(0.0, finished_at - (row.started_at or finished_at)))
        log.info("execution_ended", task_id=row.task_id, execution_id=row.id, fence=row.fence, outcome=outcome)

    def _report(
        self, live: Running, result: ExecutionResult, stored: StoredResult | None, finished_at: float
    ) -> tuple[OutboxEntry, FinalReport]:
        return build_report(
            live.row,
            result,
            stored,
            chain=live.work.manifest.chain,
            node_id=self._node_id,
            operator=self._operator,
            finished_at=finished_at,
        )

    async def _store_result(self, result: ExecutionResult, execution_id: str) -> StoredResult:
        """Make a result durable; on a full disk wait for room, but not for long: another node could run it meanwhile.

        Raises:
            StorageFull: There is no room.
            ExecutionFailed: As ``store_result``.
        """
        end = self._clock.monotonic() + FULL_DISK_PATIENCE_S
        while True:
            try:
                return await store_result(result, self._results_dir, execution_id)
            except StorageFull as exc:
                self._on_full()
                if self._clock.monotonic() >= end:
                    raise
                log.error("result_not_stored", execution_id=execution_id, error=exc.message)  # noqa: TRY400 - says enough
                await self._clock.sleep(FULL_DISK_RETRY_S)

    async def _journal(self, live: Running, entry: OutboxEntry) -> None:
        """Make a report durable; on a full disk wait for room as long as the lease lasts."""
        while True:
            try:
                with anyio.CancelScope(shield=True):  # written or not, but known
                    await self._store.collect(entry, phase=Phase.COLLECTED)
                    live.row = replace(live.row, phase=Phase.COLLECTED)
                return
            except StorageFull as exc:
                self._on_full()
                log.error("result_not_journalled", report=entry.id, error=exc.message)  # noqa: TRY400 - says enough
                await self._clock.sleep(FULL_DISK_RETRY_S)

    async def _abandon(self, live: Running, reason: LossReason | FailureReason) -> None:
        """Stop an execution that is not to be reported; one that we chose to end gives its lease back."""
        row = live.row
        self._starts.discard(row.lease_id)
        self._logs.discard(row.id)
        await self._stop(live)
        if isinstance(reason, FailureReason):
            await give_back(self._market, self._clock, [row], reason)
        self._leases.remove(row.lease_id)
        await self._clean_up(row, live.executor, live.handle)
        self._forget(row)
        self._on_ended(row.kind, reason.value, 0.0)
        log.info("execution_abandoned", task_id=row.task_id, execution_id=row.id, reason=reason.value)

    async def _clean_up(self, row: Execution, executor: Executor | None, handle: Handle | None) -> None:
        crashpoint("cleanup.begun")
        if executor is not None and handle is not None:
            await self._bounded("cleanup", lambda: executor.cleanup(handle))
        with anyio.CancelScope(shield=True):  # a node that is stopped meanwhile leaves no half-cleaned row
            await self._remover.remove(self._exec_dir / row.id)
            crashpoint("cleanup.done")
            self._complete(row.id, "cleaned")

    # -- small things --------------------------------------------------------------------------------------------

    def _job(self, live: Running) -> Job:
        row, manifest = live.row, live.work.manifest
        folder = self._exec_dir / row.id
        remove_folder(folder)  # what an earlier process had begun to prepare
        return Job(
            execution_id=row.id,
            task_id=row.task_id,
            lease_id=row.lease_id,
            fence=row.fence,
            spec=live.work.spec,
            part=manifest.part,
            parts=manifest.parts,
            plan=manifest.plan,
            folder=make_private_dir(folder),
            limits=live.limits,
            slot=live.slot,
            group_id=str(manifest.group_id or ""),
            shard=manifest.shard,
        )

    def _keep_lease(self, live: Running, sent_at: float) -> None:
        row = live.row
        self._leases.add(
            HeldLease(
                task_id=row.task_id,
                lease_id=row.lease_id,
                fence=row.fence,
                ttl_s=row.ttl_s,
                sent_at=sent_at,
                deadline=row.deadline,
                on_lost=live.stop,
                on_renewed=lambda deadline: self._store.note(row.id, deadline=deadline, boot_id=self._boot_id),
            )
        )

    def _follow(self, live: Running, handle: Handle) -> None:
        row = live.row
        self._logs.add(
            LogFeed(
                row.id,
                row.task_id,
                row.lease_id,
                row.fence,
                live.executor,
                handle,
                read=row.log_read,
                sent=row.log_sent,
            )
        )

    def _note(self, live: Running, **changes: object) -> None:
        live.row = replace(live.row, **changes)  # type: ignore[arg-type]  # the journal checks the names
        self._store.note(live.row.id, **changes)

    async def _stop(self, live: Running) -> None:
        handle = live.handle
        if handle is not None:
            await self._bounded("stop", lambda: live.executor.stop(handle))

    async def _bounded(self, verb: str, call: Callable[[], Awaitable[None]]) -> None:
        """Call an executor's ``stop`` or ``cleanup``: shielded, bounded, and never the end of the agent."""
        with anyio.CancelScope(shield=True):
            try:
                await within(self._clock, STOP_TIMEOUT_S, call)
            except Exception:
                log.exception("executor_failed", verb=verb)

    def _complete(self, execution_id: str, half: str) -> None:
        """Forget an execution when it is both cleaned up and answered, whichever comes first."""
        halves = self._half_done.setdefault(execution_id, set())
        halves.add(half)
        if halves == {"cleaned", "answered"}:
            del self._half_done[execution_id]
            self._store.forget(execution_id)

    def _forget(self, row: Execution) -> None:
        self._half_done.pop(row.id, None)
        self._store.forget(row.id)


def _handle_of(row: Execution) -> Handle | None:
    return Handle.from_json(row.handle) if row.handle is not None else None
