"""The agent as a process: TLS with a pinned certificate, signals, the lock, and what it says when it cannot run."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from ipaddress import ip_address
from pathlib import Path

import anyio
import anyio.to_thread
import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from parity_blobs.tls import pinned_context
from parity_node.control import ask_agent
from parity_node.testing.market import MarketSimulator
from parity_node.testing.simulator_server import serving
from parity_protocol.clock import SystemClock
from parity_protocol.errors import Untrusted
from parity_protocol.join import JoinString
from parity_protocol.task import TaskState

STEP_TIMEOUT_S = 30.0
IDLE_PSS_KIB = 80 << 10


class Setup:
    """A market on a port, and how to start nodes against it."""

    def __init__(self, folder: Path, market: MarketSimulator, join: JoinString) -> None:
        self.folder, self.market, self.join = folder, market, join

    @contextlib.contextmanager
    def node(self, script: str = "noop", **environment: str) -> Iterator[subprocess.Popen[bytes]]:
        values = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("RUNNER_", "PARITY_"))},
            "RUNNER_STATE_DIR": str(self.folder / "state"),
            "RUNNER_EXEC_DIR": str(self.folder / "exec"),
            "RUNNER_MARKET_JOIN": str(self.join),
            "RUNNER_SLOTS": "2",
            "RUNNER_DISK_FLOOR": "0",
            **environment,
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "parity_node.testing.node", script],
            env=values,
            cwd=self.folder,
            stderr=subprocess.PIPE,
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.communicate()


async def until(condition: Callable[[], bool], what: str) -> None:
    with anyio.move_on_after(STEP_TIMEOUT_S) as scope:
        while not condition():  # noqa: ASYNC110 - another process changes it
            await anyio.sleep(0.02)
    assert not scope.cancelled_caught, f"did not happen: {what}"


@asynccontextmanager
async def market_at(folder: Path, certificate: tuple[Path, Path, str] | None = None) -> AsyncIterator[Setup]:
    with socket.socket() as listener:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        market = MarketSimulator(SystemClock(), authority=address)
        scheme, pin = ("https", certificate[2]) if certificate else ("http", None)
        async with serving(market, listener, certificate=certificate[:2] if certificate else None):
            yield Setup(folder, market, JoinString(f"{scheme}://{address}", market.thumbprint, pin))


@pytest.fixture
async def setup(tmp_path: Path) -> AsyncIterator[Setup]:
    async with market_at(tmp_path) as found:
        yield found


def make_certificate(folder: Path, name: str = "market") -> tuple[Path, Path, str]:
    """Write a self-signed certificate and its key; return their paths and the certificate's fingerprint."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    certificate, private = folder / f"{name}.pem", folder / f"{name}.key"
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return certificate, private, sha256(made.public_bytes(serialization.Encoding.DER)).hexdigest()


async def test_node_works_over_tls_with_a_pinned_certificate(tmp_path: Path) -> None:
    async with market_at(tmp_path, make_certificate(tmp_path)) as setup:
        task = setup.market.offer()
        with setup.node() as process:
            await until(lambda: task.state is TaskState.COMPLETED, "completed over TLS")
            process.send_signal(signal.SIGTERM)
            await until(lambda: process.poll() is not None, "drained")

    assert process.returncode == 0


async def test_other_certificate_than_the_pinned_one_ends_the_node_with_both_fingerprints(tmp_path: Path) -> None:
    async with market_at(tmp_path, make_certificate(tmp_path)) as setup:
        shown = setup.join.certificate
        setup.join = JoinString(setup.join.url, setup.join.market, "0" * 64)
        with setup.node() as process:
            await until(lambda: process.poll() is not None, "ended")
            assert process.stderr is not None
            text = process.stderr.read().decode()

    assert process.returncode == 1
    assert shown is not None
    assert shown in text
    assert "0" * 64 in text


