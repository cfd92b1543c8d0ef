"""A container while it runs: its output followed, its limits kept, its engine survived.

``/output`` is a folder here, mounted into the container. A tmpfs in the container is gone when it ends; one that is mounted
here is not seen by an engine in another mount namespace, which would then write to the disk without a limit; a loop file
system has the same fault and needs root. So the folder is weighed while the task runs, and no single file may grow over its
limit (``RLIMIT_FSIZE``, set by the engine). The less room is left, the sooner it is weighed again, and who is over is
killed by the kernel before the engine is asked. Measured on ext4 with a limit of 64 MB: one writer as fast as it can was
ended at 72 to 90 MB, twenty at once at 93 to 230 MB, empty files at 1,050 to 1,250 of 1,000; all of it goes with the folder.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import anyio
import anyio.to_thread
import structlog

from parity_node.executors.base import ExecutionResult
from parity_node.executors.docker.engine import Container, Engine
from parity_node.executors.docker.job import DockerJob, output_folder
from parity_node.executors.docker.result import Ending, Weight, docker_result, weigh
from parity_node.executors.docker.streams import OutputStream, wait_ended
from parity_node.executors.docker.usage import Counters, group_of_pid, read_counters, stats_counters
from parity_node.executors.egress import EgressProxy
from parity_node.executors.folder import JobFolder
from parity_node.executors.log_file import LogFile
from parity_node.executors.process import boot_id, same_process, start_time
from parity_node.waiting import Backoff, within
from parity_protocol.clock import Clock
from parity_protocol.errors import NotFound, ParityError, Unreachable

__all__ = ["STOP_GRACE_S", "ContainerRun"]

STOP_GRACE_S = 1  # between SIGTERM and SIGKILL
WEIGH_S = 0.1  # at most, between two weighings of the output folder
WEIGH_LEAST_S = 0.005
WEIGH_REST = 10  # times the processor time that weighing took, so that many files cost a tenth of a processor at most
DRAIN_S = 2.0  # for output still on its way after the end: who holds it open then is not waited for
_END_S = 1.9  # for the engine to end a container, its grace included; then the kernel is asked, as root
_SETTLE_S = 3.0  # for the news of an end that we brought about
_HUNG_S = 0.5  # for one more answer of an engine that gave none
_SAMPLE_S = (0.05, 2.0)  # first and longest pause between two readings of the counters
_FASTEST_BYTES_S = 4e9  # that a task writes to the page cache: the fuller its folder, the more often it is weighed
_BLOCKS_PER_FILE = 8_192  # bytes that a small file may take beside its size

log = structlog.get_logger(__name__)


@dataclass
class ContainerRun:
    """A container that this process looks after."""

    engine: Engine
    clock: Clock
    job: DockerJob
    folder: JobFolder
    container: str
    group: str  # its parent control group; empty when there is none of its own
    log: LogFile
    stream: OutputStream | None
    started_at: float  # unix seconds
    on_lost: Callable[[], None]  # told when the engine went away
    proxy: EgressProxy | None = None
    ended_at: float | None = None  # unix seconds; of one that had ended when this process took it up
    is_stopped: bool = False
    result: ExecutionResult | None = None
    _is_late: bool = False
    _has_lost_engine: bool = False
    _is_gone: bool = False
    _overflow: str = ""
    _counters: Counters = field(default_factory=Counters)
    _pid: tuple[int, int] | None = None  # and when it started
    _drained: anyio.Event = field(default_factory=anyio.Event)
    _reopened: anyio.Event = field(default_factory=anyio.Event)
    _full: anyio.Event = field(default_factory=anyio.Event)
    _waiting: anyio.Lock = field(default_factory=anyio.Lock)

    async def wait(self) -> ExecutionResult:
        """Return the result when the container has ended, or has been ended at its wall time; may be called again."""
        async with self._waiting:
            if self.result is None:
                self.result = await self._wait()
            return self.result

    async def end(self) -> None:
        """End the container: SIGTERM, a grace, SIGKILL; by the kernel when the engine does not do it."""
        try:
            await within(self.clock, _END_S, lambda: self.engine.stop(self.container, grace_s=STOP_GRACE_S))
        except (TimeoutError, ParityError) as exc:
            log.warning("container_not_stopped", container=self.container, error=str(exc))
            self._kill_first_process()

    def close(self) -> None:
        """Let go of files and connections; idempotent."""
        if self.stream is not None:
            self.stream.close()
            self.stream = None
        self.log.close()

    # -- while it runs -------------------------------------------------------------------------------------------

    async def _wait(self) -> ExecutionResult:
        self.log.when_full(self._full.set)
        code: int | None = None
        failure: ParityError | None = None
        async with anyio.create_task_group() as group:
            group.start_soon(self._follow)
            group.start_soon(self._end_when_full)
            group.start_soon(self._sample)
            if self.job.output is not None:
                group.start_soon(self._weigh)
            try:
                code = await self._ended_in_time()
            except ParityError as exc:  # raised below: a task group would wrap it
                failure = exc
            with anyio.move_on_after(DRAIN_S if code is not None else 0.0):
                await self._drained.wait()
            group.cancel_scope.cancel()
        if failure is not None:
            raise failure
        return await self._conclude(code)

    async def _ended_in_time(self) -> int | None:
        """Return the exit status when the container has ended, which is made to happen at its wall time."""
        left_s = self.started_at + self.job.limits.wall_time_s - self._until()
        if self.ended_at is not None and left_s > 0:  # in time, whenever this node comes to ask for it
            left_s = max(left_s, _SETTLE_S)
        try:
            return await within(self.clock, max(0.0, left_s), self._ended)
        except TimeoutError:
            self._is_late = True
            with anyio.CancelScope(shield=True):
                await self.end()
            with anyio.move_on_after(_SETTLE_S):
                return await self._ended()
        return None

    def _until(self) -> float:
        """Return the time up to which the container has run, in unix seconds."""
        return self.clock.now().timestamp() if self.ended_at is None else self.ended_at

    async def _conclude(self, code: int | None) -> ExecutionResult:
        wall_s = max(0.0, self._until() - self.started_at)
        found: Container | None = None
        try:
            patience_s = _SETTLE_S if code is not None or self._is_gone else _HUNG_S
            found = await within(self.clock, patience_s, lambda: self.engine.inspect(self.container))
        except NotFound:
            self._is_gone = True
        except (TimeoutError, Unreachable):
            self._has_lost_engine = True
        self._read_group()
        if self.proxy is not None and not self.log.is_behind:
            # Only now: what is read from the engine again after a restart must be as long as what was read before.
            self.log.write(self.proxy.refusals[: self.log.max_bytes - self.log.size])
        ending = Ending(
            code=code if code is not None or found is None or not found.has_ended else found.exit_code,
            wall_s=wall_s,
            counters=self._counters,
            is_oom_killed=found.is_oom_killed if found is not None else False,
            is_stopped=self.is_stopped,
            is_late=self._is_late,
            is_gone=self._is_gone,
            has_lost_engine=self._has_lost_engine,
            overflow=self._overflow,
            error=found.error if found is not None else "",
        )
        self.close()

        def make() -> ExecutionResult:
            return docker_result(self.folder, self.job, self.log, ending)

        return make() if self.job.output is None else await anyio.to_thread.run_sync(make)

    async def _ended(self) -> int | None:
        """Return the exit status when it has ended, however often the engine comes and goes; None when it is gone."""
        pause = Backoff(0.1, 5.0)
        while True:
            try:
                return await wait_ended(self.engine.socket, self.container, timeout_s=self.engine.timeout_s)
            except NotFound:
                self._is_gone = True
                return None
            except Unreachable:
                if not self._has_lost_engine:
                    log.warning("docker_engine_lost", container=self.container)
                self._has_lost_engine = True
                self.on_lost()
            await self.clock.sleep(pause.after())
            await self._reopen()

    async def _reopen(self) -> None:
        """Read the output from its beginning again, if the engine is back: what came meanwhile is in its own log."""
        try:
            stream = await OutputStream.replay(self.engine.socket, self.container, timeout_s=self.engine.timeout_s)
        except ParityError:
            return
        self.close()
        self.stream = stream  # first, so that it is closed whatever comes
        self.log = LogFile.reread(self.folder.log, self.job.max_output_bytes)
        self.log.when_full(self._full.set)
        self._drained = anyio.Event()
        self._reopened.set()

    async def _follow(self) -> None:
        while True:
            stream, log_file, drained = self.stream, self.log, self._drained
            if stream is not None:
                await stream.copy(log_file)
            drained.set()  # of this reading: another one may have begun meanwhile
            await self._reopened.wait()
            self._reopened = anyio.Event()

    async def _end_when_full(self) -> None:
        await self._full.wait()
        await self._kill()

    async def _weigh(self) -> None:
        limits = self.job.output
        if limits is None:
            return
        folder = output_folder(self.folder)

        def look() -> tuple[Weight, float]:
            began = time.thread_time()
            return weigh(folder, max_entries=limits.max_files), time.thread_time() - began

        while True:
            found, took_s = await anyio.to_thread.run_sync(look)
            most_bytes = limits.max_bytes + _BLOCKS_PER_FILE * (found.entries + 1)
            if found.entries > limits.max_files:
                self._overflow = f"the task wrote more than its {limits.max_files} files to /output"
            elif found.size > most_bytes:
                self._overflow = f"the task wrote more than its {limits.max_bytes} bytes to /output"
            elif found.fault:
                self._overflow = f"the task's /output {found.fault}"
            if self._overflow:
                self._kill_first_process()  # by the kernel: the engine takes its time
                await self._kill()
                return
            soonest_s = (most_bytes - found.size) / _FASTEST_BYTES_S
            pause_s = max(WEIGH_LEAST_S, min(WEIGH_S, soonest_s))
            await self.clock.sleep(max(pause_s, WEIGH_REST * took_s))

    async def _kill(self) -> None:
        try:
            await self.engine.kill(self.container)
        except ParityError as exc:
            log.warning("container_not_killed", container=self.container, error=str(exc))
            self._kill_first_process()

    # -- counters ------------------------------------------------------------------------------------------------

    async def _sample(self) -> None:
        """Learn the container's first process; where it has no group of its own, read its counters while they are there."""
        try:
            found = await self.engine.inspect(self.container)
        except ParityError:
            return
        started = start_time(found.pid) if found.pid else None
        if started is not None:
            self._pid = (found.pid, started)
        if self.group and read_counters(self.group) is not None:
            return
        leaf = group_of_pid(found.pid) if found.pid else ""
        pause_s, longest_s = _SAMPLE_S
        while True:
            counters = read_counters(leaf) if leaf else None
            if counters is None:
                try:
                    counters = stats_counters(await self.engine.stats(self.container))
                except ParityError:
                    counters = Counters()
            self._counters = self._counters.merged(counters)
            await self.clock.sleep(pause_s)
            pause_s = min(longest_s, pause_s * 2)

    def _read_group(self) -> None:
        if self.group:
            self._counters = self._counters.merged(read_counters(self.group) or Counters())
        if self.proxy is not None:
            self._counters = self._counters.merged(Counters(network_bytes=self.proxy.bytes_used))

    def _kill_first_process(self) -> None:
        """Kill the container's first process, and with it all of them; only root may."""
        if self._pid is None or same_process(*self._pid, boot_id()) is None:
            return
        try:
            os.kill(self._pid[0], signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            return
