"""What the engine is asked for when a container is made: everything, in one place, and nothing that a task could add.

A task's fields reach the engine only through ``ContainerRequest``, each in a place of its own. There is no list of
options, no string that a command line would read, and no name of a variable without its value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from pydantic import JsonValue

from parity_node.executors.process import Identity

__all__ = ["INPUTS", "LABEL_PREFIX", "OUTPUT", "RUNTIMES", "ContainerRequest", "Runtime"]

Runtime = Literal["runc", "runsc"]
RUNTIMES: tuple[Runtime, ...] = ("runc", "runsc")

LABEL_PREFIX = "network.parity."
INPUTS = "/inputs"
OUTPUT = "/output"
STOP_SIGNAL = "SIGTERM"  # an image may name another one, which would make a polite end impossible
MAX_OPEN_FILES = 1_024
RUNSC_PIDS = 192  # its own threads count: with 112 in all it ended at the fourth process of a task (measured)
RUNSC_PIDS_EACH = 12  # threads of its own for each process: with 224 in all it ended at the twentieth (measured)
_INIT_PIDS = 1
_SHM_BYTES = 64 << 20
_LEAST_LOG_BYTES = 1 << 20
_LOG_OVERHEAD = 2  # what the engine's log takes for each byte of ordinary lines
_OOM_SCORE = 500  # when the machine itself runs out of memory, a task goes before the node and the engine


@dataclass(frozen=True, slots=True)
class ContainerRequest:
    """One container. The limits that hold for all of them are in ``body`` and have no field."""

    image: str  # its id, sha256:…; never a name, which somebody could move
    user: Identity
    cpus: float
    memory_bytes: int  # and no swap beside it
    pids: int
    scratch_bytes: int  # of /tmp, and of each volume that the image declares; both are charged to the memory
    file_bytes: int  # of the largest single file
    log_bytes: int  # of output that must still be there after this node restarted
    labels: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    entrypoint: tuple[str, ...] | None = None  # None is the image's own
    command: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    workdir: str = "/"
    volumes: tuple[str, ...] = ()  # declared by the image; each becomes a tmpfs
    readonly: tuple[tuple[Path, str], ...] = ()  # path here → path inside
    output: Path | None = None  # becomes /output, writable
    network_of: str | None = None  # id of the container whose network it joins; None is no network
    runtime: Runtime = "runc"
    gpus: tuple[str, ...] = ()  # fixed device ids, granted by the operator
    cgroup_parent: str = ""  # empty is the engine's own

    def body(self, seccomp: str) -> dict[str, JsonValue]:
        """Return the body of the Engine API's create call.

        Args:
            seccomp: The system-call profile, JSON.
        """
        config: dict[str, JsonValue] = {
            "Image": self.image,
            "User": f"{self.user.uid}:{self.user.gid}",
            "Env": [f"{name}={value}" for name, value in self.env.items()],
            "WorkingDir": self.workdir,
            "Labels": {f"{LABEL_PREFIX}{name}": value for name, value in self.labels.items()},
            "AttachStdin": False,
            "AttachStdout": True,
            "AttachStderr": True,
            "OpenStdin": False,
            "Tty": False,
            "StopSignal": STOP_SIGNAL,
            "Healthcheck": {"Test": ["NONE"]},
            "HostConfig": self._host_config(seccomp),
        }
        if self.network_of is None:
            config["Hostname"] = "task"
        if self.entrypoint is not None:
            config["Entrypoint"] = list(self.entrypoint)
        if self.command:
            config["Cmd"] = list(self.command)
        return config

    def _host_config(self, seccomp: str) -> dict[str, JsonValue]:
        uid, gid = self.user.uid, self.user.gid
        own = f"nosuid,nodev,noexec,uid={uid},gid={gid},mode=0700"
        tmpfs: dict[str, JsonValue] = {"/tmp": f"rw,size={self.scratch_bytes},{own}"}  # noqa: S108 - inside
        if self.runtime == "runc":
            shm = min(_SHM_BYTES, self.scratch_bytes)
            tmpfs["/dev/shm"] = f"rw,size={shm},{own}"  # noqa: S108 - there is none without an IPC namespace to share
        config: dict[str, JsonValue] = {
            "Init": True,
            "Runtime": self.runtime,
            "NetworkMode": "none" if self.network_of is None else f"container:{self.network_of}",
            "IpcMode": "none",
            "PidMode": "",
            "UTSMode": "",
            "UsernsMode": "",
            "CgroupnsMode": "private",
            "Privileged": False,
            "PublishAllPorts": False,
            "ReadonlyRootfs": True,
            "AutoRemove": False,
            "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0},
            "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges:true", f"seccomp={seccomp}"],
            "Memory": self.memory_bytes,
            "MemorySwap": self.memory_bytes,
            "NanoCpus": round(self.cpus * 1e9),
            "PidsLimit": self._pids(),
            "OomKillDisable": False,
            "OomScoreAdj": _OOM_SCORE,
            "Ulimits": [
                {"Name": "core", "Soft": 0, "Hard": 0},
                {"Name": "fsize", "Soft": self.file_bytes, "Hard": self.file_bytes},
                {"Name": "memlock", "Soft": 0, "Hard": 0},
                {"Name": "nofile", "Soft": MAX_OPEN_FILES, "Hard": MAX_OPEN_FILES},
            ],
            "LogConfig": {
                "Type": "local",
                "Config": {
                    "max-size": str(max(_LEAST_LOG_BYTES, _LOG_OVERHEAD * self.log_bytes)),
                    "max-file": "2",
                    "compress": "false",
                },
            },
            "Tmpfs": tmpfs,
            "Mounts": self._mounts(),
        }
        if self.cgroup_parent:
            config["CgroupParent"] = self.cgroup_parent
        if self.gpus:
            config["DeviceRequests"] = [
                {"Driver": "nvidia", "DeviceIDs": list(self.gpus), "Capabilities": [["gpu", "compute", "utility"]]}
            ]
        return config

    def _mounts(self) -> list[JsonValue]:
        mounts: list[JsonValue] = [
            {"Type": "tmpfs", "Target": path, "TmpfsOptions": {"SizeBytes": self.scratch_bytes, "Mode": 0o1777}}
            for path in self.volumes
        ]
        for source, target in self.readonly:
            mounts.append(_bind(source, target, is_readonly=True))
        if self.output is not None:
            mounts.append(_bind(self.output, OUTPUT, is_readonly=False))
        return mounts

    def _pids(self) -> int:
        """Return the limit on the machine's threads. In gVisor a task's processes are not counted one by one."""
        if self.runtime == "runsc":
            return RUNSC_PIDS + RUNSC_PIDS_EACH * self.pids
        return self.pids + _INIT_PIDS


def _bind(source: Path, target: str, *, is_readonly: bool) -> JsonValue:
    return {
        "Type": "bind",
        "Source": str(source),
        "Target": target,
        "ReadOnly": is_readonly,
        "BindOptions": {"Propagation": "rprivate", "NonRecursive": True},
    }
