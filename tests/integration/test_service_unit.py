"""The systemd unit before a real systemd: it accepts every line, and what it forbids is not what a sandbox needs."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from parity_node.executors.sandbox.syscalls import ALLOWED
from parity_node.service import ServiceUnit, Systemd
from parity_protocol.errors import Conflict

NOT_KNOWN_TO_ALL = {"mseal"}  # newer than some systemd: a program then falls back, since the answer is ENOSYS
BWRAP_NEEDS = {
    "mount",
    "umount2",
    "pivot_root",
    "unshare",
    "setns",
    "clone3",
    "seccomp",
    "sethostname",
    "capset",
    "prctl",
}
WORST_EXPOSURE = 4.0  # of 10, by systemd's own scale; an unconfined service has 9.6
UNPRIVILEGED = 65534


@pytest.fixture(scope="module")
def analyze() -> str:
    found = shutil.which("systemd-analyze")
    if found is None:
        pytest.skip("systemd-analyze is not installed: apt-get install systemd")
    return found


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    path = tmp_path / "parity-node.service"
    text = ServiceUnit(
        program=("/bin/true",),
        home=Path("/var/lib/parity-node"),
        writable=(Path("/srv/with a space"),),
        config=Path("/etc/parity/node.env"),
        user="parity-node",
    ).text()
    path.write_text(text)
    return path


def test_systemd_accepts_every_line_and_calls_the_service_confined(analyze: str, unit: Path) -> None:
    verified = run(analyze, "verify", str(unit))
    judged = run(analyze, "security", "--offline=yes", f"--threshold={WORST_EXPOSURE * 10:.0f}", str(unit))

    assert (verified.returncode, verified.stderr.strip()) == (0, "")
    assert judged.returncode == 0, judged.stdout[-500:]


def test_the_service_may_call_what_a_sandbox_needs_and_what_it_lets_its_task_call(analyze: str, unit: Path) -> None:
    groups = _groups(run(analyze, "syscall-filter").stdout)
    words = [
        word
        for line in unit.read_text().splitlines()
        if line.startswith("SystemCallFilter=")
        for word in line.partition("=")[2].split()
    ]
    allowed = {call for word in [*words, "@default"] for call in _expand(word, groups)}

    assert set(ALLOWED) - allowed <= NOT_KNOWN_TO_ALL
    assert allowed >= BWRAP_NEEDS
    assert not allowed & {"bpf", "kexec_load", "init_module", "reboot", "swapon", "iopl", "perf_event_open"}


@pytest.mark.root
@pytest.mark.parametrize(
    ("covers", "works"),
    [
        ("true", True),
        ("mount --bind /proc/sys /proc/sys && mount -o remount,ro,bind /proc/sys /proc/sys", False),
        ("mount --bind /dev/null /proc/kmsg", False),
    ],
    ids=["as the unit does", "ProtectKernelTunables", "ProtectKernelLogs"],
)
def test_what_the_unit_leaves_out_would_keep_every_sandbox_from_starting(covers: str, works: bool) -> None:
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        pytest.skip("bwrap is not installed: apt-get install bubblewrap")
    sandbox = f"{bwrap} --unshare-all --unshare-user --disable-userns --ro-bind / / --proc /proc --dev /dev true"
    drop = f"setpriv --reuid {UNPRIVILEGED} --regid {UNPRIVILEGED} --clear-groups --no-new-privs --bounding-set=-all"

    done = run("unshare", "--mount", "--propagation", "private", "sh", "-c", f"{covers}; {drop} {sandbox}")

    assert os.geteuid() == 0
    assert (done.returncode == 0) is works, done.stderr


@pytest.mark.root
def test_whether_the_services_user_can_run_the_program_is_seen_by_running_it() -> None:
    user = pwd.getpwuid(UNPRIVILEGED).pw_name
    with tempfile.TemporaryDirectory() as folder:  # root's alone
        program = Path(folder) / "parity"
        program.write_text("#!/bin/sh\nid -u\n")
        program.chmod(0o755)

        with pytest.raises(Conflict, match="Permission denied"):
            Systemd("system").require_program([str(program)], user)
        Path(folder).chmod(0o755)
        Systemd("system").require_program([str(program)], user)


def _groups(text: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    name = ""
    for line in text.splitlines():
        if line.startswith("@"):
            name = line.strip()
            found[name] = []
        elif line.startswith("    ") and not line.lstrip().startswith("#"):
            found[name].append(line.strip())
    return found


def _expand(word: str, groups: dict[str, list[str]]) -> set[str]:
    return {call for each in groups[word] for call in _expand(each, groups)} if word.startswith("@") else {word}
