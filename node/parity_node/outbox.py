"""Store and forward: reports wait here until the market lists them.

Every entry is in the journal before it is here. Reports go in order, many in one message; one that the market refuses
for good is dropped with a log line, one that it cannot take now waits. Final reports are never dropped for room:
when the box is full the node takes no new work instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import anyio
import anyio.lowlevel
import structlog

from parity_node.crashpoints import crashpoint
from parity_node.market.base import MarketClient, MarketDirectory
from parity_node.store.base import NodeStore, OutboxEntry
from parity_node.waiting import Backoff, Comeback, Signal, within
from parity_protocol.api.leases import FinalReport, ReportItem, ReportsRequest
from parity_protocol.clock import Clock
from parity_protocol.errors import DigestMismatch, InvalidInput, ParityError, Unprocessable, Unreachable

__all__ = ["MAX_REPORT_BATCH", "Outbox", "Settled"]

MAX_REPORT_BATCH = 64  # reports in one message
CALL_TIMEOUT_S = 30.0
UPLOAD_TIMEOUT_S = 1_800.0
GATHER_TURNS = 3  # of the event loop

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Settled:
    """The market's last word on one report."""

    entry_id: str
    execution_id: str
    is_final: bool
    is_accepted: bool
    task_state: str
    code: str = ""  # of the refusal
    message: str = ""


@dataclass(slots=True)
class _Waiting:
    entry: OutboxEntry
    report: FinalReport
    is_ready: bool  # its result was uploaded, or is inside
    not_before: float = 0.0  # Clock.monotonic()
    attempts: int = 0


