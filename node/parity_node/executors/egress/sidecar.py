"""The container beside a container: it has the network that the task joins, with nothing in it but loopback.

A container's network exists only while a program of it runs, and the proxy must listen before the task's first instruction.
So a sidecar starts first: this machine's Python, read-only in an empty image, under the same request as a task's own
container. It works for root and for a user of the group ``docker`` alike, because the sidecar hands its listener out instead
of the node coming in.
"""

from __future__ import annotations

import hashlib
import io
import shutil
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from tempfile import mkdtemp
from typing import Final

import anyio
import anyio.to_thread

from parity_node.executors.docker.engine import Engine
from parity_node.executors.docker.request import ContainerRequest, Runtime
from parity_node.executors.egress import sidecar_child
from parity_node.executors.egress.proxy import EgressProxy
from parity_node.executors.process import Identity
from parity_node.executors.sandbox.host_python import StagedPython, interpreter, stage_python
from parity_protocol.errors import Conflict, ExecutionFailed, FailureReason

__all__ = ["SIDECAR_LABEL", "Sidecars"]

SIDECAR_LABEL: Final = "egress"
"""Label of a sidecar, whose value is the execution that it belongs to; beside those that DOCKER finds orphans by."""

_IMAGE = ("parity/egress", "1")
_USER = Identity(65_534, 65_534)
_PYTHON = PurePosixPath("/python")
_SOCKETS = PurePosixPath(sidecar_child.SOCKET).parent
_SCRIPT = "sidecar.py"
_READY_S = 20.0
_MEMORY_BYTES = 64 << 20
_PIDS = 8
_SCRATCH_BYTES = 1 << 20


class Sidecars:
    """Starts and ends the sidecars of one engine.

    Args:
        workplace: Folder of this node's executions; a copy of the interpreter, about 15 MB, is kept in it.
        seccomp: The system-call profile, JSON.
    """

    def __init__(self, engine: Engine, *, workplace: Path, seccomp: str) -> None:
        self._engine = engine
        self._workplace = workplace
        self._seccomp = seccomp
        self._staging = anyio.Lock()

    async def start(
        self, proxy: EgressProxy, *, execution_id: str, labels: Mapping[str, str], runtime: Runtime = "runc"
    ) -> str:
        """Start a task's sidecar and return its container's id once the proxy listens in its network.

        The task's own request names it in ``network_of``. One that an earlier try left is replaced.

        Args:
            labels: By which a container is known as this node's.
            runtime: Of the task's container.

        Raises:
            ExecutionFailed: gVisor keeps a network of its own per sandbox, which nothing can join
                (``executor_unavailable``), or the sidecar does not start (``sandbox_failed``).
            Unreachable: The engine does not answer.
        """
        if runtime != "runc":
            text = "hosts cannot be granted to a task in gVisor: its network is inside of its own sandbox"
            raise ExecutionFailed(FailureReason.EXECUTOR_UNAVAILABLE, text)
        sockets = proxy.hand_over()
        async with self._staging:
            python = await anyio.to_thread.run_sync(_stage, self._workplace)
            image = await self._image()
        request = ContainerRequest(
            image=image,
            user=_USER,
            cpus=0.25,
            memory_bytes=_MEMORY_BYTES,
            pids=_PIDS,
            scratch_bytes=_SCRATCH_BYTES,
            file_bytes=_SCRATCH_BYTES,
            log_bytes=_SCRATCH_BYTES,
            labels={**labels, SIDECAR_LABEL: execution_id},
            entrypoint=tuple(python.argv(_PYTHON, [str(_PYTHON / _SCRIPT)])),
            readonly=((python.folder, str(_PYTHON)), (sockets, str(_SOCKETS))),
        )
        name = f"parity-egress-{execution_id}"
        try:
            container = await self._engine.create(request, name=name, seccomp=self._seccomp)
        except Conflict:
            await self._engine.remove(name)
            container = await self._engine.create(request, name=name, seccomp=self._seccomp)
        try:
            await self._engine.start(container)
            await _attached(proxy)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self._engine.remove(container)
            raise
        return container

    async def remove(self, execution_id: str) -> None:
        """Remove a task's sidecar; nothing if there is none."""
        await self._engine.remove(f"parity-egress-{execution_id}")

    async def _image(self) -> str:
        found = await self._engine.find_image(":".join(_IMAGE))
        if found is not None:
            return found
        return await self._engine.import_image(_empty_tar(), repository=_IMAGE[0], tag=_IMAGE[1])


async def _attached(proxy: EgressProxy) -> None:
    if not await proxy.attached(_READY_S):
        raise ExecutionFailed(FailureReason.SANDBOX_FAILED, "the egress sidecar did not hand over its listener")


def _stage(workplace: Path) -> StagedPython:
    """Return a copy of this interpreter with the sidecar's program in it, made once for each interpreter and program."""
    script = Path(sidecar_child.__file__).read_bytes()
    program = interpreter()
    what = f"{sys.version} {program} {program.stat().st_mtime_ns}".encode() + script
    folder = workplace / f"egress-python-{hashlib.sha256(what).hexdigest()[:16]}"
    if folder.is_dir():
        return StagedPython(folder)
    try:
        made = Path(mkdtemp(prefix=".egress-python-", dir=workplace))
        try:
            made.chmod(0o755)
            stage_python(made)
            (made / _SCRIPT).write_bytes(script)
            (made / _SCRIPT).chmod(0o644)
            made.replace(folder)
        finally:
            shutil.rmtree(made, ignore_errors=True)
    except OSError as exc:
        if folder.is_dir():  # somebody else was faster
            return StagedPython(folder)
        reason = FailureReason.DISK_FULL if exc.errno in {28, 122} else FailureReason.NODE_FAULT
        raise ExecutionFailed(reason, f"cannot write to {workplace}: {exc.strerror}") from exc
    return StagedPython(folder)


def _empty_tar() -> bytes:
    """Return a file system with the folders that are mounted over, and nothing else."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for name in ("tmp", str(_PYTHON)[1:], str(_SOCKETS)[1:]):
            folder = tarfile.TarInfo(name)
            folder.type, folder.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(folder)
    return data.getvalue()
