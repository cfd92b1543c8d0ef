"""Files that are small to send and large to read: refused, in a process of their own, before they take its memory."""

from __future__ import annotations

import subprocess
import sys

import pytest

BOMBS = {
    "csv: one line of commas": b"b'1,' * 20_000_000",
    "csv: wide first row, then blank lines": b"b'1,' * 9_000 + b'0' + b'\\n' * 8_000_000",
    "csv: rows over the cells": b"(b'1.25,' * 9_000 + b'0\\n') * 350",
    "json: empty lists": b"b'{\"features\":[' + b'[],' * 6_000_000",
    "json: commas": b"b'{\"features\":[[' + b'1,' * 20_000_000",
    "json: empty objects": b"b'[' + b'{},' * 2_000_000",
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS.keys())
@pytest.mark.skipif(sys.platform != "linux", reason="needs RLIMIT_AS")
def test_a_bomb_is_refused_in_little_memory(bomb):
    code = (
        "from parity_fl.data import parse_csv, parse_json\n"
        "from parity_fl.limits import DataLimits\n"
        "from parity_protocol.errors import ExecutionFailed\n"
        "import resource\n"
        f"data = {bomb.decode()}\n"
        "grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try:\n"
        "    (parse_json if data[:1] in b'{[' else parse_csv)(data, limits=DataLimits(max_cells=3_000_000))\n"
        "except ExecutionFailed as refused:\n"
        "    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - grown)\n"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)

    assert int(done.stdout) * 1024 < 128 << 20  # beyond the bytes themselves
