"""The agent: everything a running node does, in one task group."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import anyio
import structlog
from anyio.abc import TaskGroup

from parity_fl.engines.flower import installed_engines
from parity_node.acquire import Acquirer, Granted
from parity_node.cache import NodeCache, answer_cache
from parity_node.control import serve_control
from parity_node.disk import Ballast, DiskGuard
from parity_node.execution import ExecutionRunner
from parity_node.executors.base import Executor
from parity_node.fingerprint.machine import boot_id, measure
from parity_node.folders import Folders
from parity_node.housekeeping import Housekeeper
from parity_node.keys import NodeKeys
from parity_node.leases import LeaseKeeper
from parity_node.market.base import MarketClient, MarketDirectory
from parity_node.market.trust import MarketTrust
from parity_node.notices import LogShipper, StartNotices
from parity_node.observability.metrics import NodeMetrics
from parity_node.observability.server import serve_health
from parity_node.operator_policy import OperatorPolicy
from parity_node.outbox import Outbox, Settled
from parity_node.presence import Load, Presence
from parity_node.resume import Resumer
from parity_node.settings import NodeSettings
from parity_node.shards import LentData
from parity_node.slots import Slots
from parity_node.status import agent_health, agent_status, read_logs
from parity_node.store.base import NodeStore
from parity_node.supervise import FATAL, supervise
from parity_node.taking import Taker
from parity_node.version import node_version
from parity_node.waiting import Comeback, Signal, event_within
from parity_protocol.capability import Capability, ExecutorState, Gpu
from parity_protocol.clock import Clock
from parity_protocol.errors import (
    BadField,
    FailureReason,
    ParityError,
)
from parity_protocol.task import TaskKind

__all__ = ["Agent", "AgentParts"]

FLUSH_TIMEOUT_S = 5.0  # for reports that wait when a drained node stops
GOODBYE_TIMEOUT_S = 2.0
POLICY_INTERVAL_S = 10.0  # between two looks at policy file and hours, beside those before each poll and offer
PROBE_INTERVAL_S = 300.0  # between trial runs of an executor that could never run
LOOK_INTERVAL_S = 30.0  # between two looks at one that can, or could: it costs little, and engines come and go

_DOUBTFUL = frozenset({FailureReason.EXECUTOR_UNAVAILABLE, FailureReason.SANDBOX_FAILED, FailureReason.INTERRUPTED})

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class AgentParts:
    """What an agent is made of; a test gives fakes."""

    settings: NodeSettings
    keys: NodeKeys
    hostname: str
    folders: Folders
    store: NodeStore
    market: MarketClient
    directory: MarketDirectory
    executors: Mapping[TaskKind, Executor]
    clock: Clock
    cache: NodeCache
    disk: DiskGuard
    lent: LentData
    ballast: Ballast | None = None  # of the journal
    metrics: NodeMetrics = field(default_factory=NodeMetrics)


class Agent:
    """A running node. ``run`` returns when it was drained or stopped."""

    def __init__(self, parts: AgentParts) -> None:
        self._parts = parts
        settings, clock, store, market = parts.settings, parts.clock, parts.store, parts.market
        self.metrics = parts.metrics
        self.policy = OperatorPolicy(settings, clock, state_dir=parts.folders.state)
        self.slots = Slots(settings.runner_slots)
        self.leases = LeaseKeeper(market, clock)
        self._starts = StartNotices(market, clock)
        self._logs = LogShipper(market, store, clock)
        self._comeback = Comeback()
        self._market_back = Signal()
        self._comeback.wakes(self._market_back.set)
        self.outbox = Outbox(
            store,
            market,
            parts.directory,
            clock,
            max_rows=settings.runner_outbox_max_rows,
            max_bytes=settings.runner_outbox_max_bytes,
            on_settled=self._settled,
            comeback=self._comeback,
        )
        self._executor_states: dict[TaskKind, ExecutorState] = {}
        self._has_run: set[TaskKind] = set()  # executors that were available at some time
        self._doubt = Signal()  # an execution ended as if its executor were gone
        self._capability: Capability | None = None
        self.trust = MarketTrust(parts.directory, store, settings, node_id=parts.keys.node_id, clock=clock)
        boot = boot_id()
        self.runner = ExecutionRunner(
            executors=parts.executors,
            store=store,
            market=market,
            clock=clock,
            leases=self.leases,
            outbox=self.outbox,
            starts=self._starts,
            logs=self._logs,
            slots=self.slots,
            policy=lambda: self.policy.current,
            capability=self.capability,
            node_id=parts.keys.node_id,
            operator=parts.keys.operator,
            exec_dir=parts.folders.executions,
            results_dir=parts.folders.results,
            boot_id=boot,
            on_ended=self._note_end,
            uses=parts.cache.uses,
            on_full=parts.disk.note_full,
        )
        self._housekeeper = Housekeeper(
            disk=parts.disk,
            cache=parts.cache,
            ballast=parts.ballast,
            give_back=lambda: self.runner.give_back(FailureReason.DISK_FULL),
            cap=lambda: self.policy.current.max_cache_bytes,
            clock=clock,
        )
        self.presence = Presence(
            market=market,
            directory=parts.directory,
            trust=self.trust,
            keys=parts.keys,
            clock=clock,
            hostname=parts.hostname,
            interval_s=settings.runner_heartbeat_interval.total_seconds(),
            capability=self.measure,
            load=self._load,
            comeback=self._comeback,
        )
        self._acquirer = Acquirer(
            market=market,
            trust=self.trust,
            store=store,
            clock=clock,
            policy=self.policy,
            instance=parts.keys.instance,
            node_version=node_version(),
            boot_id=boot,
            disk=parts.disk,
            cache=parts.cache,
            capability=self.capability,
            committed=self.runner.committed,
            on_refused=self.metrics.offer_refused,
        )
        self._resumer = Resumer(
            store=store, market=market, clock=clock, runner=self.runner, folders=parts.folders, boot_id=boot
        )
        self._taker: Taker | None = None
        self._acquiring_ended = anyio.Event()
        self._drain_asked = anyio.Event()
        self._grace_s = settings.runner_grace.total_seconds()
        self.ready = anyio.Event()  # start-up and recovery are over
        self.started_at = clock.now()
        self._watch_gauges()

    @property
    def is_draining(self) -> bool:
        """Whether no new work is taken any more."""
        return self._drain_asked.is_set()

    @property
    def parts(self) -> AgentParts:
        """What it was made of."""
        return self._parts

    async def run(self) -> None:
        """Run until drained (SIGTERM, SIGINT, ``drain``) or cancelled; a second signal ends it at once.

        Raises:
            NodeInUse: Another machine runs with this node's key.
            ConfigInvalid: The market is not the one that was pinned.
        """
        fatal: list[ParityError] = []
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._watch_signals, group.cancel_scope)
                await self._start_up(group)
                self._start_loops(group)
                self.ready.set()
                await self._drain_asked.wait()
                await self._wind_down()
                group.cancel_scope.cancel()
        except BaseExceptionGroup as exc:
            found = exc.subgroup(FATAL)
            if found is None:
                raise
            fatal = _leaves(found)
        if fatal:
            raise fatal[0]

    def drain(self, grace_s: float | None = None) -> None:
        """Take no new work, give running tasks ``grace_s``, then end."""
        if grace_s is not None:
            self._grace_s = grace_s
        if not self.is_draining:
            log.info("draining", running=len(self.runner.running), grace_s=self._grace_s)
        self._drain_asked.set()

    def capability(self) -> Capability:
        """Return what was measured last."""
        return self._capability if self._capability is not None else self.measure()

    def measure(self) -> Capability:
        """Measure the node now."""
        settings = self._parts.settings
        self._capability = measure(
            node_version=node_version(),
            slots=settings.runner_slots,
            folder=self._parts.folders.executions,
            executors=self._executor_states,
            model_types=_model_types(self._parts.executors),
            now=self._parts.clock.now(),
        ).model_copy(
            update={
                "policy": self.policy.announced(),
                "shards": self._parts.lent.usable(),
                "engines": installed_engines(),
                "gpus": tuple(Gpu(name=device, memory_bytes=0) for device in settings.runner_docker_gpus),
            }
        )
        return self._capability

    def obstacle(self) -> str:
        """Return why nothing new is taken now, in words; empty when nothing stands in the way."""
        if self._room() <= 0:
            return "too many reports wait for the market: RUNNER_OUTBOX_MAX_ROWS or RUNNER_OUTBOX_MAX_BYTES is reached"
        cache = self._parts.cache
        if cache.results_used_bytes >= cache.results.max_bytes:
            return "too many results wait for the market: RUNNER_RESULT_MAX_BYTES is reached"
        return self._parts.disk.obstacle()

    async def handle_control(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """Answer one request of the control socket."""
        match request.get("command"):
            case "status":
                return agent_status(self)
            case "policy":
                return self.policy.to_json()
            case "cache":
                return await answer_cache(self._parts.cache, request)
            case "data":
                answer = self._parts.lent.answer(request)
                self._announce()
                return answer
            case "drain":
                grace_s = request.get("grace_s")
                if grace_s is not None and (isinstance(grace_s, bool) or not isinstance(grace_s, int | float)):
                    raise BadField("grace_s must be a number of seconds", field="grace_s")
                self.drain(None if grace_s is None else max(0.0, min(float(grace_s), 604_800.0)))
                return {"draining": True, "running": len(self.runner.running)}
            case "logs":
                return await read_logs(self, request)
            case _:
                raise BadField("expected the command status, policy, cache, data, drain or logs", field="command")

    # -- starting ------------------------------------------------------------------------------------------------

    async def _start_up(self, group: TaskGroup) -> None:
        await self._probe(list(self._parts.executors))
        self.measure()
        try:
            await self.presence.introduce()
        except FATAL:
            raise
        except (ParityError, TimeoutError) as exc:  # the presence loop goes on trying and says why
            log.warning("market_not_reached_at_start", error=str(exc))
        snapshot = await self._parts.store.load()
        self.outbox.restore(snapshot.outbox)
        self._parts.cache.results_wait(self.outbox.result_paths)
        await self._resumer.resume(snapshot, group, can_ask=self.trust.is_established)
        await self._housekeeper.begin()

    def _start_loops(self, group: TaskGroup) -> None:
        clock = self._parts.clock
        loops = {
            "leases": self.leases.run,
            "outbox": self.outbox.run,
            "starts": self._starts.run,
            "logs": self._logs.run,
            "presence": self.presence.run,
            "probe": self._probe_loop,
            "policy": self._policy_loop,
            "disks": self._housekeeper.run,
        }
        for name, loop in loops.items():
            group.start_soon(partial(supervise, name, loop, clock=clock))
        self._taker = Taker(
            acquirer=self._acquirer,
            presence=self.presence,
            slots=self.slots,
            clock=clock,
            comeback=self._comeback,
            market_back=self._market_back,
            obstacle=self.obstacle,
            room=self._room,
            measure=self.measure,
            begin=partial(self._begin, group),
        )
        group.start_soon(self._acquire, self._taker)
        group.start_soon(
            partial(
                supervise,
                "control",
                partial(serve_control, self._parts.folders.state, self.handle_control),
                clock=clock,
            )
        )
        port = self._parts.settings.runner_metrics_port
        if port:
            serve = partial(serve_health, port, metrics=self.metrics.render, health=partial(agent_health, self))
            group.start_soon(partial(supervise, "health", serve, clock=clock))

    async def _probe(self, kinds: list[TaskKind]) -> None:
        """Let executors try a run, all at the same time."""
        async with anyio.create_task_group() as group:
            for kind in kinds:
                group.start_soon(self._probe_one, kind)

    async def _probe_one(self, kind: TaskKind) -> None:
        try:
            state = await self._parts.executors[kind].describe()
        except Exception as exc:
            log.exception("executor_failed", verb="describe", kind=kind)
            state = ExecutorState(available=False, reason=f"its trial run broke: {type(exc).__name__}")
        if self._executor_states.get(kind) != state:
            log.info(
                "executor_probed",
                kind=kind,
                available=state.available,
                isolation=state.isolation,
                reason=state.reason,
            )
        self._executor_states[kind] = state
        if state.available:
            self._has_run.add(kind)

    async def _probe_loop(self) -> None:
        """Find out that an engine died or came back, and tell the market: what is announced is what it offers."""
        clock = self._parts.clock
        probed_at = clock.monotonic()
        while True:
            await self._doubt.wait_within(clock, LOOK_INTERVAL_S)
            before = dict(self._executor_states)
            is_time = clock.monotonic() - probed_at >= PROBE_INTERVAL_S
            if is_time:
                probed_at = clock.monotonic()
            await self._probe([kind for kind in before if is_time or kind in self._has_run])
            if self._executor_states != before or installed_engines() != self.capability().engines:
                self._announce()

    def _announce(self) -> None:
        """Measure again, and tell the market at once."""
        self.measure()
        self.presence.announce()

    def _note_end(self, kind: str, outcome: str, seconds: float) -> None:
        self.metrics.execution_ended(kind, outcome, seconds)
        if self._taker is not None:
            self._taker.note_end(seconds)
        if outcome in _DOUBTFUL:
            self._doubt.set()

    async def _policy_loop(self) -> None:
        """Tell the market when the operator changed the policy, and when its hours begin or end."""
        told = self.policy.announced()
        while True:
            await self._parts.clock.sleep(POLICY_INTERVAL_S)
            self.policy.refresh()
            now = self.policy.announced()
            if now != told:
                told = now
                log.info("policy_announced", digest=now.digest, open=now.is_open)
                self._announce()

    # -- working -------------------------------------------------------------------------------------------------

    async def _acquire(self, taker: Taker) -> None:
        try:
            await supervise("acquire", taker.run, clock=self._parts.clock)
        finally:
            self._acquiring_ended.set()

    def _begin(self, group: TaskGroup, lease: Granted) -> None:
        live = self.runner.begin(lease.execution, lease.work, lease.sent_at)
        group.start_soon(self.runner.run, live)

    def _room(self) -> int:
        """How many executions may begin so that each one's report has room."""
        return self.outbox.room - len(self.runner.running)

    def _settled(self, answer: Settled) -> None:
        self.metrics.report_answered("accepted" if answer.is_accepted else answer.code)
        self.runner.settled(answer)

    def _load(self) -> Load:
        return Load(
            free_slots=0 if self.is_draining else self.slots.free,
            running=tuple(live.row.task_id for live in self.runner.running),
            is_draining=self.is_draining,
            outbox_rows=self.outbox.rows,
        )

    def _watch_gauges(self) -> None:
        self.metrics.watch("slots", "Slots in all", lambda: float(self.slots.count))
        self.metrics.watch("slots_free", "Free slots", lambda: float(self.slots.free))
        self.metrics.watch("outbox_reports", "Reports that wait", lambda: float(self.outbox.rows))
        self.metrics.watch("outbox_bytes", "Bytes of the reports that wait", lambda: float(self.outbox.size_bytes))
        self.metrics.watch("leases_held", "Leases held", lambda: float(len(self.leases)))
        self.metrics.watch(
            "policy_outdated", "1 while a broken policy file is not in force", lambda: float(bool(self.policy.problem))
        )
        self.metrics.watch(
            "clock_offset_seconds", "The market's clock minus ours", lambda: self.presence.standing.clock_offset_s
        )
        disk, cache = self._parts.disk, self._parts.cache
        self.metrics.watch_volumes(disk.volumes)
        self.metrics.watch("results_bytes", "Bytes of the results that wait", lambda: float(cache.results_used_bytes))

    # -- ending --------------------------------------------------------------------------------------------------

    async def _watch_signals(self, scope: anyio.CancelScope) -> None:
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as received:
            async for number in received:
                if self.is_draining:
                    log.warning("stopping_now", signal=signal.Signals(number).name)
                    scope.cancel()
                    return
                self.drain()

    async def _wind_down(self) -> None:
        """Stop acquiring, let running tasks end until the grace is over, hand the others back, flush, say goodbye."""
        if self._taker is not None:
            self._taker.stop()
        await self._acquiring_ended.wait()
        self.presence.hurry()
        idle = anyio.Event()

        async def watch() -> None:
            await self.runner.wait_idle()
            idle.set()

        async with anyio.create_task_group() as group:
            group.start_soon(watch)
            if not await event_within(idle, self._parts.clock, self._grace_s):
                for live in self.runner.running:
                    live.stop(FailureReason.DRAINED)
                await idle.wait()
        is_flushed = await self.outbox.flush(FLUSH_TIMEOUT_S)
        await self.presence.say_goodbye(GOODBYE_TIMEOUT_S)
        log.info("drained", reports_left=self.outbox.rows, flushed=is_flushed)


def _model_types(executors: Mapping[TaskKind, Executor]) -> tuple[str, ...]:
    return tuple(getattr(executors.get(TaskKind.FEDERATED_LEARNING), "model_types", ()))


def _leaves(group: BaseExceptionGroup[Any]) -> list[Any]:
    found: list[Any] = []
    for exc in group.exceptions:
        found.extend(_leaves(exc) if isinstance(exc, BaseExceptionGroup) else [exc])
    return found
