"""What the attempts to escape look for on this machine: a file, a process and services that hold random secrets.

Each would be found by a task that is not contained. The file may be read by everybody and the process is the task's own
user's, so that it is the sandbox that hides them and not their permissions.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from parity_node.executors.process import Identity
from parity_protocol.errors import ExecutionFailed, FailureReason

__all__ = ["Canaries", "planted"]

_PREFIX: Final = "parity-canary-"  # and 32 hex digits: what the attempts look for in all that they read
_ENGINE_SOCKETS: Final = (
    *("/var/run/docker.sock", "/run/docker.sock", "/run/containerd/containerd.sock", "/run/podman/podman.sock"),
    *("/run/crio/crio.sock", "/run/dbus/system_bus_socket", "/run/systemd/private", "/run/systemd/journal/stdout"),
)
_ELSEWHERE = "192.0.2.1"  # TEST-NET-1: asked which of this machine's addresses leads out; nothing is sent


@dataclass(frozen=True, slots=True)
class Canaries:
    """Where the secrets are, and what they say."""

    tokens: frozenset[str]
    files: tuple[Path, ...]
    pids: tuple[int, ...]
    loopback: tuple[tuple[str, int], ...]
    services: tuple[tuple[str, int], ...]
    abstract: tuple[str, ...]
    unix: tuple[Path, ...]
    engine_sockets: tuple[str, ...] = field(default=_ENGINE_SOCKETS)

    def question(self, hidden: Collection[Path]) -> dict[str, object]:
        """Return what the attempts are told: where to look, and no secret.

        Args:
            hidden: Files of the node that must not be there either.
        """
        return {
            "files": [str(each) for each in self.files],
            "secrets": [str(each) for each in (*self.files, *hidden)],
            "pids": list(self.pids),
            "loopback": [list(each) for each in self.loopback],
            "services": [list(each) for each in self.services],
            "addresses": [address for address, _ in self.services],
            "abstract": list(self.abstract),
            "unix": [str(each) for each in self.unix],
            "sockets": [*self.engine_sockets, *(str(each) for each in self.unix)],
        }


@asynccontextmanager
async def planted(folder: Path, *, identity: Identity | None = None) -> AsyncIterator[Canaries]:
    """Plant secrets for the time of a probe.

    Args:
        folder: An empty folder that is not bound into the sandbox; traversable for everybody.
        identity: Who the task will run as, if not as the node.

    Raises:
        ExecutionFailed: This machine lets nothing be planted (``node_fault``).
    """
    tokens = [_PREFIX + secrets.token_hex(16) for _ in range(7)]
    # Apart from the tokens: whoever knows a name does not know a secret.
    name = secrets.token_hex(8)
    file = folder / "canary"
    async with AsyncExitStack() as stack:
        try:
            # A folder of its own, because the name of a socket must be short.
            path = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="parity-")), "s")
            path.parent.chmod(0o711)
            file.write_text(tokens[0])
            file.chmod(0o644)
            helper = _start_helper(tokens[1], tokens[2], identity)
            stack.callback(_end, helper)
            abstract = f"\0parity-{name}"
            loopback = await _serve(stack, tokens[3], socket.AF_INET, ("127.0.0.1", 0))
            own = _own_address()
            services = [await _serve(stack, tokens[4], socket.AF_INET, (own, 0))] if own else []
            await _serve(stack, tokens[5], socket.AF_UNIX, abstract)
            await _serve(stack, tokens[6], socket.AF_UNIX, str(path))
            path.chmod(0o777)  # noqa: ASYNC240 - one call, on a file of /tmp
        except (OSError, subprocess.SubprocessError) as exc:
            raise ExecutionFailed(FailureReason.NODE_FAULT, f"cannot plant what a probe looks for: {exc}") from exc
        yield Canaries(
            tokens=frozenset(tokens),
            files=(file,),
            pids=(os.getpid(), helper.pid),
            loopback=(loopback,),
            services=tuple(services),
            abstract=(abstract,),
            unix=(path,),
        )


def _start_helper(argument: str, variable: str, identity: Identity | None) -> subprocess.Popen[bytes]:
    """Start a process with a secret in its arguments and one in its environment; it ends with its standard input."""
    user = {} if identity is None else {"user": identity.uid, "group": identity.gid, "extra_groups": ()}
    helper: subprocess.Popen[bytes] = subprocess.Popen(
        ["/bin/sh", "-c", "read -r line", argument],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={"PARITY_CANARY": variable},
        cwd="/",
        start_new_session=True,
        **user,  # type: ignore[call-overload]  # the stubs want each keyword spelled out
    )
    return helper


def _end(helper: subprocess.Popen[bytes]) -> None:
    helper.kill()
    helper.wait()
    if helper.stdin is not None:
        helper.stdin.close()


async def _serve(stack: AsyncExitStack, token: str, family: int, address: tuple[str, int] | str) -> tuple[str, int]:
    """Answer every connection with a secret; returns the address with its port."""

    async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(token.encode())
        writer.close()

    door = socket.socket(family, socket.SOCK_STREAM)
    stack.callback(door.close)
    door.settimeout(0)
    door.bind(address)
    start = asyncio.start_server if family == socket.AF_INET else asyncio.start_unix_server
    server = await start(answer, sock=door)
    stack.callback(server.close)
    found = door.getsockname()
    return (str(found[0]), int(found[1])) if family == socket.AF_INET else ("", 0)


def _own_address() -> str:
    """Return the address by which this machine reaches others; empty without one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as door:
        try:
            door.connect((_ELSEWHERE, 9))
            return str(door.getsockname()[0])
        except OSError:
            return ""
