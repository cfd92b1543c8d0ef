"""The process that closes rounds: what it answers, and how little it loads."""

from __future__ import annotations

import json
import subprocess
import sys


def test_it_answers_each_line_and_has_loaded_nothing_of_the_market() -> None:
    program = (
        "import json, sys\n"
        "from parity_market.round_child import main\n"
        "status = main()\n"
        "sys.stderr.write(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))\n"
        "sys.exit(status)\n"
    )
    job = {"do": "latest", "folder": "/nonexistent", "round": None}

    done = subprocess.run(
        [sys.executable, "-c", program],
        input=f"{json.dumps(job)}\n{json.dumps(job)}\n".encode(),
        capture_output=True,
        check=True,
        timeout=30,
    )

    assert [json.loads(line) for line in done.stdout.splitlines()] == [{"doc": {}}, {"doc": {}}]
    assert not {"sqlalchemy", "structlog", "starlette", "web3", "uvicorn"} & set(json.loads(done.stderr))
