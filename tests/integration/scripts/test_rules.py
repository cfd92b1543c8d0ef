"""The rules of ``tests/conftest.py`` hold: tried on a small suite of its own."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

SUITE = """
import pytest
def test_passes(): pass
def test_skips(): pytest.skip("no such device")
@pytest.mark.xfail(reason="known")
def test_xfails(): assert False
@pytest.mark.service("no-such-service")
def test_needs_a_service(): pass
"""


def run_suite(folder: Path, repo_root: Path, suite: str = SUITE, **env: str) -> str:
    """Run ``suite`` under a copy of the project's own conftest and return what pytest printed."""
    tests = folder / "tests"
    tests.mkdir()
    (tests / "conftest.py").write_text((repo_root / "tests" / "conftest.py").read_text())
    (tests / "test_suite.py").write_text(suite)
    (folder / "scripts").symlink_to(repo_root / "scripts")
    # Without the installed plugins it starts in a fraction of the time.
    environment = {k: v for k, v in os.environ.items() if k != "CI"} | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"} | env
    options = ["-ra", "-p", "no:cacheprovider", "-o", "markers=service(name): x", "--rootdir", str(folder)]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(tests)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.stdout


def test_a_skip_is_told_by_name_and_reason(tmp_path: Path, repo_root: Path) -> None:
    output = run_suite(tmp_path, repo_root)

    assert "1 passed, 2 skipped, 1 xfailed" in output
    assert "no such device" in output
    assert "no-such-service" in output


def test_a_skip_is_a_failure_under_ci(tmp_path: Path, repo_root: Path) -> None:
    output = run_suite(tmp_path, repo_root, CI="true")

    assert "1 failed, 1 passed, 1 xfailed, 1 error" in output
    assert "was skipped, and under CI=true nothing may be: Skipped: no such device" in output


def test_a_module_that_skips_itself_is_a_failure_under_ci(tmp_path: Path, repo_root: Path) -> None:
    suite = 'import pytest\npytest.importorskip("no_such_module")\n'

    output = run_suite(tmp_path, repo_root, suite, CI="true")

    assert "1 error" in output
    assert "no_such_module" in output


async def test_an_async_test_runs_on_asyncio_without_a_mark() -> None:
    assert asyncio.get_running_loop().is_running()
