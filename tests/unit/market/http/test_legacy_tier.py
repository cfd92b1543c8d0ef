"""The tier of the old network: who is let in without a signature, what a name in a header may do, and what it may not."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Literal

import httpx
import pytest

from parity_fl.rounds import RoundTrainer
from parity_market.app import create_app
from parity_market.legacy import BURST, RATE
from parity_market.loops.rounds import Rounds
from parity_market.operations import groups, leases, legacy, money
from parity_market.operations.groups import Group
from parity_market.round_engine import rounds_of
from parity_market.testing.rig import inline
from parity_market.testing.served import TOKEN, Served, Signer, serve_in_process
from parity_protocol import strict_json
from parity_protocol.api import paths
from parity_protocol.parity_session import read_old_session
from parity_protocol.testing.keys import deterministic_evm_key

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
            "weights": {"layer_weights": [0.1, 0.2, 0.3]},
            "gradients": {},
            "loss": 0.5,
            "accuracy": 0.25,
            "data_size": 10,
            "training_time": 1000,
            **changes,
        }
        return await self.call("POST", paths.FL_MODEL_UPDATES, body)


@pytest.fixture
async def old(tmp_path: Path) -> AsyncIterator[Old]:
    async with serve_in_process(tmp_path, offload=inline) as served:
        uploader = await served.sign_in(deterministic_evm_key("uploader"))
        stored = await served.call("POST", f"{paths.STORAGE_UPLOAD}?visibility=public", raw=DATA, by=uploader)
        yield Old(served, stored.json()["cid"])


# -- who is let in ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "peer", "headers", "is_in"),
    [
        ("loopback", "127.0.0.1", {}, True),
        ("loopback", "::1", {}, True),
        ("loopback", "192.0.2.7", {}, False),
        ("loopback", "127.0.0.1", {"X-Forwarded-For": "192.0.2.7"}, False),
        ("loopback", "127.0.0.1", {"Forwarded": "for=192.0.2.7"}, False),
        ("loopback", "127.0.0.1", {"Via": "1.1 proxy"}, False),
        ("loopback", "127.0.0.1", {"Origin": "https://evil.example"}, False),
        ("loopback", "127.0.0.1", {"Sec-Fetch-Site": "cross-site"}, False),
        ("loopback", "127.0.0.1", {"Host": "localhost:8080"}, True),
        ("loopback", "127.0.0.1", {"Host": "this-machine:8080"}, True),
        ("loopback", "127.0.0.1", {"Host": "[::1]:8080"}, True),
        ("loopback", "127.0.0.1", {"Host": "market.example"}, False),
        ("loopback", "127.0.0.1", {"Host": "127.0.0.1.example:8080"}, False),
        ("loopback", "127.0.0.1", {"Host": "192.0.2.7:8080"}, False),
        ("loopback", "127.0.0.1", {"Host": "[2001:db8::1]:8080"}, False),
        ("on", "192.0.2.7", {"Host": "market.example"}, True),
        ("on", "192.0.2.7", {}, True),
        ("on", "192.0.2.7", {"Origin": "https://evil.example"}, False),
        ("off", "127.0.0.1", {}, False),
    ],
)
async def test_only_who_the_operator_lets_in_may_go_without_a_signature(
    old: Old, mode: Literal["off", "loopback", "on"], peer: str, headers: dict[str, str], is_in: bool
) -> None:
    old.served.state.legacy.mode = mode
    transport = httpx.ASGITransport(create_app(old.served.state), client=(peer, 1))

    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8080", headers=headers) as client:
        register = await client.post(paths.RUNNERS, json={"wallet_address": WALLET}, headers={"X-Device-ID": "d"})
        listing = await client.get(f"{paths.FL_SESSIONS}?creator={WALLET}")

    assert register.status_code == (201 if is_in else 403), register.text
    assert listing.status_code == (200 if is_in else 401), listing.text


async def test_who_asks_too_often_waits(old: Old) -> None:
    statuses = [(await old.call("GET", paths.fl_session_path(UNKNOWN))).status_code for _ in range(int(BURST) + 2)]
    await old.served.clock.advance(timedelta(seconds=1))
    later = [(await old.call("GET", paths.fl_session_path(UNKNOWN))).status_code for _ in range(int(RATE) + 1)]

    assert statuses == [404] * int(BURST) + [503, 503]
    assert later == [404] * int(RATE) + [503]


async def test_a_device_stays_with_the_wallet_that_it_named_first(old: Old) -> None:
    await old.register("one")

    again = await old.call("POST", paths.RUNNERS, {"wallet_address": WALLET.upper().replace("X", "x")}, device="one")
    taken = await old.call("POST", paths.RUNNERS, {"wallet_address": OTHER_WALLET}, device="one")

    assert (again.status_code, taken.status_code) == (201, 403)
    assert taken.json()["error"] == "this device is bound to another wallet since it was first seen"


async def test_devices_are_bounded_and_those_long_unseen_are_forgotten(
    old: Old, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(legacy, "MAX_DEVICES", 1)
    await old.register("one")

    full = await old.call("POST", paths.RUNNERS, {"wallet_address": WALLET}, device="two")
    await old.served.clock.advance(legacy.FORGOTTEN_AFTER + timedelta(seconds=1))
    later = await old.call("POST", paths.RUNNERS, {"wallet_address": WALLET}, device="two")

    assert (full.status_code, later.status_code) == (503, 201)


@pytest.mark.parametrize("name", ["", "x" * 256, "ä".encode().decode("latin-1")])
async def test_a_device_has_a_plain_name(old: Old, name: str) -> None:
    headers = {"X-Device-ID": name.encode("latin-1")}

    reply = await old.served.client.post(paths.RUNNERS, json={"wallet_address": WALLET}, headers=headers)

    assert reply.status_code == 400
    assert reply.json()["error"].startswith("Device ID")


# -- whose sessions -----------------------------------------------------------------------------------------------


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
        **_ids(config, "one"),
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


# -- what a device may do -----------------------------------------------------------------------------------------


async def test_a_device_that_did_not_register_gets_nothing(old: Old) -> None:
    session_id = await old.session()
    await old.register("one")
    task = (await old.tasks(session_id, "one"))[0]["id"]

    replies = [
        await old.call("GET", paths.fl_session_path(session_id, "rounds/1"), device="stranger"),
        await old.start(task, "stranger"),
        await old.call("POST", paths.runner_task_path(task, "result"), {}, device="stranger"),
    ]

    assert [(reply.status_code, reply.json()["error"]) for reply in replies] == [(404, "runner not found")] * 3


async def test_a_part_is_one_devices_at_a_time(old: Old) -> None:
    session_id = await old.session()
    await old.register("one", "two")
    config = await old.started(session_id, "one")

    again = await old.start(config["task_id"], "one")
    other = await old.start(config["task_id"], "two")
    listed = [task["status"] for task in await old.tasks(session_id, "two")]

    assert again.json()["config"]["round_id"] == config["round_id"]
    assert (other.status_code, other.json()) == (409, {"error": "task unavailable: another runner has it"})
    assert listed == ["running", "pending"]


async def test_an_update_counts_only_from_who_was_given_the_part(old: Old) -> None:
    session_id, elsewhere = await old.session(), await old.session()
    await old.register("one", "two")
    config, theirs = await old.started(session_id, "one"), await old.started(elsewhere, "two")

    replies = {
        "another's lease": await old.update(config, "two"),
        "a guessed lease": await old.update({**config, "round_id": UNKNOWN}, "one"),
        "another session": await old.update({**config, "session_id": elsewhere}, "one"),
        "an unknown session": await old.update({**config, "session_id": UNKNOWN}, "one"),
        "an unknown device": await old.update(config, "three"),
        "another header": await old.call("POST", paths.FL_MODEL_UPDATES, {**_ids(config, "one")}, device="two"),
    }
    good = await old.update(config, "one")

    assert {name: reply.status_code for name, reply in replies.items()} == dict.fromkeys(replies, 400)
    assert good.status_code == 200
    assert (await old.update(theirs, "two")).status_code == 200


def _ids(config: dict[str, Any], device: str) -> dict[str, str]:
    return {"session_id": config["session_id"], "round_id": config["round_id"], "runner_id": device}


async def test_an_update_that_comes_again_changes_nothing(old: Old) -> None:
    session_id = await old.session()
    await old.register("one")
    config = await old.started(session_id, "one")

    first = await old.update(config, "one")
    again = await old.update(config, "one", weights={"layer_weights": [9.0, 9.0, 9.0]})

    folder = old.served.state.rounds.folder(session_id) / "updates"
    files = [path.name for path in folder.rglob("*") if path.is_file()]
    assert (first.status_code, again.status_code) == (200, 200)
    assert len(files) == 1
    assert [task["status"] for task in await old.tasks(session_id, "one")] == ["completed", "pending"]


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({"layer_weights": [0.1, 0.2]}, "weights.layer_weights must be a list of 3 numbers, got 2 values"),
        ({"layer_weights": [0.1, 0.2, "NaN"]}, "weights.layer_weights must be a list of numbers"),
        ({"layer_weights": [0.1, 0.2, 1e39]}, "weights.layer_weights has NaN or Inf values"),
        ({"other": [0.1, 0.2, 0.3]}, "weights must have the layers layer_weights"),
        ({"layer_weights": [0] * 20_000}, "the document has more than"),
    ],
)
async def test_an_update_that_is_none_of_the_model_is_refused_by_name_and_may_be_sent_again(
    old: Old, weights: dict[str, Any], words: str
) -> None:
    session_id = await old.session()
    await old.register("one")
    config = await old.started(session_id, "one")

    bad = await old.update(config, "one", weights=weights)
    good = await old.update(config, "one")

    folder = old.served.state.rounds.folder(session_id) / "updates"
    assert (bad.status_code, good.status_code) == (400 if "more than" not in words else bad.status_code, 200), bad.text
    assert bad.json()["error"].startswith(words)
    assert len([path for path in folder.rglob("*") if path.is_file()]) == 1


async def test_a_late_update_is_refused_with_the_cause(old: Old) -> None:
    session_id = await old.session(total_rounds=2, min_participants=3)
    await old.register("one", "two", "three")
    configs = [await old.started(session_id, device, part) for part, device in enumerate(("one", "two", "three"))]
    await old.step(session_id)
    for config, device in zip(configs, ("one", "two"), strict=False):
        assert (await old.update(config, device)).status_code == 200
    await old.served.clock.advance(timedelta(minutes=10, seconds=1))
    await old.step(session_id)

    late = await old.update(configs[2], "three")

    assert late.status_code == 400
    assert late.json()["error"].startswith("late: round 1")


async def test_a_device_that_has_sent_its_part_counts_as_there_when_the_rounds_clock_is_started(old: Old) -> None:
    session_id = await old.session(min_participants=3)
    await old.register("one", "two", "three")
    assert (await old.update(await old.started(session_id, "one", 0), "one")).status_code == 200
    configs = [await old.started(session_id, device, part) for part, device in ((1, "two"), (2, "three"))]
    await old.step(session_id)
    assert (await old.update(configs[0], "two")).status_code == 200

    await old.served.clock.advance(timedelta(minutes=10, seconds=1))
    await old.step(session_id)

    shown = (await old.call("GET", paths.fl_session_path(session_id))).json()
    assert shown["current_round"] == 1
    assert (await old.call("GET", paths.fl_session_path(session_id, "rounds/1"))).json()["status"] == "completed"


async def test_a_task_is_of_its_round_alone(old: Old) -> None:
    session_id = await old.session(total_rounds=2)
    await old.register("one", "two", "three")
    configs = [await old.started(session_id, device, part) for part, device in enumerate(("one", "two"))]
    for config, device in zip(configs, ("one", "two"), strict=True):
        assert (await old.update(config, device)).status_code == 200
    await old.step(session_id)

    replayed = await old.update(configs[0], "one")
    old_task = await old.start(configs[0]["task_id"], "three")

    assert replayed.status_code == 200
    assert old_task.json() == {"error": "task unavailable: round 1 is not open"}
    assert (await old.tasks(session_id, "one", 2))[0]["id"] != configs[0]["task_id"]


async def test_a_device_that_fails_gives_the_part_back(old: Old) -> None:
    session_id = await old.session()
    await old.register("one", "two")
    config = await old.started(session_id, "one")

    failed = await old.call(
        "POST",
        paths.runner_task_path(config["task_id"], "result"),
        {"exit_code": 0, "error": "training failed: \x1b[31mno data\x00".replace("\x00", "")},
        device="one",
    )
    late = await old.update(config, "one")

    assert (failed.status_code, late.status_code) == (200, 400)
    again = await old.start(config["task_id"], "one")
    assert again.json() == {"error": "task unavailable: this runner failed at it before"}
    assert (await old.started(session_id, "two"))["round_id"] != config["round_id"]
    assert (await old.group(session_id)).tasks[0].attempts == 0
    assert "\x1b" not in (await old.group(session_id)).tasks[0].message


async def test_a_device_that_says_nothing_loses_the_part_in_time(old: Old) -> None:
    session_id = await old.session()
    await old.register("one", "two")
    config = await old.started(session_id, "one")
    state = old.served.state

    await old.served.clock.advance(timedelta(minutes=10, seconds=1))
    await state.store.write(lambda tx: leases.reap(tx, state.market, state.clock.now()))
    late = await old.update(config, "one")

    assert late.status_code == 400
    assert (await old.start(config["task_id"], "two")).status_code == 200


async def test_a_result_is_its_devices_alone(old: Old) -> None:
    session_id = await old.session()
    await old.register("one", "two")
    config = await old.started(session_id, "one")
    path = paths.runner_task_path(config["task_id"], "result")

    replies = [
        await old.call("POST", path, {"error": "mine now"}, device="two"),
        await old.call("POST", paths.runner_task_path(UNKNOWN, "result"), {}, device="one"),
        await old.call("POST", path, {"exit_code": "0"}, device="one"),
        await old.call("POST", path, {}, device="one"),
    ]

    assert [reply.status_code for reply in replies] == [403, 404, 400, 200]
    assert replies[0].json() == {"error": "task is assigned to a different runner"}
    assert (await old.update(config, "one")).status_code == 200


async def test_a_session_that_scales_its_rows_is_not_for_old_devices(old: Old) -> None:
    config = {**old.description()["config"], "model_config": {"input_size": 2, "standardize": True}}
    session_id = await old.session(config=config)
    await old.register("one")

    reply = await old.start((await old.tasks(session_id, "one"))[0]["id"], "one")

    assert reply.status_code == 409
    assert "do not scale their rows" in reply.json()["error"]


async def test_gradients_alone_are_differences_to_the_rounds_model(old: Old) -> None:
    session_id = await old.session(total_rounds=2)
    await old.register("one", "two")
    for number in (1, 2):
        for part, device in enumerate(("one", "two")):
            task = (await old.tasks(session_id, device, number))[part]
            config = (await old.start(task["id"], device)).json()["config"]
            sent = await old.update(config, device, weights={}, gradients={"layer_weights": [1.0, 2.0, part]})
            assert sent.status_code == 200, sent.text
        await old.step(session_id)

    found = (await old.call("GET", paths.fl_session_path(session_id, "model"))).json()["model_data"]

    assert found["weights"]["layer_weights"] == pytest.approx([2.0, 4.0, 1.0])


async def test_a_model_that_a_program_has_is_not_sent_again(old: Old) -> None:
    session_id = await old.session()
    await old.register("one", "two")
    for part, device in enumerate(("one", "two")):
        assert (await old.update(await old.started(session_id, device, part), device)).status_code == 200
    await old.step(session_id)
    where = paths.fl_session_path(session_id, "model")

    first = await old.call("GET", where)
    again = await old.call("GET", where, change={"If-None-Match": first.headers["etag"]})

    assert (first.status_code, again.status_code, again.content) == (200, 304, b"")
    assert again.headers["etag"] == first.headers["etag"]


# -- forests ------------------------------------------------------------------------------------------------------

STUMP = [3, 2, 1, 0, 0, 30.5, 0, 6, 0, 0, -1, 0, 1e6, 3, 0, 1, -1, 0, 1e6, 3, 0, 1]  # its leaves lie


def forest() -> dict[str, Any]:
    config = {"model_config": {"num_trees": 3, "max_depth": 3, "task": "regression"}, "aggregation_method": "fedavg"}
    return {"model_type": "random_forest", "config": config}


async def test_two_devices_make_a_forest_whose_leaves_are_counted_here(old: Old) -> None:
    session_id = await old.session(**forest())
    await old.register("one", "two")

    configs = [await old.started(session_id, device, part) for part, device in enumerate(("one", "two"))]
    for config, device in zip(configs, ("one", "two"), strict=True):
        trees = STUMP * config["model_config"]["num_trees"]
        zeros = {"trees": [0.0] * len(trees)}
        reply = await old.update(config, device, weights={"trees": trees}, gradients=zeros)
        assert reply.status_code == 200, reply.text
        assert (await old.update(config, device, weights={"trees": trees})).status_code == 200
    await old.served.clock.advance(timedelta(seconds=3))
    await old.step(session_id)
    await old.step(session_id)

    shown = (await old.call("GET", paths.fl_session_path(session_id))).json()
    data = (await old.call("GET", paths.fl_session_path(session_id, "model"))).json()["model_data"]
    assert [config["model_config"]["num_trees"] for config in configs] == [2, 1]
    assert (shown["status"], shown["current_round"]) == ("completed", 1)
    assert data["weights"]["trees"][4:6] == [0.0, 30.5]
    leaves = [data["weights"]["trees"][at] for at in (12, 18)]
    assert max(leaves) < 200  # as the data are, not as the devices say
    assert len(data["weights"]["trees"]) == 3 * len(STUMP)
    assert {str(task.state) for task in (await old.group(session_id)).tasks} == {"completed"}


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({}, "weights.trees must be a list"),
        ({"trees": [1, 2, 3]}, "not a list of trees"),
        ({"trees": STUMP}, "weights.trees must hold 2 trees, got 1"),
        ({"trees": [*STUMP[:4], 7, *STUMP[5:]] * 2}, "not a list of trees: feature 7 is not below 2"),
        ({"trees": ["1"] * 22}, "weights.trees must be a list of numbers"),
    ],
)
async def test_trees_that_are_none_are_refused_by_name_and_may_be_sent_again(
    old: Old, weights: dict[str, Any], words: str
) -> None:
    session_id = await old.session(**forest())
    await old.register("one")
    config = await old.started(session_id, "one")

    bad = await old.update(config, "one", weights=weights)
    good = await old.update(config, "one", weights={"trees": STUMP * 2})

    assert (bad.status_code, good.status_code) == (400, 200), bad.text
    assert bad.json()["error"].startswith(words)


# -- beside our own nodes -----------------------------------------------------------------------------------------


async def test_a_node_is_never_offered_what_nobody_signed_for(old: Old) -> None:
    session_id = await old.session()
    node = await old.served.enrol("node")

    offered = await old.served.call("POST", paths.LEASE_POLL, {"instance": INSTANCE, "slots": 4, "wait_s": 0}, by=node)

    assert offered.json()["manifests"] == []
    why = old.served.state.scheduler.why_pending((await old.group(session_id)).tasks[0])
    assert "only devices of the old network may have it" in why.model_dump_json()


async def _ordered(old: Old, *, reward: int) -> tuple[str, Signer]:
    """Return a session in the old form whose submitter signed an order for it."""
    account = deterministic_evm_key("alice")
    await old.served.fund(account, 10 * TOKEN)
    alice = await old.served.sign_in(account)
    described = old.description(creator_address=account.address, total_rounds=2)
    text = strict_json.dumps(read_old_session(described).spec).decode()
    signed = old.served.submission(account, text, reward)
    session_id = await old.session(
        by=alice, creator_address=account.address, total_rounds=2, order=signed["order"], reward=signed["reward"]
    )
    return session_id, alice


async def test_an_order_brings_nodes_and_a_device_beside_them_earns_nothing(old: Old) -> None:
    session_id, alice = await _ordered(old, reward=4 * TOKEN)
    await old.register("one")
    config = await old.started(session_id, "one", part=1)
    node = await old.served.enrol("node")
    poll = {"instance": INSTANCE, "slots": 1, "wait_s": 0}
    (manifest,) = (await old.served.call("POST", paths.LEASE_POLL, poll, by=node)).json()["manifests"]
    claim = {"instance": INSTANCE, "claims": [{"manifest": manifest, "claim_id": str(uuid.uuid4())}]}
    lease = (await old.served.call("POST", paths.LEASE_CLAIMS, claim, by=node)).json()["claims"][0]
    session = old.served.state.rounds.known(await old.group(session_id)).session
    trainer = RoundTrainer(session.spec, session.plan, DATA, 0)

    for number in (1, 2):
        model = await old.served.call("GET", paths.fl_session_path(session_id, "model"), by=node)
        base = model.headers["etag"].strip('"')
        query = f"lease_id={lease['lease_id']}&fence={lease['fence']}&base={base}"
        sent = await old.served.call(
            "PUT",
            f"{paths.fl_part_path(session_id, number, 0, 0)}?{query}",
            raw=trainer.train(model.content, number=number).update,
            by=node,
        )
        assert sent.status_code == 200, sent.text
        assert (await old.update(config, "one")).status_code == 200
        await old.step(session_id)
        if number == 1:
            listed = await old.tasks(session_id, "one", 2)
            config = (await old.start(listed[1]["id"], "one")).json()["config"]
    await old.served.clock.advance(timedelta(seconds=61))
    await old.step(session_id)

    state = old.served.state
    account = deterministic_evm_key("alice").address
    tasks = (await old.group(session_id)).tasks
    view = await state.store.read(lambda tx: money.escrow_view(tx, state.market, account, state.clock.now()))
    assert [str(task.state) for task in tasks] == ["cancelled", "cancelled"]
    assert view.reserved == 0
    assert view.earned == 2 * TOKEN  # the node's rounds; nothing of the device's
    assert (await old.served.call("GET", paths.fl_session_path(session_id), by=alice)).json()["state"] == "completed"


async def test_an_order_for_another_session_is_refused_when_it_is_started(old: Old) -> None:
    account = deterministic_evm_key("alice")
    alice = await old.served.sign_in(account)
    text = strict_json.dumps(read_old_session(old.description(name="another")).spec).decode()
    order = old.served.submission(account, text, 0)["order"]
    described = old.description(creator_address=account.address, order=order, reward="0")
    made = await old.call("POST", paths.FL_SESSIONS, described, by=alice)

    reply = await old.call("POST", paths.fl_session_path(made.json()["id"], "start"), by=alice)

    assert reply.status_code == 400
    assert "the order signs a spec" in reply.json()["error"]


async def test_who_does_not_sign_brings_no_order(old: Old) -> None:
    reply = await old.call("POST", paths.FL_SESSIONS, old.description(order={}))

    assert reply.status_code == 403
