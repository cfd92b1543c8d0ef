"""Containers proven: every attempt to escape is made in one, started by the same request as a task's."""

from __future__ import annotations

import io
import os
import tarfile
import uuid
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final

import anyio

from parity_node.executors.docker.engine import Engine
from parity_node.executors.docker.own_image import own_image
from parity_node.executors.docker.profile import seccomp_profile
from parity_node.executors.docker.request import INPUTS, ContainerRequest, Runtime
from parity_node.executors.docker.streams import OutputStream, wait_ended
from parity_node.executors.log_file import LogFile
from parity_node.executors.process import Identity
from parity_node.executors.sandbox.probes import ProbeReport
from parity_node.executors.sandbox.tier import INPUT_NAME, PROBE_LIMITS, ProbeRunner, prove
from parity_protocol.errors import ParityError
from parity_protocol.isolation import IsolationTier

__all__ = ["PROBE_LABEL", "PROBE_USER", "prove_docker"]

PROBE_LABEL: Final = "probe"
"""Label of the containers that are made here: what is left of one after a crash is an orphan of this node."""

PROBE_USER: Final = Identity(65_534, 65_534)

_REPOSITORY, _TAG = "parity/empty", "1"
_MAX_OUTPUT_BYTES = 262_144
_DRAIN_S = 2.0
# What an engine, an init program and a shell add by themselves.
_ENVIRONMENT = frozenset({"PATH", "HOME", "HOSTNAME", "PWD", "SHLVL", "_", "TERM"})


async def prove_docker(
    engine: Engine,
    workplace: Path,
    *,
    runtime: Runtime = "runc",
    user: Identity = PROBE_USER,
    labels: dict[str, str] | None = None,
    hidden: Collection[Path] = (),
) -> ProbeReport:
    """Prove a runtime of an engine; as ``prove``.

    Args:
        workplace: Folder of the executions; the engine must see it under the same name.
        user: Who tasks run as.
        labels: By which the container is known as this node's, beside ``PROBE_LABEL``.
        hidden: Files of the node that must not be reachable.
    """
    is_gvisor = runtime == "runsc"

    async def run(program: Path, argv: Sequence[str]) -> bytes:
        image = await own_image(engine, _empty_tar(), repository=_REPOSITORY, tag=_TAG)
        request = ContainerRequest(
            image=image,
            user=user,
            cpus=PROBE_LIMITS.cpus,
            memory_bytes=PROBE_LIMITS.memory_bytes,
            pids=PROBE_LIMITS.pids,
            scratch_bytes=PROBE_LIMITS.disk_bytes,
            file_bytes=PROBE_LIMITS.disk_bytes,
            log_bytes=_MAX_OUTPUT_BYTES,
            labels={**(labels or {}), PROBE_LABEL: "true"},
            entrypoint=tuple(argv),
            readonly=((program, f"{INPUTS}/{INPUT_NAME}"),),
            runtime=runtime,
        )
        return await _run(engine, request, program.parent / "output.log")

    runner = ProbeRunner(
        IsolationTier.GVISOR if is_gvisor else IsolationTier.DOCKER,
        INPUTS,
        run,
        _ENVIRONMENT,
        identity=user if os.geteuid() == 0 else None,
        uid=user.uid,
        own_kernel=is_gvisor,
    )
    return await prove(runner, workplace, hidden=hidden)


async def _run(engine: Engine, request: ContainerRequest, path: Path) -> bytes:
    container = await engine.create(request, name=f"parity-probe-{uuid.uuid4().hex}", seccomp=seccomp_profile())
    log = LogFile(path, _MAX_OUTPUT_BYTES)
    try:
        stream = await OutputStream.attach(engine.socket, container, timeout_s=engine.timeout_s)
        try:
            await engine.start(container)
            await _follow(engine, container, stream, log)
        finally:
            stream.close()
    finally:
        log.close()
        with anyio.CancelScope(shield=True):
            try:
                await engine.remove(container)
            except ParityError:
                pass  # the engine went away; the label says whose it is
    return await anyio.Path(path).read_bytes()


async def _follow(engine: Engine, container: str, stream: OutputStream, log: LogFile) -> None:
    """Take what is printed until the container has ended, and then for a bounded time what is still on its way."""
    ended = anyio.Event()
    failure: ParityError | None = None

    async def copy() -> None:
        await stream.copy(log)
        ended.set()

    async with anyio.create_task_group() as group:
        group.start_soon(copy)
        try:
            await wait_ended(engine.socket, container, timeout_s=engine.timeout_s)
            with anyio.move_on_after(_DRAIN_S):
                await ended.wait()
        except ParityError as exc:  # raised below: a task group would wrap it
            failure = exc
        group.cancel_scope.cancel()
    if failure is not None:
        raise failure


def _empty_tar() -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        folder = tarfile.TarInfo("tmp")
        folder.type, folder.mode = tarfile.DIRTYPE, 0o1777
        tar.addfile(folder)
    return data.getvalue()
