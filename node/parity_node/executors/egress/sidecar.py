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
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from tempfile import mkdtemp
from typing import Final

import anyio
import anyio.to_thread

from parity_blobs.public_address import Resolver
from parity_node.executors.docker.engine import Engine
from parity_node.executors.docker.own_image import own_image
from parity_node.executors.docker.request import ContainerRequest
from parity_node.executors.egress import sidecar_child
from parity_node.executors.egress.proxy import EgressProxy
from parity_node.executors.process import Identity
from parity_node.executors.sandbox.host_python import StagedPython, interpreter, stage_python
from parity_protocol.clock import Clock
from parity_protocol.disk import failure_of
from parity_protocol.errors import Conflict, ExecutionFailed, FailureReason
from parity_protocol.needs import Egress

__all__ = ["SIDECAR_LABEL", "ContainerEgress", "stage_sidecar"]

SIDECAR_LABEL: Final = "egress"
"""Label of a sidecar, beside those by which an execution's container is found."""

_IMAGE = ("parity/egress", "1")
_USER = Identity(65_534, 65_534)
_PYTHON = PurePosixPath("/python")
_SOCKETS = PurePosixPath(sidecar_child.SOCKET).parent
_SCRIPT = "sidecar.py"
_STAGED = "egress-python-"
_READY_S = 20.0
_MEMORY_BYTES = 64 << 20
_PIDS = 8
_SCRATCH_BYTES = 1 << 20


class ContainerEgress:
    """The proxies and sidecars of one engine's executions.

    Args:
        workplace: Folder of this node's executions; a copy of the interpreter, about 15 MB, is kept in it.
        seccomp: The system-call profile, JSON.
        on_refused: As for ``EgressProxy``.
        resolver: As for ``EgressProxy``.
        allow: As for ``EgressProxy``.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        workplace: Path,
        seccomp: str,
        clock: Clock,
        on_refused: Callable[[str], None] | None = None,
        resolver: Resolver | None = None,
        allow: Callable[[str], bool] | None = None,
    ) -> None:
        self._engine = engine
        self._workplace = workplace
        self._seccomp = seccomp
        self._clock = clock
        self._on_refused = on_refused
        self._resolver = resolver
        self._allow = allow
        self._staging = anyio.Lock()
        self._proxies: dict[str, EgressProxy] = {}

    async def begin(
        self, egress: Egress, *, folder: Path, execution_id: str, labels: Mapping[str, str]
    ) -> tuple[EgressProxy, str]:
        """Start a task's proxy and sidecar and return them once the one listens in the other's network.

        The task's own request names the sidecar's container in ``network_of``. A sidecar that an earlier try left is
        replaced.

        Args:
            folder: The execution's own.
            labels: By which a container is known as this node's and this execution's.

        Raises:
            ExecutionFailed: The sidecar does not start (``sandbox_failed``), or the disk does not take it.
            Unreachable: The engine does not answer.
        """
        proxy = self.resume(egress, folder=folder, execution_id=execution_id)
        async with self._staging:
            python = await anyio.to_thread.run_sync(stage_sidecar, self._workplace)
            image = await own_image(self._engine, _empty_tar(), repository=_IMAGE[0], tag=_IMAGE[1])
        request = ContainerRequest(
            image=image,
            user=_USER,
            cpus=0.25,
            memory_bytes=_MEMORY_BYTES,
            pids=_PIDS,
            scratch_bytes=_SCRATCH_BYTES,
            file_bytes=_SCRATCH_BYTES,
            log_bytes=_SCRATCH_BYTES,
            labels={**labels, SIDECAR_LABEL: "true"},
            entrypoint=tuple(python.argv(_PYTHON, [str(_PYTHON / _SCRIPT)])),
            readonly=((python.folder, str(_PYTHON)), (proxy.hand_over(), str(_SOCKETS))),
        )
        name = _name(execution_id)
        try:
            container = await self._engine.create(request, name=name, seccomp=self._seccomp)
        except Conflict:
            await self._engine.remove(name)
            container = await self._engine.create(request, name=name, seccomp=self._seccomp)
        proxy.expect_listener()
        await self._engine.start(container)
        if not await proxy.attached(_READY_S):
            raise ExecutionFailed(FailureReason.SANDBOX_FAILED, "the egress sidecar did not hand over its listener")
        return proxy, container

    def resume(self, egress: Egress, *, folder: Path, execution_id: str) -> EgressProxy:
        """Return an execution's proxy; after a restart of the node its sidecar finds it again by itself.

        Raises:
            ExecutionFailed: The folder cannot be written.
        """
        proxy = self._proxies.get(execution_id)
        if proxy is None:
            proxy = EgressProxy(
                egress,
                folder=folder,
                on_refusal=_in_its_own_file,
                on_refused=self._on_refused,
                execution_id=execution_id,
                clock=self._clock,
                resolver=self._resolver,
                allow=self._allow,
            )
            self._proxies[execution_id] = proxy
            proxy.hand_over()
        return proxy

    async def close(self, execution_id: str) -> None:
        """Close an execution's proxy and leave its sidecar; idempotent."""
        proxy = self._proxies.pop(execution_id, None)
        if proxy is not None:
            await proxy.aclose()

    async def end(self, execution_id: str) -> None:
        """Close an execution's proxy and remove its sidecar; idempotent, and nothing if it has none.

        Raises:
            Unreachable: The engine does not answer; the labels say whose the sidecar is.
        """
        await self.close(execution_id)
        await self._engine.remove(_name(execution_id))

    async def aclose(self) -> None:
        """Close the proxies and leave the sidecars; idempotent."""
        proxies, self._proxies = self._proxies, {}
        for proxy in proxies.values():
            await proxy.aclose()


def _name(execution_id: str) -> str:
    return f"parity-egress-{execution_id}"


def _in_its_own_file(_line: str) -> None:
    """A container's output is read from the engine, twice when need be: lines of the node's own do not belong in it."""


def stage_sidecar(workplace: Path) -> StagedPython:
    """Return a copy of this interpreter with the sidecar's program in it, made once for each interpreter and program."""
    script = Path(sidecar_child.__file__).read_bytes()
    program = interpreter()
    what = f"{sys.version} {program} {program.stat().st_mtime_ns}".encode() + script
    folder = workplace / f"{_STAGED}{hashlib.sha256(what).hexdigest()[:16]}"
    if folder.is_dir():
        return StagedPython(folder)
    try:
        made = Path(mkdtemp(prefix=f".{_STAGED}", dir=workplace))
        try:
            made.chmod(0o755)
            stage_python(made)
            (made / _SCRIPT).write_bytes(script)
            (made / _SCRIPT).chmod(0o644)
            for earlier in workplace.glob(f"{_STAGED}*"):  # of another interpreter; who runs from it has read it
                shutil.rmtree(earlier, ignore_errors=True)
            made.replace(folder)
        finally:
            shutil.rmtree(made, ignore_errors=True)
    except OSError as exc:
        if folder.is_dir():  # somebody else was faster
            return StagedPython(folder)
        raise ExecutionFailed(failure_of(exc), f"cannot write to {workplace}: {exc.strerror}") from exc
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
