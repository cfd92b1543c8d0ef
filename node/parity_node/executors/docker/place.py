"""What an execution gets before its container is made: a user, an environment, folders, devices."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from parity_node.data import InputSource
from parity_node.executors.docker.job import HOME, output_folder
from parity_node.executors.folder import JobFolder
from parity_node.executors.process import Identity
from parity_node.executors.sandbox.drop import FIRST_UID, own, slot_identity
from parity_protocol.disk import failure_of
from parity_protocol.errors import ExecutionFailed, FailureReason
from parity_protocol.task import DockerSpec

__all__ = ["GpuGrants", "environment", "fetch_inputs", "make_output", "user_of"]


class GpuGrants:
    """The devices that the operator granted, each held by one execution at a time.

    Args:
        devices: Fixed ids of devices or MIG slices. A driver clears their memory when the last process lets go.
    """

    def __init__(self, devices: Sequence[str]) -> None:
        self._devices = tuple(devices)
        self._held: dict[str, tuple[str, ...]] = {}

    def take(self, execution_id: str, count: int) -> tuple[str, ...]:
        """Give an execution ``count`` devices.

        Raises:
            ExecutionFailed: So many are not free (``executor_unavailable``).
        """
        if count == 0:
            return ()
        used = {device for devices in self._held.values() for device in devices}
        free = [device for device in self._devices if device not in used]
        if len(free) < count:
            text = (
                f"asks for {count} GPUs; RUNNER_DOCKER_GPUS grants {len(self._devices)}, of which {len(free)} are free"
            )
            raise ExecutionFailed(FailureReason.EXECUTOR_UNAVAILABLE, text)
        return self.hold(execution_id, tuple(free[:count]))

    def hold(self, execution_id: str, devices: tuple[str, ...]) -> tuple[str, ...]:
        """Note what an execution of an earlier process holds, and return it."""
        if devices:
            self._held[execution_id] = devices
        return devices

    def release(self, execution_id: str) -> None:
        """Take an execution's devices back; idempotent."""
        self._held.pop(execution_id, None)


def user_of(slot: int, *, has_output: bool) -> Identity:
    """Return who a container runs as: a user of its slot, who owns nothing else, as commands do when the node is root.

    Not ``nobody`` (65534): other services run as it. A node that is an ordinary user cannot give a folder away, nor
    remove what another user left in it, so its tasks with an output folder run as the node's own user.
    """
    identity = slot_identity(slot)
    if identity is None and has_output:
        return Identity(os.geteuid(), os.getegid())
    return identity or Identity(FIRST_UID + slot, FIRST_UID + slot)


def environment(declared: Mapping[str, str], of_image: Sequence[str]) -> dict[str, str]:
    """Return what a task declared, and a home that it can write to unless it or its image names one."""
    has_home = any(each.startswith("HOME=") for each in of_image)
    return dict(declared) if has_home else {"HOME": HOME, **declared}


async def fetch_inputs(spec: DockerSpec, folder: JobFolder, source: InputSource) -> None:
    """Bring a task's data, readable for its user.

    Raises:
        ExecutionFailed: Some of it cannot be had.
    """
    _mkdir(folder.inputs)
    for item in spec.inputs:
        await source.bring(item, folder.inputs / item.name)


def make_output(folder: JobFolder, user: Identity) -> None:
    """Make the folder that will be ``/output``.

    Raises:
        ExecutionFailed: It cannot be made.
    """
    path = output_folder(folder)
    _mkdir(path)
    own(path, user if os.geteuid() == 0 else None)


def _mkdir(path: Path) -> None:
    try:
        path.mkdir(mode=0o700, exist_ok=True)
    except OSError as exc:
        raise ExecutionFailed(failure_of(exc), f"{path}: {exc.strerror}") from exc
