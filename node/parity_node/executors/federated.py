"""Federated learning: one part is trained in a child process, because a thread inside ``fit()`` cannot be stopped.

The child is our own program on data that nobody vouches for: no network is needed, limits and an exact environment hold,
and it dies with the node. What it has finished is found again after a restart, since its outcome is a file.
"""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import anyio
from pydantic import JsonValue

from parity_fl.engines.flower import FLWR_VERSION, Fleet, is_installed
from parity_fl.limits import DATA_LIMITS
from parity_fl.rounds_config import is_in_rounds
from parity_fl.session import SessionPlan, resolve_session
from parity_fl.spec import FlSpec
from parity_node.data import InputSource
from parity_node.executors.base import ExecutionResult, Handle, Job, Limits
from parity_node.executors.flower import FlowerRounds
from parity_node.executors.flower_process import make_super_node, usable_bwrap
from parity_node.executors.folder import JobFolder, folder_of, printable_tail
from parity_node.executors.opened_sums import OpenedSums
from parity_node.executors.process import Child, Exit, OutputLog, boot_id, same_process, start_time
from parity_node.executors.rounds import RoundLoop, RoundsMarket, place_of
from parity_node.executors.sandbox.env import child_env
from parity_node.executors.trial import Trial
from parity_node.waiting import within
from parity_protocol import strict_json
from parity_protocol.capability import ExecutorState
from parity_protocol.clock import Clock
from parity_protocol.errors import BadField, ExecutionFailed, FailureReason, ParityError
from parity_protocol.receipt import Usage
from parity_protocol.report import Outcome
from parity_protocol.shards import SealedShard, open_shard
from parity_protocol.task import CidInput, FederatedLearningSpec, HttpsInput, IsolationTier, TaskKind

__all__ = ["FederatedExecutor"]

VERSION = 1
RETRY_TRIAL_S = 60.0
TRIAL_S = 120.0  # importing scikit-learn takes a while on a slow disk
_END_S = 2.0
_LAST_WORDS_S = 5.0  # of a child that gives up in a round: its outcome is a file, written once
_MAX_LOG_BYTES = 1 << 20
_MAX_OUTCOME_BYTES = 1 << 20
_MAX_METRICS = 64
_MODULE = "parity_node.fl_child"


@dataclass
class _Run:
    """A child that this process started."""

    child: Child
    limits: Limits
    started_at: float  # Clock.monotonic()
    rounds: RoundLoop | None = None  # of a session that trains in rounds
    flower: FlowerRounds | None = None  # of one whose rounds Flower carries
    stopped: bool = False
    result: ExecutionResult | None = None