class Outbox:
    """The queue and its two senders: uploads of large results, and reports.

    Args:
        max_rows: Reports that may wait before there is no ``room``; ``max_bytes`` likewise.
        on_settled: Told of each final report that has its answer, after the journal has it; must not block.
        comeback: Ends the pause between two tries when the market answers somebody else of this node.
    """

    def __init__(
        self,
        store: NodeStore,
        market: MarketClient,
        directory: MarketDirectory,
        clock: Clock,
        *,
        max_rows: int,
        max_bytes: int,
        on_settled: Callable[[Settled], None],
        comeback: Comeback | None = None,
    ) -> None:
        self._store = store
        self._market = market
        self._directory = directory
        self._clock = clock
        self._max_rows = max_rows
        self._max_bytes = max_bytes
        self._on_settled = on_settled
        self._comeback = comeback or Comeback()
        self._comeback.wakes(self._wake)
        self._waiting: dict[str, _Waiting] = {}
        self._bytes = 0
        self._to_report = Signal()
        self._to_upload = Signal()
        self._emptied = Signal()
        self._hurry = Signal()
        self._hurry_upload = Signal()
        self.last_error = ""

    @property
    def rows(self) -> int:
        """Reports that wait."""
        return len(self._waiting)

    @property
    def size_bytes(self) -> int:
        """Bytes of the reports that wait."""
        return self._bytes

    @property
    def room(self) -> int:
        """How many more reports fit; executions that run now will need one each."""
        return max(0, self._max_rows - len(self._waiting)) if self._bytes < self._max_bytes else 0

    def result_paths(self) -> frozenset[str]:
        """Return the files and folders that waiting reports name."""
        return frozenset(item.entry.result_path for item in self._waiting.values() if item.entry.result_path)

    def restore(self, entries: Iterable[OutboxEntry]) -> None:
        """Take up what the journal holds, in its order."""
        for entry in entries:
            self.add(entry, FinalReport.model_validate_json(entry.body))

    def add(self, entry: OutboxEntry, report: FinalReport) -> None:
        """Queue a report that is already in the journal; one that waits already is not queued twice."""
        if entry.id in self._waiting:
            return
        self._waiting[entry.id] = _Waiting(entry, report, is_ready=not entry.result_path)
        self._bytes += len(entry.body)
        (self._to_upload if entry.result_path else self._to_report).set()

    async def flush(self, timeout_s: float) -> bool:
        """Try at once and wait until nothing is left, at most ``timeout_s``; return whether it is empty."""
        self._wake()
        end = self._clock.monotonic() + timeout_s
        while self._waiting:
            left_s = end - self._clock.monotonic()
            if left_s <= 0:
                return False
            await self._emptied.wait_within(self._clock, left_s)
        return True

    def _wake(self) -> None:
        """Try again now."""
        self._hurry.set()
        self._hurry_upload.set()

    async def run(self) -> None:
        """Send until cancelled."""
        async with anyio.create_task_group() as group:
            group.start_soon(self._report_loop)
            group.start_soon(self._upload_loop)

    # -- reports -------------------------------------------------------------------------------------------------

    async def _report_loop(self) -> None:
        backoff = Backoff(0.2, 30.0)
        while True:
            for _ in range(GATHER_TURNS):  # results that share a commit arrive one after the other
                await anyio.lowlevel.checkpoint()
            batch, pause_s = self._next_batch()
            if not batch:
                await _wait(self._to_report, self._clock, pause_s)
                continue
            try:
                await self._send(batch)
                backoff.reset()
                self.last_error = ""
                self._comeback.answered()
            except (ParityError, TimeoutError) as exc:
                self.last_error = str(exc)
                if isinstance(exc, Unreachable | TimeoutError):
                    self._comeback.failed()
                pause_s = backoff.after(exc)
                log.warning("reports_not_sent", waiting=self.rows, error=str(exc), retry_in_s=round(pause_s, 3))
                await self._hurry.wait_within(self._clock, pause_s)

    def _next_batch(self) -> tuple[list[_Waiting], float | None]:
        """Return what can be sent now, else after how many seconds to look again (None: when something comes)."""
        now = self._clock.monotonic()
        ready = [waiting for waiting in self._waiting.values() if waiting.is_ready]
        due = [waiting for waiting in ready if waiting.not_before <= now]
        if due or not ready:
            return due[:MAX_REPORT_BATCH], None
        return [], min(waiting.not_before for waiting in ready) - now

    async def _send(self, batch: list[_Waiting]) -> None:
        request = ReportsRequest(reports=tuple(waiting.report for waiting in batch))
        try:
            reply = await within(self._clock, CALL_TIMEOUT_S, lambda: self._market.report(request))
        except (InvalidInput, Unprocessable) as exc:
            if len(batch) > 1:  # one bad report must not hold up the others: find it
                for waiting in batch:
                    await self._send([waiting])
                return
            await self._settle([_refused(_answer(batch[0].entry), exc.code, exc.message)])
            return
        crashpoint("report.sent")
        settled = []
        for waiting, item in zip(batch, reply.reports, strict=True):
            found = self._judge(waiting, item)
            if found is not None:
                settled.append(found)
        await self._settle(settled)

    def _judge(self, waiting: _Waiting, item: ReportItem) -> Settled | None:
        """Return the market's last word, or None when the report has to be sent again."""
        entry = waiting.entry
        if item.id != entry.id:
            raise DigestMismatch("the market's answer lists another report than the one that was sent")
        answer = _answer(entry, task_state=item.task_state)
        if item.status == 200:
            return answer
        if item.status in (408, 429) or item.status >= 500:
            waiting.attempts += 1
            waiting.not_before = self._clock.monotonic() + Backoff(1.0, 30.0).after() + min(waiting.attempts, 30)
            return None
        code = item.problem.code if item.problem is not None else str(item.status)
        return _refused(answer, code, item.problem.detail if item.problem is not None else "")

    async def _settle(self, settled: list[Settled]) -> None:
        if not settled:
            return
        crashpoint("report.acked")
        await self._store.settle([answer.entry_id for answer in settled])
        for answer in settled:
            path = self._waiting[answer.entry_id].entry.result_path
            if path:
                await anyio.Path(path).unlink(missing_ok=True)
            self._bytes -= len(self._waiting.pop(answer.entry_id).entry.body)
            if not answer.is_accepted:
                log.warning("report_refused", report=answer.entry_id, code=answer.code, message=answer.message)
            if answer.is_final:
                self._on_settled(answer)
        if not self._waiting:
            self._emptied.set()

    # -- uploads -------------------------------------------------------------------------------------------------

    async def _upload_loop(self) -> None:
        backoff = Backoff(0.5, 60.0)
        while True:
            waiting = next((item for item in self._waiting.values() if not item.is_ready), None)
            if waiting is None:
                await self._to_upload.wait()
                continue
            try:
                await self._upload(waiting)
                backoff.reset()
            except (ParityError, TimeoutError) as exc:
                pause_s = backoff.after(exc)
                log.warning(
                    "result_not_uploaded", report=waiting.entry.id, error=str(exc), retry_in_s=round(pause_s, 3)
                )
                await self._hurry_upload.wait_within(self._clock, pause_s)

    async def _upload(self, waiting: _Waiting) -> None:
        entry = waiting.entry
        path = Path(entry.result_path)
        if not await anyio.Path(path).exists():
            # Removed by hand, or sent by an earlier process: the market knows whether it has the blob.
            log.error("result_missing", report=entry.id, path=entry.result_path)
        else:
            try:
                reply = await within(self._clock, UPLOAD_TIMEOUT_S, lambda: self._directory.upload(path))
            except (InvalidInput, Unprocessable) as exc:  # it will not be taken tomorrow either: let the report say so
                log.warning("result_refused", report=entry.id, code=exc.code, error=exc.message)
            else:
                if reply.cid != entry.result_cid:
                    raise DigestMismatch(f"the market stored the result as {reply.cid}, its CID is {entry.result_cid}")
                crashpoint("result.uploaded")
        waiting.is_ready = True
        self._to_report.set()


def _answer(entry: OutboxEntry, *, task_state: str = "") -> Settled:
    return Settled(entry.id, entry.execution_id, entry.is_final, is_accepted=True, task_state=task_state)


def _refused(answer: Settled, code: str, message: str) -> Settled:
    return replace(answer, is_accepted=False, code=code, message=message[:500])


async def _wait(signal: Signal, clock: Clock, seconds: float | None) -> None:
    if seconds is None:
        await signal.wait()
    else:
        await signal.wait_within(clock, seconds)
