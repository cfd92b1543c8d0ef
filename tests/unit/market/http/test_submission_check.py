"""`POST /tasks/check`: what a submitter is told before anything is stored or signed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from parity_blobs import cid_of_bytes
from parity_market.testing.served import TOKEN, Served, Signer
from parity_protocol.api import paths
from parity_protocol.testing.keys import deterministic_evm_key

ACCOUNT = deterministic_evm_key("submitter")
SESSION: dict[str, Any] = {
    "type": "federated_learning",
    "model_type": "neural_network",
    "dataset_cid": str(cid_of_bytes(b"nobody has stored this")),
    "data_format": "csv",
    "model_config": {"hidden_size": 2},
    "train_config": {"epochs": 1, "batch_size": 8, "learning_rate": 0.1},
    "partition_config": {"strategy": "random", "total_parts": 3, "min_samples": 2},
}
SECURE = {"secure_aggregation": True}
SHARDED = {name: value for name, value in SESSION.items() if name not in ("dataset_cid", "partition_config")}


@pytest.fixture
async def me(served: Served) -> Signer:
    await served.fund(ACCOUNT, 10 * TOKEN)
    return await served.sign_in(ACCOUNT)


async def check(served: Served, by: Signer | None, spec: Any, **more: Any) -> Any:
    return await served.call("POST", paths.TASK_CHECK, {"spec": json.dumps(spec), **more}, by=by)


async def test_a_session_is_accepted_before_its_data_are_there_and_leaves_nothing_behind(
    served: Served, me: Signer
) -> None:
    reply = await check(served, me, SESSION, reward=str(10 * TOKEN))

    assert (reply.status_code, reply.json()) == (200, {"type": "federated_learning", "parts": 3})
    account = await served.call("GET", paths.account_path(ACCOUNT.address), by=me)
    assert account.json()["reserved"] == "0"
    assert (await served.call("GET", paths.TASKS, by=me)).json()["tasks"] == []


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({**SESSION, "privacy": SECURE}, "privacy needs data_mode sharded"),
        ({**SHARDED, "data_mode": "sharded", "shards": ["ab" * 32] * 2, "privacy": SECURE}, "needs 3 to"),
        ({**SESSION, "strategy_config": {"strategy": "Nonsense"}}, "Nonsense"),
        ({**SESSION, "train_config": {"epochs": 1}}, "batch_size, learning_rate are required"),
        ({**SESSION, "engine": "flower"}, "flower is not installed here"),
        ({**SESSION, "partition_config": {"strategy": "random", "total_parts": 0, "min_samples": 2}}, "total_parts"),
        ({"type": "command", "command": []}, "command"),
    ],
)
async def test_what_a_submission_would_be_refused_for_is_said(
    served: Served, me: Signer, spec: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("parity_market.flower.fleets.is_installed", lambda: False)

    reply = await check(served, me, spec)

    assert reply.status_code in (400, 422), reply.text
    assert words in reply.json()["detail"]


async def test_who_asks_for_privacy_over_one_data_set_is_told_the_option_that_has_it(
    served: Served, me: Signer
) -> None:
    reply = await check(served, me, {**SESSION, "privacy": SECURE})

    assert "--shard" in reply.json()["hint"]


async def test_money_that_is_not_there_is_said_and_is_not_asked_for_without_a_reward(
    served: Served, me: Signer
) -> None:
    too_much = await check(served, me, SESSION, reward=str(10 * TOKEN + 1))
    nothing = await check(served, me, SESSION)

    assert (too_much.status_code, too_much.json()["code"]) == (422, "escrow_too_low")
    assert nothing.status_code == 200


async def test_only_who_signed_in_may_ask(served: Served) -> None:
    assert (await check(served, None, SESSION)).status_code == 401
    assert (await check(served, await served.enrol("node"), SESSION)).status_code == 403