class FederatedExecutor:
    """Implements ``Executor`` for federated learning; the result is the part's update.

    Args:
        exec_dir: Where the trial's log is written.
        rounds: Where rounds are asked for; without it sessions that train in rounds are refused.
        sums: Where opened secure sums are noted; without it sessions with secure aggregation are refused.
        market_host: The market's; see ``FlowerRounds``.
    """

    def __init__(
        self,
        *,
        exec_dir: Path,
        inputs: InputSource,
        clock: Clock,
        rounds: RoundsMarket | None = None,
        market_host: str = "",
        sums: OpenedSums | None = None,
    ) -> None:
        self._rounds = rounds
        self._sums = sums
        self._market_host = market_host
        self._exec_dir = exec_dir
        self._inputs = inputs
        self._clock = clock
        self._runs: dict[str, _Run] = {}
        self._model_types: tuple[str, ...] = ()
        self._trial = Trial(self._try, clock=clock, retry_s=RETRY_TRIAL_S)

    @property
    def kind(self) -> TaskKind:
        """``federated_learning``."""
        return TaskKind.FEDERATED_LEARNING

    @property
    def model_types(self) -> tuple[str, ...]:
        """What the trial run trained; empty before it."""
        return self._model_types

    async def describe(self) -> ExecutorState:
        """Say whether training works here; the first call, and any after a failure, trains two tiny models."""
        return await self._trial.outcome()

    async def prepare(self, job: Job) -> Handle:
        """Check settings and plan, and fetch the data set; see the port."""
        spec, plan = _session(job)
        folder = JobFolder(job.folder)
        shard = _shard(job)
        try:
            await self._bring(job, spec, shard, folder.path / "dataset")
        except ExecutionFailed as exc:
            raise ExecutionFailed(exc.reason, f"failed to fetch data: {exc.message}") from exc
        members: dict[str, object] = {
            **({} if shard is None else {"salt": shard.salt}),
            "spec": spec.to_dict(),
            "plan": plan.partition.to_dict(),
            "part": job.part,
            "rounds": is_in_rounds(job.spec.session()) if isinstance(job.spec, FederatedLearningSpec) else False,
            "lease": {"group_id": job.group_id, "lease_id": job.lease_id, "fence": job.fence},
        }
        fleet = _fleet(job, plan)
        if fleet is not None:
            members["flower"] = fleet.to_dict()
            await anyio.to_thread.run_sync(usable_bwrap)  # tried once, not on the event loop
        if members["rounds"] and (self._rounds is None or not job.group_id):
            raise ExecutionFailed(FailureReason.SPEC_INVALID, "this node cannot ask for rounds")
        if shard is not None and spec.privacy.secure_aggregation:
            if self._sums is None:
                raise ExecutionFailed(FailureReason.SPEC_INVALID, "this node keeps no list of the sums that it opened")
            members["opened"] = await anyio.to_thread.run_sync(self._sums.of, shard.salt)
        folder.write_job(members, job.limits)
        return Handle(
            "federated", VERSION, {"execution_id": job.execution_id, "folder": str(job.folder), "slot": job.slot}
        )

    async def _bring(self, job: Job, spec: FlSpec, shard: SealedShard | None, target: Path) -> None:
        """Fetch the session's data set, or the part's own data.

        Raises:
            ExecutionFailed: They cannot be had here.
        """
        limit = DATA_LIMITS.max_bytes
        if shard is None:
            listed = [item for item in job.spec.inputs if isinstance(item, CidInput) and item.cid == spec.dataset_cid]
            most = min([limit, *(item.max_bytes for item in listed)])
            await self._inputs.fetch(spec.dataset_cid, target, max_bytes=most)
            return
        source = shard.source
        if isinstance(source, CidInput):
            source = source.model_copy(update={"max_bytes": min(limit, source.max_bytes)})
        elif isinstance(source, HttpsInput) and source.size > limit:
            raise ExecutionFailed(FailureReason.DATA_INVALID, f"the shard has {source.size} bytes, at most {limit}")
        await self._inputs.bring(source, target)
        found = await anyio.Path(target).stat()  # the operator's own data are a link
        if not stat.S_ISREG(found.st_mode) or found.st_size > limit:
            raise ExecutionFailed(FailureReason.DATA_INVALID, f"a shard is one file of at most {limit} bytes")

    async def start(self, handle: Handle) -> Handle:
        """Start the training process; see the port."""
        key = _key(handle)
        if key not in self._runs:
            folder = folder_of(handle)
            members, limits = folder.read_job()
            if members.get("rounds") is True:
                self._runs[key] = self._begin_rounds(folder, members, limits)
            else:
                child = self._spawn(folder.log, [str(folder.path)], cwd=folder.path)
                self._runs[key] = _Run(child, limits, self._clock.monotonic())
        pid = self._runs[key].child.pid
        found: dict[str, JsonValue] = {"pid": pid, "pid_started": start_time(pid), "boot_id": boot_id()}
        return Handle(handle.executor, handle.version, {**handle.state, **found})

    async def wait(self, handle: Handle) -> ExecutionResult:
        """Return when training has ended, or has been ended at its wall time; see the port."""
        run, folder = self._runs.get(_key(handle)), folder_of(handle)
        if run is None:
            outcome = _read_outcome(folder)
            if outcome is None:
                text = "the node restarted while the task ran"
                return ExecutionResult(Outcome.FAILED, FailureReason.NODE_RESTARTED, text)
            return _told(folder, outcome, Usage())
        if run.result is not None:
            return run.result
        left_s = run.started_at + run.limits.wall_time_s - self._clock.monotonic()
        is_late = False
        try:
            if run.rounds is not None:
                take_part = run.rounds.run if run.flower is None else partial(run.flower.around, run.rounds.run)
                await within(self._clock, max(0.0, left_s), take_part)
                with anyio.CancelScope(shield=True):
                    if run.rounds.ended is None and not run.stopped:  # it hung up first, and writes down why
                        with anyio.move_on_after(_LAST_WORDS_S):
                            await run.child.wait()
                    await _end(run.child)  # it has nothing left to do
            else:
                await within(self._clock, max(0.0, left_s), run.child.wait)
        except TimeoutError:
            is_late = True
            with anyio.CancelScope(shield=True):
                await _end(run.child)
        ended = await run.child.wait()
        await run.child.output.finish()
        if run.result is None:
            usage = Usage(
                wall_ms=round((self._clock.monotonic() - run.started_at) * 1000),
                cpu_ms=ended.cpu_ms,
                peak_memory_bytes=ended.peak_memory_bytes,
            )
            run.result = _result(folder, run, ended, usage, is_late=is_late)
        return run.result

    async def stop(self, handle: Handle) -> None:
        """End the training process and its group; see the port."""
        run = self._runs.get(_key(handle))
        if run is not None:
            run.stopped = run.stopped or run.result is None
            if run.flower is not None:
                run.flower.kill()
            await _end(run.child)
            return
        state = handle.state
        pid = same_process(state.get("pid"), state.get("pid_started"), state.get("boot_id"))
        if pid is not None:
            _kill_group(pid)

    async def recover(self, handle: Handle) -> bool:
        """Return whether training runs in this very process, or an earlier one had finished it."""
        if _key(handle) in self._runs or _read_outcome(folder_of(handle)) is not None:
            return True
        await self.stop(handle)
        return False

    async def cleanup(self, handle: Handle) -> None:
        """Stop training if it still runs, and remove its folder; see the port."""
        await self.stop(handle)
        run = self._runs.pop(_key(handle), None)
        if run is not None and run.rounds is not None:
            run.rounds.close()
        if run is not None and run.flower is not None:
            run.flower.close()
        await folder_of(handle).remove()

    async def logs(self, handle: Handle, offset: int) -> bytes:
        """Return progress, a JSON object a line, from ``offset`` on; see the port."""
        return await folder_of(handle).read_log(offset)

    def _begin_rounds(self, folder: JobFolder, members: Mapping[str, JsonValue], limits: Limits) -> _Run:
        """Start a trainer that stays for all rounds, with a line to it."""
        assert self._rounds is not None
        ours, theirs = socket.socketpair()
        try:
            child = self._spawn(folder.log, [str(folder.path)], cwd=folder.path, stdin=theirs.fileno())
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        place, market, flower = place_of(members), self._rounds, None
        if "flower" in members:
            super_node = make_super_node(folder.path, Fleet.from_dict(members["flower"]), limits)
            market = flower = FlowerRounds(
                self._rounds, place, super_node, clock=self._clock, market_host=self._market_host
            )
        loop = RoundLoop(
            market, place, ours, folder.path, clock=self._clock, keep_opened=self._keeper_of(members.get("salt"))
        )
        return _Run(child, limits, self._clock.monotonic(), loop, flower)

    def _keeper_of(self, salt: JsonValue) -> Callable[[list[str]], None] | None:
        return partial(self._sums.add, salt) if self._sums is not None and isinstance(salt, str) else None

    # -- the child -----------------------------------------------------------------------------------------------

    def _spawn(self, log: Path, arguments: list[str], *, cwd: Path, stdin: int = subprocess.DEVNULL) -> Child:
        output = OutputLog(log, _MAX_LOG_BYTES)
        try:
            return Child(
                [sys.executable, "-I", "-m", _MODULE, str(os.getpid()), *arguments],
                env=child_env(home=str(cwd)),
                cwd=cwd,
                output=output,
                stdin=stdin,
                new_group=True,
            )
        except BaseException:
            output.close()
            raise

    async def _try(self) -> ExecutorState:
        log = self._exec_dir / f".trial-{os.getpid()}.log"
        try:
            child = self._spawn(log, ["--trial"], cwd=self._exec_dir)
            try:
                with anyio.move_on_after(TRIAL_S):
                    await child.wait()
            finally:
                with anyio.CancelScope(shield=True):
                    await _end(child)
            said = await anyio.to_thread.run_sync(log.read_bytes)
            ended = await child.wait()
        except (ParityError, OSError) as exc:
            return ExecutorState(available=False, reason=f"the trial run failed: {exc}"[:500])
        finally:
            log.unlink(missing_ok=True)
        models = _trained(said)
        if ended.status != 0 or not models:
            return ExecutorState(
                available=False, reason=f"the trial run ended with {ended.status}: {printable_tail(said)}"[:500]
            )
        self._model_types = models
        return ExecutorState(available=True, isolation=IsolationTier.PROCESS)


