"""Submitters that mean harm to nodes, to the market or to each other."""

from __future__ import annotations

import json
import uuid
from datetime import timedelta
from typing import Any

import pytest

from parity_contracts.chain.calls import CancelRelease, RequestRelease
from parity_market.loops.chain_follower import FRESH_FOR, refresh_account
from parity_market.testing.served import TOKEN, Served, Signer
from parity_protocol.api import paths
from parity_protocol.testing.keys import deterministic_evm_key

INSTANCE = "ab" * 32
ACCOUNT = deterministic_evm_key("submitter")


@pytest.fixture
async def submitter(served: Served) -> Signer:
    await served.fund(ACCOUNT, 100 * TOKEN)
    return await served.sign_in(ACCOUNT)


async def _submit(served: Served, by: Signer, reward: int, **spec: Any) -> str:
    text = json.dumps({"type": "command", "command": ["true"], **spec})
    reply = await served.call("POST", paths.TASKS, served.submission(ACCOUNT, text, reward), by=by)
    assert reply.status_code == 201, reply.text
    return str(reply.json()["id"])


async def _poll(served: Served, node: Signer, slots: int = 8) -> list[str]:
    body = {"instance": INSTANCE, "slots": slots, "wait_s": 0}
    return list((await served.call("POST", paths.LEASE_POLL, body, by=node)).json()["manifests"])


async def _claim(served: Served, node: Signer, manifest: str) -> dict[str, Any]:
    claim = {"manifest": manifest, "claim_id": str(uuid.uuid4())}
    reply = await served.call("POST", paths.LEASE_CLAIMS, {"instance": INSTANCE, "claims": [claim]}, by=node)
    return dict(reply.json()["claims"][0])


async def _take_back(served: Served, amount: int) -> None:
    spender = served.state.keys.spender.address
    await served.send(RequestRelease(account=ACCOUNT.address, spender=spender, amount=amount), ACCOUNT)
    await served.clock.advance(FRESH_FOR)
    await refresh_account(served.state, ACCOUNT.address)


async def _look_again(served: Served) -> None:
    """Let reservations lapse and the index be filled from the store."""
    await served.clock.advance(timedelta(seconds=2.1))
    await served.state.scheduler.tick()
    await served.state.scheduler.load()


async def test_nobody_begins_work_on_money_that_is_being_taken_back(served: Served, submitter: Signer) -> None:
    node = await served.enrol("node")
    promised = await _submit(served, submitter, 60 * TOKEN)
    (manifest,) = await _poll(served, node)

    await _take_back(served, 60 * TOKEN)
    claim = await _claim(served, node, manifest)
    await _look_again(served)

    assert (claim["status"], "taking back" in claim["problem"]["detail"]) == (422, True)
    assert await _poll(served, node) == []
    why = (await served.call("GET", paths.task_path(promised, "why-pending"), by=submitter)).json()
    assert "being released" in why["summary"]


async def test_taking_back_what_is_free_stops_nothing_and_changing_ones_mind_goes_on(
    served: Served, submitter: Signer
) -> None:
    node = await served.enrol("node")
    await _submit(served, submitter, 60 * TOKEN)

    await _take_back(served, 40 * TOKEN)
    assert len(await _poll(served, node)) == 1

    await _take_back(served, 1 * TOKEN)
    await _look_again(served)
    assert await _poll(served, node) == []

    await served.send(CancelRelease(account=ACCOUNT.address, spender=served.state.keys.spender.address), ACCOUNT)
    await served.clock.advance(FRESH_FOR)
    await refresh_account(served.state, ACCOUNT.address)
    await _look_again(served)
    (manifest,) = await _poll(served, node)
    assert (await _claim(served, node, manifest))["status"] == 200


@pytest.mark.parametrize("how", ["order", "spec"])
async def test_a_task_whose_manifest_no_node_could_send_back_is_refused(
    served: Served, submitter: Signer, how: str
) -> None:
    spec = json.dumps({"type": "command", "command": ["true"]})
    body = served.submission(ACCOUNT, spec + "\n" * 65_000 if how == "spec" else spec, 0)
    body["order"]["note"] = "x" * (70_000 if how == "spec" else 200_000)

    reply = await served.call("POST", paths.TASKS, body, by=submitter)

    assert (reply.status_code, reply.json()["code"]) == (413, "too_large")


async def test_one_answer_to_a_poll_is_never_larger_than_a_node_reads(served: Served, submitter: Signer) -> None:
    node = await served.enrol("node")
    spec = json.dumps({"type": "command", "command": ["true"]}) + "\n" * 65_000
    for _ in range(80):
        made = await served.call("POST", paths.TASKS, served.submission(ACCOUNT, spec, 0), by=submitter)
        assert made.status_code == 201, made.text

    manifests = await _poll(served, node, slots=256)

    assert 0 < sum(len(manifest) for manifest in manifests) <= 8 << 20
    assert len(manifests) < 80
