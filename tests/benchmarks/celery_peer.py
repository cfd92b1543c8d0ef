"""The same work through Celery with Redis on this machine: the peer to beat.

Celery lives in an environment of its own in the user's cache, so that nothing of it can reach the project's.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from benchmarks.figures import Figure, NotAvailable, percentile

__all__ = ["measure"]

CELERY = "celery[redis]==5.5.3"
CONCURRENCY = 8
TASKS, LATENCIES = 3_000, 500
QUICK_TASKS, QUICK_LATENCIES = 800, 150
INSTALL_TIMEOUT_S = 300
READY_WITHIN_S = 30.0
RUN_TIMEOUT_S = 300
REPO_ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent

GO_PARITY = "stated by its own measurements on another machine: 110 ms a task, 104–163 tasks/s"


async def measure(*, quick: bool) -> list[Figure]:
    """Return the peer's latency and throughput: as it usually runs, and with every write synced as ours are."""
    redis, python = _redis(), _celery()
    count, latencies = (QUICK_TASKS, QUICK_LATENCIES) if quick else (TASKS, LATENCIES)
    usual = _run(redis, python, count, latencies, durable=False)
    durable = _run(redis, python, count, latencies, durable=True)
    (took, rate), (synced, synced_rate) = usual, durable
    return [
        Figure("Celery + Redis, no-op, p50", median(took), "ms", note="not durable, as it usually runs"),
        Figure("Celery + Redis, no-op, p99", percentile(took, 0.99), "ms"),
        Figure(f"Celery + Redis, {CONCURRENCY} workers", rate, "tasks/s", note="48 under way"),
        Figure("Celery + Redis, every write synced, p50", median(synced), "ms", note="appendfsync always, acks late"),
        Figure(f"Celery + Redis, every write synced, {CONCURRENCY} workers", synced_rate, "tasks/s"),
        Figure("Go Parity network, a task", 110, "ms", note=GO_PARITY),
    ]


def _redis() -> str:
    found = subprocess.run(
        [str(REPO_ROOT / "scripts" / "services"), "path", "redis"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    if found.returncode != 0:
        raise NotAvailable(found.stderr.strip() or "redis is not installed: scripts/services install redis")
    return found.stdout.strip()


def _celery() -> str:
    """Return an interpreter that has Celery, making it the first time."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "parity-node" / "bench"
    home = cache / CELERY.replace("[redis]==", "-")
    python = home / "bin" / "python"
    if (home / ".complete").exists():
        return str(python)
    uv = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
    if uv is None:
        raise NotAvailable(f"uv is not in PATH, so {CELERY} could not be installed")
    cache.mkdir(parents=True, exist_ok=True)
    for command in (
        [uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(home)],
        [uv, "pip", "install", "--quiet", "--python", str(python), CELERY],
    ):
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False, env=_plain_environment()
        )
        if done.returncode != 0:
            raise NotAvailable(f"{CELERY} could not be installed: {done.stderr.strip()[-300:]}")
    (home / ".complete").touch()
    return str(python)


def _plain_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}


def _run(redis: str, python: str, count: int, latencies: int, *, durable: bool) -> tuple[list[float], float]:
    """Return the latencies in ms, and tasks a second."""
    with TemporaryDirectory(prefix="parity-bench-") as folder:
        port = _free_port()
        sync = ["--appendonly", "yes", "--appendfsync", "always"] if durable else ["--appendonly", "no"]
        server = [redis, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder, *sync]
        env = {
            **_plain_environment(),
            "PYTHONPATH": str(HERE),
            "BENCH_BROKER": f"redis://127.0.0.1:{port}/0",
            "BENCH_DURABLE": "1" if durable else "0",
        }
        worker = [python, "-m", "celery", "-A", "celery_noop", "worker", "--concurrency", str(CONCURRENCY)]
        worker += ["--loglevel", "WARNING", "--without-gossip", "--without-mingle"]
        with _child(server, env, folder), _ready(port), _child(worker, env, folder):
            done = subprocess.run(
                [python, str(HERE / "celery_noop.py"), "measure", str(count), str(latencies)],
                capture_output=True,
                text=True,
                env=env,
                timeout=RUN_TIMEOUT_S,
                check=False,
            )
        if done.returncode != 0:
            raise NotAvailable(f"Celery could not be measured: {done.stderr.strip()[-300:]}")
    found = json.loads(done.stdout)
    return found["latencies_ms"], found["tasks_per_s"]


@contextmanager
def _child(command: list[str], env: dict[str, str], folder: str) -> Generator[None]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env, cwd=folder)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def _ready(port: int) -> Generator[None]:
    deadline = time.monotonic() + READY_WITHIN_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            break
        except OSError as exc:
            if time.monotonic() >= deadline:
                raise NotAvailable("redis did not start") from exc
            time.sleep(0.05)
    yield


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
