"""A Docker engine of a test's own: private socket, private storage, no bridge, gone with everything it made.

It needs root. No test talks to an engine that already ran, and nothing here touches one.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self
from urllib.parse import urlencode

__all__ = ["BUSYBOX_APPLETS", "PrivateDockerd", "busybox_tar", "engine_call"]

BUSYBOX_APPLETS = tuple(
    "sh ash cat cp cut date dd df du echo env expr false find free grep head hostname id ifconfig ip kill ln ls mkdir mkfifo "  # noqa: SIM905 - a list of 70 lines says no more
    "mknod mount mv nc nproc od ping pidof printf ps pwd readlink rm route sed seq setsid sha256sum sleep sort stat su sync "
    "tail tar tee test timeout touch tr true umount uname uptime wc wget which whoami xargs yes".split()
)
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 15.0
CALL_TIMEOUT_S = 60.0
_MAX_SOCKET_PATH = 100  # bytes; the kernel takes 107


class PrivateDockerd:
    """A running engine; use it as a context manager.

    Args:
        folder: Everything it writes; None makes one with a short path, removed at the end.
        live_restore: Containers go on while the engine is down.
        has_gvisor: Offer the runtime runsc, where it is installed.
    """

    def __init__(self, folder: Path | None = None, *, live_restore: bool = False, has_gvisor: bool = True) -> None:
        self._is_own = folder is None
        self.folder = folder or Path(tempfile.mkdtemp(prefix="pdk-", dir="/tmp"))  # short: a socket's path is
        self.socket = self.folder / "docker.sock"
        self._live_restore = live_restore
        self._has_gvisor = has_gvisor
        self._process: subprocess.Popen[bytes] | None = None
        if len(os.fsencode(self.socket)) > _MAX_SOCKET_PATH:
            raise ValueError(f"{self.socket} is too long for a socket")

    @classmethod
    def start(
        cls, folder: Path | None = None, *, live_restore: bool = False, has_gvisor: bool = True
    ) -> PrivateDockerd:
        """Start an engine and return it as soon as it answers.

        Raises:
            RuntimeError: It did not answer in time; the message holds the end of its log.
        """
        engine = cls(folder, live_restore=live_restore, has_gvisor=has_gvisor)
        try:
            engine.restart()
        except BaseException:
            engine.close()
            raise
        return engine

    @property
    def url(self) -> str:
        """What ``DOCKER_HOST`` takes."""
        return f"unix://{self.socket}"

    @property
    def pid(self) -> int:
        """The engine's process."""
        if self._process is None:
            raise RuntimeError("the engine does not run")
        return self._process.pid

    @property
    def log(self) -> str:
        """The end of what the engine logged."""
        path = self.folder / "log"
        return path.read_text(errors="replace")[-4_000:] if path.exists() else ""

    def __enter__(self) -> Self:
        """Return the engine, started if it was not."""
        if self._process is None:
            self.restart()
        return self

    def __exit__(self, *exc: object) -> None:
        """End it."""
        self.close()

    def restart(self, *, within_s: float = START_TIMEOUT_S) -> None:
        """Stop the engine if it runs, and start it on the same storage."""
        self.terminate()
        config = self.folder / "daemon.json"
        config.write_text(json.dumps(self._config()))
        (self.folder / "pid").unlink(missing_ok=True)
        self._forget_dead_containerd()
        arguments = {
            "data-root": self.folder / "root",
            "exec-root": self.folder / "exec",
            "host": self.url,
            "pidfile": self.folder / "pid",
            "bridge": "none",
            "iptables": "false",
            "ip6tables": "false",
            "config-file": config,
        }
        program = shutil.which("dockerd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") or "dockerd"
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [program, *(f"--{name}={value}" for name, value in arguments.items())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._await_answer(within_s)

    def terminate(self) -> None:
        """Ask the engine to end, as an operator would, and wait for it; idempotent."""
        self._end(signal.SIGTERM)

    def kill9(self) -> None:
        """Kill the engine's own process; its containers' shims go on. ``restart`` brings it back."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Make the engine hang: it accepts connections and never answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def unpause(self) -> None:
        """Let a hanging engine go on."""
        os.kill(self.pid, signal.SIGCONT)

    def import_busybox(self, name: str, *, changes: tuple[str, ...] = ()) -> str:
        """Import an image with busybox and return its id, ``sha256:…``.

        Args:
            name: Such as ``parity-test/busybox:1``.
            changes: Dockerfile instructions such as ``VOLUME /data``.
        """
        return self.import_tar(name, busybox_tar(), changes=changes)

    def import_tar(self, name: str, data: bytes, *, changes: tuple[str, ...] = ()) -> str:
        """Import a file system and return the image's id, ``sha256:…``."""
        repository, _, tag = name.partition(":")
        query = urlencode({"fromSrc": "-", "repo": repository, "tag": tag or "latest", "changes": changes}, doseq=True)
        status, answer = self.call("POST", f"/images/create?{query}", data, {"Content-Type": "application/x-tar"})
        last = json.loads(answer.splitlines()[-1])
        if status != 200 or "error" in last:
            raise RuntimeError(f"import failed: {status} {answer[-500:]!r}")
        return str(last["status"])

    def containers(self, *, label: str = "") -> list[str]:
        """Return the ids of all containers, running or not."""
        filters = f"&filters=%7B%22label%22%3A%5B%22{label}%22%5D%7D" if label else ""
        _, answer = self.call("GET", f"/containers/json?all=1{filters}")
        return [found["Id"] for found in json.loads(answer)]

    def call(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, bytes]:
        """Make one plain API call, without the library that the executor uses; return status and body."""
        return engine_call(self.socket, method, path, body, headers)

    def close(self) -> None:
        """End the engine, its containers, their shims and mounts, and remove its own folder; idempotent."""
        if self._process is not None and self._process.poll() is None:
            with contextlib.suppress(OSError):
                self.unpause()
            with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
                for found in self.containers():
                    self.call("DELETE", f"/containers/{found}?force=1&v=1")
        self.terminate()
        self._kill_left_over()
        self._unmount()
        if self._is_own:
            shutil.rmtree(self.folder, ignore_errors=True)

    # -- small things --------------------------------------------------------------------------------------------

    def _config(self) -> dict[str, object]:
        config: dict[str, object] = {"live-restore": self._live_restore}
        runsc = shutil.which("runsc") if self._has_gvisor else None
        if runsc is not None:
            config["runtimes"] = {"runsc": {"path": runsc, "runtimeArgs": ["--network=none"]}}
        return config

    def _forget_dead_containerd(self) -> None:
        """Remove the pid file of a containerd that died with its engine: as a zombie it passes for one that runs."""
        noted = self.folder / "exec" / "containerd" / "containerd.pid"
        end = time.monotonic() + STOP_TIMEOUT_S
        with contextlib.suppress(OSError, ValueError):
            pid = int(noted.read_text())
            while time.monotonic() < end:
                if _is_dead(pid):
                    noted.unlink()
                    return
                time.sleep(0.01)

    def _await_answer(self, within_s: float) -> None:
        end = time.monotonic() + within_s
        while time.monotonic() < end:
            if self._process is None or self._process.poll() is not None:
                raise RuntimeError(f"dockerd ended at once: {self.log}")
            with contextlib.suppress(OSError, http.client.HTTPException):
                status, _ = engine_call(self.socket, "GET", "/_ping", timeout_s=2.0)
                if status == 200:
                    return
            time.sleep(0.02)
        raise RuntimeError(f"dockerd did not answer within {within_s:g} s: {self.log}")

    def _end(self, by: signal.Signals) -> None:
        process = self._process
        if process is None:
            return
        process.send_signal(by)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._process = None

    def _kill_left_over(self) -> None:
        """Kill what names our folder in its arguments: the engine's containerd and its shims."""
        mark = os.fsencode(self.folder) + b"/"
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError, ValueError):
                arguments = path.read_bytes()
                is_engines = (
                    arguments.split(b"\0")[0].rpartition(b"/")[2].startswith((b"containerd", b"docker", b"runsc"))
                )
                if is_engines and mark in arguments:
                    os.kill(int(path.parent.name), signal.SIGKILL)

    def _unmount(self) -> None:
        mark = f"{self.folder}/"
        points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        for point in sorted((found for found in points if found.startswith(mark)), reverse=True):
            subprocess.run(["/bin/umount", "-l", point], check=False, capture_output=True, timeout=STOP_TIMEOUT_S)


