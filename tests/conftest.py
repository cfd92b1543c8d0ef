"""Rules that hold for every test: what needs a real service says so, and under ``CI=true`` nothing may be skipped."""

from __future__ import annotations

import functools
import os
import subprocess
from collections.abc import Callable, Generator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

REPO_ROOT = Path(__file__).resolve().parent.parent
UNDER_CI = os.environ.get("CI") == "true"

FOLDER_ORDER = ("unit", "conformance", "contracts", "integration", "e2e", "chaos")
"""Cheap tests run first, so that a plain mistake is known in seconds."""

LOOKUP_TIMEOUT_S = 20.0

# A machine shared with other work is slow at random, so no profile has a deadline: the time-out of pytest catches a hang.
settings.register_profile("dev", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", parent=settings.get_profile("dev"), derandomize=True, print_blob=True)
settings.load_profile("ci" if UNDER_CI else "dev")


@functools.cache
def locate_service(name: str) -> tuple[Path | None, str]:
    """Ask ``scripts/services`` where a service lies.

    Returns:
        The path and an empty text, or None and the reason in words.
    """
    answer = subprocess.run(
        [str(REPO_ROOT / "scripts" / "services"), "path", name],
        capture_output=True,
        text=True,
        timeout=LOOKUP_TIMEOUT_S,
        check=False,
    )
    if answer.returncode == 0:
        return Path(answer.stdout.strip()), ""
    return None, answer.stderr.strip() or f"{name} is not installed"


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """Return the top folder of the checkout."""
    return REPO_ROOT


@pytest.fixture(scope="session")
def service_path() -> Callable[[str], Path]:
    """Return a function from a service's name to its program or folder, for tests marked ``service(name)``."""

    def path_of(name: str) -> Path:
        path, reason = locate_service(name)
        if path is None:
            pytest.skip(reason)
        return path

    return path_of


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Run async tests on asyncio, the backend that the programs use."""
    return "asyncio"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the random order within a folder, and put cheap folders first."""

    def rank(item: pytest.Item) -> int:
        top = item.path.relative_to(REPO_ROOT / "tests").parts[0] if item.path.is_relative_to(REPO_ROOT) else ""
        return FOLDER_ORDER.index(top) if top in FOLDER_ORDER else len(FOLDER_ORDER)

    items.sort(key=rank)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip, by name and with the remedy, what this machine cannot run."""
    if item.get_closest_marker("root") is not None and os.geteuid() != 0:
        pytest.skip("needs uid 0")
    for marker in item.iter_markers("service"):
        for name in marker.args:
            path, reason = locate_service(name)
            if path is None:
                pytest.skip(reason)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn a skip into a failure under CI: a test that never runs there protects nobody."""
    report = yield
    if UNDER_CI and report.skipped and not hasattr(report, "wasxfail"):
        _fail_for_skipping(report, item.nodeid)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Do the same for a whole module that skips itself, for instance by ``importorskip``."""
    report = yield
    if UNDER_CI and report.skipped:
        _fail_for_skipping(report, collector.nodeid)
    return report


def _fail_for_skipping(report: pytest.TestReport | pytest.CollectReport, name: str) -> None:
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    report.outcome = "failed"
    report.longrepr = f"{name} was skipped, and under CI=true nothing may be: {reason}"
