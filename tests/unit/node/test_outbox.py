"""The outbox on its own: order, bounds, and what the market's answers do to single reports."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import anyio
import pytest

from parity_node.executors.base import ExecutionResult
from parity_node.outbox import MAX_REPORT_BATCH, Outbox, Settled
from parity_node.results import build_report
from parity_node.store.base import Execution, Phase
from parity_node.store.memory import MemoryNodeStore
from parity_protocol.api.leases import FinalReport, ReportItem, ReportReply, ReportsRequest
from parity_protocol.api.problem import error_of_answer, problem_of
from parity_protocol.api.storage import UploadReply
from parity_protocol.errors import BadField, FailureReason, Overloaded, ParityError, StaleFence, TooLarge, Unreachable
from parity_protocol.manifest import ChainRef
from parity_protocol.report import Outcome
from parity_protocol.testing.clock import FakeClock
from parity_protocol.testing.keys import deterministic_evm_key

CHAIN = ChainRef(chain_id=1, genesis="0x" + "0" * 64, vault="0x" + "1" * 40)


class ReportDesk:
    """A market that only takes reports, as a test tells it to."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.errors: list[ParityError] = []
        self.refused: dict[str, ParityError] = {}  # by id, for ever
        self.busy: dict[str, int] = {}  # by id, so many times
        self.poisoned: set[str] = set()  # ids that make a whole request fail
        self.uploads: dict[str, list[ParityError | str]] = {}  # by file name: what is raised, or the CID in the answer

    async def report(self, request: ReportsRequest) -> ReportReply:
        ids = [item.report.id for item in request.reports]
        self.batches.append(ids)
        if self.errors:
            raise self.errors.pop(0)
        if self.poisoned & set(ids):
            raise BadField("reports: one of them is not acceptable", field="reports")
        return ReportReply(reports=tuple(self._answer(name) for name in ids))

    async def upload(self, path: Path) -> UploadReply:
        found = self.uploads[path.name].pop(0)
        if isinstance(found, ParityError):
            raise found
        return UploadReply(cid=found, size=1, visibility="private")

    def _answer(self, name: str) -> ReportItem:
        if self.busy.get(name, 0):
            self.busy[name] -= 1
            return ReportItem(id=name, status=503)
        error = self.refused.get(name)
        if error is not None:
            return ReportItem(id=name, status=error.status, problem=problem_of(error))
        return ReportItem(id=name, status=200, task_state="completed")


class Desk:
    """An outbox that runs, and what came of it."""

    def __init__(self, clock: FakeClock, *, max_rows: int = 100, max_bytes: int = 1 << 20) -> None:
        self.clock, self.market, self.store = clock, ReportDesk(), MemoryNodeStore()
        self.settled: list[Settled] = []
        self.outbox = Outbox(
            self.store,
            self.market,  # type: ignore[arg-type]
            self.market,  # type: ignore[arg-type]
            clock,
            max_rows=max_rows,
            max_bytes=max_bytes,
            on_settled=self.settled.append,
        )

    async def add(self, number: int, *, file: Path | None = None) -> str:
        row = Execution(
            id=f"e{number}",
            task_id=f"00000000-0000-4000-8000-{number:012d}",
            jti=f"j{number}",
            jti_expires_at=0,
            claim_id=f"c{number}",
            kind="command",
            manifest="",
            manifest_hash="0" * 64,
            order_hash="0x" + "0" * 64,
            reward=0,
            lease_id=f"11111111-0000-4000-8000-{number:012d}",
            fence=1,
        )
        entry, report = build_report(
            row,
            ExecutionResult(Outcome.FAILED, FailureReason.EXIT_STATUS, "it failed"),
            None,
            chain=CHAIN,
            node_id="a" * 64,  # type: ignore[arg-type]
            operator=deterministic_evm_key("node"),
            finished_at=1.0,
        )
        if file is not None:
            await anyio.Path(file).write_bytes(b"x")
            entry = replace(entry, result_path=str(file), result_cid=f"cid of {file.name}")
        await self.store.collect(entry, phase=Phase.COLLECTED)
        self.outbox.add(entry, report)
        return entry.id

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with anyio.create_task_group() as group:
            group.start_soon(self.outbox.run)
            yield
            group.cancel_scope.cancel()

    async def until_settled(self, count: int) -> None:
        """Let time pass until so many reports have their answer; the time-out of pytest is the bound."""
        while len(self.settled) < count:
            await self.pass_time(1)
            await anyio.sleep(0.001)  # a real thread looks at the files

    async def pass_time(self, seconds: float) -> None:
        await self.clock.advance(timedelta(seconds=seconds))


@pytest.fixture
def desk(clock: FakeClock) -> Desk:
    return Desk(clock)


async def test_reports_go_in_order_and_many_in_one_message(desk: Desk) -> None:
    ids = [await desk.add(number) for number in range(MAX_REPORT_BATCH + 10)]

    async with desk.running():
        await desk.pass_time(1)

    assert desk.market.batches == [ids[:MAX_REPORT_BATCH], ids[MAX_REPORT_BATCH:]]
    assert [answer.entry_id for answer in desk.settled] == ids
    assert (await desk.store.load()).outbox == ()


async def test_result_that_the_market_never_takes_does_not_hold_up_the_others(desk: Desk, tmp_path: Path) -> None:
    big = await desk.add(1, file=tmp_path / "big")
    small = await desk.add(2, file=tmp_path / "small")
    desk.market.uploads = {"big": [TooLarge("over your quota")], "small": ["cid of small"]}
    desk.market.refused[big] = BadField("there is no such result here", field="cid")

    async with desk.running():
        await desk.until_settled(2)

    assert {(a.entry_id, a.is_accepted) for a in desk.settled} == {(big, False), (small, True)}


