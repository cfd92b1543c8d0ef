"""The command line as people use it: every part a process of its own, the market behind TLS with a pinned certificate."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.service("bubblewrap"), pytest.mark.serial]

PARITY = [sys.executable, "-m", "parity_cli"]
READY_WITHIN_S = 60.0
TOKEN = 10**18


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Machine:
    """One user's machine: a home folder, and the processes that were started in it."""

    folder: Path
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ}
        home = {"PARITY_HOME": str(self.folder / "home"), "HOME": str(self.folder), "COLUMNS": "100"}
        return kept | home | {"PARITY_PASSPHRASE_FILE": str(self.folder / "passphrase")}

    def run(self, *arguments: str, stdin: str = "", timeout_s: float = 90.0) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*PARITY, *arguments],
            cwd=self.folder,
            env=self.environment,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def json(self, *arguments: str) -> Any:
        leaf = arguments.index("--") if "--" in arguments else len(arguments)
        done = self.run(*arguments[:leaf], "--json", *arguments[leaf:])
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)

    def start(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.out").open("wb") as out, (self.folder / f"{name}.err").open("wb") as err:
            process = subprocess.Popen(
                [*PARITY, *arguments],
                cwd=self.folder,
                env=self.environment,
                stdout=out,
                stderr=err,
                stdin=subprocess.DEVNULL,
            )
        self.processes[name] = process
        return process

    def text(self, name: str) -> str:
        return (self.folder / name).read_text(errors="replace")

    def until(self, what: Any, name: str) -> Any:
        """Wait for ``what()`` to be true, while the process ``name`` runs."""
        deadline = time.monotonic() + READY_WITHIN_S
        while not (found := what()):
            assert time.monotonic() < deadline, self.text(f"{name}.err")[-3_000:]
            assert self.processes[name].poll() is None, self.text(f"{name}.err")[-3_000:]
            time.sleep(0.1)
        return found

    def stop(self) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                process.terminate()
        for process in self.processes.values():
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A machine with a chain, a market behind TLS, a staked node that runs, and a submitter with escrow."""
    folder = tmp_path_factory.mktemp("machine")
    folder.chmod(0o711)  # a shell task's own user has to reach its folder
    found = Machine(folder)
    (folder / "passphrase").write_text("correct horse battery staple\n")
    try:
        set_up(found)
        yield found
    finally:
        found.stop()


def set_up(found: Machine) -> None:
    ready = found.folder / "chain.json"
    found.start("chain", "chain", "serve", "--port", "0", "--idle-interval", "1s", "--ready-file", str(ready))
    found.until(ready.exists, "chain")
    rpc = json.loads(ready.read_text())["rpc_url"]
    url = f"https://127.0.0.1:{free_port()}"
    made = found.json(
        "market", "init", "--public-url", url, "--rpc", rpc, "--name", "a 'quoted' market", "--unbonding", "2s"
    )
    assert "&cert=" in made["join"]
    again = found.json("market", "init")
    assert (again["join"], again["deployed"]) == (made["join"], False)
    found.start("market", "market", "serve")
    join = found.until(lambda: found.text("market.out").strip(), "market")
    assert join == made["join"]

    assert found.json("config", "use", join)["market"]["name"] == "a 'quoted' market"
    found.json("wallet", "create")
    found.json("wallet", "faucet")
    found.json("wallet", "deposit", "--amount", "5", "--yes")
    found.json("wallet", "allow", "--amount", "5", "--yes")

    owner = found.json("node", "init", "--yes", "--shell", "--slots", "2")["owner"]
    found.json("wallet", "faucet", "--to", owner, "--amount", "50")
    found.json("node", "stake", "--amount", "10", "--yes")
    found.start("node", "node", "run")
    found.until(lambda: found.json("node", "status")["agent"].get("state") == "online", "node")


def test_a_task_is_done_proven_and_paid(machine: Machine) -> None:
    done = machine.run("task", "submit", "--reward", "0.1", "--wait", "--", "echo", "hello world")

    assert (done.returncode, done.stdout) == (0, "hello world\n"), done.stderr
    task_id = machine.json("task", "list")["tasks"][0]["id"]
    shown = machine.json("task", "show", "--prove", task_id)
    assert shown["receipt"]["valid"] is True
    assert shown["receipt"]["on_chain"] is True
    assert shown["runner_id"] == machine.json("node", "balance")["node_id"]

    deadline = time.monotonic() + READY_WITHIN_S
    while machine.json("task", "show", task_id)["payout"]["state"] != "confirmed":
        assert time.monotonic() < deadline
        time.sleep(1)
    balance = machine.json("node", "balance")
    assert int(balance["chain"]["credit"]) >= TOKEN // 10
    withdrawn = machine.json("node", "withdraw", "--amount", "0.1", "--yes")
    assert withdrawn["transactions"][0]["gas_used"] > 0
    assert int(machine.json("node", "balance")["chain"]["owner_tokens"]) == 40 * TOKEN + TOKEN // 10


def test_the_sample_in_the_readme_is_true(machine: Machine, repo_root: Path) -> None:
    [sample] = re.findall(r"```python\n(.*?)```", (repo_root / "README.md").read_text(), re.DOTALL)

    done = subprocess.run(
        [sys.executable, "-c", sample],
        cwd=machine.folder,
        env=machine.environment,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["hello", "by", machine.json("node", "balance")["node_id"]]


def test_data_reaches_the_task_and_comes_back(machine: Machine) -> None:
    content = os.urandom(700_000)
    (machine.folder / "rows.bin").write_bytes(content)

    cid = machine.run("data", "add", "rows.bin").stdout.strip()
    result = machine.json(
        "task",
        "submit",
        "--reward",
        "0.1",
        "--wait",
        "--input",
        f"rows={cid}",
        "--",
        "tail",
        "-c",
        "100000",
        "inputs/rows",
    )
    got = machine.run("task", "result", result["id"], "-o", "tail.bin")

    assert cid == machine.run("data", "cid", "rows.bin").stdout.strip()
    assert got.returncode == 0, got.stderr
    assert (machine.folder / "tail.bin").read_bytes() == content[-100_000:]


def test_a_market_with_another_certificate_is_not_spoken_to(machine: Machine) -> None:
    join = machine.json("config", "show")["markets"]
    [entry] = join.values()
    other = re.sub(r"cert=[0-9a-f]{4}", "cert=0000", entry["join"])

    done = machine.run("config", "use", other, "--name", "impostor")

    assert done.returncode == 30
    assert "certificate" in done.stderr
    assert "impostor" not in machine.json("config", "show")["markets"]


def test_every_check_passes(machine: Machine) -> None:
    done = machine.run("config", "check")

    assert done.returncode == 0, done.stdout
    assert "7 passed, 0 failed" in done.stdout


def test_ctrl_c_ends_the_waiting_and_not_the_work(machine: Machine) -> None:
    waiting = machine.start(
        "waiting", "task", "submit", "--reward", "0.1", "--wait", "--title", "long", "--", "sleep", "12"
    )
    machine.until(lambda: "claim" in machine.text("waiting.err"), "waiting")

    waiting.send_signal(signal.SIGINT)

    assert waiting.wait(10) == 130
    assert "Traceback" not in machine.text("waiting.err")
    assert machine.run("task", "result", "--wait", newest(machine, "long")).returncode == 0


def newest(machine: Machine, title: str) -> str:
    return str(next(each["id"] for each in machine.json("task", "list")["tasks"] if each["title"] == title))


def test_a_failed_task_is_not_paid_and_says_why(machine: Machine) -> None:
    done = machine.run(
        "task", "submit", "--reward", "0.1", "--title", "bad", "--wait", "--", "sh", "-c", "echo why; exit 3"
    )

    assert done.returncode == 70
    assert "exit" in done.stderr
    assert machine.json("task", "show", newest(machine, "bad"))["payout"] is None


def test_logs_can_be_followed_on_both_sides(machine: Machine) -> None:
    script = "for i in 1 2 3 4 5 6; do echo line $i; sleep 1; done"
    task_id = machine.run("task", "submit", "--reward", "0.1", "--", "sh", "-c", script).stdout.strip()
    while machine.json("task", "show", task_id)["state"] not in ("running", "completed"):
        time.sleep(0.2)

    submitter = machine.run("task", "logs", "-f", task_id)

    assert submitter.stdout.splitlines() == [f"line {i}" for i in range(1, 7)]


def test_a_drained_node_ends_well_and_can_be_started_again(machine: Machine) -> None:
    before = machine.processes["node"]

    drained = machine.run("node", "drain")

    assert drained.returncode == 0, drained.stderr
    assert before.wait(20) == 0
    status = machine.run("node", "status")
    assert status.returncode == 0
    assert "STOPPED" in status.stdout
    assert "10 PDEV bonded" in status.stdout
    machine.start("node", "node", "run")
    machine.until(lambda: machine.json("node", "status")["agent"].get("state") == "online", "node")
