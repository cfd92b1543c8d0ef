"""Sessions that train in rounds: published models, updates on disk, and the step from one round to the next.

Rows say where a session is; its files lie in a folder of its own. A round first chooses its updates in a transaction,
then is reduced, then closed in another: a market that is killed anywhere in between does the same again.
"""

from __future__ import annotations

import asyncio
import shutil
from base64 import b64decode
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import structlog

from parity_contracts.files import write_file
from parity_fl.limits import DATA_LIMITS
from parity_fl.privacy.combinations import session_privacy
from parity_fl.rounds_config import RoundsConfig, is_in_rounds, is_phased, read_session_rounds, session_strategy
from parity_fl.settings import FlSettings
from parity_fl.strategy import StrategyConfig
from parity_market.domain.federation import Session, open_session
from parity_market.domain.rounds import HELD, Decision, RoundState, SessionState, decide, newest_of_parts, setup_rules
from parity_market.federation import Federation, Merged
from parity_market.operations import groups, round_closing, round_control, round_small, rounds
from parity_market.operations.context import Market
from parity_market.operations.groups import Group
from parity_market.operations.rounds import OpenRound, Published
from parity_market.round_checkpoints import RoundCheckpoints
from parity_market.round_files import (
    make_folder,
    model_file,
    on_disk,
    resume_file,
    sent_file,
    state_file,
    write_missing,
)
from parity_market.round_intake import RoundIntake
from parity_market.round_reports import check_report
from parity_market.round_terms import credit_of, quorum_of, shown_of
from parity_market.round_worker import RoundWork
from parity_market.store.base import MarketStore
from parity_market.store.rows import TaskRow, from_us, to_us
from parity_protocol.clock import Clock
from parity_protocol.errors import BadField, InvalidTransition, NotFound, ParityError
from parity_protocol.task import FederatedLearningSpec, GroupState, TaskState

__all__ = ["Known", "RoundEngine", "rounds_of"]

log = structlog.get_logger(__name__)

SETUP = frozenset({"summary", "moments"})  # phases in which all parts of a sharded session agree on something
LAST_REPORTS = timedelta(seconds=60)  # for nodes to report the end of a session that is done
AFTER_RESTART = timedelta(seconds=60)  # that nodes have at least to send what they could not while the market was down


@dataclass(frozen=True, slots=True)
class Known:
    """What does not change in a session's life."""

    session: Session
    config: RoundsConfig
    strategy: StrategyConfig
    warnings: tuple[str, ...]
    is_phased: bool  # what a part answers is not bounded by what it was asked: a forest in phases, a secure sum

    def config_of(self, found: OpenRound) -> RoundsConfig:
        """Return the rules of a phase: what parts agree on needs all of them, but those whose answers were refused."""
        return setup_rules(self.config, found.cohort, found.updates) if found.row.asks in SETUP else self.config


def rounds_of(spec: object) -> bool:
    """Return whether a task's spec is one of a session that trains in rounds."""
    return isinstance(spec, FederatedLearningSpec) and is_in_rounds(spec.session())


