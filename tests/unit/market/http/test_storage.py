"""Blobs over HTTP: whole or not at all, and only for whom they are."""

from __future__ import annotations

import asyncio
from hashlib import sha256

from parity_blobs import Cid, cid_of_bytes
from parity_blobs.car import CarReader
from parity_blobs.verify import DagVerifier
from parity_market.testing.served import TOKEN, Served
from parity_protocol.api import paths
from parity_protocol.testing.keys import deterministic_evm_key

DATA = bytes(range(256)) * 3000  # three chunks


async def _upload(served: Served, by: object, data: bytes = DATA, visibility: str = "private") -> str:
    reply = await served.call("POST", f"{paths.STORAGE_UPLOAD}?visibility={visibility}", raw=data, by=by)  # type: ignore[arg-type]
    assert reply.status_code == 201, reply.text
    return reply.json()["cid"]


async def test_what_was_uploaded_comes_back(served: Served) -> None:
    me = await served.sign_in(deterministic_evm_key("me"))

    cid = await _upload(served, me)

    assert cid == str(cid_of_bytes(DATA))
    assert (await served.call("GET", paths.storage_path("download", cid), by=me)).content == DATA
    about = (await served.call("GET", paths.storage_path("info", cid), by=me)).json()
    assert (about["size"], about["visibility"]) == (len(DATA), "private")
    pinned = await served.call("POST", paths.storage_path("pin", cid), raw=b"", by=me)
    assert pinned.json() == {"cid": cid, "pinned": True}


async def test_gateway_answers_are_verifiable(served: Served) -> None:
    me = await served.sign_in(deterministic_evm_key("me"))
    cid = await _upload(served, me, visibility="public")

    car = await served.call("GET", paths.gateway_path(cid) + "?format=car")
    raw = await served.call("GET", paths.gateway_path(cid) + "?format=raw")

    reader, verifier = CarReader(), DagVerifier(Cid.parse(cid))
    for block in reader.feed(car.content):
        verifier.add(block)
    reader.finish()
    assert verifier.finish().size == len(DATA)
    assert Cid.parse(cid) == Cid.of_block(raw.content, codec=Cid.parse(cid).codec, version=1)


async def test_private_blobs_look_absent_to_others(served: Served) -> None:
    me, other = (
        await served.sign_in(deterministic_evm_key("me")),
        await served.sign_in(deterministic_evm_key("other")),
    )
    cid = await _upload(served, me)

    for path in (
        paths.storage_path("download", cid),
        paths.storage_path("info", cid),
        paths.gateway_path(cid) + "?format=car",
        paths.gateway_path(cid) + "?format=raw",
    ):
        assert (await served.call("GET", path)).status_code == 404, path
        assert (await served.call("GET", path, by=other)).status_code == 404, path
        assert (await served.call("GET", path, by=me)).status_code == 200, path
    assert (await served.call("POST", paths.storage_path("pin", cid), raw=b"", by=other)).status_code == 404


async def test_a_node_reads_the_inputs_of_its_lease_and_no_longer(served: Served) -> None:
    account = deterministic_evm_key("submitter")
    await served.fund(account, 10 * TOKEN)
    me, node = await served.sign_in(account), await served.enrol("node")
    cid = await _upload(served, me)
    spec = {"type": "command", "command": ["true"], "inputs": [{"kind": "cid", "cid": cid}]}
    made = (await served.call("POST", paths.TASKS, served.submission(account, spec), by=me)).json()
    where = paths.gateway_path(cid) + "?format=car"
    before = await served.call("GET", where, by=node)
    poll = {"instance": "ab" * 32, "slots": 1, "wait_s": 0}
    (manifest,) = (await served.call("POST", paths.LEASE_POLL, poll, by=node)).json()["manifests"]
    claim = {"manifest": manifest, "claim_id": "00000000-0000-4000-8000-000000000001"}
    await served.call("POST", paths.LEASE_CLAIMS, {"instance": "ab" * 32, "claims": [claim]}, by=node)

    during = await served.call("GET", where, by=node)
    await served.call("POST", paths.task_path(made["id"], "cancel"), raw=b"", by=me)
    after = await served.call("GET", where, by=node)

    assert [reply.status_code for reply in (before, during, after)] == [404, 200, 404]


async def test_an_upload_that_is_not_what_was_signed_leaves_nothing(served: Served) -> None:
    me = await served.sign_in(deterministic_evm_key("me"))
    headers = served.sign("POST", paths.STORAGE_UPLOAD, DATA, me)

    reply = await served.client.post(paths.STORAGE_UPLOAD, content=DATA + b"!", headers=headers)

    assert (reply.status_code, reply.json()["code"]) == (401, "digest_mismatch")
    assert await served.state.blobs.stat(cid_of_bytes(DATA + b"!")) is None


