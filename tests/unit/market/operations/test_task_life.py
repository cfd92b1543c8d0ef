"""A model of tasks' life attacks the real operations on a real store (field.md §4.2: INV1, INV2, INV3, INV8).

Every rule predicts from its own small model what the market must answer. After every step the invariants are read back
from the tables. The test fails if an action never succeeded: a machine whose rules all miss proves nothing.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from parity_market.operations import leases, money, reports, tasks, views
from parity_market.operations.leases import ClaimRequest
from parity_market.operations.tasks import NewSubmission
from parity_market.store import SqliteStore
from parity_market.testing import (
    CHAIN_KEY,
    Bench,
    checked_report,
    command_submission,
    final_report,
    fl_submission,
    new_node,
)
from parity_market.testing.database import open_empty
from parity_protocol.api.leases import ReleaseItem, RenewItem, ReportItem, StartItem
from parity_protocol.errors import Blame, EscrowTooLow, FailureReason, InvalidTransition, ParityError
from parity_protocol.lease import MAX_HAND_BACKS, Lease
from parity_protocol.task import FINAL_STATES, TRANSITIONS, TaskEvent, TaskState

T = TypeVar("T")

NODES = ("ada", "bob", "cyd")
TTL = timedelta(seconds=30)
ESCROW = 40  # base units: small, so that submissions fail too
DEADLINE = timedelta(minutes=10)
_COUNTS: Counter[str] = Counter()
_EXAMPLES, _STEPS, _MAX_BATCHES = (25 if os.environ.get("CI") == "true" else 8), 50, 30
_WORTH_A_RESTART = 3  # leases
_CROWDED = 5  # tasks, before some are cancelled
_S = TaskState


@dataclass
class Model:
    """What the machine believes of one task."""

    id: str
    order: NewSubmission
    is_fl: bool
    reward: int
    state: TaskState = _S.PENDING
    fence: int = 0
    attempts: int = 0
    max_attempts: int = 3
    holder: str | None = None
    live: bool = False  # the newest lease was not ended
    hand_backs: int = 0  # leases that were given back with nothing started
    is_handed_back: bool = False  # the newest lease was
    lapses: float = 0.0  # seconds since the start
    excluded: set[str] = field(default_factory=set)
    faults: set[str] = field(default_factory=set)
    verify_attempts: int = 0
    deadline: float = 0.0
    result: str | None = None

    @property
    def is_open(self) -> bool:
        return self.state not in FINAL_STATES


@dataclass
class Held:
    """A lease that some claim gave, however old."""

    node: str
    lease: Lease
    claim: ClaimRequest
    task: Model
    reported: Any = None  # the final report that was taken


class TaskLife(RuleBasedStateMachine):
    parent: ClassVar[Path]  # of each example's folder

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(dir=self.parent))
        self.runner = asyncio.Runner()
        self.seconds = 0.0
        self.tasks: list[Model] = []
        self.held: list[Held] = []
        self.submitted: list[tuple[NewSubmission, Any]] = []
        self.accepted: dict[str, str] = {}  # task → result
        self.store: SqliteStore
        self.bench: Bench
        self.call(self._open(first=True))

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    async def _open(self, *, first: bool = False) -> None:
        self.store = await open_empty(self.folder / "market.db")
        connection = self.store.writer._connection
        connection.execute("PRAGMA synchronous = OFF")  # type: ignore[attr-defined]  # what a crash does is tested elsewhere
        signals = None if first else self.bench.signals
        now = None if first else self.bench.now
        self.bench = Bench(self.store, signals=signals, lease_ttl=TTL)
        if first:
            await self.bench.open(*NODES, escrow=ESCROW)
        elif now is not None:
            self.bench.now = now

    def teardown(self) -> None:
        self.call(self.store.close())
        self.runner.close()
        shutil.rmtree(self.folder)

    def some_held(self, data: st.DataObject, *, unreported: bool = False) -> Held:
        """Draw a lease, a current one as often as any."""
        known = [held for held in self.held if not (unreported and held.reported)]
        current = [held for held in known if self._current(held)]
        return data.draw(st.sampled_from(current if current and data.draw(st.booleans()) else known))

    def some_task(self, data: st.DataObject) -> Model:
        """Draw a task, a pending one as often as any."""
        pending = [task for task in self.tasks if task.state is _S.PENDING]
        return data.draw(st.sampled_from(pending if pending and data.draw(st.booleans()) else self.tasks))

    def dump(self) -> list[Any]:
        cursor = self.store.writer._connection.cursor()
        found = []
        for table in (
            "task",
            "lease",
            "task_event",
            "report",
            "receipt",
            "earning",
            "account",
            "submission",
            "blob_ref",
        ):
            cursor.execute(f"SELECT * FROM {table} ORDER BY 1, 2")
            found.append(cursor.fetchall())
        return found

    @initialize()
    def begin_with_work(self) -> None:
        self.submit(reward=4, is_fl=True, attempts=3)
        self.submit(reward=3, is_fl=False, attempts=2)

    # -- submitting -------------------------------------------------------------------------------------------------

    @rule(reward=st.integers(0, 15), is_fl=st.booleans(), attempts=st.integers(1, 3))
    def submit(self, reward: int, is_fl: bool, attempts: int) -> None:
        deadline = self.bench.now + DEADLINE
        if is_fl:
            new = fl_submission(parts=2, reward=reward, deadline=deadline)
            attempts = 3
        else:
            new = command_submission(reward=reward, deadline=deadline, max_attempts=attempts)
        bound = sum(task.reward for task in self.tasks if task.is_open or task.id in self.accepted)
        try:
            reply = self.call(self.bench.submit(new))
        except EscrowTooLow:
            assert bound + reward > ESCROW
            _COUNTS["submission without cover refused"] += 1
            return
        assert bound + reward <= ESCROW
        assert reply.created
        self.submitted.append((new, reply))
        parts = len(reply.task_ids)
        for part, task_id in enumerate(reply.task_ids):
            share = reward // parts + (1 if part < reward % parts else 0)
            self.tasks.append(
                Model(task_id, new, is_fl, share, max_attempts=attempts, deadline=int(deadline.timestamp()))
            )
        _COUNTS["submit fl" if is_fl else "submit"] += 1

    @precondition(lambda self: self.submitted)
    @rule(data=st.data())
    def submit_again(self, data: st.DataObject) -> None:
        new, first = data.draw(st.sampled_from(self.submitted))
        before = self.dump()

        again = self.call(self.bench.submit(new))

        assert (again.id, again.task_ids, again.created) == (first.id, first.task_ids, False)
        assert self.dump() == before
        _COUNTS["submit again"] += 1

    # -- claiming ---------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.tasks)
    @rule(data=st.data(), node=st.sampled_from(NODES))
    def claim(self, data: st.DataObject, node: str) -> None:
        task = self.some_task(data)
        if task.excluded and data.draw(st.booleans()):
            node = data.draw(st.sampled_from(sorted(task.excluded)))
        expected = (
            task.state is _S.PENDING
            and node not in task.excluded
            and task.attempts < task.max_attempts
            and self.bench.now.timestamp() <= task.deadline
        )
        number = len(self.held) + _COUNTS["claim refused"]
        item = ClaimRequest(
            task.id,
            f"{number:08x}-0000-4000-8000-000000000000",
            f"{number:08x}-0000-4000-9000-000000000000",
            "cd" * 32,
            task.attempts + 1,
        )

        answer = self.call(self._claim(node, item))

        if not expected:
            assert isinstance(answer, ParityError), f"{task} must not be claimed by {node}"
            _COUNTS["claim refused"] += 1
            _COUNTS["excluded node refused"] += task.state is _S.PENDING and node in task.excluded
            return
        assert isinstance(answer, Lease), answer
        assert answer.fence == task.fence + 1
        task.fence, task.holder, task.live, task.state = answer.fence, node, True, _S.LEASED
        task.attempts += 1
        task.is_handed_back = False
        task.lapses = self.seconds + TTL.total_seconds()
        self.held.append(Held(node, answer, item, task))
        _COUNTS["claim"] += 1

    async def _claim(self, node: str, item: ClaimRequest) -> Lease | ParityError:
        made = new_node(node)
        answers = await self.store.write(
            lambda tx: leases.claim(tx, self.bench.market, made.node_id, made.instance, [item], self.bench.now)
        )
        return answers[0]

    @precondition(lambda self: self.held)
    @rule(data=st.data(), other=st.sampled_from(NODES))
    def claim_again(self, data: st.DataObject, other: str) -> None:
        held = self.some_held(data)
        before = self.dump()

        same = self.call(self._claim(held.node, held.claim))
        stranger = self.call(self._claim(other, held.claim)) if other != held.node else None
        resumed = self.call(
            self._claim(
                held.node,
                ClaimRequest(
                    held.task.id,
                    "ffffffff-0000-4000-8000-000000000000",
                    held.claim.jti,
                    "cd" * 32,
                    held.task.attempts + 1,
                ),
            )
        )

        task = held.task
        if task.live and task.fence == held.lease.fence and self.seconds < task.lapses:
            assert isinstance(same, Lease)
            assert (same.lease_id, same.fence) == (held.lease.lease_id, held.lease.fence)
            _COUNTS["claim again"] += 1
        else:
            assert isinstance(same, ParityError)
        assert stranger is None or isinstance(stranger, ParityError)
        assert isinstance(resumed, ParityError), "a manifest must not start a second claim"
        assert self.dump() == before

    # -- holding ----------------------------------------------------------------------------------------------------

    def _current(self, held: Held) -> bool:
        return held.task.live and held.task.fence == held.lease.fence

    def _item(self, held: Held) -> dict[str, Any]:
        return {"task_id": held.task.id, "lease_id": held.lease.lease_id, "fence": held.lease.fence}

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def renew(self, data: st.DataObject) -> None:
        held = self.some_held(data)
        node, item = new_node(held.node).node_id, RenewItem(**self._item(held))

        answer = self.call(
            self.store.write(lambda tx: leases.renew(tx, self.bench.market, node, [item], self.bench.now))
        )[0]

        if self._current(held):
            assert isinstance(answer, Lease)
            held.task.lapses = self.seconds + TTL.total_seconds()
            _COUNTS["renew"] += 1
        else:
            assert isinstance(answer, ParityError)
            _COUNTS["stale renewal refused"] += 1

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def start(self, data: st.DataObject) -> None:
        held = self.some_held(data)
        node, item = new_node(held.node).node_id, StartItem(**self._item(held), started_at=1.0)

        answer = self.call(
            self.store.write(lambda tx: leases.start(tx, self.bench.market, node, [item], self.bench.now))
        )[0]

        assert (answer is None) == self._current(held)
        if answer is None:
            held.task.state = _S.RUNNING
            _COUNTS["start"] += 1

    @precondition(lambda self: self.held)
    @rule(data=st.data(), reason=st.sampled_from([FailureReason.DRAINED, FailureReason.DISK_FULL]))
    def release(self, data: st.DataObject, reason: FailureReason) -> None:
        held = self.some_held(data)
        node, item = new_node(held.node).node_id, ReleaseItem(**self._item(held), reason=str(reason))

        answer = self.call(
            self.store.write(lambda tx: leases.release(tx, self.bench.market, node, [item], self.bench.now))
        )[0]

        assert (answer is None) == self._current(held)
        if answer is None:
            if held.task.state is _S.LEASED:
                is_free = held.task.hand_backs < MAX_HAND_BACKS
                held.task.hand_backs += 1
                held.task.is_handed_back = True
                held.task.attempts -= is_free
                _COUNTS["hand-back" if is_free else "one hand-back too many"] += 1
            self._freed(held.task, exclude=reason.blame is Blame.NODE)
            _COUNTS["release"] += 1

    def _freed(self, task: Model, *, exclude: bool = False, final: TaskState | None = None) -> None:
        task.live = False
        tries = sum(held.task is task and held.node == task.holder for held in self.held)
        is_futile = final is None and tries > 1 and self.bench.signals.others
        if (exclude or is_futile) and task.holder is not None:
            task.excluded.add(task.holder)
        if final is not None:
            task.state = final
        else:
            task.state = _S.FAILED if task.attempts >= task.max_attempts else _S.PENDING

    # -- reporting --------------------------------------------------------------------------------------------------

    def _report(self, held: Held, failed: FailureReason | None, result: bytes) -> tuple[ReportItem, Any]:
        final = final_report(held.node, held.lease, order_hash=held.task.order.order_hash, result=result, failed=failed)
        return self._take(held.node, final), final

    def _take(self, node: str, final: Any) -> ReportItem:
        checked = checked_report(final, new_node(node).node_id)
        return self.call(self.store.write(lambda tx: reports.take(tx, self.bench.market, checked, self.bench.now)))

    def _may_report(self, held: Held) -> bool:
        task = held.task
        return (
            held.reported is None
            and task.fence == held.lease.fence
            and not task.is_handed_back
            and task.state in (_S.PENDING, _S.LEASED, _S.RUNNING)
        )

    @precondition(lambda self: any(not held.reported for held in self.held))
    @rule(data=st.data(), result=st.sampled_from([b"one", b"two"]))
    def report_success(self, data: st.DataObject, result: bytes) -> None:
        held = self.some_held(data, unreported=True)
        task, expected, late = held.task, self._may_report(held), held.task.state is _S.PENDING
        before = self.dump()

        answer, final = self._report(held, None, result)

        if not expected:
            assert answer.status == 409, answer
            assert self.dump() == before
            _COUNTS["stale report refused"] += 1
            return
        assert answer.status == 200, answer
        held.reported, task.live, task.result = final, False, final.report.result_cid
        if task.is_fl:
            task.state = _S.VERIFYING
        else:
            task.state = _S.COMPLETED
            self.accepted[task.id] = final.report.result_cid
        assert answer.task_state == str(task.state)
        _COUNTS["report after the lease lapsed" if late else "report"] += 1

    @precondition(lambda self: any(not held.reported for held in self.held))
    @rule(
        data=st.data(),
        reason=st.sampled_from(
            [
                FailureReason.EXIT_STATUS,
                FailureReason.SANDBOX_FAILED,
                FailureReason.DEPENDENCY_UNAVAILABLE,
                FailureReason.NODE_RESTARTED,
            ]
        ),
        others=st.booleans(),
    )
    def report_failure(self, data: st.DataObject, reason: FailureReason, others: bool) -> None:
        held = self.some_held(data, unreported=True)
        self.bench.signals.others = others
        task, expected = held.task, self._may_report(held)
        before = self.dump()

        answer, final = self._report(held, reason, b"")

        if not expected:
            assert answer.status == 409
            assert self.dump() == before
            return
        assert answer.status == 200, answer
        held.reported = final
        _COUNTS[f"failure by {reason.blame}"] += 1
        if task.state is _S.PENDING:
            return
        if reason.blame is Blame.TASK:
            confirmed = bool(task.faults - {held.node}) or not others
            task.faults.add(held.node)
            self._freed(task, exclude=True, final=_S.FAILED if confirmed else None)
            _COUNTS["task fault confirmed" if confirmed else "task fault unconfirmed"] += 1
        else:
            self._freed(task, exclude=reason.blame is Blame.NODE)

    @precondition(lambda self: any(held.reported for held in self.held))
    @rule(data=st.data())
    def report_again(self, data: st.DataObject) -> None:
        held = data.draw(st.sampled_from([held for held in self.held if held.reported]))
        before = self.dump()

        same = self._take(held.node, held.reported)
        other, _ = self._report(held, None, b"forged")

        assert (same.status, same.task_state) == (200, str(held.task.state))
        assert other.status == 409
        assert self.dump() == before
        _COUNTS["report again"] += 1

    # -- verifying --------------------------------------------------------------------------------------------------

    def _verifying(self) -> list[Model]:
        return [task for task in self.tasks if task.state is _S.VERIFYING]

    @precondition(lambda self: self._verifying())
    @rule(data=st.data(), verdict=st.sampled_from(["accept", "reject", "later"]))
    def verify(self, data: st.DataObject, verdict: str) -> None:
        task = data.draw(st.sampled_from(self._verifying()))
        market, now = self.bench.market, self.bench.now

        if verdict == "accept":
            self.call(self.store.write(lambda tx: reports.accept(tx, market, task.id, task.fence, now)))
            task.state = _S.COMPLETED
            assert task.result is not None
            self.accepted[task.id] = task.result
        elif verdict == "reject":
            self.call(self.store.write(lambda tx: reports.reject(tx, market, task.id, task.fence, "no trees", now)))
            is_over = any(one.order is task.order and one.state is _S.CANCELLED for one in self.tasks)
            is_last = is_over or task.attempts >= task.max_attempts
            self._freed(task, exclude=True, final=_S.NOT_VERIFIED if is_last else None)
        else:
            self.call(self.store.write(lambda tx: reports.verify_later(tx, market, task.id, task.fence, "busy", now)))
            task.verify_attempts += 1
            if task.verify_attempts >= market.max_verify_attempts:
                task.state = _S.FAILED
        _COUNTS[verdict] += 1

    @precondition(lambda self: any(task.state is _S.COMPLETED for task in self.tasks))
    @rule(data=st.data())
    def accept_again(self, data: st.DataObject) -> None:
        task = data.draw(st.sampled_from([task for task in self.tasks if task.state is _S.COMPLETED]))
        before = self.dump()

        try:
            self.call(
                self.store.write(lambda tx: reports.accept(tx, self.bench.market, task.id, task.fence, self.bench.now))
            )
            raise AssertionError("a completed task was accepted again")
        except InvalidTransition:
            assert self.dump() == before
            _COUNTS["second acceptance refused"] += 1

    # -- time, cancel, restart ----------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([1, 10, 31, 200]))
    def pass_time(self, seconds: int) -> None:
        self.seconds += seconds
        self.bench.now += timedelta(seconds=seconds)
        self.call(self.store.write(lambda tx: money.record_head(tx, CHAIN_KEY, 1, self.bench.now)))

    @rule()
    def reap(self) -> None:
        freed = self.call(self.store.write(lambda tx: leases.reap(tx, self.bench.market, self.bench.now)))

        expected = set()
        for task in self.tasks:
            if task.live and task.lapses <= self.seconds and task.state in (_S.LEASED, _S.RUNNING):
                self._freed(task)
                expected.add(task.id)
                _COUNTS["lease reaped"] += 1
        for task in self.tasks:
            if task.state is _S.PENDING and task.deadline < self.bench.now.timestamp():
                task.state = _S.FAILED
                expected.add(task.id)
                _COUNTS["deadline"] += 1
        assert {task.id for task in freed} == expected

    @precondition(lambda self: len(self.tasks) >= _CROWDED)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        task = data.draw(st.sampled_from(self.tasks))
        family = [other for other in self.tasks if other.order is task.order]
        open_ones = [one for one in family if one.state in (_S.PENDING, _S.LEASED, _S.RUNNING)]
        creator = task.order.creator
        try:
            reply = self.call(
                self.store.write(lambda tx: tasks.cancel(tx, self.bench.market, task.id, creator, self.bench.now))
            )
        except InvalidTransition:
            assert not open_ones
            assert not any(one.state is _S.CANCELLED for one in family)
            return
        assert set(reply.cancelled) == {one.id for one in open_ones}
        for one in open_ones:
            one.state, one.live = _S.CANCELLED, False
        _COUNTS["cancel" if open_ones else "cancel again"] += 1

    @precondition(lambda self: len(self.held) >= _WORTH_A_RESTART)
    @rule()
    def restart_the_market(self) -> None:
        self.call(self.store.close())
        self.call(self._open())
        self.call(self.store.write(lambda tx: leases.extend_all_live(tx, self.bench.market, self.bench.now)))
        for task in self.tasks:
            if task.live:
                task.lapses = max(task.lapses, self.seconds + TTL.total_seconds())
        _COUNTS["restart"] += 1

    # -- what must always hold ------------------------------------------------------------------------------------------

    def select(self, text: str) -> list[tuple[Any, ...]]:
        cursor = self.store.writer._connection.cursor()
        cursor.execute(text)
        return cursor.fetchall()

    @invariant()
    def the_tables_agree_with_the_model(self) -> None:
        rows = {row[0]: row[1:] for row in self.select("SELECT id, state, fence, attempts, excluded_doc FROM task")}
        assert rows.keys() == {task.id for task in self.tasks}
        for task in self.tasks:
            state, fence, attempts, excluded = rows[task.id]
            assert (state, fence, attempts) == (str(task.state), task.fence, task.attempts), task
            assert set(json.loads(excluded)) == {new_node(name).node_id for name in task.excluded}
            assert attempts <= task.max_attempts
        live = self.select("SELECT task_id, fence FROM lease WHERE live = 1")
        assert sorted(live) == sorted((task.id, task.fence) for task in self.tasks if task.live)

    @invariant()
    def the_counts_are_right(self) -> None:
        counts, live = self.call(self.store.read(views.counts))
        assert counts == Counter(str(task.state) for task in self.tasks)
        assert live == sum(task.live for task in self.tasks)

    @invariant()
    def accepted_results_are_kept_and_paid_once(self) -> None:
        kept = self.select(
            "SELECT task.id, task.state, task.result_cid, earning.amount, receipt.fence = task.fence "
            "FROM earning JOIN task ON task.id = earning.task_id JOIN receipt ON receipt.task_id = task.id "
            "JOIN small_blob ON small_blob.cid = task.result_cid WHERE receipt.fence = task.fence"
        )
        rewards = {task.id: f"{task.reward:029d}" for task in self.tasks}
        assert sorted(kept) == sorted((id_, "completed", cid, rewards[id_], 1) for id_, cid in self.accepted.items())
        assert self.select("SELECT count(*) FROM earning") == [(len(self.accepted),)]

    @invariant()
    def money_adds_up(self) -> None:
        rows = self.select("SELECT reserved, earned FROM account")
        reserved, earned = (int(rows[0][0]), int(rows[0][1])) if rows else (0, 0)
        assert reserved == sum(task.reward for task in self.tasks if task.is_open)
        assert earned == sum(task.reward for task in self.tasks if task.id in self.accepted)
        assert reserved + earned <= ESCROW

    @invariant()
    def events_tell_the_state(self) -> None:
        states = {task.id: (0, _S.PENDING) for task in self.tasks}
        for task_id, seq, event, after in self.select(
            "SELECT task_id, seq, event, state FROM task_event ORDER BY task_id, seq"
        ):
            last, state = states[task_id]
            assert seq == last + 1
            state = state if event == "submit" else TRANSITIONS[state, TaskEvent(event)]
            assert str(state) == after
            states[task_id] = (seq, state)
        assert {task_id: state for task_id, (_, state) in states.items()} == {
            task.id: task.state for task in self.tasks
        }


EXPECTED = {
    "submit", "submit fl", "submission without cover refused", "submit again", "claim", "claim refused",
    "excluded node refused", "claim again",
    "renew", "stale renewal refused", "start", "release", "hand-back", "report", "report after the lease lapsed",
    "stale report refused", "report again", "failure by task", "failure by node", "failure by dependency",
    "failure by interrupted", "task fault confirmed", "task fault unconfirmed", "accept", "reject", "later",
    "second acceptance refused", "lease reaped", "deadline", "cancel", "cancel again", "restart",
}  # fmt: skip


def test_tasks_live_as_the_model_says(tmp_path: Path) -> None:
    TaskLife.parent = tmp_path
    _COUNTS.clear()

    for _ in range(_MAX_BATCHES):  # drawn anew each time, also under CI, until every action has succeeded
        run_state_machine_as_test(  # type: ignore[no-untyped-call]
            TaskLife, settings=settings(max_examples=_EXAMPLES, stateful_step_count=_STEPS, derandomize=False)
        )
        if all(_COUNTS[name] for name in EXPECTED):
            break

    assert {name for name in EXPECTED if not _COUNTS[name]} == set(), _COUNTS
