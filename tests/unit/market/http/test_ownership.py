"""Objects have owners (AU5): every route with an id, read and write, for everybody to whom the object does not belong."""

from __future__ import annotations

import asyncio
import uuid

import pytest

from parity_market.app import ENDPOINTS
from parity_market.auth import Access
from parity_market.testing.served import TOKEN, Served, Signer
from parity_protocol.api import paths
from parity_protocol.signing.keys import Ed25519PrivateKey
from parity_protocol.testing.keys import deterministic_evm_key

INSTANCE = "ab" * 32
OPEN_TO_ALL = {"/api/v1/nodes/{node_id}", "/api/v1/nodes/{node_id}/why-no-work"}  # what a node offers is public
WITH_AN_ID = [one for one in ENDPOINTS if "{" in one.path and one.path not in OPEN_TO_ALL]


async def _alices(served: Served) -> tuple[Signer, Signer, dict[str, str], str]:
    """Return Alice, the node that holds her task, the ids of all that is hers or its, and the manifest."""
    account = deterministic_evm_key("alice")
    await served.fund(account, 50 * TOKEN)
    alice, node = await served.sign_in(account), await served.enrol("node")
    stored = await served.call("POST", f"{paths.STORAGE_UPLOAD}?visibility=private", raw=b"a,b\n" * 9, by=alice)
    spec = {"type": "command", "command": ["true"]}
    made = (await served.call("POST", paths.TASKS, served.submission(account, spec), by=alice)).json()
    poll = {"instance": INSTANCE, "slots": 1, "wait_s": 0}
    (manifest,) = (await served.call("POST", paths.LEASE_POLL, poll, by=node)).json()["manifests"]
    ids = {
        "{task_id}": made["id"],
        "{session_id}": made["id"],
        "{root_id}": made["id"],
        "{group_id}": made["id"],
        "{node_id}": node.keyid,
        "{account}": account.address,
        "{cid}": stored.json()["cid"],
        "{path}": "name",
    }
    return alice, node, ids, manifest


def _filled(path: str, ids: dict[str, str]) -> str:
    for name, value in ids.items():
        path = path.replace(name, value)
    return path


@pytest.mark.parametrize("who", ["another submitter", "another node", "nobody"])
async def test_nothing_of_somebody_else_is_read_or_changed(served: Served, who: str) -> None:
    alice, _, ids, manifest = await _alices(served)
    bob = {
        "another submitter": await served.sign_in(deterministic_evm_key("bob")),
        "another node": await served.enrol("other"),
        "nobody": None,
    }[who]
    claim = {"manifest": manifest, "claim_id": str(uuid.uuid4()), "instance": INSTANCE}

    for one in WITH_AN_ID:
        body = claim if one.path.endswith("/claim") else None
        reply = await served.call(one.method, _filled(one.path, ids), body, by=bob)
        # The old network's routes answer 400 to what cannot be done.
        refused = (400, 401, 403, 404) if one.access is Access.LEGACY else (401, 403, 404, 422)
        assert reply.status_code in refused, (one.method, one.path, reply.text)
        assert ids["{account}"] not in reply.text

    task = (await served.call("GET", paths.task_path(ids["{task_id}"]), by=alice)).json()
    assert (task["status"], task["attempts"]) == ("pending", 0)


async def test_an_owner_reads_all_of_it(served: Served) -> None:
    alice, node, ids, _ = await _alices(served)
    refused = {}

    for one in WITH_AN_ID:
        if one.method == "GET":
            by = node if one.path.startswith("/api/v1/nodes/") else alice
            reply = await served.call("GET", _filled(one.path, ids), by=by)
            if reply.status_code != 200:
                refused[one.path] = reply.status_code

    # A group or a session it is not, and what is not finished has neither result nor receipt; the blob is no folder.
    assert set(refused) <= {
        "/api/v1/groups/{group_id}",
        *(
            paths.fl_session_path("{session_id}", leaf)
            for leaf in ("", "next", "model", "checkpoint", "rounds/{number}")
        ),
        "/api/v1/tasks/{task_id}/result",
        "/api/v1/tasks/{task_id}/receipt",
        "/ipfs/{cid}/{path}",
    }


async def test_a_nodes_earnings_are_for_itself_and_its_operator(served: Served) -> None:
    node, other = await served.enrol("node"), await served.enrol("other")
    where = paths.node_path(node.keyid, "earnings")
    operator = await served.sign_in(deterministic_evm_key("node"))
    stranger = await served.sign_in(deterministic_evm_key("stranger"))

    replies = [await served.call("GET", where, by=by) for by in (node, operator, other, stranger)]

    assert [reply.status_code for reply in replies] == [200, 200, 403, 403]


async def test_of_many_uses_of_one_sign_in_at_once_one_wins(served: Served) -> None:
    message = await served.siwe(deterministic_evm_key("submitter"), Ed25519PrivateKey.generate())

    replies = await asyncio.gather(*(served.call("POST", paths.SIWE, message) for _ in range(20)))

    assert sorted(reply.status_code for reply in replies) == [200] + [401] * 19


async def test_nobody_is_not_somebody(served: Served) -> None:
    zero = "0x" + "00" * 20
    message = await served.siwe(deterministic_evm_key("submitter"), Ed25519PrivateKey.generate(), address=zero)
    await served.stake("node")
    body, signer = served.enrolment("node", operator=zero)

    for signature in (message["signature"], "0x" + "00" * 65, "0x" + "00" * 64 + "1b"):
        sign_in = await served.call("POST", paths.SIWE, {**message, "signature": signature})
        enrolment = await served.call("POST", paths.ENROL, {**body, "operator_signature": signature}, by=signer)
        assert (sign_in.status_code, enrolment.status_code) == (401, 401)


def test_every_route_that_changes_something_knows_who_asks() -> None:
    open_posts = {
        one.path for one in ENDPOINTS if one.method != "GET" and one.access in (Access.PUBLIC, Access.OPTIONAL)
    }

    assert open_posts == {paths.SIWE}
