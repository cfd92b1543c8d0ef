"""Flower's own loop on the same machine in the same run: its SuperLink, its SuperNodes, ``FedAvg.start``."""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from statistics import median

import anyio.to_thread

from benchmarks.figures import Figure, NotAvailable
from parity_fl.engines.flower import FLWR_VERSION, engine_env

__all__ = ["flowers_own"]

NODES = 2
ROUNDS = 6
WITHIN_S = 180.0
PARAMETERS = 985

PYPROJECT = f"""
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "own-rounds"
version = "1.0.0"
description = "Flower's own loop"
license = "MIT"
dependencies = ["flwr=={FLWR_VERSION}"]
[tool.flwr.app]
publisher = "bench"
[tool.flwr.app.components]
serverapp = "own.server:app"
clientapp = "own.client:app"
[tool.flwr.app.config]
times = ""
rounds = {ROUNDS}
"""
SERVER = f"""
import time
import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()

@app.main()
def main(grid, context):
    def note(number, arrays):
        with open(context.run_config["times"], "a") as file:
            print(time.time(), file=file)

    first = ArrayRecord({{"w": Array(np.zeros({PARAMETERS}, np.float32))}})
    rounds = int(context.run_config["rounds"])
    FedAvg(fraction_evaluate=0.0).start(grid, initial_arrays=first, num_rounds=rounds, evaluate_fn=note)
"""
CLIENT = """
import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()

@app.train()
def train(message, context):
    weights = message.content["arrays"]["w"].numpy() + 1.0
    content = {"arrays": ArrayRecord({"w": Array(weights)}), "metrics": MetricRecord({"num-examples": 1})}
    return Message(RecordDict(content), reply_to=message)
"""


async def flowers_own(engines: str) -> Figure:
    """Return what a round with next to nothing to train costs by Flower's own driver.

    Args:
        engines: Folder of Flower's environment.
    """
    name = "  by Flower's own driver, FedAvg.start"
    try:
        took_s = await anyio.to_thread.run_sync(_own, Path(engines) / f"flower-{FLWR_VERSION}")
    except NotAvailable as exc:
        return Figure(name, None, "ms", note=str(exc))
    note = f"{ROUNDS} rounds, {NODES} nodes, {PARAMETERS} parameters, flwr {FLWR_VERSION}, neither TLS nor keys"
    return Figure(name, median(took_s) * 1e3, "ms", note=note)


def _own(environment: Path) -> list[float]:
    """Return the same of Flower's own processes and loop."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder, times = Path(name), Path(name) / "times"
        app = folder / "own-rounds"
        (app / "own").mkdir(parents=True)
        for file, text in (("pyproject.toml", PYPROJECT), ("own/server.py", SERVER), ("own/client.py", CLIENT)):
            (app / file).write_text(text)
        (app / "own" / "__init__.py").touch()
        env = engine_env(folder, python=environment / "bin" / "python")
        env.pop("FLWR_SUPEREXEC_TASK_POLL_INTERVAL")  # as it comes
        home = folder / "flwr"
        home.mkdir()
        port = _free_port()
        (home / "config.toml").write_text(f'[superlink.bench]\naddress = "127.0.0.1:{port}"\ninsecure = true\n')
        stack.enter_context(_running(environment, env, "flower-superlink", "--insecure", "--port", str(port)))
        for _ in range(NODES):
            options = ["--insecure", "--superlink", f"127.0.0.1:{port}", "--port", str(_free_port())]
            stack.enter_context(_running(environment, env, "flower-supernode", *options))
        _submit(environment, env, app, times)
        return _seconds(times)


def _submit(environment: Path, env: dict[str, str], app: Path, times: Path) -> None:
    until = time.monotonic() + WITHIN_S
    command = [environment / "bin" / "flwr", "run", app, "bench", "--run-config", f'times="{times}"']
    while time.monotonic() < until:
        if subprocess.run(command, env=env, capture_output=True, timeout=WITHIN_S, check=False).returncode == 0:
            return
        time.sleep(0.5)  # the SuperLink does not listen yet
    raise NotAvailable("Flower's own run could not be started")


def _seconds(times: Path) -> list[float]:
    """Wait for all rounds, and return the seconds between their ends."""
    until = time.monotonic() + WITHIN_S
    while time.monotonic() < until:
        found = [float(line) for line in times.read_text().split()] if times.exists() else []
        if len(found) > ROUNDS:  # the first is before round 1
            return [after - before for before, after in pairwise(found[1:])]
        time.sleep(0.2)
    raise NotAvailable(f"Flower's own rounds did not end within {WITHIN_S:g} s")


@contextmanager
def _running(environment: Path, env: dict[str, str], *words: str) -> Iterator[None]:
    program, *rest = words
    process = subprocess.Popen(
        [environment / "bin" / program, *rest],
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield
    finally:
        os.killpg(process.pid, 9)
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
