from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from parity_client import Home
from parity_node.service import MARK, Systemd

if TYPE_CHECKING:
    from .conftest import Parity
else:
    Parity = Any


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """A machine on which systemd runs and does what it is asked to; what that was."""
    asked: list[tuple[str, ...]] = []

    def call(_: Systemd, *arguments: str, timeout_s: float = 0) -> str:
        asked.append(arguments)
        return "ActiveState=active\nSubState=running\n" if arguments[0] == "show" else ""

    monkeypatch.setattr(Systemd, "call", call)
    monkeypatch.setattr(Systemd, "require", lambda *_: None)
    monkeypatch.setattr(Systemd, "version", lambda _: 252)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return asked


def test_a_dry_run_prints_the_unit_and_changes_nothing(parity: Parity, tmp_path: Path) -> None:
    done = parity("node", "service", "install", "--system", "--dry-run")

    assert done.code == 0
    assert done.out.startswith(MARK)
    assert "User=parity-node" in done.out
    assert not (tmp_path / "config").exists()


def test_install_and_remove_leave_the_nodes_data(
    parity: Parity, home: Home, tmp_path: Path, machine: list[tuple[str, ...]]
) -> None:
    home.path.mkdir(parents=True)
    (home.path / "node.env").write_text("RUNNER_GRACE=2m\nRUNNER_EXEC_DIR=/tmp\n")
    unit = tmp_path / "config/systemd/user/parity-node.service"

    installed = parity("node", "service", "install", "--user", "--json").json
    again = parity("node", "service", "install", "--user", "--json").json
    text = unit.read_text()
    removed = parity("node", "service", "remove", "--user", "--json").json

    assert (installed["changed"], installed["started"], again["changed"]) == (True, True, False)
    assert "TimeoutStopSec=180s" in text
    assert f"PARITY_HOME={home.path}" in text
    assert removed["removed"]
    assert not unit.exists()
    assert (home.path / "node.env").exists()
    assert ("enable", "--now", "parity-node.service") in machine


def test_a_node_that_is_not_set_up_is_not_started(parity: Parity, machine: list[tuple[str, ...]]) -> None:
    done = parity("node", "service", "install", "--user")

    assert done.code == 0
    assert "node init" in done.out
    assert ("enable", "parity-node.service") in machine


def test_a_wrong_settings_file_is_told_before_anything_changes(parity: Parity, home: Home, tmp_path: Path) -> None:
    home.path.mkdir(parents=True)
    (home.path / "node.env").write_text("RUNNER_SLOTS=many\n")

    assert parity("node", "service", "install", "--user").code == 10
    assert not (tmp_path / "config").exists()


def test_a_folder_that_is_missing_is_told_before_anything_changes(parity: Parity, home: Home, tmp_path: Path) -> None:
    home.path.mkdir(parents=True)
    (home.path / "node.env").write_text(f"RUNNER_EXEC_DIR={tmp_path}/none\n")

    done = parity("node", "service", "install", "--user")

    assert done.code == 40
    assert f"mkdir -p -m 0700 {tmp_path}/none" in done.err
    assert not (tmp_path / "config").exists()


def test_a_home_that_this_user_may_not_look_at_is_told_with_systemds_part(
    parity: Parity, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_file", lambda path: refuse(path) if path.name == "node.env" else False)

    done = parity("node", "service", "status", "--system", "--home", str(home.path), "--json")

    assert done.code == 1
    assert done.json["systemd"]["ActiveState"] == "active"
    assert "only root and the service's own user" in done.json["agent"]["error"]


def test_a_users_own_service_has_no_other_user(parity: Parity) -> None:
    assert parity("node", "service", "install", "--user", "--run-as", "x").code == 2


def test_status_is_1_while_the_node_does_not_answer(parity: Parity) -> None:
    done = parity("node", "service", "status", "--user", "--json")

    assert done.code == 1
    assert done.json["systemd"]["ActiveState"] == "active"
    assert done.json["installed"] is False
    assert "error" in done.json["agent"]
