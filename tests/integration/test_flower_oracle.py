"""The recorded oracle of our aggregation rules is what the installed Flower computes today."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from parity_fl.engines.flower import FLWR_VERSION

pytestmark = [pytest.mark.serial, pytest.mark.service("flower")]


def test_our_rules_are_compared_with_what_the_installed_flower_computes(
    service_path: Callable[[str], Path], repo_root: Path
) -> None:
    python = service_path("flower") / f"flower-{FLWR_VERSION}" / "bin" / "python"

    done = subprocess.run(
        [sys.executable, repo_root / "scripts" / "record-aggregation-vectors", "--check"],
        env={**os.environ, "PARITY_FLOWER_PYTHON": str(python)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
