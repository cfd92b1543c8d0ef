"""The node as a systemd service: what its unit says, and what systemctl is asked to do."""

from __future__ import annotations

import os
import pwd
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from parity_node.service import KILL_EXTRA_S, MARK, ServiceUnit, Systemd, stop_s, unit_path
from parity_protocol.errors import BadField, Conflict, Unavailable

PROGRAM = ("/opt/parity/bin/parity",)
HOME = Path("/var/lib/parity-node")


class Machine:
    """Remembers what it was asked to run."""

    def __init__(self, **failures: str) -> None:
        self.asked: list[str] = []
        self.patience_s: dict[str, float] = {}
        self.failures = failures
        self.prints = ""

    def __call__(self, command: Sequence[str], timeout_s: float) -> subprocess.CompletedProcess[str]:
        line = " ".join(command)
        self.asked.append(line)
        self.patience_s[line] = timeout_s
        failure = next((text for word, text in self.failures.items() if word in line), None)
        return subprocess.CompletedProcess(list(command), 0 if failure is None else 1, self.prints, failure or "")


def unit(**changes: Any) -> ServiceUnit:
    values: dict[str, Any] = {"program": PROGRAM, "home": HOME, "user": "parity-node"}
    return ServiceUnit(**values | changes)


def lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def test_a_systems_unit_runs_the_node_as_its_own_user_behind_walls() -> None:
    found = lines(unit(config=Path("/etc/parity/node.env"), groups=("docker",)).text())

    assert {
        "ExecStart=/opt/parity/bin/parity node run --config-path /etc/parity/node.env",
        "Environment=PARITY_HOME=/var/lib/parity-node",
        "User=parity-node",
        "SupplementaryGroups=docker",
        "NoNewPrivileges=yes",
        "CapabilityBoundingSet=",
        "ProtectSystem=strict",
        "ReadWritePaths=/var/lib/parity-node",
        "ProtectHome=yes",
        "PrivateTmp=yes",
        "WantedBy=multi-user.target",
    } <= set(found)


def test_nothing_in_the_unit_keeps_a_sandbox_from_starting() -> None:
    keys = {line.partition("=")[0] for line in lines(unit().text())}

    assert not keys & {
        "ProtectKernelTunables",  # each of these covers a part of /proc
        "ProtectKernelLogs",
        "ProtectProc",
        "ProcSubset",
        "RestrictNamespaces",
        "ProtectHostname",
        "ProtectControlGroups",
        "PrivateUsers",
        "PrivateNetwork",
        "MemoryDenyWriteExecute",
    }
    assert "Delegate" in keys


def test_a_stop_takes_longer_than_the_grace_and_kills_what_is_left() -> None:
    found = lines(unit(grace_s=600.4).text())

    assert "TimeoutStopSec=660s" in found
    assert "KillMode=mixed" in found


@pytest.mark.parametrize(
    ("version", "pauses"),
    [(252, {"RestartSec=30s"}), (254, {"RestartSec=2s", "RestartSteps=8", "RestartMaxDelaySec=5min"})],
)
def test_a_node_that_fails_is_started_again_for_ever_with_pauses_that_this_systemd_knows(
    version: int, pauses: set[str]
) -> None:
    found = lines(unit(systemd_version=version).text())

    assert {line for line in found if line.startswith(("RestartSec", "RestartSteps", "RestartMax"))} == pauses
    assert "Restart=on-failure" in found
    assert "StartLimitIntervalSec=0" in found


def test_a_task_that_runs_out_of_memory_does_not_stop_the_node() -> None:
    assert "OOMPolicy=continue" in lines(unit().text())


def test_a_service_waits_for_the_disks_that_it_writes_to() -> None:
    found = lines(unit(writable=(Path("/srv/big disk"),)).text())

    assert 'RequiresMountsFor=/var/lib/parity-node "/srv/big disk"' in found


