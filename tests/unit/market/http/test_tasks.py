"""Submission, offers, claims and reports over HTTP."""

from __future__ import annotations

import asyncio
import base64
import json
import uuid
from hashlib import sha256
from typing import Any

import pytest
from structlog.testing import capture_logs

from parity_blobs import cid_of_bytes
from parity_market.testing.served import TOKEN, Served, Signer
from parity_protocol.api import paths
from parity_protocol.lease import LEASE_TYPE
from parity_protocol.manifest import ChainRef, verify_manifest
from parity_protocol.order import Order
from parity_protocol.receipt import result_hash
from parity_protocol.signing import jws
from parity_protocol.signing.eip712 import ReceiptMessage, sign_receipt
from parity_protocol.testing.keys import deterministic_evm_key

INSTANCE = "ab" * 32
COMMAND = {"type": "command", "command": ["true"]}


async def _funded(served: Served, name: str = "submitter", tokens: int = 100) -> Signer:
    account = deterministic_evm_key(name)
    await served.fund(account, tokens * TOKEN)
    return await served.sign_in(account)


async def _submit(served: Served, by: Signer, spec: Any = COMMAND, reward: int = TOKEN) -> str:
    body = served.submission(deterministic_evm_key("submitter"), spec, reward)
    reply = await served.call("POST", paths.TASKS, body, by=by)
    assert reply.status_code == 201, reply.text
    return reply.json()["id"]


async def _poll(served: Served, node: Signer, slots: int = 1) -> list[str]:
    body = {"instance": INSTANCE, "slots": slots, "wait_s": 0}
    reply = await served.call("POST", paths.LEASE_POLL, body, by=node)
    assert reply.status_code == 200, reply.text
    return reply.json()["manifests"]


async def _claim(served: Served, node: Signer, manifest: str, claim_id: str | None = None) -> dict[str, Any]:
    claim = {"manifest": manifest, "claim_id": claim_id or str(uuid.uuid4())}
    reply = await served.call("POST", paths.LEASE_CLAIMS, {"instance": INSTANCE, "claims": [claim]}, by=node)
    assert reply.status_code == 200, reply.text
    return reply.json()["claims"][0]


def _payload(manifest: str) -> dict[str, Any]:
    return json.loads(jws.b64url_decode(manifest.split(".")[1]))


def _report(served: Served, name: str, manifest: str, lease: dict[str, Any], **changes: Any) -> dict[str, Any]:
    payload, result = _payload(manifest), changes.pop("result", b"done")
    cid = str(cid_of_bytes(result))
    manifest_hash = sha256(manifest.encode()).hexdigest()
    usage = {"wall_ms": 5, "cpu_ms": 4, "peak_memory_bytes": 3, "tokens": 0, "joules": 0}
    order_hash = Order.model_validate_json(json.dumps(payload["order"])).digest(served.state.domain)
    proof = ReceiptMessage(
        task_id=payload["sub"],
        node_id=payload["aud"],
        fence=lease["fence"],
        order_hash=order_hash,
        manifest_hash=bytes.fromhex(manifest_hash),
        result_hash=result_hash(cid),
        finished_at=1_780_000_000,
        **usage,
    )
    report = {
        "id": f"{lease['lease_id']}:{lease['fence']}:final:0",
        "task_id": payload["sub"],
        "lease_id": lease["lease_id"],
        "fence": lease["fence"],
        "kind": "final",
        "seq": 0,
        "outcome": "succeeded",
        "started_at": 1.0,
        "finished_at": 2.0,
        "usage": usage,
        "result_cid": cid,
        "result_size": len(result),
    }
    receipt = {
        "task_id": payload["sub"],
        "node_id": payload["aud"],
        "fence": lease["fence"],
        "order_hash": "0x" + order_hash.hex(),
        "manifest_hash": "0x" + manifest_hash,
        "result_hash": "0x" + result_hash(cid).hex(),
        "usage": usage,
        "finished_at": 1_780_000_000,
        "signature": "0x" + sign_receipt(served.state.domain, proof, deterministic_evm_key(name)).hex(),
    }
    report.update(changes)
    return {"report": report, "receipt": receipt, "result": base64.b64encode(result).decode()}


