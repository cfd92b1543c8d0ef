"""Whether an engine may be used: it answers, is new enough, and each runtime was proven by trying to escape from it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import anyio
import structlog

from parity_node.executors.docker.engine import Engine, EngineFacts
from parity_node.executors.docker.orphans import remove_orphans
from parity_node.executors.docker.place import user_of
from parity_node.executors.docker.probe import prove_docker
from parity_node.executors.docker.request import RUNTIMES, Runtime
from parity_node.executors.process import boot_id
from parity_node.executors.trial import Trial
from parity_protocol.capability import ExecutorState
from parity_protocol.clock import Clock
from parity_protocol.errors import ExecutionFailed, FailureReason, ParityError
from parity_protocol.isolation import IsolationTier
from parity_protocol.task import DockerSpec

__all__ = ["EngineGate"]

RETRY_TRIAL_S = 30.0  # after a trial that failed

log = structlog.get_logger(__name__)


class EngineGate:
    """Tries an engine once, and again when it is another process than the one that was tried.

    Args:
        off: Why containers are off; empty when they are not.
        hidden: Files of the node that a trial must not reach.
        on_proven: Called after each trial that passed.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        exec_dir: Path,
        node_id: str,
        clock: Clock,
        hidden: Sequence[Path],
        off: str,
        on_proven: Callable[[EngineFacts], Awaitable[None]],
    ) -> None:
        self._engine = engine
        self._exec_dir = exec_dir
        self._node_id = node_id
        self._clock = clock
        self._hidden = tuple(hidden)
        self._off = off
        self._on_proven = on_proven
        self._facts: EngineFacts | None = None
        self._proven: frozenset[Runtime] = frozenset()
        self._instance = ""  # of the engine that was proven
        self._trial = self._new_trial()

    @property
    def may_answer(self) -> bool:
        """Whether there is, or was, an engine: a node without one has nothing to look for."""
        return self._facts is not None or self._engine.socket.exists()

    async def describe(self) -> ExecutorState:
        """Say whether containers can run here. MUST NOT raise."""
        if self._off:
            return ExecutorState(available=False, reason=self._off[:500])
        instance = self._engine.instance()
        if not instance:
            self.forget()
            return ExecutorState(available=False, reason=f"no Docker engine answers at {self._engine.socket}"[:500])
        if self._instance and instance != self._instance:
            self.forget()
        found = await self._trial.outcome()
        self._instance = instance if found.available else ""
        return found

    async def require(self) -> EngineFacts:
        """Return the engine's facts. Never degrade: without an engine that was proven here, nothing runs.

        Raises:
            ExecutionFailed: There is none (``executor_unavailable``).
        """
        state = await self.describe()
        if not state.available or self._facts is None:
            raise ExecutionFailed(FailureReason.EXECUTOR_UNAVAILABLE, f"containers cannot run here: {state.reason}")
        return self._facts

    def runtime_for(self, spec: DockerSpec) -> Runtime:
        """Return the runtime that a task must have; never a weaker one than it asks for.

        Raises:
            ExecutionFailed: It was not proven here (``executor_unavailable``), or the task asks for hosts in gVisor, whose
                network is inside of its own sandbox, where no proxy can be (``spec_invalid``).
        """
        runtime: Runtime = "runsc" if spec.requires.isolation.rank > IsolationTier.DOCKER.rank else "runc"
        if runtime == "runsc" and spec.egress is not None:
            raise ExecutionFailed(FailureReason.SPEC_INVALID, "hosts cannot be granted to a task in gVisor")
        if runtime not in self._proven:
            raise ExecutionFailed(
                FailureReason.EXECUTOR_UNAVAILABLE, f"the runtime {runtime} is not proven on this node"
            )
        return runtime

    def forget(self) -> None:
        """Prove the engine again before the next task: it went away, or is another process than before."""
        if self._instance:
            self._instance = ""
            self._trial = self._new_trial()

    def _new_trial(self) -> Trial:
        return Trial(self._try, clock=self._clock, retry_s=RETRY_TRIAL_S)

    async def _try(self) -> ExecutorState:
        try:
            self._facts = facts = await self._engine.facts()
            if facts.problem:
                return ExecutorState(available=False, reason=facts.problem)
            await remove_orphans(self._engine, self._node_id, self._exec_dir)
            state = await self._prove(facts)
            if state.available:
                await self._on_proven(facts)
        except ParityError as exc:
            return ExecutorState(available=False, reason=exc.message[:500])
        return state

    async def _prove(self, facts: EngineFacts) -> ExecutorState:
        problems: dict[Runtime, str] = {}

        async def prove(runtime: Runtime) -> None:
            report = await prove_docker(
                self._engine,
                self._exec_dir,
                runtime=runtime,
                user=user_of(0, has_output=False),
                labels={"node": self._node_id, "boot": boot_id()},
                hidden=self._hidden,
            )
            problems[runtime] = report.problem

        async with anyio.create_task_group() as group:
            for runtime in RUNTIMES:
                if runtime in facts.runtimes:
                    group.start_soon(prove, runtime)
        self._proven = frozenset(runtime for runtime, problem in problems.items() if not problem)
        reason = "; ".join(f"{runtime}: {problem}" for runtime, problem in problems.items() if problem)[:500]
        if "runc" not in self._proven:
            return ExecutorState(available=False, reason=reason or "the engine has no runtime runc")
        tier = IsolationTier.GVISOR if "runsc" in self._proven else IsolationTier.DOCKER
        return ExecutorState(available=True, isolation=tier, reason=reason)
