"""Egress in a real sandbox: the system's Python, with its own proxy support, goes through the node's proxy over real TLS."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import socket
import ssl
import tempfile
import textwrap
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from parity_node.executors.base import Limits
from parity_node.executors.egress import EgressProxy, listen_inside
from parity_node.executors.process import Identity, OutputLog, adopt_orphans
from parity_node.executors.sandbox.bwrap import TASK_HOME, Sandbox, find_bwrap
from parity_node.executors.sandbox.drop import slot_identity
from parity_node.executors.sandbox.env import task_env
from parity_node.executors.sandbox.launch import SandboxProcess
from parity_node.executors.sandbox.limits import scratch_bytes, task_rlimits
from parity_protocol.clock import SystemClock
from parity_protocol.errors import ExecutionFailed
from parity_protocol.needs import Egress

PYTHON = "/usr/bin/python3"
CERTIFICATES = Path("/etc/ssl/certs")
pytestmark = [
    pytest.mark.service("bubblewrap"),
    pytest.mark.skipif(not Path(PYTHON).exists(), reason=f"needs {PYTHON}"),
]

LIMITS = Limits(wall_time_s=60, cpus=1, memory_bytes=256 << 20, disk_bytes=8 << 20, pids=16)
PRELUDE = """
import os, socket, ssl, time, urllib.error, urllib.request
def fetch(url, size=-1):
    context = ssl.create_default_context(cadata=os.environ["CA"])
    try:
        print(urllib.request.urlopen(url, timeout=20, context=context).read(size).decode()[:20], flush=True)
    except OSError as exc:
        print(type(exc).__name__, getattr(exc, "reason", exc), flush=True)
def reach(host, port):
    try:
        socket.create_connection((host, port), 20)
    except OSError as exc:
        print(type(exc).__name__, exc.errno, flush=True)
"""


class Web:
    """An HTTPS server for example.org on this machine's loopback, its certificate signed by itself."""

    def __init__(self) -> None:
        self.port = 0
        self.ca = ""
        self.size = 6
        self.names: list[str | None] = []

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            body = b"hello\n" if self.size == 6 else bytes(self.size)
            writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            return
        finally:
            writer.close()


@asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[Web]:
    web = Web()
    certificate, key = make_certificate(folder, "example.org")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    context.sni_callback = lambda _socket, name, _context: web.names.append(name)
    server = await asyncio.start_server(web.talk, "127.0.0.1", 0, ssl=context)
    web.port, web.ca = server.sockets[0].getsockname()[1], certificate.read_text()
    try:
        yield web
    finally:
        server.close()


