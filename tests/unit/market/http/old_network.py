"""The old network's programs against a market in this process, scripted."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import httpx

from parity_market.loops.rounds import Rounds
from parity_market.operations import groups
from parity_market.operations.groups import Group
from parity_market.round_engine import rounds_of
from parity_market.testing.served import Served, Signer
from parity_protocol.api import paths

__all__ = ["DATA", "INSTANCE", "OTHER_WALLET", "UNKNOWN", "WALLET", "Old", "ids_of"]

DATA = b"a,b,target\n" + b"".join(b"%d,%d,%d\n" % (i, i * 7 % 13, 3 * i - i * 7 % 13) for i in range(60))


WALLET, OTHER_WALLET = "0x" + "52" * 20, "0x" + "53" * 20


UNKNOWN = "00000000-0000-0000-0000-000000000001"


INSTANCE = "ab" * 32


@dataclass
class Old:
    """The old network's programs, scripted."""

    served: Served
    cid: str

    def description(self, **changes: Any) -> dict[str, Any]:
        return {
            "name": "s",
            "model_type": "linear_regression",
            "total_rounds": 1,
            "min_participants": 2,
            "creator_address": WALLET,
            "training_data": {
                "dataset_cid": self.cid,
                "data_format": "csv",
                "split_strategy": "random",
                "metadata": {"min_samples": 2},
            },
            "config": {
                "learning_rate": 0.001,
                "batch_size": 8,
                "local_epochs": 1,
                "model_config": {"input_size": 2},
            },
            **changes,
        }

    async def call(self, method: str, path: str, body: Any = None, *, device: str = "", **more: Any) -> httpx.Response:
        change = {"X-Device-ID": device} if device else {}
        return await self.served.call(method, path, body, change={**change, **more.pop("change", {})}, **more)

    async def session(self, *, by: Signer | None = None, **changes: Any) -> str:
        """Return a session that was described and started."""
        made = await self.call("POST", paths.FL_SESSIONS, self.description(**changes), by=by)
        assert made.status_code == 201, made.text
        reply = await self.call("POST", paths.fl_session_path(made.json()["id"], "start"), by=by)
        assert reply.status_code == 200, reply.text
        await self.step(made.json()["id"])
        return str(made.json()["id"])

    async def step(self, session_id: str) -> None:
        group = await self.group(session_id)
        while rounds_of(group.value.spec) and await self.served.state.rounds.step(await self.group(session_id)):
            pass
        await Rounds(self.served.state).step()

    async def group(self, session_id: str) -> Group:
        return await self.served.state.store.read(partial(groups.load, group_id=session_id))

    async def register(self, *devices: str) -> None:
        for device in devices:
            assert (
                await self.call("POST", paths.RUNNERS, {"wallet_address": WALLET}, device=device)
            ).status_code == 201

    async def tasks(self, session_id: str, device: str, number: int = 1) -> list[dict[str, Any]]:
        reply = await self.call("GET", paths.fl_session_path(session_id, f"rounds/{number}"), device=device)
        assert reply.status_code == 200, reply.text
        return list(reply.json()["tasks"])

    async def start(self, task_id: str, device: str) -> httpx.Response:
        return await self.call("POST", paths.runner_task_path(task_id, "start"), device=device)

    async def started(self, session_id: str, device: str, part: int = 0) -> dict[str, Any]:
        """Return the config of a part that a device has started."""
        reply = await self.start((await self.tasks(session_id, device))[part]["id"], device)
        assert reply.status_code == 200, reply.text
        return {**reply.json()["config"], "task_id": reply.json()["id"]}

    async def update(self, config: dict[str, Any], device: str, **changes: Any) -> httpx.Response:
        body = {
            "session_id": config["session_id"],
            "round_id": config["round_id"],
            "runner_id": device,
            # Of equal updates the market believes at most one.
            "weights": {"layer_weights": [0.1, 0.2, 0.3 + sum(device.encode()) / 10_000]},
            "gradients": {},
            "loss": 0.5,
            "accuracy": 0.25,
            "data_size": 10,
            "training_time": 1000,
            **changes,
        }
        return await self.call("POST", paths.FL_MODEL_UPDATES, body)


def ids_of(config: dict[str, Any], device: str) -> dict[str, str]:
    """Return what names an update: session, round and device."""
    return {"session_id": config["session_id"], "round_id": config["round_id"], "runner_id": device}
