"""The Docker executor: a stranger's image, run by an engine on this machine.

Every container is named after its execution and labelled with this node's id, so that a node that restarts finds what it
started: a running one is taken up again, a finished one collected. What carries this node's label and belongs to no
execution any more is removed; containers of others are never touched.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import anyio
import anyio.to_thread
import structlog
from pydantic import JsonValue

from parity_node.crashpoints import crashpoint
from parity_node.data import InputSource
from parity_node.executors.base import MAX_LOG_READ_BYTES, ExecutionResult, Handle, Job, Limits
from parity_node.executors.docker.engine import Container, Engine, EngineFacts, socket_of
from parity_node.executors.docker.images import PREPARE_LOG, ImageLedger, Images
from parity_node.executors.docker.job import HOME, DockerJob, check_places, output_folder
from parity_node.executors.docker.orphans import remove_orphans
from parity_node.executors.docker.probe import prove_docker
from parity_node.executors.docker.profile import seccomp_profile
from parity_node.executors.docker.request import Runtime
from parity_node.executors.docker.run import ContainerRun
from parity_node.executors.docker.streams import LogFile, OutputStream
from parity_node.executors.docker.usage import own_group, remove_group
from parity_node.executors.folder import JobFolder, folder_of
from parity_node.executors.process import Identity, boot_id
from parity_node.executors.sandbox.drop import own, slot_identity
from parity_node.executors.trial import Trial
from parity_node.waiting import Backoff, within
from parity_protocol.capability import ExecutorState
from parity_protocol.clock import Clock
from parity_protocol.errors import (
    BadField,
    Conflict,
    ExecutionFailed,
    FailureReason,
    NotFound,
    ParityError,
    Unreachable,
)
from parity_protocol.report import Outcome
from parity_protocol.task import CidInput, DockerSpec, IsolationTier, TaskKind

__all__ = ["DockerExecutor", "DockerOptions"]

VERSION = 1
RETRY_TRIAL_S = 30.0  # after a trial that failed
_FIND_S = 20.0  # for an engine that is starting too, when a node looks for what it left
_SLOT_UID = 61_000
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


class DockerExecutor:
    """Implements ``Executor`` for container images.

    The result is what the task printed, or a folder with it and the files of ``/output``. Exit status 0 is success.

    Args:
        exec_dir: Where the executions' folders are; the engine must see it under the same name.
        node_id: Labels this node's containers.
        ledger: Account of the images that this node brings; None keeps none.
        hidden: Files of the node that a trial must not reach.
        environ: Where ``DOCKER_HOST`` is looked up.
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
        hidden: Sequence[Path] = (),
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        self._exec_dir = exec_dir
        self._inputs = inputs
        self._clock = clock
        self._node_id = node_id
        self._options = options
        self._hidden = tuple(hidden)
        path, self._no_socket = socket_of(environ)
        self.engine = Engine(path or Path("/nonexistent"), timeout_s=options.timeout_s)
        self._images = Images(
            self.engine,
            inputs,
            clock=clock,
            ledger=ledger,
            max_bytes=options.max_image_bytes,
            floor_bytes=options.floor_bytes,
        )
        self._runs: dict[str, ContainerRun] = {}
        self._gpus: dict[str, tuple[str, ...]] = {}  # by execution
        self._facts: EngineFacts | None = None
        self._runtimes: frozenset[str] = frozenset()  # proven ones
        self._instance = ""  # of the engine that was proven
        self._trial = Trial(self._try, clock=clock, retry_s=RETRY_TRIAL_S)

    @property
    def kind(self) -> TaskKind:
        """``docker``."""
        return TaskKind.DOCKER

    async def describe(self) -> ExecutorState:
        """Say whether containers can run here; the first call, and any after a failure or an engine's restart, tries it."""
        if self._options.is_enabled is False:
            return ExecutorState(available=False, reason="off by RUNNER_DOCKER_ENABLED=false")
        if self._no_socket:
            return ExecutorState(available=False, reason=self._no_socket[:500])
        instance = self.engine.instance()
        if not instance:
            self._instance = ""
            return ExecutorState(available=False, reason=f"no Docker engine answers at {self.engine.socket}")
        if self._instance and instance != self._instance:
            self._forget_engine()
        found = await self._trial.outcome()
        self._instance = instance if found.available else ""
        return found

    async def prepare(self, job: Job) -> Handle:
        """Fetch image and inputs; see the port."""
        spec = job.spec
        if not isinstance(spec, DockerSpec):
            raise ExecutionFailed(FailureReason.SPEC_INVALID, f"expected a container, got {spec.type}")
        facts = await self._facts_of_available()
        runtime = self._runtime_for(spec)
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
        await self._fetch_inputs(spec, folder)
        user = _user_of(job.slot, has_output=spec.output is not None)
        if spec.output is not None:
            _make_output(folder, user)
        DockerJob(
            execution_id=job.execution_id,
            task_id=job.task_id,
            lease_id=job.lease_id,
            fence=job.fence,
            image=image.id,
            environment=resolved.digest,
            entrypoint=spec.entrypoint,
            command=spec.command,
            env=_environment(spec.env, image.env),
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
            gpus=self._take_gpus(job.execution_id, spec.resources.gpus),
            limits=self._narrow(job.limits),
        ).write(folder)
        return Handle("docker", VERSION, {"execution_id": job.execution_id, "folder": str(job.folder)})

    async def start(self, handle: Handle) -> Handle:
        """Make and start the container; see the port."""
        key = _key(handle)
        run = self._runs.get(key)
        if run is None:
            facts = await self._facts_of_available()
            folder = folder_of(handle)
            job = DockerJob.read(folder)
            if job.egress is not None:
                raise ExecutionFailed(FailureReason.EXECUTOR_UNAVAILABLE, "no egress for containers on this node")
            group = own_group(key, cgroup_driver=facts.cgroup_driver)
            request = job.request(folder, labels=self._labels(job), cgroup_parent=group, also_env={}, network_of=None)
            try:
                container = await self.engine.create(request, name=_name(key), seccomp=seccomp_profile())
            except Conflict:  # made by a process of this node that was killed before it could write that down
                run = await self._take_up(key, await self._own_container(_name(key), key), folder, job)
            except (BadField, NotFound) as exc:
                raise ExecutionFailed(
                    FailureReason.SPEC_INVALID, f"the engine refuses the task: {exc.message}"
                ) from exc
            else:
                crashpoint("docker.created")
                run = await self._begin(container, folder, job, group)
            self._runs[key] = run
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
        found = await self._find(key)
        if found is not None:
            await self.engine.stop(found.id, grace_s=1)

    async def recover(self, handle: Handle) -> bool:
        """Return whether the container is still there, running or ended, and take it up."""
        key = _key(handle)
        if key in self._runs:
            return True
        if handle.state.get("container") is None:
            return False
        found = await self._find_patiently(key)
        if found is None or found.status == "created":
            return False
        folder = folder_of(handle)
        self._runs[key] = await self._take_up(
            key, found, folder, DockerJob.read(folder), handle.state.get("started_at")
        )
        log.info("container_taken_up", execution_id=key, container=found.id, status=found.status)
        return True

    async def cleanup(self, handle: Handle) -> None:
        """Remove the container, its group and its folder; see the port."""
        key = _key(handle)
        run = self._runs.pop(key, None)
        self._gpus.pop(key, None)
        try:
            if run is not None:
                run.close()
                await self.engine.remove(run.container)
            elif (found := await self._find(key)) is not None:
                await self.engine.remove(found.id)
            crashpoint("docker.removed")
        finally:  # a container without its folder is an orphan, and removed when the engine is back
            remove_group(own_group(key, cgroup_driver="cgroupfs"))
            await folder_of(handle).remove()

    async def logs(self, handle: Handle, offset: int) -> bytes:
        """Return what was said while the image came, and then what the task printed, from ``offset`` on; see the port."""
        folder = folder_of(handle)
        said = folder.path / PREPARE_LOG
        size = said.stat().st_size if said.exists() else 0
        if offset < size:
            return await anyio.to_thread.run_sync(_read_text, said, offset)
        return await folder.read_log(offset - size)

    async def aclose(self) -> None:
        """Close the connections to the engine; idempotent. Containers go on."""
        for run in self._runs.values():
            run.close()
        await self.engine.close()

    # -- making and finding containers ---------------------------------------------------------------------------

    async def _begin(self, container: str, folder: JobFolder, job: DockerJob, group: str) -> ContainerRun:
        """Start a container that was just made, with its output attached before its first byte."""
        output = LogFile(folder.log, job.max_output_bytes)
        try:
            stream = await OutputStream.attach(self.engine.socket, container, timeout_s=self.engine.timeout_s)
        except BaseException:
            output.close()
            raise
        try:
            await self.engine.start(container)
        except BaseException as exc:
            stream.close()
            output.close()
            if isinstance(exc, BadField | ExecutionFailed) and any(text in exc.message for text in _TASKS_MISTAKE):
                raise ExecutionFailed(FailureReason.SPEC_INVALID, f"the task cannot start: {exc.message}") from exc
            if isinstance(exc, BadField | NotFound | Conflict):
                raise ExecutionFailed(FailureReason.SANDBOX_FAILED, f"the engine: {exc.message}") from exc
            raise
        crashpoint("docker.started")
        return self._run(container, folder, job, group, output, stream, self._clock.now().timestamp())

    async def _take_up(
        self, key: str, found: Container, folder: JobFolder, job: DockerJob, started_at: JsonValue = None
    ) -> ContainerRun:
        """Go on with a container that an earlier process of this node made."""
        group = own_group(key, cgroup_driver="cgroupfs")
        if found.status == "created":
            return await self._begin(found.id, folder, job, group)
        stream = await OutputStream.replay(self.engine.socket, found.id, timeout_s=self.engine.timeout_s)
        output = LogFile.reread(folder.log, job.max_output_bytes)
        since = float(started_at) if isinstance(started_at, int | float) else self._clock.now().timestamp()
        return self._run(found.id, folder, job, group, output, stream, since)

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
        if job.gpus:
            self._gpus[job.execution_id] = job.gpus
        return ContainerRun(
            self.engine, self._clock, job, folder, container, group, output, stream, started_at, self._forget_engine
        )

    async def _find(self, key: str) -> Container | None:
        """Return an execution's container, or None. One of the same name that is not ours is nobody's."""
        try:
            return await self._own_container(_name(key), key)
        except NotFound:
            return None

    async def _find_patiently(self, key: str) -> Container | None:
        """Do so, and give an engine that does not answer a while to come back."""
        pause = Backoff(0.1, 2.0)

        async def find() -> Container | None:
            while True:
                try:
                    return await self._find(key)
                except Unreachable as exc:
                    log.info("docker_engine_awaited", execution_id=key, error=exc.message)
                await self._clock.sleep(pause.after())

        try:
            return await within(self._clock, _FIND_S, find)
        except TimeoutError as exc:
            raise Unreachable(f"the Docker engine did not come back within {_FIND_S:g} s") from exc

    async def _own_container(self, name: str, key: str) -> Container:
        if not self.engine.socket.exists() and not self._runs and self._facts is None:
            raise NotFound("there is no Docker engine here")
        found = await self.engine.inspect(name)
        if found.labels.get("node") != self._node_id or found.labels.get("execution") != key:
            raise NotFound(f"the container {name} is not this node's")
        return found

    def _labels(self, job: DockerJob) -> dict[str, str]:
        return {
            "node": self._node_id,
            "boot": boot_id(),
            "execution": job.execution_id,
            "task": job.task_id,
            "lease": job.lease_id,
            "fence": str(job.fence),
        }

    # -- what may run here ---------------------------------------------------------------------------------------

    async def _facts_of_available(self) -> EngineFacts:
        """Never degrade: without an engine that was proven here, nothing runs."""
        state = await self.describe()
        if not state.available or self._facts is None:
            raise ExecutionFailed(FailureReason.EXECUTOR_UNAVAILABLE, f"containers cannot run here: {state.reason}")
        return self._facts

    def _runtime_for(self, spec: DockerSpec) -> Runtime:
        runtime: Runtime = "runsc" if spec.requires.isolation is IsolationTier.GVISOR else "runc"
        if runtime not in self._runtimes:
            raise ExecutionFailed(
                FailureReason.EXECUTOR_UNAVAILABLE, f"the runtime {runtime} is not proven on this node"
            )
        return runtime

    def _narrow(self, limits: Limits) -> Limits:
        options = self._options
        return replace(
            limits, cpus=min(limits.cpus, options.cpus), memory_bytes=min(limits.memory_bytes, options.memory_bytes)
        )

    def _take_gpus(self, key: str, count: int) -> tuple[str, ...]:
        """Give an execution devices of its own, of those that the operator granted."""
        if count == 0:
            return ()
        used = {device for devices in self._gpus.values() for device in devices}
        free = [device for device in self._options.gpus if device not in used]
        if len(free) < count:
            text = f"asks for {count} GPUs; RUNNER_DOCKER_GPUS grants {len(self._options.gpus)}, {len(free)} are free"
            raise ExecutionFailed(FailureReason.EXECUTOR_UNAVAILABLE, text)
        self._gpus[key] = tuple(free[:count])
        return self._gpus[key]

    def _forget_engine(self) -> None:
        """Prove the engine again before the next task: it went away, or is another process than before."""
        if self._instance:
            self._instance = ""
            self._trial = Trial(self._try, clock=self._clock, retry_s=RETRY_TRIAL_S)

    async def _try(self) -> ExecutorState:
        try:
            self._facts = facts = await self.engine.facts()
            if facts.problem:
                return ExecutorState(available=False, reason=facts.problem)
            await remove_orphans(self.engine, self._node_id, self._exec_dir)
            return await self._prove(facts)
        except ParityError as exc:
            return ExecutorState(available=False, reason=exc.message[:500])

    async def _prove(self, facts: EngineFacts) -> ExecutorState:
        proven: set[str] = set()
        reasons: list[str] = []

        async def prove(runtime: Runtime) -> None:
            report = await prove_docker(
                self.engine,
                self._exec_dir,
                runtime=runtime,
                user=_user_of(0, has_output=False),
                labels={"node": self._node_id, "boot": boot_id()},
                hidden=self._hidden,
            )
            if report.is_proven:
                proven.add(runtime)
            else:
                reasons.append(f"{runtime}: {report.problem}")

        async with anyio.create_task_group() as group:
            for runtime in ("runc", "runsc"):
                if runtime in facts.runtimes:
                    group.start_soon(prove, runtime)
        self._runtimes = frozenset(proven)
        reason = "; ".join(reasons)[:500]
        if "runc" not in proven:
            return ExecutorState(available=False, reason=reason or "the engine has no runtime runc")
        tier = IsolationTier.GVISOR if "runsc" in proven else IsolationTier.DOCKER
        return ExecutorState(available=True, isolation=tier, reason=reason)

    async def _fetch_inputs(self, spec: DockerSpec, folder: JobFolder) -> None:
        _mkdir(folder.inputs, 0o700)
        for item in spec.inputs:
            if not isinstance(item, CidInput):
                text = f"input {item.name}: this node fetches inputs by CID only"
                raise ExecutionFailed(FailureReason.EXECUTOR_UNAVAILABLE, text)
            target = folder.inputs / item.name
            await self._inputs.fetch(item.cid, target, max_bytes=item.max_bytes)
            await anyio.to_thread.run_sync(_make_readable, target)