async def test_result_is_uploaded_again_when_the_market_was_away(desk: Desk, tmp_path: Path) -> None:
    entry = await desk.add(1, file=tmp_path / "big")
    desk.market.uploads = {"big": [Unreachable(), Unreachable(), "cid of big"]}

    async with desk.running():
        await desk.until_settled(1)

    assert desk.market.uploads == {"big": []}
    assert [(a.entry_id, a.is_accepted) for a in desk.settled] == [(entry, True)]


async def test_answer_that_is_no_markets_costs_no_report(desk: Desk) -> None:
    entry = await desk.add(1)
    desk.market.errors = [
        error_of_answer(status, b"<html>", sender="x", max_retry_after_s=1) for status in (307, 404, 502)
    ]

    async with desk.running():
        await desk.pass_time(120)

    assert [(a.entry_id, a.is_accepted) for a in desk.settled] == [(entry, True)]


async def test_report_that_is_refused_for_good_leaves_and_the_others_stay_their_course(desk: Desk) -> None:
    first, second = await desk.add(1), await desk.add(2)
    desk.market.refused[first] = StaleFence("claimed again")

    async with desk.running():
        await desk.pass_time(1)

    assert [(a.entry_id, a.is_accepted, a.code) for a in desk.settled] == [
        (first, False, "stale_fence"),
        (second, True, ""),
    ]
    assert desk.outbox.rows == 0


async def test_report_that_the_market_cannot_take_now_waits_alone(desk: Desk) -> None:
    first, second = await desk.add(1), await desk.add(2)
    desk.market.busy[first] = 2

    async with desk.running():
        await desk.pass_time(0.5)
        assert [answer.entry_id for answer in desk.settled] == [second]
        await desk.pass_time(60)

    assert [answer.entry_id for answer in desk.settled] == [second, first]


async def test_one_report_that_spoils_the_message_does_not_hold_up_the_others(desk: Desk) -> None:
    ids = [await desk.add(number) for number in range(5)]
    desk.market.poisoned = {ids[2]}

    async with desk.running():
        await desk.pass_time(1)

    accepted = [answer.entry_id for answer in desk.settled if answer.is_accepted]
    assert accepted == [name for name in ids if name != ids[2]]
    assert desk.outbox.rows == 0


async def test_market_that_asks_for_patience_gets_it(desk: Desk) -> None:
    await desk.add(1)
    desk.market.errors = [Overloaded("later", retry_after_s=50)]

    async with desk.running():
        await desk.pass_time(49)
        assert len(desk.market.batches) == 1
        assert "later" in desk.outbox.last_error
        await desk.pass_time(5)

    assert len(desk.settled) == 1


async def test_nothing_is_lost_in_hours_without_a_market(desk: Desk) -> None:
    ids = [await desk.add(number) for number in range(5)]
    desk.market.errors = [Unreachable() for _ in range(5_000)]

    async with desk.running():
        await desk.pass_time(14_400)
        tries = len(desk.market.batches)
        desk.market.errors = []
        await desk.pass_time(60)

    assert [answer.entry_id for answer in desk.settled] == ids
    assert tries < 14_400 / 5  # full jitter up to 30 s: 15 s on average


async def test_same_report_is_queued_once(desk: Desk) -> None:
    await desk.add(1)
    await desk.add(1)

    assert desk.outbox.rows == 1


@pytest.mark.parametrize(("limits", "rows"), [({"max_rows": 3}, 3), ({"max_bytes": 900}, 2)])
async def test_room_ends_at_the_rows_or_at_the_bytes(clock: FakeClock, limits: dict[str, int], rows: int) -> None:
    desk = Desk(clock, **limits)
    for number in range(rows):
        assert desk.outbox.room > 0
        await desk.add(number)

    assert desk.outbox.room == 0


async def test_restored_reports_are_sent_in_their_order(desk: Desk, clock: FakeClock) -> None:
    ids = [await desk.add(number) for number in range(3)]
    later = Desk(clock)
    later.outbox.restore((await desk.store.load()).outbox)

    async with later.running():
        await later.pass_time(1)

    assert later.market.batches == [ids]


async def test_flush_ends_with_its_time_and_says_what_is_left(desk: Desk) -> None:
    await desk.add(1)
    desk.market.errors = [Unreachable() for _ in range(100)]
    answers: list[bool] = []

    async def flush() -> None:
        answers.append(await desk.outbox.flush(5.0))

    async with desk.running(), anyio.create_task_group() as group:
        group.start_soon(flush)
        await desk.pass_time(6)
        assert answers == [False]
        desk.market.errors = []
        group.start_soon(flush)
        await desk.pass_time(1)

    assert answers == [False, True]


def test_report_survives_the_journal_byte_for_byte(clock: FakeClock) -> None:
    entry, report = build_report(
        Execution("e", "0" * 8 + "-0000-4000-8000-" + "0" * 12, "j", 0, "c", "command", "", "0" * 64, "0x" + "0" * 64, 0,
                  lease_id="0" * 8 + "-0000-4000-8000-" + "1" * 12, fence=2),
        ExecutionResult(Outcome.FAILED, FailureReason.TIMEOUT, "too long"),
        None,
        chain=CHAIN,
        node_id="a" * 64,  # type: ignore[arg-type]
        operator=deterministic_evm_key("node"),
        finished_at=1.5,
    )  # fmt: skip

    assert FinalReport.model_validate_json(entry.body) == report
