"""Sessions that train in rounds: each has a task of its own that takes it from round to round."""

from __future__ import annotations

import asyncio
from functools import partial

import structlog

from parity_market.federation import WorkerLost
from parity_market.flower import is_carried
from parity_market.operations import groups, rounds
from parity_market.operations.groups import Group
from parity_market.round_engine import AFTER_RESTART, rounds_of
from parity_market.state import MarketState
from parity_protocol.errors import ExecutionFailed, Internal, InvalidInput, ParityError
from parity_protocol.task import GroupState

__all__ = ["Training", "run"]

log = structlog.get_logger(__name__)

LOOK_S = 0.5  # at most between two looks at a session: deadlines and lost nodes are seen so late
SCAN_S = 2.0  # at most between two looks for new sessions
PAGE = 64
FIRST_RETRY_S = 1.0  # after a step that could not be done, doubled by each further one
MAX_RETRY_S = 60.0
MAX_FAILURES = 5  # steps in a row


async def run(state: MarketState) -> None:
    """Run rounds for as long as the market runs; what a restart interrupted goes on from its rows."""
    training = Training(state)
    await training.start_up()
    async with asyncio.TaskGroup() as turn:
        while True:
            await training.scan(turn)
            await state.rounds.wait_for_sessions(SCAN_S)


class Training:
    """Which sessions are being taken along, and how often one failed."""

    def __init__(self, state: MarketState) -> None:
        self._state = state
        self._driven: set[str] = set()
        self._others: set[str] = set()  # running groups that do not train in rounds: their spec says so for ever

    async def start_up(self) -> None:
        """Put off deadlines, write again what a power cut took, and remove the files of sessions that have ended."""
        state = self._state
        await state.rounds.restore()
        await state.store.write(lambda tx: rounds.forget_deadlines(tx, state.clock.now(), AFTER_RESTART))
        for group_id in state.rounds.folders():
            try:
                group = await state.store.read(partial(groups.load, group_id=group_id))
            except ParityError:
                continue  # not one of ours
            if group.value.state is not GroupState.RUNNING:
                await self._clear(group_id)
        await state.flower.fleets.tidy(await self._carried())

    async def _carried(self) -> set[str]:
        """Return the ids of running sessions that Flower carries."""
        after, found = "", set()
        while page := await self._state.store.read(partial(groups.running, after=after, limit=PAGE)):
            for row in page:
                group = await self._state.store.read(partial(groups.load, group_id=row.id))
                if is_carried(group):
                    found.add(self._state.rounds.known(group).session.spec.session_id)
            after = page[-1].id
        return found

    async def scan(self, turn: asyncio.TaskGroup) -> None:
        """Begin to take along sessions that are not yet."""
        after, running = "", set()
        while page := await self._state.store.read(partial(groups.running, after=after, limit=PAGE)):
            for row in page:
                running.add(row.id)
                if row.id in self._driven or row.id in self._others:
                    continue
                group = await self._state.store.read(partial(groups.load, group_id=row.id))
                if rounds_of(group.value.spec):
                    self._driven.add(row.id)
                    turn.create_task(self._drive(row.id), name=f"session {row.id}")
                else:
                    self._others.add(row.id)
            after = page[-1].id
        self._others &= running

    async def _drive(self, group_id: str) -> None:
        """Take one session to its end."""
        carrier: asyncio.Task[None] | None = None
        try:
            failures = 0
            while True:
                group = await self._state.store.read(partial(groups.load, group_id=group_id))
                if group.value.state is not GroupState.RUNNING:
                    break
                if carrier is None and is_carried(group):
                    carrier = asyncio.create_task(self._carry(group), name=f"flower {group_id}")
                try:
                    moved = await self._state.rounds.step(group)
                    failures = 0
                except ParityError as exc:
                    failures += 1
                    log.warning("round_postponed", group_id=group_id, failures=failures, problem=exc.message)
                    if is_hopeless(exc) or failures >= MAX_FAILURES:
                        await self._fail(group, exc)
                        continue
                    await self._state.clock.sleep(min(FIRST_RETRY_S * 2 ** (failures - 1), MAX_RETRY_S))
                    continue
                if not moved:
                    await self._state.rounds.wait(group_id, LOOK_S)
            await self._clear(group_id)
            if carrier is not None:
                await _ended(carrier)
                await self._state.flower.remove(group)
        finally:
            if carrier is not None:
                await _ended(carrier)
            self._driven.discard(group_id)

    async def _clear(self, group_id: str) -> None:
        """Remove the files of a session that has ended; what one that failed has done is kept as a checkpoint."""
        await self._state.rounds.keep_last(group_id)
        await self._state.rounds.remove(group_id)

    async def _carry(self, group: Group) -> None:
        """Let Flower carry a session's rounds; when it cannot, the session fails with the reason."""
        try:
            await self._state.flower.carry(group)
        except ParityError as exc:
            await self._fail(group, exc)
            self._state.rounds.wake(group.value.id)
        except Exception:
            log.exception("flower_broke_down", group_id=group.value.id)
            await self._fail(group, Internal("what carries the rounds broke down; the market's log says why"))
            self._state.rounds.wake(group.value.id)

    async def _fail(self, group: Group, exc: ParityError) -> None:
        state, now = self._state, self._state.clock.now()
        reason = f"the rounds cannot go on: {exc.message}"
        await state.store.write(
            partial(groups.fail, market=state.market, group_id=group.value.id, reason=reason, now=now)
        )
        log.warning("group_failed", group_id=group.value.id, reason=reason)


async def _ended(task: asyncio.Task[None]) -> None:
    """Cancel a task and return when it has ended; idempotent."""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def is_hopeless(exc: ParityError) -> bool:
    """Return whether the same step would fail again for the same reason."""
    return isinstance(exc, InvalidInput | ExecutionFailed) and not isinstance(exc, WorkerLost)
