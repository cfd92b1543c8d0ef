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

from parity_node.testing.ordinary_user import as_ordinary_user

pytestmark = [pytest.mark.service("bubblewrap"), pytest.mark.root]

UID = 23_457  # nobody's
PATIENCE_S = 120.0


@pytest.mark.timeout(180)
def test_an_operator_who_is_an_ordinary_user_gets_the_same_sandbox(tmp_path: Path, repo_root: Path) -> None:
    needed = (repo_root, Path(sys.base_prefix), Path(sys.prefix))
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
        as_ordinary_user(UID, [*pytest_words, *tests], staging=tmp_path, needed=needed),
        env={"PATH": os.environ["PATH"], "HOME": "/tmp", "LANG": "C.UTF-8", "CI": os.environ.get("CI", "")},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )

    assert ended.returncode == 0, ended.stdout[-3_000:] + ended.stderr[-1_000:]
    assert " passed" in ended.stdout
    assert "skipped" not in ended.stdout
