"""``scripts/services``: what a user has is used, what is missing appears whole or not at all, and a refusal says why."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]

TOOLS = (
    "bash",
    "cat",
    "chmod",
    "dirname",
    "flock",
    "grep",
    "id",
    "ln",
    "mkdir",
    "mktemp",
    "mv",
    "rm",
    "sed",
    "sh",
    "tail",
)

GOOD_NPM = """
[ "$1" = --version ] && exit 0
while [ $# -gt 0 ]; do [ "$1" = --prefix ] && prefix=$2; shift; done
for tool in anvil forge cast; do
  bin="$prefix/node_modules/@foundry-rs/$tool-linux-amd64/bin"; mkdir -p "$bin"
  printf '#!/bin/sh\\necho "%s 1.7.1"\\n' $tool >"$bin/$tool"
done
echo installed >>"$COUNT"
"""


@pytest.fixture
def bin_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    return folder


@pytest.fixture
def services(repo_root: Path, tmp_path: Path, bin_folder: Path) -> Run:
    """Return a function that runs the script with a cache and a PATH of its own."""
    for tool in TOOLS:
        (bin_folder / tool).symlink_to(shutil.which(tool) or f"/nowhere/{tool}")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        env = {
            "PATH": str(bin_folder),
            "HOME": str(tmp_path),
            "PARITY_SERVICES": str(tmp_path / "cache"),
            "COUNT": str(tmp_path / "count"),
        }
        script = str(repo_root / "scripts" / "services")
        return subprocess.run([script, *arguments], env=env, capture_output=True, text=True, timeout=60, check=False)

    return run


def program(folder: Path, name: str, body: str) -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def cached(tmp_path: Path, relative: str) -> Path:
    path = tmp_path / "cache" / relative
    path.parent.mkdir(parents=True, exist_ok=True)
    return program(path.parent, path.name, "exit 0")


def test_a_program_of_the_user_comes_before_the_cache(services: Run, bin_folder: Path, tmp_path: Path) -> None:
    own = program(bin_folder, "ipfs", 'echo "ipfs version 0.40.3"')
    cached(tmp_path, "kubo-0.40.1/ipfs")

    assert services("path", "kubo").stdout.strip() == str(own)


def test_a_program_of_another_version_is_left_alone(services: Run, bin_folder: Path, tmp_path: Path) -> None:
    program(bin_folder, "ipfs", 'echo "ipfs version 0.18.1"')
    in_cache = cached(tmp_path, "kubo-0.40.1/ipfs")

    assert services("path", "kubo").stdout.strip() == str(in_cache)


def test_a_missing_service_is_one_plain_line_with_its_remedy(services: Run) -> None:
    answer = services("path", "bore")

    assert answer.returncode == 1
    assert answer.stdout == ""
    assert answer.stderr == "bore is not installed: scripts/services install bore\n"


def test_a_name_that_nobody_knows_is_refused(services: Run) -> None:
    answer = services("install", "no-such-thing")

    assert answer.returncode == 1
    assert "there is no service named no-such-thing" in answer.stderr


def test_a_missing_toolchain_is_named(services: Run) -> None:
    answer = services("install", "foundry", "kubo")

    assert answer.returncode == 1
    assert "foundry: needs Node.js 20 or later" in answer.stderr
    assert "kubo: needs Go 1.25 or later" in answer.stderr


def test_an_old_toolchain_counts_as_missing(services: Run, bin_folder: Path) -> None:
    program(bin_folder, "go", "echo go version go1.19.8 linux/amd64")

    assert "kubo: needs Go 1.25 or later" in services("install", "kubo").stderr


def test_an_installed_service_is_found_and_not_installed_again(services: Run, bin_folder: Path, tmp_path: Path) -> None:
    program(bin_folder, "node", "echo v22.1.0")
    program(bin_folder, "npm", GOOD_NPM)

    first, second = services("install", "foundry"), services("install", "foundry", "anvil")

    assert (first.returncode, second.returncode) == (0, 0), first.stderr
    assert (tmp_path / "count").read_text() == "installed\n"
    anvil = services("path", "anvil").stdout.strip()
    assert anvil == str(tmp_path / "cache" / "foundry-1.7.1" / "bin" / "anvil")
    assert subprocess.run([anvil], capture_output=True, text=True, check=True).stdout == "anvil 1.7.1\n"


def test_a_failed_install_shows_its_log_and_leaves_nothing(services: Run, bin_folder: Path, tmp_path: Path) -> None:
    program(bin_folder, "node", "echo v22.1.0")
    program(bin_folder, "npm", '[ "$1" = --version ] && exit 0\necho "registry says no"\nexit 1')

    answer = services("install", "foundry")

    assert answer.returncode == 1
    assert "registry says no" in answer.stderr
    assert [entry.name for entry in (tmp_path / "cache").iterdir() if entry.suffix != ".lock"] == []


def test_the_list_names_every_service_with_its_state(services: Run, tmp_path: Path) -> None:
    cached(tmp_path, "kubo-0.40.1/ipfs")

    lines = services("list").stdout.splitlines()

    states = {line.split()[0]: line.split()[2] for line in lines[1:]}
    assert states["kubo"] == "ready"
    assert states["bore"] == "missing"
    assert len(states) == 20
