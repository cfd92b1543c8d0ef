"""`parity fl` as a person types it, against a market and nodes that are processes of their own."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import pytest
from sklearn.datasets import load_digits

from parity_cli.demo.stack import PARITY
from parity_cli.testing.town import Town
from parity_client import Config, Home
from parity_client.config import MarketEntry
from parity_contracts import keystore
from parity_fl.checkpoint import decode_checkpoint
from parity_fl.model import decode_model

pytestmark = [pytest.mark.serial, pytest.mark.timeout(180)]

PASSPHRASE = "correct horse battery staple"
PARTS = 2
COMMAND_S = 60.0


@dataclass(frozen=True)
class Shell:
    """A person's folder and what is typed there."""

    folder: Path

    async def __call__(self, *arguments: str, status: int = 0, **env: str) -> str:
        """Run ``parity`` and return its standard output."""
        variables = {name: value for name, value in os.environ.items() if not name.startswith(("FL_", "PARITY_"))}
        variables |= {"PARITY_HOME": str(self.folder / "home"), "PARITY_PASSPHRASE_FILE": str(self.folder / "pass")}
        with anyio.fail_after(COMMAND_S):
            done = await anyio.run_process(
                [*PARITY, *arguments], cwd=self.folder, env={**variables, **env}, check=False
            )
        assert done.returncode == status, done.stderr.decode()
        return done.stdout.decode()

    async def json(self, *arguments: str, **env: str) -> Any:
        """Run ``parity`` and return the document that it prints."""
        return json.loads(await self(*arguments, "--json", **env))


@pytest.fixture
async def shell(town: Town, tmp_path: Path) -> AsyncIterator[Shell]:
    """Return a shell of the town's submitter, while two nodes train."""
    home = Home(tmp_path / "home")
    home.save(Config(current="town", markets={"town": MarketEntry(join=str(town.stack.join))}))
    keystore.create(home.wallet_file("default"), town.submitter, PASSPHRASE)
    await anyio.Path(tmp_path / "pass").write_text(PASSPHRASE)
    data = load_digits()
    lines = [",".join([*(f"p{at}" for at in range(64)), "target"])]
    lines += [
        ",".join([*(f"{value:g}" for value in row), str(label)])
        for row, label in zip(data.data, data.target, strict=True)
    ]
    await anyio.Path(tmp_path / "digits.csv").write_text("\n".join(lines) + "\n")
    nodes = town.nodes[:PARTS]
    for node in nodes:
        town.stack.start_node(node, [*PARITY, "node", "run"], RUNNER_DISK_FLOOR="0")
    await town.stack.until(lambda: town.stack.online(nodes), "the nodes")
    yield Shell(tmp_path)
    town.stop(*nodes)


async def test_a_session_is_run_looked_at_and_gone_on_with(shell: Shell) -> None:
    (shell.folder / "more.json").write_text(
        json.dumps(
            {
                "model_type": "neural_network",
                "dataset_cid": (await shell("data", "add", "digits.csv")).strip(),
                "data_format": "csv",
                "model_config": {"hidden_layers": [32]},
                "train_config": {"epochs": 2, "batch_size": 32, "learning_rate": 0.1},
                "partition_config": {"strategy": "stratified", "total_parts": PARTS, "min_samples": 10},
                "total_rounds": 2,
                "rounds_config": {"contribution": "shapley", "base_share": 0.5, "checkpoint_interval": 1},
            }
        )
    )

    made = await shell.json(
        *("fl", "run", "more.json", "--reward", "1", "-o", "first.safetensors"), FL_STRATEGY="FedYogi"
    )
    shown = await shell.json("fl", "show", made["id"])
    scored = await shell.json("fl", "contributions", made["id"])
    again = await shell.json("fl", "resume", made["id"], "--reward", "1", "--rounds", "4", "-o", "second.safetensors")
    listed = await shell.json("fl", "sessions", "--limit", "2")

    assert made["state"] == again["state"] == "completed"
    assert shown["settings"]["sources"]["FL_STRATEGY"] == ["FedAvg", "default"]  # a file says all that it says
    assert scored["method"] == "shapley"
    assert {part["part"] for part in scored["parts"]} == {0, 1}
    assert all(len(part["rounds"]) == 2 for part in scored["parts"])
    assert [one["round"] for one in again["rounds"]] == [3, 4]
    assert again["settings"]["resumed_from"]["cid"] == shown["rounds"][1]["metrics"]["checkpoint_cid"]
    assert again["metrics"]["accuracy"] >= made["metrics"]["accuracy"] - 0.02
    assert [one["id"] for one in listed["sessions"]] == [again["id"], made["id"]]
    for name in ("first.safetensors", "second.safetensors"):
        assert decode_model((shell.folder / name).read_bytes()).n_features == 64
    await shell("data", "get", again["settings"]["resumed_from"]["cid"], "-o", "checkpoint.npz")
    assert decode_checkpoint((shell.folder / "checkpoint.npz").read_bytes()).round == 2


async def test_what_is_said_here_wins_over_the_market_and_the_rest_is_the_markets(shell: Shell, town: Town) -> None:
    options = ("fl", "run", "--data", "digits.csv", "--model", "neural_network", "--hidden", "16", "--reward", "1")
    rest = ("--epochs", "1", "--batch-size", "32", "--learning-rate", "0.1", "--rounds", "1")
    await town.restart_market(FL_STRATEGY="FedProx", FL_PROXIMAL_MU="0.2", FL_MIN_AVAILABLE_CLIENTS="1")
    try:
        await town.stack.until(lambda: town.stack.online(town.nodes[:PARTS]), "the nodes")
        made = await shell.json(*options, *rest, FL_PROXIMAL_MU="0.3")
    finally:
        await town.restart_market()

    assert made["state"] == "completed"
    assert made["settings"]["sources"] == {
        "FL_STRATEGY": ["FedProx", "market"],
        "FL_PROXIMAL_MU": [0.3, "session"],
        "FL_NUM_ROUNDS": [1, "session"],
        "FL_MIN_AVAILABLE_CLIENTS": [1, "market"],
    }