def _shard(job: Job) -> SealedShard | None:
    """Return where the data of a part of a sharded session lie; None for any other task."""
    if not isinstance(job.spec, FederatedLearningSpec) or job.spec.data_mode != "sharded":
        return None
    if job.shard is None:
        raise ExecutionFailed(FailureReason.SPEC_INVALID, "the manifest does not say where the part's data lie")
    try:
        return open_shard(job.shard, job.spec.shards[job.part])
    except ParityError as exc:
        raise ExecutionFailed(FailureReason.SPEC_INVALID, exc.message) from exc


def _session(job: Job) -> tuple[FlSpec, SessionPlan]:
    """Return what the submitter signed and the market planned, checked against each other."""
    if not isinstance(job.spec, FederatedLearningSpec):
        raise ExecutionFailed(FailureReason.SPEC_INVALID, f"expected federated learning, got {job.spec.type}")
    try:
        plan = SessionPlan.from_dict(None if job.plan is None else dict(job.plan))
        spec = resolve_session(
            job.spec.session(), session_id=plan.session_id, round_id=plan.round_id, settings=plan.settings
        )
        if plan.partition.total_parts != job.parts or not 0 <= job.part < job.parts:
            raise BadField(
                f"the plan has {plan.partition.total_parts} parts, the task is part {job.part} of {job.parts}"
            )
    except ParityError as exc:
        raise ExecutionFailed(FailureReason.SPEC_INVALID, exc.message, field=exc.field) from exc
    return spec, plan