async def test_uploads_at_the_same_time_share_one_quota(served: Served) -> None:
    me = await served.sign_in(deterministic_evm_key("me"))
    object.__setattr__(served.state.settings, "market_upload_quota", 1_000_000)

    async def send(number: int) -> int:
        reply = await served.call("POST", paths.STORAGE_UPLOAD, raw=bytes([number]) * 900_000, by=me)
        return reply.status_code

    statuses = await asyncio.gather(*(send(number) for number in range(4)))

    listed = (await served.call("GET", paths.STORAGE_LIST, by=me)).json()
    assert sorted(statuses) == [201, 413, 413, 413]
    assert listed["used_bytes"] == 900_000
    usage = await served.state.blobs.usage()
    assert usage.used == 4 * usage.pinned  # the other three may be evicted


async def test_an_upload_over_the_quota_is_refused(served: Served) -> None:
    me = await served.sign_in(deterministic_evm_key("me"))
    quota = served.state.settings.market_upload_quota

    reply = await served.call("POST", paths.STORAGE_UPLOAD, raw=b"x", by=me, change={"Content-Length": str(quota + 1)})

    assert reply.status_code == 413


async def test_bad_cids_are_400(served: Served) -> None:
    me = await served.sign_in(deterministic_evm_key("me"))

    for cid in ("Qm", "bafy", "zzz", "Qm" + "1" * 44, sha256(b"").hexdigest(), "%00"):
        reply = await served.call("GET", f"/ipfs/{cid}?format=raw", by=me)
        assert 400 <= reply.status_code < 500, (cid, reply.text)


async def test_a_task_that_names_no_cid_is_refused_by_its_field_before_it_costs_anything(served: Served) -> None:
    account = deterministic_evm_key("submitter")
    await served.fund(account, 10 * TOKEN)
    me = await served.sign_in(account)
    good = {"kind": "cid", "name": "a", "cid": str(cid_of_bytes(b"a"))}
    spec = {
        "type": "command",
        "command": ["true"],
        "inputs": [good, {"kind": "cid", "name": "b", "cid": "bafynonsense"}],
    }

    reply = await served.call("POST", paths.TASKS, served.submission(account, spec), by=me)

    assert (reply.status_code, reply.json()["code"], reply.json()["field"]) == (422, "bad_field", "spec.inputs.1.cid")
    assert (await served.call("GET", paths.account_path(account.address), by=me)).json()["reserved"] == "0"


async def test_an_input_named_in_its_other_version_is_readable_too(served: Served) -> None:
    account = deterministic_evm_key("submitter")
    await served.fund(account, 10 * TOKEN)
    me, node = await served.sign_in(account), await served.enrol("node")
    stored = Cid.parse(await _upload(served, me))
    other = str(Cid(0, stored.codec, stored.digest))
    spec = {"type": "command", "command": ["true"], "inputs": [{"kind": "cid", "cid": other}]}
    await served.call("POST", paths.TASKS, served.submission(account, spec), by=me)
    poll = {"instance": "ab" * 32, "slots": 1, "wait_s": 0}
    (manifest,) = (await served.call("POST", paths.LEASE_POLL, poll, by=node)).json()["manifests"]
    claim = {"manifest": manifest, "claim_id": "00000000-0000-4000-8000-000000000001"}
    await served.call("POST", paths.LEASE_CLAIMS, {"instance": "ab" * 32, "claims": [claim]}, by=node)

    assert (await served.call("GET", paths.gateway_path(other) + "?format=car", by=node)).status_code == 200


async def test_what_a_task_still_needs_is_not_unpinned(served: Served) -> None:
    account = deterministic_evm_key("submitter")
    await served.fund(account, 10 * TOKEN)
    me = await served.sign_in(account)
    cid = await _upload(served, me)
    spec = {"type": "command", "command": ["true"], "inputs": [{"kind": "cid", "cid": cid}]}
    made = (await served.call("POST", paths.TASKS, served.submission(account, spec), by=me)).json()

    during = await served.call("DELETE", paths.storage_path("pin", cid), raw=b"", by=me)
    await served.call("POST", paths.task_path(made["id"], "cancel"), raw=b"", by=me)
    after = await served.call("DELETE", paths.storage_path("pin", cid), raw=b"", by=me)

    assert (during.status_code, after.status_code) == (409, 200)
    stat = await served.state.blobs.stat(Cid.parse(cid))
    assert stat is not None
    assert not stat.is_pinned
