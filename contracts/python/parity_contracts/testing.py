"""A chain to test against and to show things on: the embedded one, as the real process that it is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from parity_contracts.deploy import faucet
from parity_protocol.errors import ChainUnavailable

__all__ = ["DevChain", "faucet"]

_READY_WITHIN_S = 30.0
_STOP_WITHIN_S = 10.0
_POLL_S = 0.02


@dataclass
class DevChain:
    """The embedded chain as a child process. Blocking; a context manager that stops it.

    Attributes:
        data: Its folder; what is in it survives ``kill``.
        port: 0 lets the system choose at the first start; a restart keeps the port, so that clients need not know.
        idle_interval: Go-style duration between empty blocks.
    """

    data: Path
    port: int = 0
    chain_id: int = 31337
    block_interval: str = "1s"
    idle_interval: str = "1s"
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    _ready: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def rpc_url(self) -> str:
        """Where it answers."""
        return str(self._ready["rpc_url"])

    @property
    def genesis_hash(self) -> str:
        """Hash of block 0, ``0x`` and 64 hex digits."""
        return str(self._ready["genesis_hash"])

    @property
    def pid(self) -> int:
        """Process id; raises when it does not run."""
        if self._process is None:
            raise ChainUnavailable("the embedded chain does not run")
        return self._process.pid

    @property
    def log_path(self) -> Path:
        """What it printed."""
        return self.data.parent / f"{self.data.name}.log"

    def start(self) -> Self:
        """Start it and return when it answers.

        Raises:
            ChainUnavailable: It ended, or did not answer within 30 s; the message has the end of what it printed.
        """
        if self._process is not None:
            return self
        self.data.mkdir(parents=True, exist_ok=True)
        ready_file = self.data / "ready.json"
        ready_file.unlink(missing_ok=True)
        command = [sys.executable, "-m", "parity_contracts.devnet", "--data", str(self.data)]
        command += ["--port", str(self.port), "--ready-file", str(ready_file), "--chain-id", str(self.chain_id)]
        command += ["--block-interval", self.block_interval, "--idle-interval", self.idle_interval]
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + _READY_WITHIN_S
        while not ready_file.exists():
            ended = self._process.poll() is not None
            if ended or time.monotonic() > deadline:
                self.kill()
                said = self.log_path.read_text(errors="replace")[-2_000:]
                raise ChainUnavailable(f"the embedded chain {'ended' if ended else 'did not start'}:\n{said}")
            time.sleep(_POLL_S)
        self._ready = json.loads(ready_file.read_bytes())
        self.port = int(self.rpc_url.rsplit(":", 1)[1])
        return self

    def stop(self) -> int:
        """End it with SIGTERM and return its exit status; 0 if it did not run."""
        return self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it with SIGKILL, at whatever it is doing."""
        self._end(signal.SIGKILL)

    def restart(self) -> Self:
        """Start it again on the same folder and port."""
        self.kill()
        return self.start()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _end(self, how: signal.Signals) -> int:
        process, self._process = self._process, None
        if process is None:
            return 0
        if process.poll() is None:
            os.kill(process.pid, how)
        try:
            return process.wait(_STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()