def _fleet(job: Job, plan: SessionPlan) -> Fleet | None:
    """Return the SuperLink of a session that Flower carries; None for every other one.

    Raises:
        ExecutionFailed: What was signed and what was planned differ, or this node has another Flower.
    """
    is_wanted = isinstance(job.spec, FederatedLearningSpec) and job.spec.engine == "flower"
    if is_wanted != (plan.flower is not None):
        raise ExecutionFailed(FailureReason.SPEC_INVALID, "the session's engine and its plan differ")
    if plan.flower is None:
        return None
    if plan.flower.flwr_version != FLWR_VERSION:
        text = f"the market runs flwr {plan.flower.flwr_version}, this node {FLWR_VERSION}"
        raise ExecutionFailed(FailureReason.EXECUTOR_UNAVAILABLE, text)
    if not is_installed():
        text = "engine flower is not installed here: parity fl engine install flower"
        raise ExecutionFailed(FailureReason.EXECUTOR_UNAVAILABLE, text)
    return plan.flower


def _result(folder: JobFolder, run: _Run, ended: Exit, usage: Usage, *, is_late: bool) -> ExecutionResult:
    """Say what became of a child that has ended."""

    def failed(reason: FailureReason, message: str) -> ExecutionResult:
        code = ended.status if ended.status >= 0 else None
        return ExecutionResult(Outcome.FAILED, reason, message, exit_code=code, usage=usage, log_path=folder.log)

    if run.stopped:
        return failed(FailureReason.INTERRUPTED, "the task was stopped")
    if run.rounds is not None and run.rounds.ended is not None:
        return run.rounds.ended.result(usage, log=folder.log)
    if is_late:
        return failed(FailureReason.TIMEOUT, f"training did not end within its {run.limits.wall_time_s:g} s")
    outcome = _read_outcome(folder)
    if outcome is not None and ended.status == 0:
        return _told(folder, outcome, usage)
    if ended.status == -signal.SIGXCPU:
        return failed(FailureReason.TIMEOUT, "training used more processor time than its wall time allows")
    tail = printable_tail(folder.read_tail())
    return failed(FailureReason.NODE_FAULT, f"the training process ended with {ended.status}: {tail}")


def _told(folder: JobFolder, outcome: Mapping[str, JsonValue], usage: Usage) -> ExecutionResult:
    """Return what the child itself wrote down."""
    if outcome.get("ok") is True:
        return ExecutionResult(
            Outcome.SUCCEEDED,
            exit_code=0,
            result_path=folder.path / "update.bin",
            usage=usage,
            metrics=_numbers(outcome.get("metrics")),
            log_path=folder.log,
        )
    reason = FailureReason.parse(str(outcome.get("reason")))
    return ExecutionResult(
        Outcome.FAILED, reason, str(outcome.get("message", ""))[:2_000], exit_code=1, usage=usage, log_path=folder.log
    )


def _read_outcome(folder: JobFolder) -> dict[str, JsonValue] | None:
    try:
        data = (folder.path / "outcome.json").read_bytes()[: _MAX_OUTCOME_BYTES + 1]
        found = strict_json.loads(data, max_bytes=_MAX_OUTCOME_BYTES)
    except (OSError, ParityError):
        return None
    return found if isinstance(found, dict) else None


def _numbers(metrics: object) -> dict[str, float]:
    """Return the plain numbers among a child's metrics; the report carries no lists."""
    if not isinstance(metrics, dict):
        return {}
    plain = {
        name: float(value)
        for name, value in metrics.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }
    return dict(list(plain.items())[:_MAX_METRICS])


def _trained(said: bytes) -> tuple[str, ...]:
    for line in reversed(said.splitlines()):
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict) and isinstance(found.get("model_types"), list):
            return tuple(str(name) for name in found["model_types"])
    return ()


async def _end(child: Child) -> None:
    """Kill a child's group and return when the child is gone, or after a bounded time; idempotent."""
    child.kill()
    with anyio.move_on_after(_END_S):
        await child.wait()
        await child.output.finish()


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return


def _key(handle: Handle) -> str:
    key = handle.state.get("execution_id")
    if handle.executor != "federated" or handle.version != VERSION or not isinstance(key, str):
        raise ExecutionFailed(
            FailureReason.NODE_FAULT, f"not a handle of federated learning: {handle.executor} {handle.version}"
        )
    return key
