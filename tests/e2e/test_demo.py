"""``parity demo`` as somebody runs it; then each of its numbers worked out again from the market's API and the chain."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LinearRegression

from parity_client import Client, verify_proof
from parity_client.orders import market_domain
from parity_contracts.chain.web3_chain import Web3Chain
from parity_contracts.deployment import Deployment
from parity_fl.data import load_dataset
from parity_fl.model import decode_model
from parity_fl.partition import holdout_rows
from parity_fl.session import SessionPlan
from parity_node.testing.dockerd import PrivateDockerd

pytestmark = [pytest.mark.serial, pytest.mark.timeout(240)]

DEMO = (sys.executable, "-m", "parity_cli", "demo")
DEMO_WITHIN_S = 180
ENDED_WITHIN_S = 10.0
TOKEN = 10**18


@dataclass
class KeptDemo:
    """A demo that has said its summary and goes on running."""

    process: subprocess.Popen[bytes]
    folder: Path
    summary: dict[str, Any]
    errors: Path

    def home(self) -> Path:
        return self.folder / "home"

    def passphrase(self) -> str:
        return (self.home() / "passphrase").read_text().strip()


def started(tmp: Path, *options: str, engine: str = "unix:///nonexistent") -> tuple[subprocess.Popen[bytes], Path]:
    """Start a demo whose folder is made in ``tmp``; its output goes to ``stdout`` and ``stderr`` there.

    Args:
        engine: Address of the container engine; by default there is none.
    """
    errors = tmp / "stderr"
    environment = {**os.environ, "TMPDIR": str(tmp), "COLUMNS": "100", "DOCKER_HOST": engine}
    with (tmp / "stdout").open("wb") as output, errors.open("wb") as stream:
        process = subprocess.Popen([*DEMO, *options], stdout=output, stderr=stream, env=environment, cwd=tmp)
    return process, errors


def processes_of(folder: Path) -> list[int]:
    """Return the processes whose environment or command names ``folder``."""
    wanted, found = str(folder).encode(), []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if wanted in (entry / "environ").read_bytes() + (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def wait_until(condition: Callable[[], object], what: str, within_s: float) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"did not happen in {within_s} s: {what}"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def engine() -> Iterator[str]:
    """Return the address of an engine of the test's own; without root or dockerd the demo leaves its container out."""
    if os.geteuid() != 0 or shutil.which("dockerd") is None:
        yield "unix:///nonexistent"
        return
    with PrivateDockerd.start() as found:
        yield found.url


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory, engine: str) -> Iterator[KeptDemo]:
    tmp = tmp_path_factory.mktemp("demo")
    tmp.chmod(0o711)
    process, errors = started(tmp, "--json", "--keep", engine=engine)
    try:
        output = tmp / "stdout"
        wait_until(lambda: output.read_text().endswith("}\n") or process.poll() is not None, "summary", DEMO_WITHIN_S)
        summary = json.loads(output.read_text())  # one document and nothing else
        [folder] = tmp.glob("parity-demo-*")
        yield KeptDemo(process, folder, summary, errors)
        assert len(processes_of(folder)) >= 4  # chain, market, two nodes: it was left running
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        assert process.wait(ENDED_WITHIN_S) == 0
        assert time.monotonic() - began < 5
        assert processes_of(folder) == []
        assert (folder / "logs" / "market.log").exists()
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(ENDED_WITHIN_S)
        print(errors.read_text()[-4000:])


@pytest.fixture
async def market(kept: KeptDemo) -> AsyncIterator[Client]:
    async with Client.from_config(home=kept.home(), passphrase=kept.passphrase) as client:
        yield client


@pytest.fixture
async def chain(kept: KeptDemo) -> AsyncIterator[Web3Chain]:
    deployment = Deployment.load(kept.folder / "market" / "deployment.json")
    url = json.loads((kept.folder / "chain" / "ready.json").read_bytes())["rpc_url"]
    async with await Web3Chain.connect(url, deployment) as connected:
        yield connected


def test_summary_has_exactly_the_promised_fields(kept: KeptDemo) -> None:
    summary = kept.summary

    assert set(summary) == {"ok", "seconds", "tasks", "nodes", "forest", "linear"}
    for task in summary["tasks"]:
        assert set(task) == {"id", "type", "state", "node", "attempts", "reward", "paid", "receipt_valid"}
    for node in summary["nodes"]:
        assert set(node) == {"id", "address", "stake", "earned", "earned_on_chain", "killed"}
    assert set(summary["forest"]) == {"accuracy", "central_accuracy", "oob_local_mean", "oob_federated"}
    assert set(summary["linear"]) == {"r2", "central_r2"}
    amounts = [task[name] for task in summary["tasks"] for name in ("reward", "paid")]
    amounts += [node[name] for node in summary["nodes"] for name in ("stake", "earned", "earned_on_chain")]
    assert all(isinstance(amount, str) and amount.isdigit() for amount in amounts)
    assert summary["ok"] is True
    assert 10 < summary["seconds"] < DEMO_WITHIN_S