def make_certificate(folder: Path, name: str) -> tuple[Path, Path]:
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
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    paths = folder / f"{name}.pem", folder / f"{name}.key"
    paths[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    form = serialization.PrivateFormat.PKCS8
    paths[1].write_bytes(key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
    return paths


def entries_of(folder: Path) -> int:
    return sum(1 for _ in folder.iterdir())


class Zone:
    """A resolver whose answers change from one lookup to the next; the last one stays."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self.answers = list(answers)

    async def __call__(self, _host: str, _port: int) -> Sequence[str]:
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


class Runner:
    """Runs a Python script in a sandbox with a grant."""

    def __init__(self, folder: Path, web: Web) -> None:
        self.folder = folder
        self.web = web
        self.log: list[str] = []
        self.bytes_used = 0

    async def prints(self, script: str, *domains: str, zone: Zone | None = None, max_bytes: int = 1 << 20) -> str:
        adopt_orphans()
        proxy = EgressProxy(
            Egress(domains=domains or (f"example.org:{self.web.port}",), max_bytes=max_bytes),
            folder=self.folder,
            on_refusal=self.log.append,
            execution_id="e1",
            clock=SystemClock(),
            resolver=zone or Zone(["127.0.0.1"]),
            allow=lambda address: address == "127.0.0.1",
        )
        identity = slot_identity(0)
        sandbox = Sandbox(
            command=(PYTHON, "-I", "-c", PRELUDE + textwrap.dedent(script)),
            env=task_env({**proxy.env(), "CA": self.web.ca}, home=TASK_HOME),
            inputs=(),
            scratch_bytes=scratch_bytes(LIMITS),
            rlimits=task_rlimits(LIMITS),
            identity=identity,
            has_hosts=True,
        )

        async def open_door(pid: int) -> None:
            proxy.attach(await listen_inside(pid, identity))

        output = OutputLog(self.folder / "output.log", 1 << 20)
        bwrap = find_bwrap()
        assert bwrap is not None
        try:
            process = await SandboxProcess.launch(bwrap, sandbox, output, before_start=open_door)
            with anyio.fail_after(50):
                await process.wait()
        finally:
            await proxy.aclose()
        self.bytes_used = proxy.bytes_used
        return (self.folder / "output.log").read_text()


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="parity-exec-"))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
async def runner(folder: Path) -> AsyncIterator[Runner]:
    async with serving(folder) as web:
        yield Runner(folder, web)


async def test_a_task_fetches_over_tls_from_the_granted_host(runner: Runner) -> None:
    said = await runner.prints(f"fetch('https://example.org:{runner.web.port}/')")

    assert said == "hello\n\n"
    assert runner.web.names == ["example.org"]
    assert runner.bytes_used > 500
    assert runner.log == []


async def test_other_hosts_addresses_and_ports_are_refused_in_words(runner: Runner) -> None:
    port = runner.web.port
    urls = [
        f"https://example.net:{port}/",
        f"https://10.0.0.1:{port}/",
        "https://169.254.169.254/",
        "https://example.org/",
    ]

    said = await runner.prints("".join(f"fetch({url!r})\n" for url in urls))

    assert said.splitlines() == ["URLError Tunnel connection failed: 403 Forbidden"] * 4
    assert [line.partition(": ")[0] for line in runner.log] == [
        *("E-EGRESS example.net", "E-EGRESS 10.0.0.1", "E-EGRESS 169.254.169.254", "E-EGRESS example.org"),
    ]
    assert runner.web.names == []


async def test_past_the_proxy_there_is_nothing_and_it_fails_at_once(runner: Runner) -> None:
    targets = [("127.0.0.1", runner.web.port), ("10.0.0.1", 80), ("169.254.169.254", 80), ("example.org", 443)]

    said = await runner.prints(
        "began = time.monotonic()\n"
        + "".join(f"reach{target}\n" for target in targets)
        + "print(time.monotonic() - began < 3)\n"
        "print([line.split(':')[0].strip() for line in open('/proc/net/dev') if ':' in line])\n"
        "print(os.path.exists('/etc/resolv.conf'))"
    )

    # The first is the sandbox's own loopback, not this machine's.
    assert said.splitlines() == [
        f"ConnectionRefusedError {errno.ECONNREFUSED}",
        *[f"OSError {errno.ENETUNREACH}"] * 2,
        f"gaierror {socket.EAI_AGAIN}",
        "True",
        "['lo']",
        "False",
    ]


async def test_a_name_that_rebinds_to_a_private_address_is_refused(runner: Runner) -> None:
    url = f"https://example.org:{runner.web.port}/"

    said = await runner.prints(f"fetch({url!r})\nfetch({url!r})", zone=Zone(["127.0.0.1"], ["169.254.169.254"]))

    assert said == "hello\n\nURLError Tunnel connection failed: 403 Forbidden\n"
    assert "169.254.169.254, which is not a public address" in runner.log[0]


async def test_a_task_gets_no_byte_over_its_cap(runner: Runner) -> None:
    runner.web.size = 4 << 20

    said = await runner.prints(f"fetch('https://example.org:{runner.web.port}/')", max_bytes=1 << 20)

    assert "hello" not in said
    assert runner.bytes_used == 1 << 20
    assert "egress.max_bytes" in runner.log[0]


@pytest.mark.skipif(not CERTIFICATES.is_dir(), reason=f"this machine has no certificates in {CERTIFICATES}")
async def test_a_grant_brings_the_machines_certificates(runner: Runner) -> None:
    said = await runner.prints("print(sorted(os.listdir('/etc/ssl')), len(os.listdir('/etc/ssl/certs')))")

    names, _, count = said.rpartition(" ")
    assert int(count) == entries_of(CERTIFICATES)
    assert "private" not in names


async def test_a_task_cannot_take_the_proxys_port(runner: Runner) -> None:
    said = await runner.prints(
        """
        try:
            socket.socket().bind(("127.0.0.1", 3128))
        except OSError as exc:
            print(exc.errno)
        """
    )

    assert said == f"{errno.EADDRINUSE}\n"


async def test_a_process_that_is_no_sandbox_of_ours_is_not_entered() -> None:
    identity = Identity(61_000, 61_000) if os.geteuid() == 0 else None

    with pytest.raises(ExecutionFailed, match="cannot enter the sandbox"):
        await listen_inside(os.getpid(), identity)
