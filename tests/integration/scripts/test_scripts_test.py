"""``scripts/test``: two stages, one summary, honest exit status. A recorder stands in for pytest itself."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]

PYTEST = """#!/bin/sh
echo "pytest $*" >>"$CALLS"
while [ $# -gt 0 ]; do
  case $1 in --junitxml) report=$2 ;; serial) stage=alone ;; esac
  shift
done
[ -z "$report" ] || printf '%s' "<testsuites><testcase file='a' name='b'>$INNER</testcase></testsuites>" >"$report"
[ "$stage" = alone ] && exit "${ALONE_STATUS:-0}"
exit "${STATUS:-0}"
"""


@pytest.fixture
def run(repo_root: Path, tmp_path: Path) -> Run:
    top = tmp_path / "a checkout"
    shutil.copytree(repo_root / "scripts" / "lib", top / "scripts" / "lib")
    shutil.copy(repo_root / "scripts" / "test", top / "scripts" / "test")
    (top / "scripts" / "services").write_text('#!/bin/sh\necho "services $*" >>"$CALLS"\nexit 1\n')
    (top / "scripts" / "services").chmod(0o755)
    (top / "tests" / "unit").mkdir(parents=True)
    (top / "tests" / "integration").mkdir()
    (top / "requirements").mkdir()
    for name in ("pyproject.toml", "requirements/dev.lock"):
        (top / name).write_text("")
    (top / ".venv" / "bin").mkdir(parents=True)
    (top / ".venv" / "bin" / "python").symlink_to(sys.executable)
    (top / ".venv" / "bin" / "pytest").write_text(PYTEST)
    (top / ".venv" / "bin" / "pytest").chmod(0o755)
    stamp = '. "$0/scripts/lib/bootstrap.sh"; stamp_of dev >"$VENV/.stamp-dev"'
    subprocess.run(["bash", "-c", stamp, str(top)], check=True, timeout=30)

    def run_it(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        calls = tmp_path / "calls"
        calls.write_text("")
        done = subprocess.run(
            [str(top / "scripts" / "test"), *arguments],
            env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "CALLS": str(calls)} | env,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        done.args = calls.read_text().splitlines()
        return done

    return run_it


def test_everything_runs_in_two_stages_and_ends_with_one_line(run: Run) -> None:
    done = run()

    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "2 passed, 0 failed, 0 skipped"
    services, together, alone = done.args
    assert services == "services install"
    assert "-n 2 --dist loadfile --no-loadscope-reorder -m not serial" in together
    assert "-n 0 -m serial" in alone


def test_the_unit_half_asks_for_no_service(run: Run) -> None:
    done = run("unit")

    assert done.returncode == 0
    assert [call.split()[0] for call in done.args] == ["pytest"]
    assert done.args[0].endswith(" tests/unit")


def test_a_folder_that_needs_services_gets_them(run: Run) -> None:
    assert run("tests/integration").args[0] == "services install"


@pytest.mark.parametrize("arguments", [("tests/unit/x.py", "-k", "name"), ("tests/unit/x.py::test_y",)])
def test_options_and_single_tests_are_one_plain_pytest(run: Run, arguments: tuple[str, ...]) -> None:
    done = run(*arguments, STATUS="4")

    assert done.args == [f"pytest {' '.join(arguments)}"]
    assert done.returncode == 4


@pytest.mark.parametrize("env", [{"STATUS": "1"}, {"ALONE_STATUS": "1"}, {"STATUS": "3"}])
def test_a_failure_in_any_stage_is_a_failure(run: Run, env: dict[str, str]) -> None:
    assert run(**env).returncode == int(*env.values())


def test_a_failure_that_pytest_did_not_report_still_counts(run: Run) -> None:
    done = run(INNER="<failure message='boom'/>")

    assert done.returncode == 1
    assert "FAILED (2):\n  a::b: boom" in done.stdout


def test_a_stage_without_tests_is_no_failure_if_the_other_had_some(run: Run) -> None:
    assert run(ALONE_STATUS="5").returncode == 0
