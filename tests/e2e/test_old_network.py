"""The old network's client and two of its runners, scripted over plain HTTP, and a market process that is killed between them.

The data come through the market's gateway and are cut and trained as an old runner does: by itself, from nothing.
"""

from __future__ import annotations

from typing import Any

import anyio
import httpx
import numpy as np
import pytest

from parity_cli.testing.town import Town

pytestmark = [pytest.mark.serial, pytest.mark.timeout(240)]

WALLET = "0x" + "52" * 20
DEVICES = ("4b08d22912d9a747", "007145d4a09365c9")
ROUNDS = 2


def rows() -> bytes:
    rng = np.random.default_rng(5)
    features = rng.normal(size=(120, 2))
    targets = 3 * features[:, 0] - 2 * features[:, 1] + 0.5
    return "".join(f"{a:.6f},{b:.6f},{y:.6f}\n" for (a, b), y in zip(features, targets, strict=True)).encode()


class Runner:
    """What an old runner does for one round, call by call."""

    def __init__(self, http: httpx.AsyncClient, device: str) -> None:
        self.http, self.device = http, device

    async def call(
        self, method: str, path: str, body: dict[str, Any] | None = None, *, named: bool = True
    ) -> httpx.Response:
        headers = {"X-Device-ID": self.device} if named else {}
        reply = await self.http.request(method, f"/api/v1{path}", json=body, headers=headers)
        assert reply.status_code in (200, 201), reply.text
        return reply

    async def register(self) -> None:
        await self.call("POST", "/runners", {"wallet_address": WALLET, "status": "online", "webhook": ""})

    async def take(self, session_id: str, number: int, part: int) -> dict[str, Any]:
        listed = await self.call("GET", f"/federated-learning/sessions/{session_id}/rounds/{number}")
        task = listed.json()["tasks"][part]
        return dict((await self.call("POST", f"/runners/tasks/{task['id']}/start")).json())

    async def train(self, task: dict[str, Any]) -> None:
        config = task["config"]
        data = await self.http.get(f"/ipfs/{config['dataset_cid']}")
        table = np.array([[float(cell) for cell in line.split(",")] for line in data.text.split()])
        share = table[config["partition_config"]["part_index"] :: config["partition_config"]["total_parts"]]
        inputs = np.c_[np.ones(len(share)), share[:, :-1]]
        solved, *_ = np.linalg.lstsq(inputs, share[:, -1], rcond=None)
        weights = {"layer_weights": solved.tolist()}
        result = {"task_id": task["id"], "device_id": self.device, "exit_code": 0, "output": "{}", "execution_time": 7}
        assert (await self.call("POST", f"/runners/tasks/{task['id']}/result", result)).content == b""
        update = {
            "session_id": config["session_id"],
            "round_id": config["round_id"],
            "runner_id": self.device,
            "gradients": weights,
            "weights": weights,
            "update_type": "gradients",
            "data_size": len(share),
            "loss": 0.0,
            "accuracy": 1.0,
            "training_time": 1000,
            "metadata": {"submission_time": 1_760_000_000},
        }
        await self.call("POST", "/federated-learning/model-updates", update, named=False)


async def test_old_programs_train_a_model_over_a_market_that_is_killed_meanwhile(town: Town) -> None:
    file = town.stack.folder / "old.csv"
    await anyio.Path(file).write_bytes(rows())
    cid = (await town.market.data.add(file, visibility="public")).cid
    described = {
        "name": "old",
        "description": "",
        "model_type": "linear_regression",
        "total_rounds": ROUNDS,
        "min_participants": 2,
        "creator_address": WALLET,
        "training_data": {
            "dataset_cid": cid,
            "dataset_size": len(rows()),
            "data_format": "csv",
            "split_strategy": "random",
            "metadata": {"alpha": 0, "min_samples": 5, "overlap_ratio": 0},
        },
        "config": {
            "aggregation_method": "fedavg",
            "learning_rate": 0.01,
            "batch_size": 16,
            "local_epochs": 5,
            "client_selection": "random",
            "model_config": {"input_size": 2, "output_size": 1},
        },
    }
    async with httpx.AsyncClient(base_url=town.stack.join.url, timeout=30) as http:
        runners = [Runner(http, device) for device in DEVICES]
        for runner in runners:
            await runner.register()
        made = await http.post("/api/v1/federated-learning/sessions", json=described)
        assert made.status_code == 201, made.text
        where = f"/api/v1/federated-learning/sessions/{made.json()['id']}"
        assert (await http.post(f"{where}/start")).json() == {"message": "Session started successfully"}

        for number in range(1, ROUNDS + 1):

            async def is_open(number: int = number) -> bool:
                shown = (await http.get(f"{where}/rounds/{number}", headers={"X-Device-ID": DEVICES[0]})).json()
                return bool(shown["tasks"])

            await town.stack.until(is_open, f"round {number}", within_s=30.0)
            tasks = [await runner.take(made.json()["id"], number, part) for part, runner in enumerate(runners)]
            await runners[0].train(tasks[0])
            if number == 1:  # between the two updates: what the first sent and what the second holds is still there
                assert town.stack.market_process is not None
                town.stack.processes.kill(town.stack.market_process)
                await town.stack.start_market()
            await runners[1].train(tasks[1])

        async def is_done() -> bool:
            return bool((await http.get(where)).json()["status"] == "completed")

        await town.stack.until(is_done, "the model", within_s=30.0)
        found = (await http.get(f"{where}/model")).json()

    assert found["total_rounds"] == ROUNDS
    assert found["model_data"]["participant_count"] == 2
    np.testing.assert_allclose(found["model_data"]["weights"]["layer_weights"], [0.5, 3, -2], atol=1e-3)
    assert found["model_data"]["global_metrics"]["holdout_r2"] == pytest.approx(1.0, abs=1e-3)
