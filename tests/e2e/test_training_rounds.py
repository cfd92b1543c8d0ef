"""Federated training in rounds between real processes: two nodes, three rounds, one model."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from functools import partial
from hashlib import sha256
from typing import Any

import anyio
import numpy as np
import pytest
from sklearn.datasets import load_digits

from parity_cli.demo.stack import PARITY
from parity_cli.testing.town import REWARD, Town
from parity_fl.model import decode_model
from parity_fl.plan import PartitionPlan
from parity_fl.rounds import Reduced, RoundServer, RoundTrainer
from parity_fl.strategy import read_strategy
from parity_market.domain.federation import open_session
from parity_protocol.api.tasks import GroupReply
from parity_protocol.task import parse_spec

pytestmark = [pytest.mark.serial, pytest.mark.timeout(120)]

PARTS = 2


def digits() -> bytes:
    found = load_digits()
    lines = [",".join([*(f"p{at}" for at in range(64)), "target"])]
    lines += [
        ",".join([*(f"{value:g}" for value in row), str(label)])
        for row, label in zip(found.data, found.target, strict=True)
    ]
    return ("\n".join(lines) + "\n").encode()


def network(cid: str, **changes: Any) -> dict[str, Any]:
    return {
        "type": "federated_learning",
        "model_type": "neural_network",
        "dataset_cid": cid,
        "data_format": "csv",
        "model_config": {"hidden_size": 32, "output_size": 10},
        "train_config": {"epochs": 3, "batch_size": 32, "learning_rate": 0.1},
        "partition_config": {"strategy": "stratified", "total_parts": PARTS, "min_samples": 10},
        "total_rounds": 3,
        **changes,
    }


@pytest.fixture
async def trainers(town: Town) -> AsyncIterator[Town]:
    nodes = town.nodes[:PARTS]
    for node in nodes:
        town.stack.start_node(node, [*PARITY, "node", "run"], RUNNER_DISK_FLOOR="0")
    await town.stack.until(lambda: town.stack.online(nodes), "the nodes")
    yield town
    town.stop(*nodes)


async def stored(town: Town) -> str:
    file = town.stack.folder / "digits.csv"
    await anyio.Path(file).write_bytes(digits())
    return (await town.market.data.add(file)).cid


async def test_two_nodes_train_a_network_in_three_rounds_and_are_paid(trainers: Town) -> None:
    town = trainers
    cid = await stored(town)

    made = await town.market.submit(network(cid), 2 * REWARD)
    group = await town.group_ended(made.id)

    assert group.state == "completed", group.message
    assert group.metrics["rounds"] == 3
    assert group.metrics["accuracy"] > 0.9
    model = decode_model((await town.market.result(made.id)).data or b"")
    right = np.array(model.predict_labels(load_digits().data.astype(float))) == load_digits().target.astype(str)
    assert right.mean() > 0.9
    assert {task.state for task in group.tasks} == {"completed"}
    for task in group.tasks:
        listed = json.loads((await town.market.result(task.id)).data or b"")
        assert [update["round"] for update in listed["updates"]] == [1, 2, 3]
    await town.paid([task.id for task in group.tasks])


async def test_a_market_that_is_killed_in_a_session_goes_on_with_it(trainers: Town) -> None:
    town = trainers
    changes = {"total_rounds": 12, "train_config": {"epochs": 8, "batch_size": 16, "learning_rate": 0.05}}
    made = await town.market.submit(network(await stored(town), **changes), 2 * REWARD)

    async def is_underway() -> bool:
        group = await town.market.group(made.id)
        begun = {one.id: one.round for one in (await town.market.sessions.list()).sessions}
        return group.state == "running" and begun.get(made.id, 0) >= 3

    await town.stack.until(is_underway, "the third round", within_s=40.0)
    assert town.stack.market_process is not None
    town.stack.processes.kill(town.stack.market_process)
    await town.stack.start_market()
    group = await town.group_ended(made.id)

    assert group.state == "completed", group.message
    assert group.metrics["rounds"] == 12
    shown = await town.market.sessions.show(made.id)
    assert [one.round for one in shown.rounds] == list(range(1, 13))
    assert all(update.state == "accepted" for one in shown.rounds for update in one.updates)
    assert group.metrics["final_model"] == undisturbed(group)


def undisturbed(group: GroupReply) -> str:
    """Return the hash of the last model that the session has if nothing ever goes wrong: trained again, right here."""
    spec, plan = open_session(parse_spec(json.dumps(group.tasks[0].spec)), json.dumps(group.plan)), group.plan
    assert plan is not None
    assert isinstance(spec.plan, PartitionPlan)
    strategy = read_strategy(spec.members["strategy_config"])
    server = RoundServer(spec.spec, spec.plan, digits(), strategy)
    trainers = [RoundTrainer(spec.spec, spec.plan, digits(), part) for part in range(PARTS)]
    base, state = server.first(), None
    for number in range(1, int(str(group.metrics["rounds"])) + 1):
        bodies = [one.train(base, number=number, update_format="fp16").update for one in trainers]
        done = server.reduce(
            base, state, {part: partial(bytes, body) for part, body in enumerate(bodies)}, number=number
        )
        assert isinstance(done, Reduced)
        base, state = done.model, done.state
    return sha256(base).hexdigest()


async def test_a_forest_in_phases_grows_between_nodes_and_a_paused_session_waits(trainers: Town) -> None:
    town = trainers
    forest = {
        "model_type": "random_forest",
        "model_config": {"mode": "histogram", "num_trees": 10, "max_depth": 6},
        "train_config": {},
        "total_rounds": 1,
    }
    made = await town.market.submit(network(await stored(town), **forest), 2 * REWARD)
    other = await town.market.submit(network(await stored(town), total_rounds=2_000), 2 * REWARD)

    group = await town.group_ended(made.id)
    await town.stack.until(lambda: has_begun(town, other.id), "the other session")
    paused = await town.market.sessions.pause(other.id)
    await town.market.sessions.stop(other.id)
    stopped = await town.group_ended(other.id)

    assert group.state == "completed", group.message
    assert group.metrics["accuracy"] > 0.85
    assert paused.state == "paused"
    assert stopped.state == "completed", stopped.message
    assert 1 <= stopped.metrics["rounds"] < 2_000


async def test_a_stopped_session_is_gone_on_with_from_the_checkpoint_that_it_leaves(trainers: Town) -> None:
    town = trainers
    cid = await stored(town)
    made = await town.market.submit(network(cid, total_rounds=2_000), 2 * REWARD)
    await town.stack.until(lambda: has_begun(town, made.id), "the session")
    await town.market.sessions.stop(made.id)
    stopped = await town.group_ended(made.id)
    checkpoint = await town.market.sessions.checkpoint(made.id)

    total = checkpoint.round + 2
    settings = {"resume_from": checkpoint.cid}
    again = await town.market.submit(network(cid, total_rounds=total, rounds_config=settings), 2 * REWARD)
    group = await town.group_ended(again.id)

    assert stopped.state == group.state == "completed", group.message
    assert stopped.metrics["rounds"] == checkpoint.round
    assert group.metrics["rounds"] == total
    shown = await town.market.sessions.show(again.id)
    assert [one.round for one in shown.rounds] == [total - 1, total]
    before = (await town.market.sessions.show(made.id)).rounds[-1].metrics["accuracy"]
    assert isinstance(before, float)
    assert group.metrics["accuracy"] >= before - 0.02
    assert all(update.state == "accepted" for one in shown.rounds for update in one.updates)


async def has_begun(town: Town, session_id: str) -> bool:
    """Return whether a session's first round has closed: until nodes are there, to stop it would be to cancel it."""
    return any(one.id == session_id and one.round > 1 for one in (await town.market.sessions.list()).sessions)
