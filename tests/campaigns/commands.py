"""Running commands in the real executor, and looking for what is left of them."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.figures import NotAvailable
from parity_node.executors.base import Handle, Job, Limits
from parity_node.executors.command import CommandExecutor
from parity_node.testing.inputs import StaticInputs
from parity_protocol.clock import SystemClock
from parity_protocol.task import CommandSpec

__all__ = ["CommandLab", "open_lab", "pid_namespace", "pids_with", "processes_in"]


@dataclass
class CommandLab:
    """An executor with a folder of its own."""

    exec_dir: Path
    executor: CommandExecutor
    has_own_disk: bool  # nobody else writes to the file system of ``exec_dir``

    async def start(self, spec: CommandSpec, *, slot: int = 0, **bounds: float) -> Handle:
        """Start a task."""
        folder = self.exec_dir / str(uuid.uuid4())
        folder.mkdir(mode=0o700)
        members = {
            "wall_time_s": 30,
            "cpus": 1,
            "memory_bytes": 128 << 20,
            "disk_bytes": 32 << 20,
            "pids": 64,
            **bounds,
        }
        limits = Limits(**members)  # type: ignore[arg-type]
        job = Job(folder.name, "t", "l", 1, spec, 0, 1, None, folder, limits, slot)
        return await self.executor.start(await self.executor.prepare(job))

    def left(self) -> list[str]:
        """Return the names of folders that executions left."""
        return [path.name for path in self.exec_dir.iterdir()]


@contextmanager
def open_lab() -> Iterator[CommandLab]:
    """Make a lab; its folder goes away with it. As root it is a file system of its own, so that its space can be watched.

    Raises:
        NotAvailable: Commands cannot run here.
    """
    if shutil.which("bwrap") is None:
        raise NotAvailable("bubblewrap is not installed")
    path = Path(tempfile.mkdtemp(prefix="parity-lab-"))
    is_mounted = os.geteuid() == 0 and _call("mount", "-t", "tmpfs", "-o", "size=512m,mode=0711", "lab", str(path))
    path.chmod(0o711)
    try:
        executor = CommandExecutor(exec_dir=path, inputs=StaticInputs(), clock=SystemClock(), enabled=True)
        yield CommandLab(path, executor, has_own_disk=is_mounted)
    finally:
        if is_mounted:
            _call("umount", "--lazy", str(path))
        shutil.rmtree(path, ignore_errors=True)


def _call(*words: str) -> bool:
    return subprocess.run(words, check=False, capture_output=True, timeout=20).returncode == 0


def pids_with(marker: str) -> list[int]:
    """Return the processes that have ``marker`` in their arguments."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if marker.encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:  # gone
            continue
    return [pid for pid in found if pid != os.getpid()]


def pid_namespace(pid: object) -> str:
    """Return a name for the process-id namespace of ``pid``, which is that of its whole tree."""
    return str(Path(f"/proc/{pid}/ns/pid").readlink())


def processes_in(namespaces: set[str]) -> list[int]:
    """Return the processes that are in one of these namespaces, zombies too."""
    found = []
    for path in Path("/proc").iterdir():
        try:
            if path.name.isdigit() and str((path / "ns/pid").readlink()) in namespaces:
                found.append(int(path.name))
        except OSError:  # gone, or another user's
            continue
    return [pid for pid in found if pid != os.getpid()]