def test_a_users_own_unit_asks_for_no_mount_namespace() -> None:
    found = lines(unit(user=None, home=Path("/home/me/.parity")).text())
    keys = {line.partition("=")[0] for line in found}

    assert not keys & {"User", "ProtectSystem", "PrivateTmp", "PrivateDevices", "CapabilityBoundingSet"}
    assert "WantedBy=default.target" in found
    assert "NoNewPrivileges=yes" in found


@pytest.mark.parametrize(
    "changes",
    [
        {"program": ("/home/me/.venv/bin/parity",)},
        {"reads": (Path("/home/me/.local/share/uv/python/cpython-3.12"),)},
        {"home": Path("/home/me/.parity")},
    ],
    ids=["program", "its Python", "PARITY_HOME"],
)
def test_what_lies_in_a_home_can_be_read(changes: dict[str, Any]) -> None:
    assert "ProtectHome=read-only" in lines(unit(**changes).text())


def test_no_path_can_say_more_to_systemd_than_its_name() -> None:
    odd = Path('/srv/a b"c%d$e\\f')

    found = lines(unit(config=odd, writable=(odd,)).text())

    assert r'ExecStart=/opt/parity/bin/parity node run --config-path "/srv/a b\"c%%d$$e\\f"' in found
    assert r'ReadWritePaths=/var/lib/parity-node "/srv/a b\"c%%d$e\\f"' in found


@pytest.mark.parametrize(
    "changes",
    [
        {"home": Path("relative")},
        {"home": Path("/a\nUser=root")},
        {"config": Path("/a\nExecStartPre=/bin/evil")},
        {"user": "root\nx"},
        {"user": "Root User"},
        {"groups": ("a b",)},
        {"writable": (Path("/a\tb\n"),)},
    ],
)
def test_what_cannot_be_written_into_a_unit_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(BadField):
        unit(**changes).text()


def test_installing_twice_changes_nothing_the_second_time(tmp_path: Path) -> None:
    machine, path = Machine(), tmp_path / "units/parity-node.service"
    systemd = Systemd("system", run=machine)

    changed = [systemd.install(path, unit().text(), start=True) for _ in range(2)]

    assert changed == [True, False]
    assert path.read_text() == unit().text()
    assert machine.asked == [
        "systemctl daemon-reload",
        "systemctl enable --now parity-node.service",
        "systemctl enable --now parity-node.service",
    ]


def test_a_units_removal_leaves_everything_else(tmp_path: Path) -> None:
    machine, path = Machine(), tmp_path / "parity-node.service"
    systemd = Systemd("user", run=machine)
    systemd.install(path, unit(user=None).text(), start=False)

    assert systemd.remove(path)
    assert not systemd.remove(path)
    assert not path.exists()
    assert machine.asked[2:] == [
        "systemctl --user disable parity-node.service",
        "systemctl --user stop parity-node.service",
        "systemctl --user daemon-reload",
    ]


def test_a_removal_waits_as_long_as_the_unit_lets_the_node_take(tmp_path: Path) -> None:
    machine, path = Machine(), tmp_path / "parity-node.service"
    systemd = Systemd("system", run=machine)
    systemd.install(path, unit(grace_s=3_600).text(), start=True)

    systemd.remove(path)

    assert machine.patience_s["systemctl stop parity-node.service"] == 3_660 + KILL_EXTRA_S
    assert stop_s("[Service]\n") == 90


def test_the_unit_stays_until_the_node_has_ended(tmp_path: Path) -> None:
    path = tmp_path / "parity-node.service"
    systemd = Systemd("system", run=Machine(stop="Job canceled"))
    systemd.install(path, unit().text(), start=True)

    with pytest.raises(Unavailable, match="Job canceled"):
        systemd.remove(path)
    assert path.read_text() == unit().text()


def test_a_folder_that_is_missing_is_told_with_the_command_that_makes_it(tmp_path: Path) -> None:
    systemd = Systemd("system", run=Machine())
    systemd.require_folders(unit(writable=(tmp_path,)))

    with pytest.raises(Conflict, match="not there") as caught:
        systemd.require_folders(unit(writable=(tmp_path / "exec",)))

    assert caught.value.hint() == f"install -d -o parity-node -m 0700 {tmp_path}/exec"
    assert not (tmp_path / "exec").exists()


