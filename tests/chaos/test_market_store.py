"""What was acknowledged is there after SIGKILL."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from parity_market.store import open_sqlite, sql

_SCRIPT = Path(__file__).with_name("market_store_writer.py")


def _write_until_killed(path: Path) -> list[str]:
    """Return what the writer had acknowledged when it was killed, and nothing that was cut off."""
    with subprocess.Popen([sys.executable, str(_SCRIPT), str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(300)]
        process.send_signal(signal.SIGKILL)
        lines += process.stdout.readlines()
    return [line.strip() for line in lines if line.endswith("\n")]


async def test_acknowledged_operations_survive_sigkill(tmp_path: Path) -> None:
    path = tmp_path / "market.db"
    acknowledged = _write_until_killed(path)
    acknowledged += _write_until_killed(path)  # on what the first one left behind

    store = await open_sqlite(path)
    found = await store.read(lambda tx: [tx.one(sql.META, key=key) for key in acknowledged])
    await store.close()

    assert len(acknowledged) >= 600
    assert found == ["acknowledged"] * len(acknowledged)