class RoundEngine:
    """Runs rounds; ``step`` is called by a loop, the rest by routes.

    Args:
        folder: Of all sessions' files; is made.
        work: Does the mathematics somewhere else than on the event loop.
        settings: Checkpoints of sessions that do not ask for them themselves; by default there are none.
    """

    def __init__(
        self,
        store: MarketStore,
        federation: Federation,
        market: Market,
        clock: Clock,
        *,
        folder: Path,
        work: RoundWork,
        settings: FlSettings | None = None,
    ) -> None:
        self._store = store
        self._federation = federation
        self._market = market
        self._clock = clock
        self._folder = folder
        self._work = work
        self.checkpoints = RoundCheckpoints(
            store,
            federation,
            clock,
            work,
            folder=folder.with_name("checkpoints"),
            settings=settings or FlSettings(),
        )
        self._known: dict[str, Known] = {}
        self._new = asyncio.Event()
        self._waiting: dict[str, asyncio.Event] = {}
        self.intake = RoundIntake(
            store,
            clock,
            folder=self.folder,
            is_phased=lambda group: self.known(group).is_phased,
            make_id=market.make_id,
            wake=self.wake,
        )

    def folder(self, group_id: str) -> Path:
        """Return a session's folder."""
        return self._folder / group_id

    # -- the loop's side ------------------------------------------------------------------------------------------

    def wake(self, group_id: str) -> None:
        """Let ``wait`` for a session return."""
        waiting = self._waiting.get(group_id)
        if waiting is None:
            self._new.set()
        else:
            waiting.set()

    async def wait(self, group_id: str, seconds: float) -> None:
        """Return when there may be something to do for a session, at the latest after ``seconds``."""
        waiting = self._waiting.setdefault(group_id, asyncio.Event())
        await self._first(waiting, seconds)
        waiting.clear()

    async def wait_for_sessions(self, seconds: float) -> None:
        """Return when there may be a new session, at the latest after ``seconds``."""
        await self._first(self._new, seconds)
        self._new.clear()

    async def _first(self, event: asyncio.Event, seconds: float) -> None:
        async with anyio.create_task_group() as group:

            async def sleep() -> None:
                await self._clock.sleep(seconds)
                group.cancel_scope.cancel()

            group.start_soon(sleep)
            await event.wait()
            group.cancel_scope.cancel()

    def known(self, group: Group) -> Known:
        """Return what a session's order and plan say.

        Raises:
            BadField: They are not those of a session that trains in rounds.
        """
        found = self._known.get(group.value.id)
        if found is None:
            spec = group.value.spec
            if not isinstance(spec, FederatedLearningSpec) or not is_in_rounds(spec.session()):
                raise BadField("not a session that trains in rounds", field="spec")
            session = open_session(spec, group.row.plan_doc)
            config = read_session_rounds(session.members, parts=group.row.parts)
            strategy, warnings = session_strategy(session.members, config, partition_strategy=session.strategy)
            _, told = session_privacy(session.members, parts=group.row.parts, rounds=config, strategy=strategy)
            found = Known(
                session,
                config,
                strategy,
                (*warnings, *told),
                is_phased=is_phased(spec.session()),
            )
            if group.value.state is GroupState.RUNNING:  # nothing would remove it again after the session's end
                self._known[group.value.id] = found
        return found

    async def step(self, group: Group) -> bool:
        """Take a session as far as it goes now; returns whether anything moved.

        Raises:
            ParityError: It could not be done now, or never; see ``loops.training``.
        """
        found = await self._store.read(partial(rounds.load, group_id=group.value.id))
        if found is None:
            return await self._begin(group)
        if found.session.state in (SessionState.DONE, SessionState.PAUSED):
            return False
        if found.row.state == RoundState.CLOSING:
            return await self._close(group)
        known, now = self.known(group), self._clock.now()
        verdict = decide(
            known.config_of(found),
            cohort=found.cohort,
            updates=found.updates,
            tasks=group.tasks,
            deadline_us=found.session.deadline_us,
            now_us=to_us(now),
        )
        match verdict.decision:
            case Decision.CLOSE:
                is_whole = {update.part for update in newest_of_parts(found.updates)} >= set(found.cohort)
                return await self._close(group, found if is_whole else None, found.session.deadline_us)
            case Decision.FAIL:
                if await self._store.write(
                    partial(round_control.give_up, market=self._market, group_id=group.value.id, now=now)
                ):
                    return True
                reason = f"round {found.session.round}: {verdict.reason}"
                await self._fail(group, reason)
                return True
            case Decision.WAIT:
                # One that was stopped waits for nodes no longer than for answers.
                is_stopping = found.session.state == SessionState.STOPPING and found.session.deadline_us is None
                starts_clock = verdict.starts_clock or is_stopping
                await self._note(group, known, found, starts_clock=starts_clock, reason=verdict.reason)
        return False

    async def _note(self, group: Group, known: Known, found: OpenRound, *, starts_clock: bool, reason: str) -> None:
        """Start the round's clock, or say what it waits for, if that is new."""
        now = self._clock.now()
        deadline = now + timedelta(seconds=known.config.round_timeout_s) if starts_clock else None
        if starts_clock or (reason and reason != found.session.message):
            await self._store.write(lambda tx: rounds.set_clock(tx, group.value.id, deadline, reason, now))

    async def _fail(self, group: Group, reason: str) -> None:
        now = self._clock.now()
        await self._store.write(
            partial(groups.fail, market=self._market, group_id=group.value.id, reason=reason, now=now)
        )
        log.warning("group_failed", group_id=group.value.id, reason=reason)

    async def _begin(self, group: Group) -> bool:
        """Write the first model and open round 1."""
        known, now = self.known(group), self._clock.now()
        folder = self.folder(group.value.id)
        spec = known.session.spec
        dataset = None  # of a sharded session that its nodes score
        if scored := spec.eval_cid if spec.is_sharded else spec.dataset_cid:
            dataset = await self._federation.read(scored, group.row.creator, max_bytes=DATA_LIMITS.max_bytes)
        await on_disk(make_folder, folder, dataset)
        resumes = known.config.resume_from
        if resumes:
            checkpoint = await self._federation.checkpoint(resumes, group.row.creator)
            await on_disk(write_file, resume_file(folder), checkpoint)
        made = await self.work(group, {"do": "begin", "resumes": bool(resumes)})
        settings = {
            "rounds": known.config.to_dict(),
            "strategy": known.strategy.to_dict(),
            "warnings": list(known.warnings),
            **known.session.told(),
        }
        if isinstance(group.value.spec, FederatedLearningSpec) and group.value.spec.engine != "parity":
            settings["engine"] = group.value.spec.engine
        if resumes:
            settings["resumed_from"] = {"cid": resumes, "round": made["after"], "session_id": made["session_id"]}
        first, number = Published(made["sha256"], made["size"]), made["round"]
        begun = await self._store.write(
            lambda tx: rounds.begin(
                tx,
                self._market,
                group.row,
                known.config,
                settings,
                first,
                seed=known.session.partition.seed,
                now=now,
                number=number,
                asks=made.get("asks", "train"),
            )
        )
        total = known.config.total_rounds
        log.info("session_begun", group_id=group.value.id, round=number, rounds=total, model=first.sha256)
        return begun

    async def _close(self, group: Group, whole: OpenRound | None = None, deadline_us: int | None = None) -> bool:
        """Reduce the open round with the updates that it has now, and open the next.

        Args:
            whole: The round, if everybody has answered: then no choice has to be on disk before it is reduced.
            deadline_us: Until when it stays open if too few of them can be accepted; None when that is not known.
        """
        known, group_id = self.known(group), group.value.id
        freeze = partial(round_closing.freeze, group_id=group_id, now=self._clock.now())
        chosen = await self._store.write(freeze) if whole is None else newest_of_parts(whole.updates)
        found = whole or await self._loaded(group_id)
        number, phase = found.row.round, found.row.phase
        job = {
            "do": "reduce",
            "round": number,
            "phase": phase,
            "updates": [(update.part, update.sha256) for update in chosen],
            "needed": quorum_of(known.session.spec, known.config, asks=found.row.asks, cohort=found.cohort),
            "credit": credit_of(known.config, known.session.partition.seed, number),
            "checkpoint": self.checkpoints.wanted(
                group_id,
                known.config,
                number,
                owner=group.row.creator,
                is_last=found.session.state == SessionState.STOPPING,
            ),
        }
        done = await self.work(group, job)
        if "refused" in done:
            await self._store.write(freeze)
            rejected = {int(part): reason for part, reason in done["rejected"].items()}
            return await self._again(group, known, done["refused"], rejected, deadline_us if done["is_short"] else None)
        saved = await self.checkpoints.keep(done["checkpoint"])
        try:
            moved = await self._store.write(
                lambda tx: round_closing.close(
                    tx,
                    self._market,
                    group.row,
                    known.config,
                    next_model=Published(done["sha256"], done["size"]),
                    accepted=done["accepted"],
                    rejected={int(part): reason for part, reason in done["rejected"].items()},
                    metrics=done["metrics"],
                    contributions={int(part): value for part, value in done["contributions"].items()},
                    seed=known.session.partition.seed,
                    now=self._clock.now(),
                    checkpoint=saved,
                    more_phases=done["more_phases"],
                    asks=done["asks"],
                    next_round=done["next_round"],
                    restarts=done["restarts"],
                    left=done["left"],
                    present=done["present"],
                    small={name: b64decode(data) for name, data in done["small"].items()},
                    keeps_state=done["keeps_state"],
                    whole=chosen if whole is not None else None,
                )
            )
        except InvalidTransition as exc:
            if whole is None:
                raise
            log.info("round_looked_at_again", group_id=group_id, round=number, reason=exc.message)
            return True
        newest = done["small"].get(model_file(Path(), moved.round, moved.phase).name)
        if newest is not None:
            self.intake.remember(group_id, done["sha256"], newest)
        if saved is not None:
            await self.checkpoints.thin_out(group_id)
        log.info("round_closed", group_id=group_id, round=number, accepted=len(done["accepted"]), **shown_of(done))
        kept = range(phase if done["drops_state"] else phase + 1) if done["keeps_state"] else ()
        await on_disk(self._tidy, group_id, number, phase, kept=kept)
        if moved.state == SessionState.DONE:
            self._federation.wake()
        return True

    async def _again(
        self, group: Group, known: Known, problem: str, rejected: dict[int, str], deadline_us: int | None
    ) -> bool:
        """Wait for other updates after a round had too few usable ones, or fail when none can come.

        Args:
            deadline_us: Until when, if that is still to come; else whoever takes over has a whole round's time.
        """
        if not rejected:
            await self._fail(group, f"the round cannot be closed: {problem}")
            return True
        now = self._clock.now()
        deadline = now + timedelta(seconds=known.config.round_timeout_s)
        if deadline_us is not None and deadline_us > to_us(now):
            deadline = from_us(deadline_us)
        # In a secure sum a part may say that it was told lies: that is no fault of its own.
        takes_back = not known.session.spec.privacy.secure_aggregation
        await self._store.write(
            lambda tx: round_closing.reopen(
                tx, self._market, group.value.id, rejected, deadline, now, takes_back=takes_back
            )
        )
        log.warning("round_reopened", group_id=group.value.id, rejected=sorted(rejected), problem=problem)
        return True

    async def finish(self, group: Group) -> Merged | None:
        """Store the final model of a session whose rounds are over; None while they are not."""
        found = await self._store.read(partial(rounds.load, group_id=group.value.id))
        if found is None or found.session.state != SessionState.DONE or self._is_awaited(group, found):
            return None
        if found.session.round <= found.session.total_rounds:  # stopped, perhaps while its last round was closing
            await self._keep(group, found)
        job = {"do": "final", "round": found.row.round, "phase": found.row.phase, "rounds": found.row.round - 1}
        done = await self.work(group, job)
        data = await on_disk((self.folder(group.value.id) / "final.safetensors").read_bytes)
        cid = await self._federation.store_model(data)
        return Merged(cid, len(data), {**done["metrics"], "final_model": found.row.base_hash})

    def _is_awaited(self, group: Group, found: OpenRound) -> bool:
        """Return whether a part may still report the session's end: what it did is paid only then."""
        states = {task.state for task in group.tasks}
        has_time = to_us(self._clock.now()) < found.session.updated_us + LAST_REPORTS // timedelta(microseconds=1)
        return TaskState.VERIFYING in states or (has_time and bool(states & HELD))

    async def work(self, group: Group, job: dict[str, Any]) -> dict[str, Any]:
        """Do a job of a session; see ``round_jobs``."""
        known = self.known(group)
        return await self._work(
            group.value.id,
            {
                **job,
                "folder": str(self.folder(group.value.id)),
                "spec": known.session.spec.to_dict(),
                "plan": known.session.partition.to_dict(),
                "strategy": known.strategy.to_dict(),
                "fraction": known.config.fraction,
                "quorum": known.config.quorum,
                "format": known.config.update_format,
            },
        )

    def _tidy(self, group_id: str, number: int, phase: int, *, kept: Collection[int]) -> None:
        """Remove the files of a closed phase that nobody needs again; states that pile up go with the round's last."""
        folder = self.folder(group_id)
        shutil.rmtree(folder / "updates" / f"{number}-{phase}", ignore_errors=True)
        for path in (model_file(folder, number, phase), sent_file(folder, number, phase)):
            path.unlink(missing_ok=True)
        for one in set(range(phase + 1)).difference(kept):
            state_file(folder, number, one).unlink(missing_ok=True)

    async def _loaded(self, group_id: str) -> OpenRound:
        found = await self._store.read(partial(rounds.load, group_id=group_id))
        if found is None:
            raise NotFound(f"session {group_id} has not begun")
        return found

    async def keep_last(self, group_id: str) -> None:
        """Keep what a session that has failed did, as a checkpoint after its last closed round, if it has none."""
        group = await self._store.read(partial(groups.load, group_id=group_id))
        found = await self._store.read(partial(rounds.load, group_id=group_id))
        if group.value.state is GroupState.FAILED and found is not None:
            await self._keep(group, found)

    async def _keep(self, group: Group, found: OpenRound) -> None:
        """Write the checkpoint after the last closed round, if it has none; what is done does not depend on it."""
        group_id, known, number = group.value.id, self.known(group), found.session.round - 1
        is_there = state_file(self.folder(group_id), number + 1, 0).exists
        if known.is_phased or number < 1 or not await on_disk(is_there):  # nothing was trained here
            return
        try:
            with suppress(NotFound):
                if (await self.checkpoints.find(group_id, group.row.creator)).round >= number:
                    return
            place = self.checkpoints.wanted(group_id, known.config, number, owner=group.row.creator, is_last=True)
            done = await self.work(group, {"do": "checkpoint", "round": number, "checkpoint": place})
            if done["checkpoint"] is not None:
                await self.checkpoints.note(group_id, number, done["checkpoint"])
                log.info("session_kept", group_id=group_id, round=number)
        except ParityError as exc:
            log.warning("session_not_kept", group_id=group_id, problem=exc.message)

    async def restore(self) -> None:
        """Write again what a power cut took of small files; their rows were durable before.

        Raises:
            StorageFull: They cannot be written.
        """
        for group_id in self.folders():
            files = await self._store.read(partial(round_small.kept, folder=self.folder(group_id), group_id=group_id))
            await on_disk(write_missing, files)

    async def remove(self, group_id: str) -> None:
        """Remove a session's files; nothing if there are none."""
        await self._store.write(partial(round_small.forget, group_id=group_id))
        await anyio.to_thread.run_sync(partial(shutil.rmtree, self.folder(group_id), ignore_errors=True))
        self._known.pop(group_id, None)
        self.intake.forget(group_id)
        self._waiting.pop(group_id, None)

    def folders(self) -> list[str]:
        """Return the sessions that have files here."""
        return [path.name for path in self._folder.iterdir()] if self._folder.is_dir() else []

    async def check(self, group: Group, task: TaskRow) -> str:
        """Return why a part's final result is garbage, empty when it is good; see ``round_reports``."""
        return await check_report(self._store, self._federation, group.value.id, task)
