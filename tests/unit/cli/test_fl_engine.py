"""``parity fl engine``; the packages themselves are fetched by ``scripts/services install flower``."""

from __future__ import annotations

import json
import subprocess
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from parity_cli import engines
from parity_fl.engines.flower import ENGINE_FILE, FLWR_VERSION, lock_file

if TYPE_CHECKING:
    from .conftest import Parity
else:
    Parity = Any


@pytest.fixture(autouse=True)
def engines_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PARITY_ENGINES", str(tmp_path / "engines"))
    return tmp_path / "engines"


class Programs:
    """Stands in for uv, pip and the new interpreter: the edge to other people's programs."""

    def __init__(self, *, fails: str = "", version: str = FLWR_VERSION) -> None:
        self.fails = fails
        self.version = version
        self.ran: list[list[str]] = []

    def __call__(self, argv: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        self.ran.append(argv)
        if "venv" in argv:
            Path(argv[-1], "bin").mkdir(parents=True, exist_ok=True)
        if self.fails and self.fails in argv:
            return subprocess.CompletedProcess(argv, 1, "", "hash mismatch")
        return subprocess.CompletedProcess(argv, 0, self.version if "-c" in argv else "", "")


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> Programs:
    found = Programs()
    monkeypatch.setattr(engines.subprocess, "run", found)
    return found


def test_an_engine_is_installed_from_its_hashes_and_listed(parity: Parity, programs: Programs, engines_folder: Path):
    done = parity("fl", "engine", "install", "flower", "--json")

    installs = [argv for argv in programs.ran if "install" in argv]
    assert installs
    assert all("--require-hashes" in argv and str(lock_file()) in argv for argv in installs)
    assert done.json["state"] == "installed"
    assert parity("fl", "engine", "list", "--json").json["engines"][0]["state"] == "installed"
    written = json.loads((engines_folder / f"flower-{FLWR_VERSION}" / ENGINE_FILE).read_text())
    assert written["lock_sha256"] == sha256(lock_file().read_bytes()).hexdigest()


def test_installing_twice_does_nothing_the_second_time(parity: Parity, programs: Programs):
    parity("fl", "engine", "install", "flower")
    programs.ran.clear()

    assert parity("fl", "engine", "install", "flower").code == 0
    assert programs.ran == []


def test_an_engine_of_other_packages_is_outdated_and_made_anew(
    parity: Parity, programs: Programs, engines_folder: Path
):
    parity("fl", "engine", "install", "flower")
    (engines_folder / f"flower-{FLWR_VERSION}" / ENGINE_FILE).write_text('{"lock_sha256": "old"}')
    assert "outdated" in parity("fl", "engine", "list").out
    programs.ran.clear()

    assert parity("fl", "engine", "install", "flower", "--json").json["state"] == "installed"
    assert programs.ran


def test_a_failed_installation_leaves_nothing_and_says_why(
    parity: Parity, monkeypatch: pytest.MonkeyPatch, engines_folder: Path
):
    monkeypatch.setattr(engines.subprocess, "run", Programs(fails="install"))

    done = parity("fl", "engine", "install", "flower")

    assert done.code == 60
    assert "hash mismatch" in done.err
    assert not (engines_folder / f"flower-{FLWR_VERSION}").exists()


def test_an_environment_with_another_version_is_not_kept(
    parity: Parity, monkeypatch: pytest.MonkeyPatch, engines_folder: Path
):
    monkeypatch.setattr(engines.subprocess, "run", Programs(version="1.40.0"))

    done = parity("fl", "engine", "install", "flower")

    assert "1.40.0" in done.err
    assert not (engines_folder / f"flower-{FLWR_VERSION}").exists()


def test_pip_is_used_where_uv_fails(parity: Parity, monkeypatch: pytest.MonkeyPatch):
    programs = Programs(fails="--python")
    monkeypatch.setattr(engines.subprocess, "run", programs)

    assert parity("fl", "engine", "install", "flower").code == 0
    assert any("pip" in argv and "-m" in argv for argv in programs.ran)


def test_an_engine_is_removed(parity: Parity, programs: Programs):
    parity("fl", "engine", "install", "flower")

    assert parity("fl", "engine", "remove", "flower", "--json").json == {"engine": "flower", "removed": True}
    assert parity("fl", "engine", "remove", "flower", "--json").json["removed"] is False
    assert "not installed" in parity("fl", "engine", "list").out


def test_an_unknown_engine_is_named(parity: Parity):
    done = parity("fl", "engine", "install", "ray")

    assert done.code == 22
    assert "flower" in done.err
