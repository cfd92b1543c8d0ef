"""Nodes that hold leases and mean harm: what they can do to somebody's task is bounded, whatever they say."""

from __future__ import annotations

import json
import uuid
from datetime import timedelta
from typing import Any

import pytest

from parity_market.routes import nodes as node_routes
from parity_market.testing.served import TOKEN, Served, Signer
from parity_protocol.api import paths
from parity_protocol.lease import MAX_HAND_BACKS
from parity_protocol.testing.keys import deterministic_evm_key

MAX_ATTEMPTS = 3  # of a task, unless its spec says otherwise
INSTANCE = "ab" * 32
RESERVATION = timedelta(seconds=2.1)


@pytest.fixture
async def submitter(served: Served) -> Signer:
    account = deterministic_evm_key("submitter")
    await served.fund(account, 100 * TOKEN)
    return await served.sign_in(account)


async def _submit(served: Served, by: Signer, **spec: Any) -> str:
    text = json.dumps({"type": "command", "command": ["true"], **spec})
    reply = await served.call("POST", paths.TASKS, served.submission(deterministic_evm_key("submitter"), text), by=by)
    assert reply.status_code == 201, reply.text
    return str(reply.json()["id"])


async def _poll(served: Served, node: Signer) -> list[str]:
    body = {"instance": INSTANCE, "slots": 1, "wait_s": 0}
    return list((await served.call("POST", paths.LEASE_POLL, body, by=node)).json()["manifests"])


async def _claim(served: Served, node: Signer, manifest: str) -> dict[str, Any]:
    claim = {"manifest": manifest, "claim_id": str(uuid.uuid4())}
    reply = await served.call("POST", paths.LEASE_CLAIMS, {"instance": INSTANCE, "claims": [claim]}, by=node)
    return dict(reply.json()["claims"][0])


async def _release(served: Served, node: Signer, task_id: str, lease: dict[str, Any]) -> None:
    held = {"task_id": task_id, "lease_id": lease["lease_id"], "fence": lease["fence"]}
    body = {"releases": [{**held, "reason": "interrupted", "message": ""}]}
    reply = await served.call("POST", paths.LEASE_RELEASE, body, by=node)
    assert reply.json()["items"][0]["status"] == 200, reply.text


async def _state(served: Served, by: Signer, task_id: str) -> str:
    return str((await served.call("GET", paths.task_path(task_id, "status"), by=by)).json()["state"])


async def _pass(served: Served, delta: timedelta) -> None:
    await served.clock.advance(delta)
    await served.state.scheduler.tick()


async def test_collected_manifests_do_not_use_up_the_attempts_of_a_task(served: Served, submitter: Signer) -> None:
    hostile = await served.enrol("hostile")
    task_id = await _submit(served, submitter)
    collected = []
    for _ in range(3):
        collected += await _poll(served, hostile)
        await _pass(served, RESERVATION)
    assert len(collected) == 3

    for manifest in collected:
        lease = await _claim(served, hostile, manifest)
        if lease["status"] == 200:
            await _release(served, hostile, task_id, lease)

    found = (await served.call("GET", paths.task_path(task_id, "status"), by=submitter)).json()
    assert (found["state"], found["attempts"]) == ("pending", 0)


async def test_a_node_that_gives_a_task_back_again_and_again_leaves_an_attempt_to_others(
    served: Served, submitter: Signer
) -> None:
    hostile, honest = await served.enrol("hostile"), await served.enrol("honest")
    task_id = await _submit(served, submitter)

    taken = 0
    for _ in range(6):
        for manifest in await _poll(served, hostile):
            taken += 1
            await _release(served, hostile, task_id, await _claim(served, hostile, manifest))
        await _pass(served, served.state.market.lease_ttl)
        await served.call("POST", paths.HEARTBEAT, {"instance": INSTANCE, "free_slots": 1}, by=honest)

    assert taken == 2
    (manifest,) = await _poll(served, honest)
    assert (await _claim(served, honest, manifest))["status"] == 200


async def test_a_lone_node_may_try_again_what_it_gave_back_but_not_for_ever(served: Served, submitter: Signer) -> None:
    node = await served.enrol("node")
    task_id = await _submit(served, submitter)

    tries = 0
    while await _state(served, submitter, task_id) == "pending":
        (manifest,) = await _poll(served, node)
        await _release(served, node, task_id, await _claim(served, node, manifest))
        tries += 1

    assert await _state(served, submitter, task_id) == "failed"
    assert tries == MAX_HAND_BACKS + MAX_ATTEMPTS


async def test_a_lease_cannot_be_renewed_for_ever(served: Served, submitter: Signer) -> None:
    node = await served.enrol("node")
    task_id = await _submit(served, submitter, budgets={"wall_time_s": 600})
    (manifest,) = await _poll(served, node)
    lease = await _claim(served, node, manifest)
    renewal = {"task_id": task_id, "lease_id": lease["lease_id"], "fence": lease["fence"]}

    async def renew() -> int:
        reply = await served.call("POST", paths.LEASE_RENEW, {"renewals": [renewal]}, by=node)
        return int(reply.json()["renewals"][0]["status"])

    await served.clock.advance(timedelta(minutes=69))
    assert await renew() == 200
    await served.clock.advance(timedelta(minutes=2))
    assert await renew() == 409


async def test_progress_of_one_lease_does_not_fill_the_store(served: Served, submitter: Signer) -> None:
    node = await served.enrol("node")
    task_id = await _submit(served, submitter)
    (manifest,) = await _poll(served, node)
    lease = await _claim(served, node, manifest)

    def progress(seq: int) -> dict[str, Any]:
        name = f"{lease['lease_id']}:{lease['fence']}:progress:{seq}"
        held = {"task_id": task_id, "lease_id": lease["lease_id"], "fence": lease["fence"]}
        return {"report": {"id": name, **held, "kind": "progress", "seq": seq, "started_at": 1.0}}

    reports = [progress(seq) for seq in (0, 255, 256, 2**31 - 1)]
    reply = await served.call("POST", paths.REPORTS, {"reports": reports}, by=node)

    assert [item["status"] for item in reply.json()["reports"]] == [200, 200, 422, 422]


async def test_keys_without_a_bond_do_not_fill_the_market_and_do_not_keep_others_out(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_routes, "MAX_UNBONDED", 2)

    async def enrol(name: str) -> int:
        body, signer = served.enrolment(name)
        return (await served.call("POST", paths.ENROL, body, by=signer)).status_code

    assert [await enrol(f"sybil {number}") for number in range(3)] == [201, 201, 503]
    assert await enrol("sybil 1") == 201, "who is in may come back"
    await served.stake("honest")
    assert await enrol("honest") == 201
