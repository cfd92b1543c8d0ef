"""A command task as its folder keeps it between ``prepare`` and ``start``, and the sandbox that it becomes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from pydantic import TypeAdapter, ValidationError

from parity_node.executors.base import Job, Limits
from parity_node.executors.folder import JobFolder
from parity_node.executors.sandbox.bwrap import TASK_HOME, Sandbox
from parity_node.executors.sandbox.drop import slot_identity
from parity_node.executors.sandbox.env import task_env
from parity_node.executors.sandbox.limits import output_bytes, scratch_bytes, task_rlimits
from parity_protocol.errors import ExecutionFailed, FailureReason
from parity_protocol.needs import Egress, OutputFolder
from parity_protocol.task import CommandSpec

__all__ = ["CommandJob"]


@dataclass(frozen=True, slots=True)
class CommandJob:
    """What ``start`` needs; every member is JSON."""

    command: tuple[str, ...]  # the argument list that is executed
    env: Mapping[str, str]  # as declared
    workdir: str
    inputs: tuple[str, ...]  # names below the folder of inputs
    max_output_bytes: int  # of what it prints
    output: OutputFolder | None
    egress: Egress | None
    slot: int
    limits: Limits

    @classmethod
    def of(cls, job: Job, spec: CommandSpec) -> CommandJob:
        """Return the job of a task whose inputs have been fetched."""
        return cls(
            command=spec.argv,
            env=spec.env,
            workdir=spec.workdir or TASK_HOME,
            inputs=tuple(item.name for item in spec.inputs),
            max_output_bytes=spec.max_output_bytes,
            output=spec.output,
            egress=spec.egress,
            slot=job.slot,
            limits=job.limits,
        )

    def write(self, folder: JobFolder) -> None:
        """Write it down.

        Raises:
            ExecutionFailed: The disk does not take it.
        """
        folder.write_job(_JOB.dump_python(self, mode="json", exclude={"limits"}), self.limits)

    @classmethod
    def read(cls, folder: JobFolder) -> CommandJob:
        """Read what ``write`` wrote.

        Raises:
            ExecutionFailed: It is not there or not whole: the machine lost power in between (``node_restarted``).
        """
        members, limits = folder.read_job()
        try:
            return _JOB.validate_json(json.dumps({**members, "limits": asdict(limits)}), strict=True)
        except ValidationError as exc:
            raise ExecutionFailed(FailureReason.NODE_RESTARTED, "the execution's folder was lost") from exc

    def sandbox(self, folder: JobFolder, *, also_env: Mapping[str, str]) -> Sandbox:
        """Return the sandbox that the task runs in.

        Args:
            also_env: What the node adds to the environment; what the task declared wins.
        """
        limits = self.limits
        output = None if self.output is None else output_bytes(limits, self.output.max_bytes)
        return Sandbox(
            command=self.command,
            env=task_env({**also_env, **self.env}, home=TASK_HOME),
            inputs=tuple((folder.inputs / name, name) for name in self.inputs),
            scratch_bytes=scratch_bytes(limits),
            rlimits=task_rlimits(limits, output_bytes=output or 0),
            identity=slot_identity(self.slot),
            workdir=self.workdir,
            output_bytes=output,
            has_hosts=self.egress is not None,
        )


_JOB: TypeAdapter[CommandJob] = TypeAdapter(CommandJob)
