"""When the environment in ``.venv`` counts as up to date, and which Python may make it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture
def checkout(repo_root: Path, tmp_path: Path) -> Path:
    """Return a small checkout, in a folder with a space, whose environment looks installed."""
    top = tmp_path / "a checkout"
    shutil.copytree(repo_root / "scripts" / "lib", top / "scripts" / "lib")
    (top / "requirements").mkdir()
    for name in ("pyproject.toml", "requirements/default.lock", "requirements/dev.lock"):
        (top / name).write_text(f"{name}\n")
    (top / ".venv" / "bin").mkdir(parents=True)
    (top / ".venv" / "bin" / "python").symlink_to("/bin/true")
    return top


def bash(checkout: Path, script: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-euc", f'. "$0/scripts/lib/bootstrap.sh"; {script}', str(checkout)],
        env={"PATH": "/usr/bin:/bin", "HOME": str(checkout)} | env,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def stamp(checkout: Path, kind: str) -> None:
    assert bash(checkout, f'stamp_of {kind} >"$VENV/.stamp-{kind}"').returncode == 0


def is_current(checkout: Path, kind: str) -> bool:
    return bash(checkout, f"is_current {kind}").returncode == 0


def test_an_environment_without_a_stamp_is_made_again(checkout: Path) -> None:
    assert not is_current(checkout, "default")


def test_the_developers_environment_serves_users_and_not_the_other_way_round(checkout: Path) -> None:
    stamp(checkout, "dev")
    assert is_current(checkout, "dev")
    assert is_current(checkout, "default")

    (checkout / ".venv" / ".stamp-dev").unlink()
    stamp(checkout, "default")
    assert is_current(checkout, "default")
    assert not is_current(checkout, "dev")


@pytest.mark.parametrize("changed", ["pyproject.toml", "requirements/dev.lock"])
def test_a_changed_lock_or_project_file_makes_the_stamp_old(checkout: Path, changed: str) -> None:
    stamp(checkout, "dev")

    (checkout / changed).write_text("changed\n")

    assert not is_current(checkout, "dev")


def test_a_checkout_that_was_moved_is_set_up_again(checkout: Path) -> None:
    stamp(checkout, "dev")

    moved = checkout.rename(checkout.with_name("elsewhere"))

    assert not is_current(moved, "dev")


def test_a_developer_s_environment_stays_one_when_a_user_s_script_renews_it(checkout: Path) -> None:
    (checkout / ".venv" / ".stamp-dev").write_text("old")
    recorded = 'make_environment() { :; }; install_locked() { echo "installs $1"; }; bootstrap default'

    answer = bash(checkout, recorded)

    assert answer.stdout == "installs dev\n"
    assert is_current(checkout, "dev")


def test_an_up_to_date_environment_says_nothing_and_takes_no_lock(checkout: Path) -> None:
    stamp(checkout, "dev")

    answer = bash(checkout, "bootstrap default")

    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "", "")
    assert not (checkout / ".venv" / ".bootstrap.lock").exists()


@pytest.mark.parametrize(
    ("version", "suitable"), [((3, 10), False), ((3, 11), True), ((3, 13), True), ((3, 14), False)]
)
def test_only_the_pythons_that_the_locks_cover_are_taken(
    checkout: Path, tmp_path: Path, version: tuple[int, int], suitable: bool
) -> None:
    # The check itself decides, on a version that this interpreter pretends to have.
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "import sys; sys.version_info = {(*version, 0)}; $2"\n')
    python.chmod(0o755)

    answer = bash(checkout, f'is_suitable "{python}"')

    assert (answer.returncode == 0) == suitable
