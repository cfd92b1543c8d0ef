"""Sessions of the old network: whose they are, what they may say, and how many there may be."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from parity_market.operations import legacy
from parity_market.testing.served import TOKEN
from parity_protocol.api import paths
from parity_protocol.testing.keys import deterministic_evm_key

from .old_network import DATA, OTHER_WALLET, WALLET, Old, ids_of


async def test_a_signed_session_is_the_accounts_alone(old: Old) -> None:
    account = deterministic_evm_key("alice")
    alice, bob = await old.served.sign_in(account), await old.served.sign_in(deterministic_evm_key("bob"))
    session_id = await old.session(by=alice, creator_address=account.address)
    where = paths.fl_session_path(session_id)

    hers = await old.call("GET", f"{where}?form=parity", by=alice)
    others = [await old.call("GET", f"{where}?form=parity", by=bob), await old.call("GET", where)]
    listed = await old.call("GET", f"{paths.FL_SESSIONS}?form=parity&creator={account.address}", by=alice)
    unsigned = await old.call("GET", f"{paths.FL_SESSIONS}?creator={account.address}")
    start = await old.call("POST", paths.fl_session_path(session_id, "start"))

    assert (hers.status_code, hers.json()["status"], hers.json()["creator_address"]) == (200, "active", account.address)
    assert "x-parity-tier" not in hers.headers
    assert [reply.status_code for reply in others] == [404, 404]
    assert [one["id"] for one in listed.json()["sessions"]] == [session_id]
    assert unsigned.json() == {"sessions": [], "count": 0}
    assert start.json() == {"error": "failed to get session: record not found"}


async def test_nobody_creates_in_anothers_name_by_signing(old: Old) -> None:
    alice = await old.served.sign_in(deterministic_evm_key("alice"))

    reply = await old.call("POST", paths.FL_SESSIONS, old.description(), by=alice)

    assert reply.status_code == 403
    assert reply.json()["error"] == "creator_address is not the account that signed in"


async def test_who_does_not_sign_reads_no_private_data(old: Old) -> None:
    owner = deterministic_evm_key("owner")
    signer = await old.served.sign_in(owner)
    stored = await old.served.call(
        "POST", f"{paths.STORAGE_UPLOAD}?visibility=private", raw=DATA + b"1,1,1\n", by=signer
    )
    data = {**old.description()["training_data"], "dataset_cid": stored.json()["cid"]}
    made = await old.call("POST", paths.FL_SESSIONS, old.description(creator_address=owner.address, training_data=data))

    reply = await old.call("POST", paths.fl_session_path(made.json()["id"], "start"))

    assert reply.status_code == 400
    assert "data_unavailable" in reply.json()["error"]
    assert (await old.call("GET", paths.fl_session_path(made.json()["id"]))).json()["status"] == "pending"


async def test_a_session_of_ours_is_shown_in_the_old_form_and_is_not_for_old_devices(old: Old) -> None:
    account = deterministic_evm_key("alice")
    await old.served.fund(account, 10 * TOKEN)
    alice = await old.served.sign_in(account)
    spec = {
        "type": "federated_learning",
        "title": "mine",
        "model_type": "linear_regression",
        "dataset_cid": old.cid,
        "data_format": "csv",
        "model_config": {"input_size": 2},
        "train_config": {"epochs": 4, "batch_size": 8, "learning_rate": 0.001},
        "partition_config": {"strategy": "random", "total_parts": 2, "min_samples": 2},
        "total_rounds": 2,
        "strategy_config": {"strategy": "FedAdam"},
    }
    made = await old.served.call("POST", paths.TASKS, old.served.submission(account, spec), by=alice)
    await old.step(made.json()["id"])

    shown = await old.call("GET", f"{paths.fl_session_path(made.json()['id'])}?form=parity", by=alice)
    await old.register("one")
    task = (await old.group(made.json()["id"])).tasks[0].id
    asked = [
        await old.call("GET", paths.fl_session_path(made.json()["id"], "rounds/1"), device="one"),
        await old.start(legacy.round_task_id(task, 1), "one"),
    ]

    found = shown.json()
    assert [reply.status_code for reply in asked] == [404, 404]  # it is for nodes with a bond
    assert (found["name"], found["status"], found["total_rounds"], found["min_participants"]) == (
        "mine",
        "active",
        2,
        2,
    )
    assert found["config"]["aggregation_method"] == "fedadam"
    assert found["config"]["local_epochs"] == 4


async def test_what_waits_to_be_started_is_bounded_and_forgotten(old: Old, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("parity_market.operations.old_sessions.MAX_WAITING_UNPROVEN", 1)
    first = await old.call("POST", paths.FL_SESSIONS, old.description())

    full = await old.call("POST", paths.FL_SESSIONS, old.description(creator_address=OTHER_WALLET))
    await old.served.clock.advance(timedelta(days=8))
    later = await old.call("POST", paths.FL_SESSIONS, old.description())

    assert (first.status_code, full.status_code, later.status_code) == (201, 503, 201)
    assert (await old.call("GET", paths.fl_session_path(first.json()["id"]))).status_code == 404


async def test_sessions_that_nobody_pays_for_do_not_run_in_any_number(
    old: Old, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("parity_market.operations.old_sessions.MAX_RUNNING_UNPROVEN", 1)
    await old.session()
    made = await old.call("POST", paths.FL_SESSIONS, old.description(creator_address=OTHER_WALLET))
    where = paths.fl_session_path(made.json()["id"])

    reply = await old.call("POST", f"{where}/start")

    assert (reply.status_code, reply.json()) == (503, {"error": "1 sessions without an order run already"})
    assert (await old.call("GET", where)).json()["status"] == "pending"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"total_rounds": 0}, "Invalid request body: total_rounds is required"),
        ({"model_type": "svm"}, "Failed to create session: unsupported model type: svm"),
        (
            {"config": {"model_config": {"input_size": 2}}},
            "Failed to create session: training configuration is incomplete",
        ),
        (
            {
                "config": {
                    "learning_rate": 0.001,
                    "batch_size": 8,
                    "local_epochs": 1,
                    "model_config": {"input_size": 2},
                    "privacy_config": {"differential_privacy": True, "noise_multiplier": 1.0, "l2_norm_clip": 1.0},
                }
            },
            "Failed to create session: privacy needs data_mode sharded",
        ),
        ({"min_participants": 5000}, "Failed to create session: partition_config.total_parts"),
    ],
)
async def test_what_is_wrong_with_a_description_is_said_at_once(old: Old, changes: dict[str, Any], words: str) -> None:
    reply = await old.call("POST", paths.FL_SESSIONS, old.description(**changes))

    assert reply.status_code == 400
    assert reply.json()["error"].startswith(words)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"nonsense",
        b'{"name": NaN}',
        b'{"name": "a", "name": "b"}',
        b'{"a":' + b"[" * 1000 + b"]" * 1000 + b"}",
        b'{"a":[' + b"1," * 20_000 + b"1]}",
        b'{"name":"' + b"x" * 70_000 + b'"}',
    ],
    ids=["empty", "array", "nonsense", "nan", "twice", "deep", "many", "long"],
)
@pytest.mark.parametrize("path", [paths.FL_SESSIONS, paths.RUNNERS, paths.FL_MODEL_UPDATES])
async def test_hostile_bodies_are_400s_or_413s(old: Old, path: str, raw: bytes) -> None:
    reply = await old.call("POST", path, raw=raw, device="d")

    assert reply.status_code in (400, 413), reply.text
    assert list(reply.json()) == ["error"]


STRANGE: tuple[Any, ...] = (None, True, -1, 10**30, "\ud800", "NaN", [[]], {"a": {}})


def variants(document: Any) -> Iterator[Any]:
    """Yield the document with each of its members replaced by each strange value, and left out."""
    if isinstance(document, dict):
        for name, value in document.items():
            rest = {other: one for other, one in document.items() if other != name}
            yield rest
            yield from ({**rest, name: strange} for strange in STRANGE)
            yield from ({**rest, name: inner} for inner in variants(value))
    elif isinstance(document, list):
        yield from ([*document[:1], strange] for strange in STRANGE)


async def test_no_member_of_any_body_may_be_strange_enough_for_a_5xx(old: Old) -> None:
    session_id = await old.session()
    await old.register("one")
    config = await old.started(session_id, "one")
    update = {
        **ids_of(config, "one"),
        "weights": {"layer_weights": [0.1, 0.2, 0.3]},
        "gradients": {"layer_weights": [0.1, 0.2, 0.3]},
        "loss": 0.5,
        "accuracy": 0.25,
        "data_size": 10,
        "training_time": 1000,
        "metadata": {"submission_time": 1},
    }
    described = old.description(order={"creator": WALLET}, description="d")
    described["config"]["privacy_config"] = {"differential_privacy": False, "noise_multiplier": 0}
    result = {"exit_code": 0, "output": "{}", "task_id": config["task_id"]}
    asked = [
        (paths.FL_SESSIONS, described),
        (paths.RUNNERS, {"wallet_address": WALLET, "webhook": "http://localhost/webhook"}),
        (paths.FL_MODEL_UPDATES, {**update, "runner_id": "two"}),
        (paths.FL_MODEL_UPDATES, update),
        (paths.runner_task_path(config["task_id"], "result"), result),
    ]

    refused = []
    for path, document in asked:
        for body in variants(document):
            await old.served.clock.advance(timedelta(seconds=1))
            raw = json.dumps(body).encode()
            reply = await old.call("POST", path, raw=raw, device="one")
            if reply.status_code >= 500:
                refused.append((path, raw[:300], reply.text))

    assert refused == []
