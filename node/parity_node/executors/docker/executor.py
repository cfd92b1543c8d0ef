"""The Docker executor: a stranger's image, run by an engine on this machine.

Every container is named after its execution and labelled with this node's id, so that a node that restarts finds what it
started: a running one is taken up again, a finished one collected. What carries this node's label and belongs to no
execution any more is removed; containers of others are never touched.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import anyio
import anyio.to_thread
import structlog
from pydantic import JsonValue

from parity_node.crashpoints import crashpoint
from parity_node.data import InputSource
from parity_node.disk import free_bytes
from parity_node.executors.base import ExecutionResult, Handle, Job, Limits
from parity_node.executors.docker.engine import Container, Engine, EngineFacts, socket_of
from parity_node.executors.docker.gate import EngineGate
from parity_node.executors.docker.images import PREPARE_LOG, ImageLedger, Images
from parity_node.executors.docker.job import DockerJob, check_places
from parity_node.executors.docker.place import GpuGrants, environment, fetch_inputs, make_output, user_of
from parity_node.executors.docker.profile import seccomp_profile
from parity_node.executors.docker.run import ContainerRun
from parity_node.executors.docker.streams import OutputStream
from parity_node.executors.docker.usage import own_group, remove_group
from parity_node.executors.egress import EgressProxy
from parity_node.executors.egress.sidecar import ContainerEgress
from parity_node.executors.folder import JobFolder, folder_of
from parity_node.executors.log_file import LogFile
from parity_node.executors.process import boot_id
from parity_node.waiting import Backoff, within
from parity_protocol.capability import ExecutorState
from parity_protocol.clock import Clock
from parity_protocol.errors import (
    BadField,
    Conflict,
    ExecutionFailed,
    FailureReason,
    NotFound,
    Unreachable,
)
from parity_protocol.report import Outcome
from parity_protocol.task import DockerSpec, TaskKind

__all__ = ["DockerExecutor", "DockerOptions"]

VERSION = 1
_FIND_S = 20.0  # for an engine that is starting too, when a node looks for what it left
_TASKS_MISTAKE = ("not a directory", "chdir to cwd", "executable file not found", "permission denied")

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class DockerOptions:
    """What the operator grants."""

    is_enabled: bool | None = None  # None: when an engine answers and its trial passes
    cpus: float = 1.0  # of one task
    memory_bytes: int = 2 << 30  # of one task
    timeout_s: float = 60.0  # of one operation of the engine
    max_image_bytes: int = 8 << 30
    floor_bytes: int = 256 << 20  # free space that a pull leaves
    gpus: tuple[str, ...] = ()  # device ids
    local_images: tuple[str, ...] = ()  # patterns of the operator's own images that tasks may use by name


class DockerExecutor:
    """Implements ``Executor`` for container images.

    The result is what the task printed, or a folder with it and the files of ``/output``. Exit status 0 is success.

    Args:
        exec_dir: Where the executions' folders are; the engine must see it under the same name.
        node_id: Labels this node's containers.
        ledger: Account of the images that this node brings; None keeps none.
        watch: Gets the folder in which a proven engine keeps images, so that room on its disk counts too.
        hidden: Files of the node that a trial must not reach.
        environ: Where ``DOCKER_HOST`` is looked up.
        on_egress_refused: As ``on_refused`` of ``EgressProxy``.
    """

    def __init__(
        self,
        *,
        exec_dir: Path,
        inputs: InputSource,
        clock: Clock,
        node_id: str,
        options: DockerOptions,
        ledger: ImageLedger | None = None,
        watch: Callable[[Path], None] | None = None,
        hidden: Sequence[Path] = (),
        environ: Mapping[str, str] = os.environ,
        on_egress_refused: Callable[[str], None] | None = None,
    ) -> None:
        self._inputs = inputs
        self._clock = clock
        self._node_id = node_id
        self._ledger = ledger
        self._watch = watch
        self._options = options
        path, missing = socket_of(environ)
        self.engine = Engine(path or Path("/nonexistent"), timeout_s=options.timeout_s)
        self._images = Images(
            self.engine,
            inputs,
            clock=clock,
            ledger=ledger,
            max_bytes=options.max_image_bytes,
            floor_bytes=options.floor_bytes,
            local=options.local_images,
        )
        self._runs: dict[str, ContainerRun] = {}
        self._gpus = GpuGrants(options.gpus)
        self._egress = ContainerEgress(
            self.engine, workplace=exec_dir, seccomp=seccomp_profile(), clock=clock, on_refused=on_egress_refused
        )
        self._gate = EngineGate(
            self.engine,
            exec_dir=exec_dir,
            node_id=node_id,
            clock=clock,
            hidden=hidden,
            off="off by RUNNER_DOCKER_ENABLED=false" if options.is_enabled is False else missing,
            on_proven=self._adopt_engine,
        )

    @property
    def kind(self) -> TaskKind:
        """``docker``."""
        return TaskKind.DOCKER

    async def describe(self) -> ExecutorState:
        """Say whether containers can run here; the first call, and any after a failure or an engine's restart, tries it."""
        return await self._gate.describe()

    async def prepare(self, job: Job) -> Handle:
        """Fetch image and inputs; see the port."""
        spec = job.spec
        if not isinstance(spec, DockerSpec):
            raise ExecutionFailed(FailureReason.SPEC_INVALID, f"expected a container, got {spec.type}")
        facts = await self._gate.require()
        runtime = self._gate.runtime_for(spec)
        if facts.is_rootless and spec.output is not None:  # whoever writes there is a user whom this one cannot name
            text = "output folders need an engine that runs as root, this one is rootless"
            raise ExecutionFailed(FailureReason.EXECUTOR_UNAVAILABLE, text)
        folder = JobFolder(job.folder)
        resolved = await self._images.resolve(spec, folder, execution_id=job.execution_id, root=facts.root)
        crashpoint("docker.resolved")
        image = resolved.image
        if image.architecture and image.architecture != facts.architecture:
            text = f"the image is made for {image.architecture}, this node is {facts.architecture}"
            raise ExecutionFailed(FailureReason.SPEC_INVALID, text)
        if not (spec.command or spec.entrypoint or image.has_command):
            raise ExecutionFailed(FailureReason.SPEC_INVALID, "neither the task nor its image names a program")
        check_places(image.volumes)
        await fetch_inputs(spec, folder, self._inputs)
        user = user_of(job.slot, has_output=spec.output is not None)
        if spec.output is not None:
            make_output(folder, user)
        made = DockerJob(
            execution_id=job.execution_id,
            task_id=job.task_id,
            lease_id=job.lease_id,
            fence=job.fence,
            image=image.id,
            environment=resolved.digest,
            entrypoint=spec.entrypoint,
            command=spec.command,
            env=environment(spec.env, image.env),
            workdir=spec.workdir,
            volumes=image.volumes,
            inputs=tuple(item.name for item in spec.inputs),
            max_output_bytes=spec.max_output_bytes,
            output=spec.output,
            egress=spec.egress,
            slot=job.slot,
            uid=user.uid,
            gid=user.gid,
            runtime=runtime,
            gpus=self._gpus.take(job.execution_id, spec.resources.gpus),
            limits=self._narrow(job.limits),
        )
        try:
            made.write(folder)
            crashpoint("docker.journalled")
        except BaseException:
            self._gpus.release(job.execution_id)
            raise
        return Handle(
            "docker", VERSION, {"execution_id": job.execution_id, "folder": str(job.folder), "slot": job.slot}
        )

    async def start(self, handle: Handle) -> Handle:
        """Make and start the container; see the port."""
        key = _key(handle)
        run = self._runs.get(key)
        if run is None:
            folder = folder_of(handle)
            job = self._job_of(folder)
            facts = await self._gate.require()
            run = self._runs[key] = await self._make(key, folder, job, facts)
        members: dict[str, JsonValue] = {"container": run.container, "started_at": run.started_at}
        return replace(handle, state={**handle.state, **members})

    async def wait(self, handle: Handle) -> ExecutionResult:
        """Return when the container has ended, or has been ended at its wall time; see the port."""
        run = self._runs.get(_key(handle))
        if run is None:
            return ExecutionResult(
                Outcome.FAILED, FailureReason.NODE_RESTARTED, "the node restarted while the task ran"
            )
        result = await run.wait()
        crashpoint("docker.ended")
        return result

    async def stop(self, handle: Handle) -> None:
        """End the container's whole tree; see the port."""
        key = _key(handle)
        run = self._runs.get(key)
        if run is not None:
            run.is_stopped = run.is_stopped or run.result is None
            if run.result is None:
                await run.end()
            return
        found = await self._find(key, handle)
        if found is not None:
            await self.engine.stop(found.id, grace_s=1)

    async def recover(self, handle: Handle) -> bool:
        """Return whether the container is still there, running or ended, and take it up."""
        key = _key(handle)
        if key in self._runs:
            return True
        if handle.state.get("container") is None:
            return False
        folder, group = folder_of(handle), own_group(key, cgroup_driver="cgroupfs")
        job = self._job_of(folder)
        found = await self._find_patiently(key, handle)
        if found is None or found.status == "created":
            return False
        started_at = handle.state.get("started_at")
        self._runs[key] = await self._take_up(found, folder, job, group, started_at)
        return True

    async def cleanup(self, handle: Handle) -> None:
        """Remove the container, its group and its folder; see the port."""
        key = _key(handle)
        run = self._runs.pop(key, None)
        self._gpus.release(key)
        await self._egress.close(key)
        try:
            if run is not None:
                run.close()
                await self.engine.remove(run.container)
            elif (found := await self._find(key, handle)) is not None:
                await self.engine.remove(found.id)
            if run is None or run.proxy is not None:
                await self._end_egress(key)
            crashpoint("docker.removed")
        finally:  # a container without its folder is an orphan, and removed when the engine is back
            remove_group(own_group(key, cgroup_driver="cgroupfs"))
            await folder_of(handle).remove()

    async def logs(self, handle: Handle, offset: int) -> bytes:
        """Return what was said while the image came, and then what the task printed, from ``offset`` on; see the port."""
        folder = folder_of(handle)
        said = folder.path / PREPARE_LOG
        try:
            before = said.stat().st_size
        except OSError:  # nothing was said, or the folder has gone meanwhile
            before = 0
        return await (folder.read_log(offset, said) if offset < before else folder.read_log(offset - before))

    async def aclose(self) -> None:
        """Close the connections to the engine; idempotent. Containers go on."""
        for run in self._runs.values():
            run.close()
        await self._egress.aclose()
        await self.engine.close()

    def _job_of(self, folder: JobFolder) -> DockerJob:
        """Read a job and hold its devices, before anything is waited for: nobody else may get them meanwhile."""
        job = DockerJob.read(folder)
        self._gpus.hold(job.execution_id, job.gpus)
        return job

    # -- making and finding containers ---------------------------------------------------------------------------

    async def _make(self, key: str, folder: JobFolder, job: DockerJob, facts: EngineFacts) -> ContainerRun:
        """Make and start an execution's container, or go on with the one that a killed process of this node started."""
        group = own_group(key, cgroup_driver=facts.cgroup_driver)
        found = await self._find(key) if job.egress is not None else None
        if found is None or found.status == "created":
            try:
                container = await self._create(key, folder, job, group)
            except Conflict:
                found = await self._own_container(_name(key), key)
                if found.status != "created":
                    return await self._take_up(found, folder, job, group)
                await self.engine.remove(found.id)  # never started, and its network may be gone
                container = await self._create(key, folder, job, group)
            crashpoint("docker.created")
            return await self._begin(container, folder, job, group)
        return await self._take_up(found, folder, job, group)

    async def _create(self, key: str, folder: JobFolder, job: DockerJob, group: str) -> str:
        labels = self._labels(job)
        proxy, network = None, None
        if job.egress is not None:
            proxy, network = await self._egress.begin(job.egress, folder=folder.path, execution_id=key, labels=labels)
        request = job.request(
            folder,
            labels=labels,
            cgroup_parent=group,
            also_env=proxy.env() if proxy is not None else {},
            network_of=network,
        )
        try:
            return await self.engine.create(request, name=_name(key), seccomp=seccomp_profile())
        except (BadField, NotFound) as exc:
            raise ExecutionFailed(FailureReason.SPEC_INVALID, f"the engine refuses the task: {exc.message}") from exc

    async def _begin(self, container: str, folder: JobFolder, job: DockerJob, group: str) -> ContainerRun:
        """Start a container that was just made, with its output attached before its first byte."""
        output = LogFile(folder.log, job.max_output_bytes)
        stream: OutputStream | None = None
        try:
            stream = await OutputStream.attach(self.engine.socket, container, timeout_s=self.engine.timeout_s)
            crashpoint("docker.attached")
            await self.engine.start(container)
        except BaseException as exc:
            output.close()
            if stream is not None:
                stream.close()
            if isinstance(exc, BadField | ExecutionFailed) and any(text in exc.message for text in _TASKS_MISTAKE):
                raise ExecutionFailed(FailureReason.SPEC_INVALID, f"the task cannot start: {exc.message}") from exc
            if isinstance(exc, BadField | NotFound | Conflict):
                raise ExecutionFailed(FailureReason.SANDBOX_FAILED, f"the engine: {exc.message}") from exc
            raise
        crashpoint("docker.started")
        return self._run(container, folder, job, group, output, stream, self._clock.now().timestamp())

    async def _take_up(
        self, found: Container, folder: JobFolder, job: DockerJob, group: str, started_at: JsonValue = None
    ) -> ContainerRun:
        """Go on with a container that an earlier process of this node started."""
        stream = await OutputStream.replay(self.engine.socket, found.id, timeout_s=self.engine.timeout_s)
        try:
            output = LogFile.reread(folder.log, job.max_output_bytes)
        except ExecutionFailed:
            stream.close()
            raise
        since = float(started_at) if isinstance(started_at, int | float) else self._clock.now().timestamp()
        log.info("container_taken_up", execution_id=job.execution_id, container=found.id, status=found.status)
        run = self._run(found.id, folder, job, group, output, stream, since)
        run.ended_at = found.finished_at if found.has_ended else None
        return run

    def _run(
        self,
        container: str,
        folder: JobFolder,
        job: DockerJob,
        group: str,
        output: LogFile,
        stream: OutputStream,
        started_at: float,
    ) -> ContainerRun:
        proxy: EgressProxy | None = None
        if job.egress is not None:
            proxy = self._egress.resume(job.egress, folder=folder.path, execution_id=job.execution_id)
        return ContainerRun(
            self.engine,
            self._clock,
            job,
            folder,
            container,
            group,
            output,
            stream,
            started_at,
            on_lost=self._gate.forget,
            proxy=proxy,
        )

    async def _find(self, key: str, handle: Handle | None = None) -> Container | None:
        """Return an execution's container, or None. One of the same name that is not ours is nobody's.

        Args:
            handle: Knows its id once it has started: somebody may have given it another name since.
        """
        known = handle.state.get("container") if handle is not None else None
        for name in (known, _name(key)):
            if isinstance(name, str):
                try:
                    return await self._own_container(name, key)
                except NotFound:
                    continue
        return None

    async def _find_patiently(self, key: str, handle: Handle) -> Container | None:
        """Do so, and give an engine that does not answer a while to come back."""
        pause = Backoff(0.1, 2.0)

        async def find() -> Container | None:
            while True:
                try:
                    return await self._find(key, handle)
                except Unreachable as exc:
                    log.info("docker_engine_awaited", execution_id=key, error=exc.message)
                await self._clock.sleep(pause.after())

        try:
            return await within(self._clock, _FIND_S, find)
        except TimeoutError as exc:
            raise Unreachable(f"the Docker engine did not come back within {_FIND_S:g} s") from exc

    async def _own_container(self, name: str, key: str) -> Container:
        if not self._gate.may_answer:
            raise NotFound("there is no Docker engine here")
        found = await self.engine.inspect(name)
        if found.labels.get("node") != self._node_id or found.labels.get("execution") != key:
            raise NotFound(f"the container {name} is not this node's")
        return found

    async def _end_egress(self, key: str) -> None:
        if self._gate.may_answer:
            await self._egress.end(key)

    async def _adopt_engine(self, facts: EngineFacts) -> None:
        if self._watch is not None:
            try:
                await anyio.to_thread.run_sync(free_bytes, facts.root)
            except OSError as exc:  # another user's, or an engine that sees another machine: it would count as full
                log.info("image_disk_not_watched", folder=str(facts.root), reason=exc.strerror)
            else:
                self._watch(facts.root)
        if self._ledger is not None:
            await self._ledger.serve(self.engine)

    def _labels(self, job: DockerJob) -> dict[str, str]:
        return {
            "node": self._node_id,
            "boot": boot_id(),
            "execution": job.execution_id,
            "task": job.task_id,
            "lease": job.lease_id,
            "fence": str(job.fence),
        }

    def _narrow(self, limits: Limits) -> Limits:
        options = self._options
        return replace(
            limits, cpus=min(limits.cpus, options.cpus), memory_bytes=min(limits.memory_bytes, options.memory_bytes)
        )


def _name(key: str) -> str:
    return f"parity-{key}"


def _key(handle: Handle) -> str:
    key = handle.state.get("execution_id")
    if handle.executor != "docker" or handle.version != VERSION or not isinstance(key, str):
        raise ExecutionFailed(
            FailureReason.NODE_FAULT, f"not a handle of containers: {handle.executor} {handle.version}"
        )
    return key
