"""A container task as its folder keeps it between ``prepare`` and ``start``, and the request that it becomes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from parity_node.executors.base import Limits
from parity_node.executors.docker.request import INPUTS, OUTPUT, ContainerRequest, Runtime
from parity_node.executors.folder import JobFolder
from parity_node.executors.process import Identity
from parity_node.executors.sandbox.limits import scratch_bytes
from parity_protocol.errors import ExecutionFailed, FailureReason
from parity_protocol.needs import Egress, OutputFolder

__all__ = ["HOME", "DockerJob", "check_places"]

HOME = "/tmp"  # noqa: S108 - inside; the one place that every image has and a task may write to
_LEAST_FILE_BYTES = 1 << 20
_MAX_VOLUMES = 16
_TAKEN = ("/", "/dev", "/etc", "/proc", "/sbin", "/sys", "/tmp", INPUTS, OUTPUT)  # noqa: S108 - inside


@dataclass(frozen=True, slots=True)
class DockerJob:
    """What ``start`` needs; every member is JSON."""

    execution_id: str
    task_id: str
    lease_id: str
    fence: int
    image: str  # id
    environment: str  # what the receipt says of it: the digest that was asked for, or the id
    entrypoint: tuple[str, ...] | None
    command: tuple[str, ...]
    env: dict[str, str]
    workdir: str
    volumes: tuple[str, ...]
    inputs: tuple[str, ...]  # names below the folder of inputs
    max_output_bytes: int  # of what it prints
    output: OutputFolder | None
    egress: Egress | None
    slot: int
    uid: int
    gid: int
    runtime: Runtime
    gpus: tuple[str, ...]
    limits: Limits

    def write(self, folder: JobFolder) -> None:
        """Write it down.

        Raises:
            ExecutionFailed: The disk does not take it.
        """
        members = _JOB.dump_python(self, mode="json", exclude={"limits"})
        folder.write_job(members, self.limits)

    @classmethod
    def read(cls, folder: JobFolder) -> DockerJob:
        """Read what ``write`` wrote.

        Raises:
            ExecutionFailed: It is not there or not whole: the machine lost power in between (``node_restarted``).
        """
        members, limits = folder.read_job()
        try:
            return _JOB.validate_json(json.dumps({**members, "limits": asdict(limits)}))
        except ValidationError as exc:
            raise ExecutionFailed(FailureReason.NODE_RESTARTED, "the execution's folder was lost") from exc

    def request(
        self,
        folder: JobFolder,
        *,
        labels: Mapping[str, str],
        cgroup_parent: str,
        also_env: Mapping[str, str],
        network_of: str | None,
    ) -> ContainerRequest:
        """Return what the engine is asked for.

        Args:
            also_env: What the node adds to the environment; what the task declared wins.
            network_of: Id of the container whose network it joins.
        """
        limits = self.limits
        scratch = scratch_bytes(limits)
        largest = max(scratch, self.output.max_bytes if self.output is not None else 0, _LEAST_FILE_BYTES)
        return ContainerRequest(
            image=self.image,
            user=Identity(self.uid, self.gid),
            cpus=limits.cpus,
            memory_bytes=limits.memory_bytes,
            pids=limits.pids,
            scratch_bytes=scratch,
            file_bytes=largest,
            log_bytes=self.max_output_bytes,
            labels=labels,
            entrypoint=self.entrypoint,
            command=self.command,
            env={**also_env, **self.env},
            workdir=self.workdir,
            volumes=self.volumes,
            readonly=tuple((folder.inputs / name, f"{INPUTS}/{name}") for name in self.inputs),
            output=output_folder(folder) if self.output is not None else None,
            network_of=network_of,
            runtime=self.runtime,
            gpus=self.gpus,
            cgroup_parent=cgroup_parent,
        )


_JOB: TypeAdapter[DockerJob] = TypeAdapter(DockerJob)


def output_folder(folder: JobFolder) -> Path:
    """Return the folder here that is ``/output`` inside."""
    return folder.path / "output"


def check_places(volumes: tuple[str, ...]) -> None:
    """Check the places that an image declares as its volumes: each will be covered by a tmpfs.

    Raises:
        ExecutionFailed: There are too many, or one would cover what the node or the engine puts there (``spec_invalid``).
    """
    if len(volumes) > _MAX_VOLUMES:
        raise ExecutionFailed(
            FailureReason.SPEC_INVALID, f"the image declares {len(volumes)} volumes, at most {_MAX_VOLUMES} are allowed"
        )
    for place in volumes:
        clean = f"/{place.strip('/')}"
        is_within = any(clean.startswith(f"{taken}/") for taken in _TAKEN if taken not in {"/", "/tmp", "/etc"})  # noqa: S108
        if not place.startswith("/") or clean in _TAKEN or is_within or ".." in place.split("/"):
            raise ExecutionFailed(
                FailureReason.SPEC_INVALID, f"the image declares a volume at {place}: not allowed here"
            )
