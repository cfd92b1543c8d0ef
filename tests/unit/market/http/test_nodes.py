"""Enrolment binds id, device key, operator and chain; a copied key is told where the first runs."""

from __future__ import annotations

from datetime import timedelta

from parity_market.testing.served import TOKEN, Served, Signer
from parity_protocol.api import paths
from parity_protocol.testing.keys import deterministic_ed25519, deterministic_evm_key


async def test_a_staked_node_is_eligible(served: Served) -> None:
    await served.stake("node")
    body, signer = served.enrolment("node")

    reply = await served.call("POST", paths.ENROL, body, by=signer)

    assert reply.status_code == 201
    assert reply.json()["eligible"] is True
    assert reply.json()["bond"] == str(20 * TOKEN)


async def test_a_node_without_bond_is_told_what_to_do(served: Served) -> None:
    body, signer = served.enrolment("node")

    reply = await served.call("POST", paths.ENROL, body, by=signer)

    assert reply.json()["eligible"] is False
    assert "parity node stake" in reply.json()["problems"][0]


async def test_an_enrolment_signed_by_another_device_key_is_refused(served: Served) -> None:
    body, signer = served.enrolment("node")
    stranger = Signer(signer.keyid, deterministic_ed25519("stranger"))

    assert (await served.call("POST", paths.ENROL, body, by=stranger)).status_code == 401


async def test_an_id_that_is_not_the_keys_own_is_refused(served: Served) -> None:
    body, signer = served.enrolment("node", node_id="cd" * 32)

    reply = await served.call("POST", paths.ENROL, body, by=Signer("cd" * 32, signer.key))

    assert reply.status_code in (401, 403)


async def test_an_operator_that_did_not_sign_is_refused(served: Served) -> None:
    body, signer = served.enrolment("node", operator=deterministic_evm_key("victim").address)

    assert (await served.call("POST", paths.ENROL, body, by=signer)).json()["code"] == "bad_signature"


async def test_an_operator_that_the_chain_does_not_name_is_refused(served: Served) -> None:
    await served.stake("node")
    body, signer = served.enrolment("node", signed_by=deterministic_evm_key("another operator"))

    reply = await served.call("POST", paths.ENROL, body, by=signer)

    assert reply.status_code == 403, reply.text
    assert "chain names" in reply.json()["detail"]


async def test_an_old_enrolment_is_refused(served: Served) -> None:
    body, signer = served.enrolment("node")
    await served.clock.advance(timedelta(minutes=11))

    assert (await served.call("POST", paths.ENROL, body, by=signer)).json()["code"] == "clock_skew"


async def test_a_copied_key_gets_409_and_where_the_first_runs(served: Served) -> None:
    first = await served.enrol("node")
    body, signer = served.enrolment("node", instance="ef" * 32, hostname="thief")

    reply = await served.call("POST", paths.ENROL, body, by=signer)

    assert (reply.status_code, reply.json()["code"]) == (409, "node_in_use")
    assert "node.test" in reply.json()["detail"]
    poll = {"instance": "ef" * 32, "slots": 1, "wait_s": 0}
    assert (await served.call("POST", paths.LEASE_POLL, poll, by=first)).status_code == 409


async def test_another_machine_takes_over_once_the_first_has_gone(served: Served) -> None:
    first = await served.enrol("node")
    beat = {"instance": "ab" * 32, "free_slots": 0, "going_offline": True}
    assert (await served.call("POST", paths.HEARTBEAT, beat, by=first)).status_code == 200
    body, signer = served.enrolment("node", instance="ef" * 32)

    assert (await served.call("POST", paths.ENROL, body, by=signer)).status_code == 201


async def test_heartbeat_tells_the_markets_time(served: Served) -> None:
    node = await served.enrol("node")

    reply = await served.call("POST", paths.HEARTBEAT, {"instance": "ab" * 32, "free_slots": 3}, by=node)

    assert reply.json()["time"].startswith("2026-06-01T00:00")
    listed = (await served.call("GET", paths.ENROL)).json()["nodes"]
    assert [one["id"] for one in listed] == [node.keyid]
    assert listed[0]["online"] is True


async def test_a_bond_under_another_operator_gives_no_lease(served: Served) -> None:
    account = deterministic_evm_key("submitter")
    await served.fund(account, 10 * TOKEN)
    submitter = await served.sign_in(account)
    node = await served.enrol("node")
    made = await served.call(
        "POST", paths.TASKS, served.submission(account, {"type": "command", "command": ["true"]}), by=submitter
    )
    poll = {"instance": "ab" * 32, "slots": 1, "wait_s": 0}
    (manifest,) = (await served.call("POST", paths.LEASE_POLL, poll, by=node)).json()["manifests"]
    await served.set_operator("node", deterministic_evm_key("another operator").address)

    claim = {"instance": "ab" * 32, "manifest": manifest, "claim_id": "00000000-0000-4000-8000-000000000001"}
    reply = await served.call("POST", paths.task_path(made.json()["id"], "claim"), claim, by=node)

    assert reply.status_code == 403, reply.text
    assert "operator" in reply.json()["detail"]
