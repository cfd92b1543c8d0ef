"""Private sessions between real processes: masked updates, a node that is killed in a sum, noise with its epsilon."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
from sklearn.datasets import load_digits

from parity_cli.demo.stack import PARITY
from parity_cli.testing.town import REWARD, Town
from parity_fl.model import decode_model
from parity_protocol.api.rounds import FlSessionReply
from parity_protocol.needs import CidInput

pytestmark = [pytest.mark.serial, pytest.mark.timeout(180)]

PARTS = 3
SECURE = {"secure_aggregation": True}
NOISY = {"differential_privacy": True, "noise_multiplier": 0.05, "l2_norm_clip": 1.0}


def shards() -> list[bytes]:
    found = load_digits()
    owner = (found.target[:900] + np.arange(900) // 9) % PARTS
    head = ",".join([*(f"p{at}" for at in range(64)), "target"])
    rows = [
        f"{','.join(map(str, row.astype(int)))},{label}" for row, label in zip(found.data, found.target, strict=True)
    ]
    return [
        ("\n".join([head, *(rows[at] for at in np.flatnonzero(owner == part))]) + "\n").encode()
        for part in range(PARTS)
    ]


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
async def trainers(town: Town) -> AsyncIterator[Town]:
    for node in town.nodes[:PARTS]:
        town.stack.start_node(node, [*PARITY, "node", "run"], RUNNER_DISK_FLOOR="0")
    await town.stack.until(lambda: town.stack.online(town.nodes[:PARTS]), "the nodes")
    yield town
    town.stop(*town.nodes[:PARTS])


async def submitted(town: Town, **changes: Any) -> str:
    sources = []
    for part, each in enumerate(shards()):
        file = town.stack.folder / f"part-{part}.csv"
        await anyio.Path(file).write_bytes(each)
        sources.append(CidInput(cid=(await town.market.data.add(file)).cid, max_bytes=len(each)))
    return (await town.market.submit(session(**changes), PARTS * REWARD, shards=sources)).id


async def ended(town: Town, session_id: str, within_s: float = 60.0) -> FlSessionReply:
    async def has_ended() -> bool:
        return (await town.market.group(session_id, wait_s=1.0)).state != "running"

    await town.stack.until(has_ended, f"the end of {session_id}", within_s=within_s)
    return await town.market.sessions.show(session_id, from_round=1)


def opened_sums(town: Town) -> list[Path]:
    return [file for node in town.nodes for file in node.state.glob("**/opened-sums/*.json")]


async def test_masked_and_noisy_updates_make_a_model_and_every_part_is_paid(trainers: Town) -> None:
    town = trainers
    before = set(opened_sums(town))  # the town is shared: other tests' sessions left theirs

    found = await ended(town, await submitted(town, privacy={**SECURE, **NOISY}))

    assert found.state == "completed", found.message
    closed = [one for one in found.rounds if "epsilon" in one.metrics and one.asks == "score"]
    assert [one.metrics["summed"] for one in closed] == [3, 3, 3]
    spent = [float(str(one.metrics["epsilon"])) for one in closed]
    assert 0 < spent[0] < spent[1] < spent[2]
    assert all("loss" not in update.metrics for one in found.rounds for update in one.updates)
    model = decode_model((await town.market.result(found.id)).data or b"")
    rows, known = load_digits().data[900:].astype(float), load_digits().target[900:].astype(str)
    assert np.mean(np.array(model.predict_labels(rows)) == known) > 0.6
    group = await town.market.group(found.id)
    for task in group.tasks:
        listed = json.loads((await town.market.result(task.id)).data or b"")
        assert [update["phase"] for update in listed["updates"] if update["round"] == 2] == [0, 1, 2, 3, 4, 5]
    opened = [json.loads(file.read_bytes()) for file in opened_sums(town) if file not in before]
    assert opened == [[f"round {number}" for number in (1, 2, 3)]] * 3  # no later trainer of theirs opens one again
    await town.paid([task.id for task in group.tasks])


async def test_a_market_that_is_killed_in_a_secure_sum_goes_on(trainers: Town) -> None:
    town = trainers
    session_id = await submitted(town, privacy=SECURE, total_rounds=6, rounds_config={"round_timeout_s": 20.0})

    async def is_at(number: int) -> bool:
        return {one.id: one.round for one in (await town.market.sessions.list()).sessions}.get(session_id, 0) >= number

    await town.stack.until(lambda: is_at(2), "the second round", within_s=40.0)
    assert town.stack.market_process is not None
    town.stack.processes.kill(town.stack.market_process)
    await town.stack.start_market()
    found = await ended(town, session_id, within_s=90.0)

    assert found.state == "completed", found.message
    assert float(str(found.metrics["accuracy"])) > 0.85


async def test_an_impossible_combination_is_refused_in_words(trainers: Town) -> None:
    with pytest.raises(Exception, match="secure_aggregation shows the market a sum and no single update: Krum"):
        await submitted(trainers, privacy=SECURE, strategy_config={"strategy": "Krum"})