async def test_pin_holds_for_every_connection_not_only_the_first(tmp_path: Path) -> None:
    honest, other = make_certificate(tmp_path, "honest"), make_certificate(tmp_path, "other")
    async with market_at(tmp_path, honest) as setup:
        context = await anyio.to_thread.run_sync(pinned_context, setup.join.url, honest[2])
        with pytest.raises(Untrusted):
            await anyio.to_thread.run_sync(pinned_context, setup.join.url, other[2])
    async with market_at(tmp_path, other) as setup, httpx.AsyncClient(verify=context, trust_env=False) as client:
        with pytest.raises(httpx.ConnectError) as caught:
            await client.get(setup.join.url)

    assert "CERTIFICATE_VERIFY_FAILED" in str(caught.value)


async def test_sigterm_drains_and_a_second_one_ends_at_once(setup: Setup) -> None:
    task = setup.market.offer()
    with setup.node("file:2:60", RUNNER_GRACE="60s") as process:
        await until(lambda: task.state is TaskState.RUNNING, "running")
        process.send_signal(signal.SIGTERM)
        await until(lambda: any(beat.draining for beat in setup.market.heartbeats), "told the market that it drains")
        process.send_signal(signal.SIGTERM)
        await until(lambda: process.poll() is not None, "ended")

    assert process.returncode == 0
    assert task.reports == {}


async def test_status_and_drain_work_from_outside(setup: Setup) -> None:
    state = setup.folder / "state"
    with setup.node() as process:
        await until(lambda: bool(setup.market.heartbeats), "online")
        await until((state / "control.json").exists, "control socket")
        status = await anyio.to_thread.run_sync(lambda: ask_agent(state, {"command": "status"}))
        await anyio.to_thread.run_sync(lambda: ask_agent(state, {"command": "drain"}))
        await until(lambda: process.poll() is not None, "drained")

    assert process.returncode == 0
    assert status["market"]["enrolled"]
    assert status["slots"] == {"total": 2, "free": 2}
    assert setup.market.goodbyes


async def test_second_agent_on_one_state_folder_is_refused_and_the_first_goes_on(setup: Setup) -> None:
    with setup.node() as first:
        await until(lambda: bool(setup.market.nodes), "enrolled")
        with setup.node() as second:
            await until(lambda: second.poll() is not None, "refused")
            assert second.stderr is not None
            text = second.stderr.read().decode()
        assert first.poll() is None

    assert second.returncode == 1
    assert f"already running here (pid {first.pid})" in text


async def test_all_wrong_settings_are_told_at_once(setup: Setup) -> None:
    with setup.node(RUNNER_SLOTS="0", RUNNER_GRACE="soon") as process:
        await until(lambda: process.poll() is not None, "ended")
        assert process.stderr is not None
        text = process.stderr.read().decode()

    assert "RUNNER_SLOTS" in text
    assert "RUNNER_GRACE" in text


async def test_metrics_and_health_answer_on_loopback(setup: Setup) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with setup.node(RUNNER_METRICS_PORT=str(port)) as process:
        await until(lambda: bool(setup.market.heartbeats), "online")
        async with httpx.AsyncClient(trust_env=False) as client:
            health = await client.get(f"http://127.0.0.1:{port}/health")
            metrics = await client.get(f"http://127.0.0.1:{port}/metrics")
        assert process.poll() is None

    assert json.loads(health.text)["enrolled"]
    assert "parity_node_slots_free 2.0" in metrics.text


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux's smaps_rollup")
async def test_idle_node_stays_below_80_mib_and_imports_nothing_heavy(setup: Setup) -> None:
    with setup.node() as process:
        await until(lambda: bool(setup.market.heartbeats), "online")
        rollup = await anyio.Path(f"/proc/{process.pid}/smaps_rollup").read_text()
        maps = await anyio.Path(f"/proc/{process.pid}/maps").read_text()
    pss_kib = next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))

    assert pss_kib < IDLE_PSS_KIB
    assert [name for name in ("numpy", "sklearn", "torch") if f"/{name}/" in maps] == []
