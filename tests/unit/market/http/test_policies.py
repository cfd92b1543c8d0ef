"""What nodes refuse by their operators' policies, over HTTP."""

from __future__ import annotations

from typing import Any

import pytest

from parity_market.testing.served import TOKEN, Served, Signer
from parity_protocol.api import paths
from parity_protocol.testing.keys import deterministic_evm_key

INSTANCE = "ab" * 32
OLD, NEW = "1" * 64, "2" * 64


async def submit(served: Served) -> tuple[str, Signer]:
    account = deterministic_evm_key("submitter")
    await served.fund(account, 10 * TOKEN)
    submitter = await served.sign_in(account)
    body = served.submission(account, {"type": "command", "command": ["true"]}, TOKEN)
    reply = await served.call("POST", paths.TASKS, body, by=submitter)
    return reply.json()["id"], submitter


async def poll(served: Served, node: Signer, **more: Any) -> int:
    body = {"instance": INSTANCE, "slots": 1, "wait_s": 0, **more}
    reply = await served.call("POST", paths.LEASE_POLL, body, by=node)
    assert reply.status_code == 200, reply.text
    return len(reply.json()["manifests"])


async def test_a_refusal_reaches_why_no_work_and_why_pending(served: Served) -> None:
    node = await served.enrol("node")
    task_id, submitter = await submit(served)
    refusal = {"task_id": task_id, "rule": "policy.deny.mine", "message": "denied by a rule of the operator"}

    offered = [
        await poll(served, node, policy=OLD),
        await poll(served, node, policy=OLD, refused=[refusal]),
        await poll(served, node, policy=NEW),
    ]
    await poll(served, node, policy=NEW, refused=[refusal])
    idle = (await served.call("GET", paths.node_path(node.keyid, "why-no-work"))).json()
    pending = (await served.call("GET", paths.task_path(task_id, "why-pending"), by=submitter)).json()

    assert offered == [1, 0, 1]
    [told] = idle["refusals"]
    assert (told["rule"], told["count"], told["last_task"]) == ("policy.deny.mine", 2, task_id)
    assert [refused["rule"] for refused in pending["refusals"]] == ["policy.deny"]
    assert (pending["nodes_seen"], pending["nodes_fit"]) == (1, 0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"policy": "1"},
        {"refused": [{"task_id": None, "rule": "Policy Images"}]},
        {"refused": [{"task_id": "x", "rule": "policy.images"}]},
        {"refused": [{"task_id": None, "rule": "policy.hours", "message": "x" * 201}]},
        {"refused": [{"task_id": None, "rule": "policy.hours"}] * 65},
    ],
)
async def test_refusals_are_bounded_and_checked(served: Served, wrong: dict[str, Any]) -> None:
    node = await served.enrol("node")

    reply = await served.call(
        "POST", paths.LEASE_POLL, {"instance": INSTANCE, "slots": 1, "wait_s": 0, **wrong}, by=node
    )

    assert reply.status_code == 422