def test_a_program_that_the_services_user_cannot_run_is_refused() -> None:
    me = pwd.getpwuid(os.geteuid()).pw_name
    can, cannot = Machine(), Machine(setpriv="failed to execute: Permission denied")

    Systemd("system", run=can).require_program(PROGRAM, me)
    with pytest.raises(Conflict, match=r"cannot run /opt/parity/bin/parity: .*Permission denied"):
        Systemd("system", run=cannot).require_program(PROGRAM, me)

    assert can.asked[0].endswith("/opt/parity/bin/parity --version")
    assert f"--reuid={me} " in can.asked[0]


def test_root_is_no_user_of_a_service(tmp_path: Path) -> None:
    with pytest.raises(BadField, match="other than root"):
        Systemd("system", run=Machine()).make_user("root", tmp_path / "home")
    assert not (tmp_path / "home").exists()


def test_somebody_elses_unit_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "parity-node.service"
    path.write_text("[Service]\n")
    systemd = Systemd("system", run=Machine())

    with pytest.raises(Conflict, match="left as it is"):
        systemd.install(path, unit().text(), start=False)
    with pytest.raises(Conflict, match="left as it is"):
        systemd.remove(path)
    assert path.read_text() == "[Service]\n"
    assert MARK in unit().text()


def test_without_systemd_the_command_to_use_instead_is_told(tmp_path: Path) -> None:
    with pytest.raises(Conflict, match="use instead: parity node run"):
        Systemd("system", run=Machine(), running=tmp_path / "none").require(["parity", "node", "run"])


def test_what_systemctl_says_when_it_fails_is_told(tmp_path: Path) -> None:
    systemd = Systemd("system", run=Machine(enable="Access denied"))

    with pytest.raises(Unavailable, match=r"enable .* failed: Access denied"):
        systemd.install(tmp_path / "parity-node.service", unit().text(), start=False)


def test_a_systemctl_that_hangs_is_unavailable() -> None:
    def hang(command: Sequence[str], timeout_s: float) -> subprocess.CompletedProcess[str]:
        raise subprocess.TimeoutExpired(list(command), timeout_s)

    with pytest.raises(Unavailable, match="timed out"):
        Systemd("system", run=hang).show()


def test_the_units_state_is_read_by_name() -> None:
    machine = Machine()
    machine.prints = "LoadState=loaded\nActiveState=active\nResult=\nnoise\n"

    assert Systemd("system", run=machine).show() == {"LoadState": "loaded", "ActiveState": "active", "Result": ""}


def test_the_version_is_0_when_nobody_says_it() -> None:
    machine = Machine()
    assert Systemd("system", run=machine).version() == 0
    machine.prints = "systemd 255 (255.4-1)\n+PAM\n"
    assert Systemd("system", run=machine).version() == 255


def test_a_user_is_made_once_and_its_home_is_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    me = pwd.struct_passwd(("parity-node", "x", os.geteuid() or 991, os.getegid(), "", "/", "/bin/false"))
    machine, known = Machine(), [False]

    def getpwnam(name: str) -> pwd.struct_passwd:
        if not known[0] and not machine.asked:
            raise KeyError(name)
        return me

    monkeypatch.setattr(pwd, "getpwnam", getpwnam)
    systemd = Systemd("system", run=machine)

    made = [systemd.make_user("parity-node", tmp_path / "home") for _ in range(2)]

    assert made == [True, False]
    assert len(machine.asked) == 1
    assert "useradd --system" in machine.asked[0]
    assert (tmp_path / "home").stat().st_mode & 0o777 == 0o700


def test_where_the_units_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))

    assert unit_path("system") == Path("/etc/systemd/system/parity-node.service")
    assert unit_path("user") == tmp_path / "systemd/user/parity-node.service"