async def _send(served: Served, node: Signer, *reports: dict[str, Any]) -> list[dict[str, Any]]:
    reply = await served.call("POST", paths.REPORTS, {"reports": list(reports)}, by=node)
    assert reply.status_code == 200, reply.text
    return reply.json()["reports"]


async def test_paid_work_from_order_to_earning(served: Served) -> None:
    submitter, node = await _funded(served), await served.enrol("node")
    task_id = await _submit(served, submitter)

    (manifest,) = await _poll(served, node)
    document = served.state.identity.document
    verified = verify_manifest(
        manifest,
        {served.state.keys.manifest.public_key.thumbprint(): served.state.keys.manifest.public_key},
        issuer=served.state.identity.thumbprint,
        node_id=node.keyid,
        chain=ChainRef.model_validate(document.chain.model_dump()),
        node_version="0.1.0",
        now=served.clock.now(),
    )
    lease = await _claim(served, node, manifest)
    (answer,) = await _send(served, node, _report(served, "node", manifest, lease))

    assert verified.task_id == task_id
    assert answer["status"] == 200
    assert answer["task_state"] == "completed"
    result = (await served.call("GET", paths.task_path(task_id, "result"), by=submitter)).json()
    assert result["output"] == "done"
    proof = (await served.call("GET", paths.task_path(task_id, "receipt"), by=submitter)).json()
    assert proof["receipt"]["fence"] == 1
    earned = (await served.call("GET", paths.node_path(node.keyid, "earnings"), by=node)).json()
    assert earned["earned"] == str(TOKEN)
    events = (await served.call("GET", paths.task_path(task_id, "events"), by=submitter)).json()["events"]
    assert (events[0]["state"], events[-1]["state"]) == ("pending", "completed")


async def test_lease_is_a_signed_document(served: Served) -> None:
    submitter, node = await _funded(served), await served.enrol("node")
    await _submit(served, submitter)
    (manifest,) = await _poll(served, node)

    lease = await _claim(served, node, manifest)

    key = served.state.keys.manifest.public_key
    verified = jws.verify(
        lease["lease"],
        {key.thumbprint(): key},
        LEASE_TYPE,
        issuer=served.state.identity.thumbprint,
        audience=node.keyid,
        now=served.clock.now(),
    )
    assert verified.payload["fence"] == lease["fence"] == 1


async def test_same_claim_200_other_claim_409_altered_manifest_422(served: Served) -> None:
    submitter, node = await _funded(served), await served.enrol("node")
    task_id = await _submit(served, submitter)
    (manifest,) = await _poll(served, node)
    path, claim_id = paths.task_path(task_id, "claim"), str(uuid.uuid4())
    body = {"instance": INSTANCE, "manifest": manifest, "claim_id": claim_id}

    first = await served.call("POST", path, body, by=node)
    again = await served.call("POST", path, body, by=node)
    other = await served.call("POST", path, {**body, "claim_id": str(uuid.uuid4())}, by=node)
    changed = manifest[:-20] + ("A" if manifest[-20] != "A" else "B") + manifest[-19:]
    altered = await served.call("POST", path, {**body, "manifest": changed}, by=node)

    assert (first.status_code, again.status_code, other.status_code, altered.status_code) == (200, 200, 409, 422)
    assert first.json()["lease_id"] == again.json()["lease_id"]
    assert first.json()["fence"] == again.json()["fence"]


async def test_a_manifest_is_good_for_its_node_only(served: Served) -> None:
    submitter, node, other = await _funded(served), await served.enrol("node"), await served.enrol("other")
    task_id = await _submit(served, submitter)
    (manifest,) = await _poll(served, node)

    body = {"instance": INSTANCE, "manifest": manifest, "claim_id": str(uuid.uuid4())}
    reply = await served.call("POST", paths.task_path(task_id, "claim"), body, by=other)

    assert (reply.status_code, reply.json()["code"]) == (422, "claim_refused")


