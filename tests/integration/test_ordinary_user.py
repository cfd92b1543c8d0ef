"""Commands for an operator who is an ordinary user: the same tests again, in a process that is one.

A checkout or Python of root's own cannot be read by anybody else; so the process gets a mount namespace in which what it
needs lies where it lay, below empty folders that everybody may enter.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.service("bubblewrap"), pytest.mark.root]

UID = 23_457  # nobody's
PATIENCE_S = 120.0

ENTER = """
import os, subprocess, sys
from pathlib import Path
staging, needed, command = Path(sys.argv[1]), sys.argv[2].split(os.pathsep), sys.argv[3:]
def run(*words): subprocess.run(words, check=True)
run("mount", "--make-rprivate", "/")
def closed(path):
    return next((each for each in reversed(Path(path).parents) if not each.stat().st_mode & 0o001), None)
hidden = {path: closed(path) for path in needed if closed(path)}
for at, path in enumerate(hidden):
    (staging / str(at)).mkdir()
    run("mount", "--bind", path, str(staging / str(at)))
for top in sorted(set(hidden.values()), key=str):
    run("mount", "-t", "tmpfs", "-o", "mode=0755", "none", str(top))
for at, path in enumerate(hidden):
    os.makedirs(path, exist_ok=True)
    run("mount", "--bind", str(staging / str(at)), path)
os.chdir(needed[0])
os.execvp("setpriv", ["setpriv", "--reuid", command[0], "--regid", command[0], "--clear-groups", *command[1:]])
"""


@pytest.mark.timeout(180)
def test_an_operator_who_is_an_ordinary_user_gets_the_same_sandbox(tmp_path: Path, repo_root: Path) -> None:
    needed = os.pathsep.join(str(path) for path in (repo_root, Path(sys.base_prefix), Path(sys.prefix)))
    tests = [
        f"tests/integration/{name}"
        for name in ("test_command_folders.py", "test_sandbox_launch.py", "test_egress_bwrap.py")
    ]
    pytest_words = [
        sys.executable,
        "-B",
        "-m",
        "pytest",
        "-q",
        "-m",
        "not root",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:randomly",
    ]

    ended = subprocess.run(
        ["unshare", "--mount", sys.executable, "-c", ENTER, str(tmp_path), needed, str(UID), *pytest_words, *tests],
        env={"PATH": os.environ["PATH"], "HOME": "/tmp", "LANG": "C.UTF-8", "CI": os.environ.get("CI", "")},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )

    assert ended.returncode == 0, ended.stdout[-3_000:] + ended.stderr[-1_000:]
    assert " passed" in ended.stdout
    assert "skipped" not in ended.stdout
