"""The ServerApp against nodes that send nonsense; runs in flwr's environment, where the app lives."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from parity_fl.engines import flower
from parity_fl.engines.flower import FLWR_VERSION, engine_env

pytestmark = [pytest.mark.serial, pytest.mark.service("flower")]

SCRIPT = """
import json, sys
from types import SimpleNamespace
sys.path.insert(0, sys.argv[1])
import numpy as np
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from parity_flower.server import Courier

def reply(name, content=None, error=None):
    found = SimpleNamespace(content=content, metadata=SimpleNamespace(reply_to_message_id=name))
    found.error = SimpleNamespace(reason=error)
    found.has_error = lambda: error is not None
    return found

def good(data):
    arrays = ArrayRecord({"file": Array(np.frombuffer(data, dtype=np.uint8))})
    return RecordDict({"update": arrays, "metrics": MetricRecord({"loss": 0.5})})

class Grid:
    came = {
        "no update": reply("no update", RecordDict({})),
        "no array": reply("no array", RecordDict({"update": MetricRecord({"file": 1.0})})),
        "an error": reply("an error", error="out of memory"),
        "unknown": reply("never asked", good(b"x")),
        "good": reply("good", good(b"update")),
    }
    def pull_messages(self, names):
        names = list(names)
        if "broken" in names and len(names) > 1:
            raise KeyError("no such class")
        if names == ["broken"]:
            raise KeyError("no such class")
        return [self.came[name] for name in names if name in self.came]

class Line:
    said = []
    def ask(self, header, body=b""):
        self.said.append([header["do"], header.get("part"), body.decode(), header.get("reason", "")])
        return {}, b""

courier = Courier(Grid(), Line())
names = ["no update", "no array", "an error", "broken", "good", "still away"]
courier._sent = {name: ((1, 0, part, 1), "base") for part, name in enumerate(names)}
courier._collect()
print(json.dumps({"said": Line.said, "left": list(courier._sent)}))
"""


def test_what_a_node_sends_ends_nobody_elses_session(service_path: Callable[[str], Path], tmp_path: Path) -> None:
    python = service_path("flower") / f"flower-{FLWR_VERSION}" / "bin" / "python"
    app = Path(flower.__file__).parent / "app"

    done = subprocess.run(
        [python, "-c", SCRIPT, app],
        env=engine_env(tmp_path, python=python),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    told = {part: (what, body) for what, part, body, _ in found["said"]}
    assert told[4] == ("update", "update")
    assert {part for part, (what, _) in told.items() if what == "failed"} == {0, 1, 2, 3}
    assert found["left"] == ["still away"]