def _is_dead(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in {"Z", "X"}
    except FileNotFoundError:
        return True


def engine_call(
    path_of_socket: Path,
    method: str,
    path: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    *,
    timeout_s: float = CALL_TIMEOUT_S,
) -> tuple[int, bytes]:
    """Make one call of the Engine API and return its status and body."""
    connection = http.client.HTTPConnection("localhost", timeout=timeout_s)
    connection.sock = socket.socket(socket.AF_UNIX)
    try:
        connection.sock.settimeout(timeout_s)
        connection.sock.connect(str(path_of_socket))
        connection.request(method, path, body, dict(headers or {}))
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def busybox_tar(*, files: Mapping[str, bytes] | None = None) -> bytes:
    """Return the file system of a small image: a static busybox, its applets, and the usual folders.

    Args:
        files: More files, by path without a leading slash.

    Raises:
        FileNotFoundError: There is no busybox on this machine.
    """
    busybox = shutil.which("busybox")
    if busybox is None:
        raise FileNotFoundError("busybox is not installed")
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for name, mode in (("bin", 0o755), ("etc", 0o755), ("tmp", 0o1777), ("root", 0o700), ("data", 0o777)):
            folder = tarfile.TarInfo(name)
            folder.type, folder.mode = tarfile.DIRTYPE, mode
            tar.addfile(folder)
        _add(tar, "bin/busybox", Path(busybox).read_bytes(), 0o755)
        for applet in BUSYBOX_APPLETS:
            link = tarfile.TarInfo(f"bin/{applet}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
        _add(tar, "etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n", 0o644)
        _add(tar, "etc/group", b"root:x:0:\nnogroup:x:65534:\n", 0o644)
        for name, content in (files or {}).items():
            _add(tar, name, content, 0o755)
    return data.getvalue()


def _add(tar: tarfile.TarFile, name: str, content: bytes, mode: int) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), mode
    tar.addfile(info, io.BytesIO(content))