async def test_every_flipped_bit_of_a_manifest_is_refused(served: Served) -> None:
    submitter, node = await _funded(served), await served.enrol("node")
    await _submit(served, submitter)
    (manifest,) = await _poll(served, node)
    raw = manifest.encode()
    flipped = [raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :] for at in range(0, len(raw), 29)]
    claims = [{"manifest": text.decode("latin-1"), "claim_id": str(uuid.uuid4())} for text in flipped if text.isascii()]

    reply = await served.call("POST", paths.LEASE_CLAIMS, {"instance": INSTANCE, "claims": claims[:100]}, by=node)

    assert len(claims) > 20
    assert {one["status"] for one in reply.json()["claims"]} <= {400, 422}


async def test_three_shuffled_copies_of_a_report_are_one_earning(served: Served) -> None:
    submitter, node = await _funded(served), await served.enrol("node")
    for _ in range(3):
        await _submit(served, submitter)
    reports = []
    for manifest in await _poll(served, node, slots=3):
        reports.append(_report(served, "node", manifest, await _claim(served, node, manifest)))

    order = [reports[i] for i in (2, 0, 1, 1, 0, 2, 0, 2, 1)]
    answers = await _send(served, node, *order)

    assert {one["status"] for one in answers} == {200}
    earned = (await served.call("GET", paths.node_path(node.keyid, "earnings"), by=node)).json()
    assert (earned["earned"], len(earned["earnings"])) == (str(3 * TOKEN), 3)


async def test_a_replay_with_other_content_is_refused_and_changes_nothing(served: Served) -> None:
    submitter, node = await _funded(served), await served.enrol("node")
    task_id = await _submit(served, submitter)
    (manifest,) = await _poll(served, node)
    lease = await _claim(served, node, manifest)
    await _send(served, node, _report(served, "node", manifest, lease))

    (metrics,) = await _send(served, node, _report(served, "node", manifest, lease, metrics={"cpu": 1e9}))
    (output,) = await _send(served, node, _report(served, "node", manifest, lease, result=b"forged"))

    assert (metrics["status"], output["status"]) == (409, 409)
    result = (await served.call("GET", paths.task_path(task_id, "result"), by=submitter)).json()
    assert result["output"] == "done"
    earned = (await served.call("GET", paths.node_path(node.keyid, "earnings"), by=node)).json()
    assert earned["earned"] == str(TOKEN)


async def test_what_is_refused_is_logged_with_who_sent_it_and_why(served: Served) -> None:
    submitter, node = await _funded(served), await served.enrol("node")
    await _submit(served, submitter)
    (manifest,) = await _poll(served, node)
    lease = await _claim(served, node, manifest)
    order = served.submission(deterministic_evm_key("submitter"), COMMAND, deadline=1)

    with capture_logs() as logged:
        await _send(served, node, _report(served, "stranger", manifest, lease))
        await _claim(served, node, manifest[:-20] + "AAAA" + manifest[-16:])
        await served.call("POST", paths.TASKS, order, by=submitter)

    report, claim, submission = logged
    assert (report["event"], report["node_id"], report["code"]) == ("report_refused", node.keyid, "bad_signature")
    assert (claim["event"], claim["node_id"], claim["code"]) == ("claim_refused", node.keyid, "claim_refused")
    assert (submission["event"], submission["code"]) == ("request_refused", "expired")
    assert all(one["log_level"] == "warning" for one in logged)


@pytest.mark.parametrize("case", ["another node", "old fence", "stranger's receipt", "other result", "no receipt"])
async def test_a_result_from_whoever_holds_no_lease_is_refused_unpaid(served: Served, case: str) -> None:
    submitter, node, other = await _funded(served), await served.enrol("node"), await served.enrol("other")
    task_id = await _submit(served, submitter)
    (manifest,) = await _poll(served, node)
    lease = await _claim(served, node, manifest)
    good = _report(served, "node", manifest, lease)
    sender, bad = node, good
    if case == "another node":
        sender = other
    elif case == "old fence":
        bad = _report(served, "node", manifest, {**lease, "fence": 2})
    elif case == "stranger's receipt":
        bad = _report(served, "other", manifest, lease)
    elif case == "other result":
        bad = {**good, "result": base64.b64encode(b"other").decode()}
    else:
        bad = {"report": good["report"], "result": good["result"]}

    (refused,) = await _send(served, sender, bad)
    (taken,) = await _send(served, node, good)

    assert refused["status"] in (409, 422), refused
    assert taken["status"] == 200
    assert taken["task_state"] == "completed"
    other_earned = (await served.call("GET", paths.node_path(other.keyid, "earnings"), by=other)).json()
    assert other_earned["earned"] == "0"
    assert (await served.call("GET", paths.task_path(task_id), by=submitter)).json()["runner_id"] == node.keyid


