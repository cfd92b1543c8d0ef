"""The tier of the old network: who is let in without a signature, what a name in a header may do, and what it may not."""

from __future__ import annotations

import uuid
from datetime import timedelta
from typing import Any, Literal

import httpx
import pytest

from parity_fl.rounds import RoundTrainer
from parity_market.app import create_app
from parity_market.legacy import BURST, RATE
from parity_market.operations import legacy, money
from parity_market.testing.served import TOKEN, Signer
from parity_protocol import strict_json
from parity_protocol.api import paths
from parity_protocol.parity_session import read_old_session
from parity_protocol.testing.keys import deterministic_evm_key

from .old_network import DATA, INSTANCE, OTHER_WALLET, UNKNOWN, WALLET, Old

# -- who is let in ---------------------------------------------------------------------------------------------------


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


# -- forests ---------------------------------------------------------------------------------------------------------

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


# -- beside our own nodes --------------------------------------------------------------------------------------------


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
