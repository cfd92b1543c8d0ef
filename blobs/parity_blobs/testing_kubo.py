"""A Kubo of our own for tests and benchmarks: offline, on loopback, in a temporary repository."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from parity_blobs.cid import Cid
from parity_protocol.errors import Unavailable

__all__ = ["PrivateKubo", "private_kubo"]

START_S = 30.0
STOP_S = 10.0
COMMAND_S = 120.0


@dataclass(frozen=True)
class PrivateKubo:
    """A daemon that runs.

    Attributes:
        gateway: Address of its trustless gateway.
        api: Address of its RPC.
    """

    program: str
    env: dict[str, str]
    gateway: str
    api: str

    def run(self, *arguments: str, stdin: bytes = b"") -> bytes:
        """Run the command line and return what it prints.

        Raises:
            Unavailable: It failed; the message is what it says.
        """
        command = [self.program, *arguments]
        done = subprocess.run(command, env=self.env, input=stdin, capture_output=True, timeout=COMMAND_S, check=False)
        if done.returncode != 0:
            raise Unavailable(done.stderr.decode(errors="replace"))
        return done.stdout

    def add(self, path: Path, *flags: str) -> Cid:
        """Add a file or folder and return its CID."""
        return Cid.parse(self.run("add", "-Q", "-r", *flags, str(path)).decode().strip())


@contextmanager
def private_kubo(program: Path, folder: Path, *, profile: str = "test") -> Iterator[PrivateKubo]:
    """Start a daemon whose repository is in ``folder``, and stop it at the end.

    Raises:
        Unavailable: It does not start; the message is its log.
    """
    env = {**os.environ, "IPFS_PATH": str(folder / "repository")}
    found = PrivateKubo(str(program), env, f"http://127.0.0.1:{_free_port()}", f"http://127.0.0.1:{_free_port()}")
    found.run("init", f"--profile={profile}")
    for key, url in (("Addresses.API", found.api), ("Addresses.Gateway", found.gateway)):
        found.run("config", key, "/ip4/127.0.0.1/tcp/" + url.rpartition(":")[2])
    log_path = folder / "log"
    with log_path.open("wb") as log:
        daemon = subprocess.Popen([str(program), "daemon", "--offline"], env=env, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + START_S
            while b"Daemon is ready" not in log_path.read_bytes():
                if daemon.poll() is not None or time.monotonic() > deadline:
                    raise Unavailable(log_path.read_text(errors="replace"))
                time.sleep(0.05)
            yield found
        finally:
            daemon.send_signal(signal.SIGTERM)
            try:
                daemon.wait(STOP_S)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
