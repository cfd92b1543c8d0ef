"""A node of a session in rounds that sends another part's work as its own, between real processes: it gains nothing."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
from sklearn.datasets import load_diabetes

from parity_cli.demo.stack import PARITY
from parity_cli.testing.hand import HandNode, Taken
from parity_cli.testing.town import REWARD, Town
from parity_fl.plan import PartitionPlan
from parity_fl.rounds import RoundTrainer
from parity_market.domain.federation import open_session
from parity_node.executors.rounds import Place
from parity_node.market.rounds import HttpRounds
from parity_protocol.api.leases import RenewItem, RenewRequest
from parity_protocol.api.rounds import RoundStep
from parity_protocol.task import parse_spec

pytestmark = [pytest.mark.serial, pytest.mark.timeout(120)]

ROUNDS = 3
PARTS = 3


def table() -> bytes:
    found = load_diabetes()
    lines = [",".join([*(f"x{at}" for at in range(found.data.shape[1])), "target"])]
    lines += [
        ",".join(f"{value:g}" for value in (*row, truth)) for row, truth in zip(found.data, found.target, strict=True)
    ]
    return ("\n".join(lines) + "\n").encode()


def victim_of(part: int) -> int:
    """Return the part whose update the holder of another sends."""
    return (part + 1) % PARTS


async def keep(thief: HandNode, taken: Taken) -> None:
    """Renew a lease until cancelled."""
    held = RenewItem(task_id=taken.task_id, lease_id=taken.lease.lease_id, fence=taken.lease.fence)
    while True:
        await thief.market.renew(RenewRequest(renewals=(held,)))
        await anyio.sleep(0.5)


async def steal(thief: HandNode, taken: Taken, data: bytes, file: Path) -> RoundStep:
    """Send another part's update as one's own, at once, in every round; returns what is told at the end.

    Args:
        file: Where each round's model is kept.
    """
    manifest = taken.manifest.manifest
    opened = open_session(parse_spec(manifest.spec), json.dumps(manifest.plan))
    assert isinstance(opened.plan, PartitionPlan)
    other = await anyio.to_thread.run_sync(RoundTrainer, opened.spec, opened.plan, data, victim_of(manifest.part))
    place = Place(manifest.group_id or "", manifest.part, taken.lease.lease_id, taken.lease.fence)
    rounds = HttpRounds(thief.market)
    while True:
        step = await rounds.next_step(place, wait_s=1.0)
        if step.state == "done":
            return step
        if step.state == "train":
            await rounds.model(place, step, file, max_bytes=1 << 20)
            body = other.train(await anyio.Path(file).read_bytes(), number=step.round, update_format="fp16").update
            await rounds.send(place, step, body, {}, digest=sha256(body).digest())


async def test_a_node_that_sends_another_parts_updates_first_is_refused_and_the_other_is_paid(town: Town) -> None:
    data = table()
    file = town.stack.folder / "diabetes.csv"
    await anyio.Path(file).write_bytes(data)
    spec = {
        "type": "federated_learning",
        "model_type": "linear_regression",
        "dataset_cid": (await town.market.data.add(file)).cid,
        "data_format": "csv",
        "model_config": {"input_size": 10},
        "train_config": {"epochs": 3, "batch_size": 16, "learning_rate": 0.05},
        "partition_config": {"strategy": "random", "total_parts": PARTS, "min_samples": 10},
        "total_rounds": ROUNDS,
    }
    async with town.hand(town.nodes[0]) as thief:
        await thief.enrol(model_types=("linear_regression",))
        made = await town.market.submit(spec, PARTS * REWARD)
        [taken] = await thief.take()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(keep, thief, taken)
            town.stack.start_node(town.nodes[1], [*PARITY, "node", "run"], RUNNER_DISK_FLOOR="0")
            told = await steal(thief, taken, data, file.with_name("model.safetensors"))
            tasks.cancel_scope.cancel()

    part = taken.manifest.manifest.part
    victim = victim_of(part)
    shown = await town.market.sessions.show(made.id)
    for row in shown.rounds:
        states = {update.part: (update.state, update.reason) for update in row.updates}
        assert states.pop(part) == ("rejected", f"duplicate: it is part {victim}'s update")
        assert len(states) == PARTS - 1
        assert set(states.values()) == {("accepted", "")}
    assert [row.round for row in shown.rounds] == list(range(1, ROUNDS + 1))
    assert told.accepted == ()
    assert told.message.endswith(f"duplicate: it is part {victim}'s update")
    task = next(one for one in (await town.market.group(made.id)).tasks if one.part == victim)
    await town.paid([task.id])