def _user_of(slot: int, *, has_output: bool) -> Identity:
    """Return who a container runs as: a user of its slot, who owns nothing else, as commands do when the node is root.

    Not ``nobody`` (65534): other services run as it. A node that is an ordinary user cannot give a folder away, nor
    remove what another user left in it, so its tasks with an output folder run as the node's own user.
    """
    identity = slot_identity(slot)
    if identity is None and has_output:
        return Identity(os.geteuid(), os.getegid())
    return identity or Identity(_SLOT_UID + slot, _SLOT_UID + slot)


def _environment(declared: Mapping[str, str], of_image: Sequence[str]) -> dict[str, str]:
    """Return what a task declared, and a home that it can write to unless it or its image names one."""
    has_home = any(each.startswith("HOME=") for each in of_image)
    return dict(declared) if has_home else {"HOME": HOME, **declared}


def _make_output(folder: JobFolder, user: Identity) -> None:
    path = output_folder(folder)
    _mkdir(path, 0o700)
    own(path, user if os.geteuid() == 0 else None)


def _mkdir(path: Path, mode: int) -> None:
    try:
        path.mkdir(mode=mode, exist_ok=True)
    except OSError as exc:
        reason = FailureReason.DISK_FULL if exc.errno in {28, 122} else FailureReason.NODE_FAULT
        raise ExecutionFailed(reason, f"{path}: {exc.strerror}") from exc


def _make_readable(path: Path) -> None:
    """Let the container's user read an input that the node wrote."""
    if path.is_dir():
        path.chmod(0o755)
        for child in path.iterdir():
            _make_readable(child)
    else:
        path.chmod(0o444)


def _read_text(path: Path, offset: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(MAX_LOG_READ_BYTES)


def _name(key: str) -> str:
    return f"parity-{key}"


def _key(handle: Handle) -> str:
    key = handle.state.get("execution_id")
    if handle.executor != "docker" or handle.version != VERSION or not isinstance(key, str):
        raise ExecutionFailed(
            FailureReason.NODE_FAULT, f"not a handle of containers: {handle.executor} {handle.version}"
        )
    return key