async def test_a_failed_task_is_not_paid(served: Served) -> None:
    submitter, node = await _funded(served), await served.enrol("node")
    task_id = await _submit(served, submitter)
    (manifest,) = await _poll(served, node)
    lease = await _claim(served, node, manifest)
    report = _report(served, "node", manifest, lease)["report"]
    for name in ("result_cid", "result_size"):
        del report[name]

    failed = {**report, "outcome": "failed", "reason": "exit_status", "blame": "task", "exit_code": 1}
    (answer,) = await _send(served, node, {"report": failed})

    assert (answer["status"], answer["task_state"]) == (200, "failed")
    earned = (await served.call("GET", paths.node_path(node.keyid, "earnings"), by=node)).json()
    assert earned["earned"] == "0"
    account = deterministic_evm_key("submitter").address
    money = (await served.call("GET", paths.account_path(account), by=submitter)).json()
    assert (money["reserved"], money["available"]) == ("0", str(100 * TOKEN))
    assert (await served.call("GET", paths.task_path(task_id), by=submitter)).json()["failure"] == "exit_status"


async def test_escrow_is_reserved_at_creation(served: Served) -> None:
    submitter = await _funded(served, tokens=2)
    account = deterministic_evm_key("submitter")
    for _ in range(2):
        await _submit(served, submitter)

    third = await served.call("POST", paths.TASKS, served.submission(account, COMMAND), by=submitter)

    assert (third.status_code, third.json()["code"]) == (422, "escrow_too_low")
    assert "parity wallet" in third.json()["hint"]


async def test_escrow_never_promises_twice_under_concurrency(served: Served) -> None:
    submitter = await _funded(served, tokens=5)
    account = deterministic_evm_key("submitter")
    bodies = [served.submission(account, COMMAND) for _ in range(20)]

    replies = await asyncio.gather(*(served.call("POST", paths.TASKS, body, by=submitter) for body in bodies))

    assert sorted(reply.status_code for reply in replies) == [201] * 5 + [422] * 15


async def test_submitting_the_same_order_again_is_the_same_task(served: Served) -> None:
    submitter = await _funded(served)
    body = served.submission(deterministic_evm_key("submitter"), COMMAND)

    first = (await served.call("POST", paths.TASKS, body, by=submitter)).json()
    again = (await served.call("POST", paths.TASKS, body, by=submitter)).json()

    assert first["id"] == again["id"]
    assert (first["created"], again["created"]) == (True, False)
    changed = await served.call("POST", paths.TASKS, {**body, "reward": "1"}, by=submitter)
    assert changed.status_code == 409


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"deadline": 1}, "expired"),
        ({"market": b"\1" * 32}, "wrong_audience"),
        ({"spec_hash": b"\2" * 32}, "digest_mismatch"),
        ({"max_reward": 1}, "policy_denied"),
    ],
)
async def test_an_order_for_something_else_is_refused(served: Served, change: dict[str, Any], code: str) -> None:
    submitter = await _funded(served)
    body = served.submission(deterministic_evm_key("submitter"), COMMAND, **change)

    reply = await served.call("POST", paths.TASKS, body, by=submitter)

    assert 400 <= reply.status_code < 500
    assert reply.json()["code"] == code


