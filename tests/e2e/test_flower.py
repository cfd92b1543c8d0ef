"""Sessions that Flower carries, with the real SuperLink and SuperNodes between a real market and real nodes."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
from sklearn.datasets import load_digits

from parity_cli.demo.stack import PARITY
from parity_cli.testing.town import REWARD, TOWN_SETTINGS, Town
from parity_fl.model import decode_model
from parity_fl.plan import PartitionPlan
from parity_fl.rounds import Reduced, RoundServer, RoundTrainer
from parity_fl.session import resolve_session
from parity_fl.strategy import StrategyConfig
from parity_protocol.needs import CidInput

pytestmark = [pytest.mark.serial, pytest.mark.service("flower"), pytest.mark.timeout(300)]

ROUNDS = 3


def digits() -> bytes:
    found = load_digits()
    lines = [",".join([*(f"p{at}" for at in range(64)), "target"])]
    lines += [
        ",".join([*(f"{value:g}" for value in row), str(label)])
        for row, label in zip(found.data, found.target, strict=True)
    ]
    return ("\n".join(lines) + "\n").encode()


def network(cid: str, *, parts: int = 2, **changes: Any) -> dict[str, Any]:
    return {
        "type": "federated_learning",
        "engine": "flower",
        "model_type": "neural_network",
        "dataset_cid": cid,
        "data_format": "csv",
        "model_config": {"hidden_size": 32, "output_size": 10},
        "train_config": {"epochs": 3, "batch_size": 32, "learning_rate": 0.1},
        "partition_config": {"strategy": "stratified", "total_parts": parts, "min_samples": 10},
        "total_rounds": ROUNDS,
        **changes,
    }


@pytest.fixture(scope="module")
def engines(service_path: Callable[[str], Path]) -> str:
    return str(service_path("flower"))


@pytest.fixture(scope="module")
async def flower_town(engines: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Town]:
    folder = tmp_path_factory.mktemp("flower")
    folder.chmod(0o711)
    settings = replace(TOWN_SETTINGS, market={"PARITY_ENGINES": engines})
    async with Town.open(folder, nodes=3, settings=settings) as town:
        yield town


@pytest.fixture
async def town(flower_town: Town, engines: str) -> AsyncIterator[Town]:
    """Return the town with its nodes running: they go on from test to test, since each proves at its start that it can train."""
    stack = flower_town.stack
    for node in flower_town.nodes:
        if node.process is None or not node.process.is_running:
            stack.start_node(node, [*PARITY, "node", "run"], RUNNER_DISK_FLOOR="0", PARITY_ENGINES=engines)
    await stack.until(lambda: stack.online(flower_town.nodes), "the nodes")
    yield flower_town
    await flower_town.revive()
    await flower_town.cancel_open()


async def stored(town: Town) -> str:
    file = town.stack.folder / "digits.csv"
    await anyio.Path(file).write_bytes(digits())
    return (await town.market.data.add(file)).cid


def plan_of(town: Town, group_id: str) -> dict[str, Any]:
    path = next(town.stack.folder.rglob("market.sqlite"))
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as connection:
        (text,) = connection.execute("SELECT plan_doc FROM task_group WHERE id = ?", (group_id,)).fetchone()
    found: dict[str, Any] = json.loads(text)
    return found


def trained_here(session: dict[str, Any], plan_doc: dict[str, Any]) -> bytes:
    """Return the model that our own engine makes of the same session."""
    spec = resolve_session(session, session_id=plan_doc["session_id"], round_id=plan_doc["round_id"])
    plan, data = PartitionPlan.from_dict(plan_doc["partition"]), digits()
    server = RoundServer(spec, plan, data, StrategyConfig())
    trainers = [RoundTrainer(spec, plan, data, part) for part in range(plan.total_parts)]
    model, state = server.first(), None
    for number in range(1, ROUNDS + 1):
        updates = [trainer.train(model, number=number, update_format="fp16").update for trainer in trainers]
        reduced = server.reduce(
            model, state, {part: lambda body=body: body for part, body in enumerate(updates)}, number=number
        )
        assert isinstance(reduced, Reduced)
        model, state = reduced.model, reduced.state
    return server.final(model, rounds=ROUNDS).model_bytes


async def test_two_nodes_train_three_rounds_over_flower_to_the_model_of_our_own_engine(town: Town) -> None:
    spec = network(await stored(town))

    made = await town.market.submit(spec, 2 * REWARD)
    group = await town.group_ended(made.id)

    assert group.state == "completed", group.message
    assert group.metrics["rounds"] == ROUNDS
    shown = await town.market.sessions.show(made.id)
    assert [one.round for one in shown.rounds] == [1, 2, 3]
    assert all("accuracy" in one.metrics for one in shown.rounds)
    model = (await town.market.result(made.id)).data or b""
    session = {name: value for name, value in spec.items() if name != "type"}
    assert model == trained_here(session, plan_of(town, made.id))
    guesses = decode_model(model).predict_labels(load_digits().data.astype(float))
    assert np.mean(np.array(guesses) == load_digits().target.astype(str)) > 0.9
    await town.paid([task.id for task in group.tasks])


async def test_rounds_go_on_when_a_node_a_superlink_and_the_market_are_killed(town: Town) -> None:
    rounds = {"quorum": 2, "min_available_clients": 3, "round_timeout_s": 45}
    made = await town.market.submit(
        network(await stored(town), parts=3, total_rounds=4, rounds_config=rounds), 3 * REWARD
    )

    async def in_round(number: int) -> bool:
        begun = {one.id: one.round for one in (await town.market.sessions.list()).sessions}
        return begun.get(made.id, 0) >= number

    await town.stack.until(lambda: in_round(2), "the second round", within_s=90.0)
    town.stack.kill_node(town.nodes[2])
    await town.stack.until(lambda: in_round(3), "the third round", within_s=60.0)
    kill_superlink(town)
    await town.stack.until(lambda: in_round(4), "the fourth round", within_s=90.0)
    assert town.stack.market_process is not None
    town.stack.processes.kill(town.stack.market_process)
    await town.stack.start_market()
    group = await town.group_ended(made.id)

    assert group.state == "completed", group.message
    shown = await town.market.sessions.show(made.id)
    assert [one.round for one in shown.rounds] == [1, 2, 3, 4]
    assert all(sum(update.state == "accepted" for update in one.updates) >= 2 for one in shown.rounds)


async def test_parts_on_data_that_nobody_shares_train_over_flower(town: Town) -> None:
    head, *rows = digits().splitlines(keepends=True)
    sources = []
    for part in range(2):
        file = town.stack.folder / f"part-{part}.csv"
        await anyio.Path(file).write_bytes(head + b"".join(rows[part::2]))
        sources.append(CidInput(cid=(await town.market.data.add(file)).cid, max_bytes=file.stat().st_size))
    spec = {name: value for name, value in network("").items() if name not in ("dataset_cid", "partition_config")}

    made = await town.market.submit({**spec, "total_rounds": 1}, 2 * REWARD, shards=sources)
    group = await town.group_ended(made.id, within_s=120.0)

    assert group.state == "completed", group.message
    assert group.metrics["accuracy"] > 0.8


def kill_superlink(town: Town) -> None:
    """End the SuperLink of the one session that runs, as a machine short of memory would."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        words = path.read_bytes().split(b"\0") if path.exists() else []
        if any(word.endswith(b"programs/superlink.py") for word in words) and str(
            town.stack.folder
        ).encode() in b"".join(words):
            found.append(int(path.parent.name))
    assert len(found) == 1
    os.kill(found[0], signal.SIGKILL)