def test_progress_goes_to_standard_error(kept: KeptDemo) -> None:
    told = kept.errors.read_text()

    for words in ("chain:", "contracts:", "money:", "runs on", "was killed (SIGKILL)", "done by", "statements hold"):
        assert words in told, words


async def test_every_task_is_as_the_market_says(kept: KeptDemo, market: Client) -> None:
    listed = {task.id: task for task in (await market.tasks(limit=50)).tasks}

    assert set(listed) == {task["id"] for task in kept.summary["tasks"]}
    assert len(listed) >= 5
    for told in kept.summary["tasks"]:
        task = listed[told["id"]]
        assert (told["type"], told["state"], told["node"]) == (task.type, "completed", task.runner_id)
        assert (told["attempts"], told["reward"]) == (task.attempts, str(task.reward))
        assert task.state == "completed"
        assert task.payout is not None
        assert (task.payout.state, told["paid"]) == ("confirmed", str(task.reward))


def test_a_container_ran_where_there_is_an_engine(kept: KeptDemo, engine: str) -> None:
    containers = [task for task in kept.summary["tasks"] if task["type"] == "docker"]

    assert [task["state"] for task in containers] == ([] if engine.endswith("nonexistent") else ["completed"])


async def test_every_receipt_is_valid_offline_by_the_operator_that_the_chain_names(
    kept: KeptDemo, market: Client, chain: Web3Chain
) -> None:
    domain, thumbprint = market_domain(market.trusted), market.trusted.thumbprint

    for told in kept.summary["tasks"]:
        proof = await market.proof(told["id"])
        operator = (await chain.account(told["node"])).operator
        verified = verify_proof(proof, domain=domain, market=thumbprint, operator=operator)
        assert told["receipt_valid"] is True
        assert (verified.task_id, verified.node_id) == (told["id"], told["node"])
        assert verified.creator == market.address


async def test_stakes_and_earnings_are_those_of_the_chain(kept: KeptDemo, market: Client, chain: Web3Chain) -> None:
    for told in kept.summary["nodes"]:
        account = await chain.account(told["id"])
        node = await market.node(told["id"])
        did = sum(int(task["paid"]) for task in kept.summary["tasks"] if task["node"] == told["id"])
        assert (told["stake"], told["address"]) == (str(account.bond), account.payout)
        assert account.bond >= 10 * TOKEN
        assert int(told["earned"]) == node.earned == node.confirmed == did
        assert int(told["earned_on_chain"]) == account.credit == did

    escrow = (await chain.escrow(market.address, market.document.spender)).amount
    spent = sum(int(task["reward"]) for task in kept.summary["tasks"])
    assert (await market.account()).spent == spent
    assert escrow == (await market.account()).available


async def test_task_of_the_killed_node_ended_at_its_second_attempt_on_another(kept: KeptDemo, market: Client) -> None:
    [killed] = [node for node in kept.summary["nodes"] if node["killed"]]
    [delayed] = [task for task in kept.summary["tasks"] if task["attempts"] == 2]

    events = (await market.events(delayed["id"])).events
    task = await market.task(delayed["id"])

    claims = [event for event in events if event.event == "claim"]
    started_by_killed = [event for event in events if event.event == "start" and event.node_id == killed["id"]]
    assert [event.node_id for event in claims] == [killed["id"], delayed["node"]]
    assert delayed["node"] != killed["id"]
    assert len(started_by_killed) == 1
    assert "lease_lost" in [event.event for event in events]
    assert task.usage["wall_ms"] >= 5_000
    assert not (await market.node(killed["id"])).online
    living = [await market.node(node["id"]) for node in kept.summary["nodes"] if not node["killed"]]
    assert all(node.online for node in living)


async def groups_by_model(market: Client) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    seen: set[str] = set()
    for task in (await market.tasks(limit=50)).tasks:
        if task.group_id is not None and task.group_id not in seen:
            seen.add(task.group_id)
            found.setdefault(str(task.spec["model_type"]), []).append(await market.group(task.group_id))
    return found


