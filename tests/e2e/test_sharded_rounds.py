"""Sharded federated training between real processes: each node reads its own part's data and no other."""

from __future__ import annotations

import json
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LinearRegression

from parity_cli.demo.stack import PARITY
from parity_cli.testing.town import REWARD, Town
from parity_fl.linear import LinearModel
from parity_fl.model import decode_model
from parity_fl.trees import Forest, forest_tensors
from parity_protocol.needs import CidInput, ShardInput

pytestmark = [pytest.mark.serial, pytest.mark.timeout(180)]

PARTS = 2


def csv(features: np.ndarray, labels: np.ndarray) -> bytes:
    lines = [",".join([*(f"p{at}" for at in range(features.shape[1])), "target"])]
    lines += [
        ",".join([*(repr(float(value)) for value in row), repr(label.item())])
        for row, label in zip(features, labels, strict=True)
    ]
    return ("\n".join(lines) + "\n").encode()


def digits(rows: int = 1_000) -> list[bytes]:
    found = load_digits()
    owner = (found.target[:rows] + np.arange(rows) // 9) % PARTS
    return [csv(found.data[:rows][owner == part], found.target[:rows][owner == part]) for part in range(PARTS)]


def session(**changes: Any) -> dict[str, Any]:
    return {
        "type": "federated_learning",
        "model_type": "neural_network",
        "data_format": "csv",
        "model_config": {"hidden_size": 32},
        "train_config": {"epochs": 3, "batch_size": 32, "learning_rate": 0.1},
        "total_rounds": 3,
        **changes,
    }


@pytest.fixture
def lent() -> Iterator[Path]:
    """Return a folder that everybody may read: a node that is root lends nothing else."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


def start(town: Town, number: int, lent: Path) -> None:
    """Start a node that lends ``own-N``."""
    shards = f"own-{number}={lent / f'own-{number}.csv'}"
    command = [*PARITY, "node", "run"]
    town.stack.start_node(town.nodes[number], command, RUNNER_DISK_FLOOR="0", RUNNER_SHARDS=shards)


@pytest.fixture
async def trainers(town: Town, lent: Path) -> AsyncIterator[Town]:
    """Two nodes; each has data of its own under the name ``own`` and its number."""
    nodes = town.nodes[:PARTS]
    for number, data in enumerate(digits()):
        file = anyio.Path(lent / f"own-{number}.csv")
        await file.write_bytes(data)
        await file.chmod(0o644)
        start(town, number, lent)
    await town.stack.until(lambda: town.stack.online(nodes), "the nodes")
    yield town
    town.stop(*nodes)


async def stored(town: Town, data: list[bytes]) -> list[CidInput]:
    sources = []
    for part, each in enumerate(data):
        file = town.stack.folder / f"part-{part}.csv"
        await anyio.Path(file).write_bytes(each)
        sources.append(CidInput(cid=(await town.market.data.add(file)).cid, max_bytes=len(each)))
    return sources


async def test_a_network_learns_from_private_shards_and_every_part_is_paid(trainers: Town) -> None:
    town = trainers

    made = await town.market.submit(session(), 2 * REWARD, shards=await stored(town, digits()))
    group = await town.group_ended(made.id)

    assert group.state == "completed", group.message
    assert group.metrics["accuracy"] > 0.85
    model = decode_model((await town.market.result(made.id)).data or b"")
    rows, known = load_digits().data[1_000:].astype(float), load_digits().target[1_000:].astype(str)
    assert np.mean(np.array(model.predict_labels(rows)) == known) > 0.8
    for task in group.tasks:
        listed = json.loads((await town.market.result(task.id)).data or b"")
        assert [update["round"] for update in listed["updates"]] == [0, 0, 1, 1, 2, 2, 3, 3]
    await town.paid([task.id for task in group.tasks])


async def test_an_exact_line_on_shards_is_the_central_solution_and_a_forest_the_partitioned_one(trainers: Town) -> None:
    town = trainers
    draw = np.random.default_rng(5)
    features = draw.normal(size=(200, 3)) * [1, 50, 0.1] + [0, 1e3, 2]
    truth = features @ [2.0, -0.5, 30.0] + 1 + draw.normal(size=200)
    labels = (truth > np.median(truth)).astype(float)
    line = {
        "model_type": "linear_regression",
        "model_config": {"input_size": 3, "solver": "exact"},
        "train_config": {},
        "total_rounds": 1,
        "holdout_fraction": 0.0,
    }
    forest = {
        "model_type": "random_forest",
        "model_config": {"mode": "histogram", "num_trees": 5, "max_depth": 4},
        "train_config": {},
        "total_rounds": 1,
        "holdout_fraction": 0.0,
    }
    whole = {"partition_config": {"strategy": "sequential", "total_parts": PARTS, "min_samples": 1}}

    def halves(known: np.ndarray) -> list[bytes]:
        return [csv(features[:100], known[:100]), csv(features[100:], known[100:])]

    lines = await town.market.submit(session(**line), 2 * REWARD, shards=await stored(town, halves(truth)))
    sharded = await town.market.submit(session(**forest), 2 * REWARD, shards=await stored(town, halves(labels)))
    file = town.stack.folder / "whole.csv"
    await anyio.Path(file).write_bytes(csv(features, labels))
    cid = (await town.market.data.add(file)).cid
    partitioned = await town.market.submit(session(**forest, **whole, dataset_cid=cid), 2 * REWARD)
    states = [(await town.group_ended(made.id)).state for made in (lines, sharded, partitioned)]

    assert states == ["completed"] * 3
    exact = decode_model((await town.market.result(lines.id)).data or b"").fitted
    central = LinearRegression().fit(features, truth)
    assert isinstance(exact, LinearModel)
    np.testing.assert_allclose([*exact.weights, exact.bias], [*central.coef_, central.intercept_], rtol=1e-8)
    got = decode_model((await town.market.result(sharded.id)).data or b"").fitted
    expected = decode_model((await town.market.result(partitioned.id)).data or b"").fitted
    assert isinstance(got, Forest)
    assert isinstance(expected, Forest)
    for name, tensor in forest_tensors(expected).items():
        np.testing.assert_array_equal(forest_tensors(got)[name], tensor)


async def test_each_node_trains_on_its_operators_own_data(trainers: Town) -> None:
    town = trainers
    own = [ShardInput(shard=f"own-{number}") for number in range(PARTS)]

    made = await town.market.submit(session(), 2 * REWARD, shards=own)
    group = await town.group_ended(made.id)

    assert group.state == "completed", group.message
    assert group.metrics["accuracy"] > 0.85
    holders = {task.part: (await town.market.task(task.id)).runner_id for task in group.tasks}
    assert holders == {number: town.nodes[number].id for number in range(PARTS)}


async def test_a_market_that_is_killed_goes_on_and_a_shard_that_changed_fails_the_session_with_the_reason(
    trainers: Town, lent: Path
) -> None:
    town = trainers
    own = [ShardInput(shard=f"own-{number}") for number in range(PARTS)]
    slow = {"total_rounds": 400, "rounds_config": {"round_timeout_s": 30.0, "quorum": PARTS}}
    made = await town.market.submit(session(**slow), 2 * REWARD, shards=own)

    async def is_at(number: int) -> bool:
        return {one.id: one.round for one in (await town.market.sessions.list()).sessions}.get(made.id, 0) >= number

    await town.stack.until(lambda: is_at(2), "the second round", within_s=40.0)
    assert town.stack.market_process is not None
    town.stack.processes.kill(town.stack.market_process)
    await town.stack.start_market()
    await town.stack.until(lambda: is_at(6), "rounds after the kill", within_s=40.0)

    file = anyio.Path(lent / "own-1.csv")
    await file.write_bytes((await file.read_bytes()).replace(b",0.0,", b",1.0,", 1))
    town.stack.kill_node(town.nodes[1])
    start(town, 1, lent)
    group = await town.group_ended(made.id, within_s=80.0)

    assert group.state == "failed"
    assert "the shard is not the one that was summarized" in group.message, group.message
