"""What the local blob store promised holds after SIGKILL at any system call."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_killed_at_every_step_it_keeps_what_it_promised(tmp_path: Path) -> None:
    script = Path(__file__).with_name("blob_store_crashes.py")

    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, timeout=100, check=False
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout.split()[0]) > 50  # the script really met many crash points