async def test_an_order_of_somebody_else_is_refused(served: Served) -> None:
    await _funded(served, "victim")
    thief = await served.sign_in(deterministic_evm_key("thief"))
    body = served.submission(deterministic_evm_key("victim"), COMMAND)

    assert (await served.call("POST", paths.TASKS, body, by=thief)).status_code == 403
    forged = {**body, "order": {**body["order"], "creator": deterministic_evm_key("thief").address}}
    assert (await served.call("POST", paths.TASKS, forged, by=thief)).json()["code"] == "bad_signature"


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ('{"type":"command","command":[]}', "spec.command"),
        ('{"type":"command","command":["a\\u0000b"]}', "/command"),
        ('{"type":"command","command":["a"],"budgets":{"wall_time_s":-1}}', "spec.budgets.wall_time_s"),
        ('{"type":"command","command":["a"],"env":{"A B":"1"}}', "spec.env"),
        ('{"type":"nonsense"}', "spec.type"),
        ('{"type":"command","command":["a"],"priority":1}', "spec.priority"),
        ('{"type":"command","command":["a"],"title":"x","title":"y"}', "/title"),
    ],
)
async def test_a_bad_spec_names_the_field(served: Served, spec: str, field: str) -> None:
    submitter = await _funded(served)

    reply = await served.call(
        "POST", paths.TASKS, served.submission(deterministic_evm_key("submitter"), spec), by=submitter
    )

    assert 400 <= reply.status_code < 500
    assert field in reply.json()["field"] + reply.json()["detail"], reply.text


async def test_an_unstaked_node_gets_nothing_and_both_sides_are_told_why(served: Served) -> None:
    submitter = await _funded(served)
    body, node = served.enrolment("poor")
    await served.call("POST", paths.ENROL, body, by=node)
    task_id = await _submit(served, submitter)

    assert await _poll(served, node) == []

    pending = (await served.call("GET", paths.task_path(task_id, "why-pending"), by=submitter)).json()
    assert pending["nodes_seen"] == 1
    assert pending["nodes_fit"] == 0
    assert "bond" in pending["summary"] or "stake" in pending["summary"]
    idle = (await served.call("GET", paths.node_path(node.keyid, "why-no-work"))).json()
    assert idle["refusals"][0]["count"] >= 1


async def test_cancel_wins_over_a_later_report(served: Served) -> None:
    submitter, node = await _funded(served), await served.enrol("node")
    task_id = await _submit(served, submitter)
    (manifest,) = await _poll(served, node)
    lease = await _claim(served, node, manifest)

    cancelled = await served.call("POST", paths.task_path(task_id, "cancel"), raw=b"", by=submitter)
    (answer,) = await _send(served, node, _report(served, "node", manifest, lease))
    renewal = {"task_id": task_id, "lease_id": lease["lease_id"], "fence": lease["fence"]}
    renewed = await served.call("POST", paths.LEASE_RENEW, {"renewals": [renewal]}, by=node)

    assert cancelled.json()["state"] == "cancelled"
    assert (answer["status"], answer["problem"]["code"]) == (409, "cancelled")
    assert renewed.json()["renewals"][0]["problem"]["code"] == "cancelled"


async def test_status_shows_what_is_earned_and_not_paid_yet(served: Served) -> None:
    submitter, node = await _funded(served), await served.enrol("node")
    await _submit(served, submitter)
    (manifest,) = await _poll(served, node)
    await _send(served, node, _report(served, "node", manifest, await _claim(served, node, manifest)))

    status = (await served.call("GET", "/api/status")).json()

    assert status["unsettled"] == str(TOKEN)
    assert status["tasks"] == {"completed": 1}


async def test_a_claim_brings_the_offers_that_it_asks_for_and_two_at_most(served: Served) -> None:
    submitter, node = await _funded(served), await served.enrol("node")
    tasks = [await _submit(served, submitter) for _ in range(4)]
    (manifest,) = await _poll(served, node)
    claim = {"manifest": manifest, "claim_id": str(uuid.uuid4())}

    body = {"instance": INSTANCE, "claims": [claim], "ahead": 5}
    reply = (await served.call("POST", paths.LEASE_CLAIMS, body, by=node)).json()

    assert reply["claims"][0]["status"] == 200
    assert [_payload(ahead)["sub"] for ahead in reply["manifests"]] == tasks[1:3]
    assert (await _claim(served, node, reply["manifests"][0]))["status"] == 200