async def model_and_rows(market: Client, group: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray]:
    """Return the merged model, all features, and which rows were held out and trained on."""
    spec = group.tasks[0].spec
    content = await market.data.read(spec["dataset_cid"], max_bytes=1 << 24)
    dataset = load_dataset(content, "csv")
    held = np.asarray(holdout_rows(SessionPlan.from_dict(group.plan).cut, dataset.labels), dtype=np.int64)
    trained = np.setdiff1d(np.arange(len(dataset.features)), held)
    model = decode_model(await market.data.read(group.result_cid, max_bytes=1 << 24))
    return model, dataset.features, held, trained


async def test_forest_numbers_are_right(kept: KeptDemo, market: Client) -> None:
    [group] = (await groups_by_model(market))["random_forest"]
    model, features, held, trained = await model_and_rows(market, group)
    source = load_breast_cancer()
    labels = np.asarray([source.target_names[index] for index in source.target])

    guessed = np.asarray(model.predict_labels(features[held]))
    central = RandomForestClassifier(n_estimators=90, max_depth=10, random_state=42)
    central.fit(features[trained], labels[trained])

    told = kept.summary["forest"]
    assert np.array_equal(features, source.data)
    assert len(group.tasks) == 3
    assert len(held) == 114
    assert told["accuracy"] == pytest.approx(float(np.mean(guessed == labels[held])), abs=1e-12)
    assert told["central_accuracy"] == pytest.approx(central.score(features[held], labels[held]), abs=1e-12)
    assert told["accuracy"] == group.metrics["accuracy"]
    assert told["oob_local_mean"] == group.metrics["oob_local_mean"]
    assert told["oob_federated"] == group.metrics["oob_federated"]
    assert told["accuracy"] > 0.85
    assert 0.85 < told["oob_local_mean"] < told["accuracy"] + 0.1
    assert 0.85 < told["oob_federated"] <= 1


async def test_linear_numbers_are_right(kept: KeptDemo, market: Client) -> None:
    groups = (await groups_by_model(market))["linear_regression"]
    [group] = [found for found in groups if found.tasks[0].attempts == 1]
    model, features, held, trained = await model_and_rows(market, group)
    truth = load_diabetes().target

    guess = model.predict(features[held])
    r2 = 1 - ((truth[held] - guess) ** 2).sum() / ((truth[held] - truth[held].mean()) ** 2).sum()
    central = LinearRegression().fit(features[trained], truth[trained]).score(features[held], truth[held])

    assert kept.summary["linear"]["r2"] == pytest.approx(r2, abs=1e-9)
    assert kept.summary["linear"]["central_r2"] == pytest.approx(central, abs=1e-9)


def test_kept_demo_is_there_to_poke_at(kept: KeptDemo) -> None:
    script = f'. "{kept.folder / "env"}" && parity task list --json'

    listed = subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=60, check=False)

    assert listed.returncode == 0, listed.stderr
    assert len(json.loads(listed.stdout)["tasks"]) == len(kept.summary["tasks"])


@pytest.mark.parametrize(("number", "words"), [(signal.SIGINT, "chain:"), (signal.SIGTERM, "money:")])
def test_interrupted_demo_leaves_nothing_behind(tmp_path: Path, number: signal.Signals, words: str) -> None:
    tmp_path.chmod(0o711)
    process, errors = started(tmp_path)
    wait_until(lambda: words in errors.read_text() or process.poll() is not None, words, 60)
    assert process.poll() is None, errors.read_text()

    process.send_signal(number)
    status = process.wait(ENDED_WITHIN_S)

    assert status == 130
    assert processes_of(tmp_path) == []
    assert list(tmp_path.glob("parity-demo-*")) == []
    assert "Traceback" not in errors.read_text()


def test_demo_whose_market_dies_says_so_keeps_the_logs_and_ends_everything(tmp_path: Path) -> None:
    tmp_path.chmod(0o711)
    process, errors = started(tmp_path)
    wait_until(lambda: "money:" in errors.read_text() or process.poll() is not None, "the market", 60)
    [market] = [
        pid for pid in processes_of(tmp_path) if b"market" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    ]

    os.kill(market, signal.SIGKILL)
    status = process.wait(ENDED_WITHIN_S)

    told = errors.read_text()
    [folder] = tmp_path.glob("parity-demo-*")
    assert status not in (0, 130)
    assert "market ended" in told
    assert str(folder / "logs") in told
    assert processes_of(tmp_path) == []
    assert "Traceback" not in told
