"""Enrolment and copied keys; who may read which blob; single-use sign-ins."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from hashlib import sha256

import pytest

from parity_blobs import cid_of_bytes
from parity_market.operations import blobs, leases, nodes, sessions
from parity_market.operations.nodes import Seen
from parity_market.testing import Bench, command_submission, new_node
from parity_protocol.api.leases import RenewItem
from parity_protocol.errors import Forbidden, NodeInUse, NotFound, ParityError, Replayed, Unauthenticated
from parity_protocol.lease import Lease
from parity_protocol.testing.keys import deterministic_evm_key

HEARTBEAT = timedelta(seconds=10)
CREATOR = deterministic_evm_key("creator").address
STRANGER = deterministic_evm_key("stranger").address
DATA = b"a,b\n1,2\n"
CID = str(cid_of_bytes(DATA))


async def enrol(bench: Bench, name: str, machine: str) -> None:
    node = new_node(name, instance=sha256(machine.encode()).hexdigest())
    await bench.store.write(lambda tx: nodes.enrol(tx, node, bench.now, heartbeat=HEARTBEAT))


async def test_a_copied_key_is_refused_with_where_the_first_runs(bench: Bench) -> None:
    with pytest.raises(NodeInUse, match=r"ada\.test, last seen 2026-01-01 00:00:00 UTC"):
        await enrol(bench, "ada", "another machine")


async def test_the_same_machine_may_enrol_again_at_any_time(bench: Bench) -> None:
    await enrol(bench, "eve", "machine")
    await enrol(bench, "eve", "machine")


async def test_a_silent_machine_may_be_replaced(bench: Bench) -> None:
    bench.now += 2 * HEARTBEAT

    await enrol(bench, "ada", "new machine")


async def test_a_machine_that_was_heard_in_memory_is_not_silent(bench: Bench) -> None:
    heard = bench.now + 3 * HEARTBEAT
    bench.now += 4 * HEARTBEAT
    node = new_node("ada", instance="cd" * 32)

    with pytest.raises(NodeInUse):
        await bench.store.write(lambda tx: nodes.enrol(tx, node, bench.now, heartbeat=HEARTBEAT, last_seen=heard))


async def test_a_graceful_stop_frees_the_key_at_once(bench: Bench) -> None:
    seen = Seen(new_node("ada").node_id, bench.now, draining=False, online=False)
    await bench.store.write(lambda tx: nodes.record_seen(tx, [seen]))

    await enrol(bench, "ada", "new machine")


async def test_the_old_machine_gets_no_leases_once_another_has_enrolled(bench: Bench) -> None:
    reply = await bench.submit(command_submission())
    bench.now += 2 * HEARTBEAT
    await enrol(bench, "ada", "new machine")

    with pytest.raises(NodeInUse):
        await bench.claim("ada", reply.id)


async def test_a_node_id_belongs_to_its_device_key(bench: Bench) -> None:
    ada, bob = new_node("ada"), new_node("bob")
    forged = nodes.NewNode(ada.node_id, bob.device_key, bob.operator, ada.instance, "x", ada.capability)

    with pytest.raises(Forbidden):
        await bench.store.write(lambda tx: nodes.enrol(tx, forged, bench.now, heartbeat=HEARTBEAT))


async def test_nodes_are_listed_page_by_page(bench: Bench) -> None:
    first, cursor = await bench.store.read(lambda tx: nodes.page(tx, limit=1))
    second, end = await bench.store.read(lambda tx: nodes.page(tx, after=cursor or "", limit=1))

    assert {first[0].id, second[0].id} == {new_node("ada").node_id, new_node("bob").node_id}
    assert (cursor, end) == (first[0].id, None)


async def test_claims_in_one_request_are_answered_one_by_one(bench: Bench) -> None:
    made = [(await bench.submit(command_submission())).id for _ in range(2)]
    await bench.lease("bob", made[0])
    ada = new_node("ada")
    items = [
        leases.ClaimRequest(task_id, f"{number:08d}-0000-4000-8000-000000000000", f"j{number}", "ab" * 32, 1)
        for number, task_id in enumerate([made[0], made[1], "00000000-0000-4000-8000-00000000dead"])
    ]

    answers = await bench.store.write(
        lambda tx: leases.claim(tx, bench.market, ada.node_id, ada.instance, items, bench.now)
    )

    assert [answer.code if isinstance(answer, ParityError) else "ok" for answer in answers] == [
        "lease_conflict",
        "ok",
        "not_found",
    ]


async def test_of_many_nodes_that_claim_at_once_one_gets_the_lease(bench: Bench) -> None:
    names = [f"node {number}" for number in range(20)]
    for name in names:
        await bench.enrol(name)
    reply = await bench.submit(command_submission())

    answers = await asyncio.gather(*(bench.claim(name, reply.id) for name in names))

    assert sum(isinstance(answer, Lease) for answer in answers) == 1


async def test_live_leases_survive_the_markets_absence(bench: Bench) -> None:
    reply = await bench.submit(command_submission())
    lease = await bench.lease("ada", reply.id)
    bench.now += timedelta(minutes=5)

    extended = await bench.store.write(lambda tx: leases.extend_all_live(tx, bench.market, bench.now))
    freed = await bench.store.write(lambda tx: leases.reap(tx, bench.market, bench.now))
    item = RenewItem(task_id=reply.id, lease_id=lease.lease_id, fence=1)
    renewed = await bench.store.write(lambda tx: leases.renew(tx, bench.market, lease.node_id, [item], bench.now))

    assert (extended, freed) == (1, [])
    assert isinstance(renewed[0], Lease)


# -- blobs --------------------------------------------------------------------------------------------------------------


async def put(bench: Bench, owner: str, visibility: str = "private") -> None:
    await bench.store.write(
        lambda tx: blobs.add_ref(tx, CID, owner, visibility=visibility, size=len(DATA), now=bench.now)
    )


async def can_read(bench: Bench, reader: str | None) -> bool:
    try:
        await bench.store.read(lambda tx: blobs.readable(tx, CID, reader))
    except NotFound:
        return False
    return True


async def test_a_private_blob_is_its_owners_alone(bench: Bench) -> None:
    await put(bench, CREATOR)

    assert [await can_read(bench, reader) for reader in (CREATOR, STRANGER, None)] == [True, False, False]


async def test_a_public_blob_is_everybodys_and_a_second_upload_can_make_it_public(bench: Bench) -> None:
    await put(bench, CREATOR)
    await put(bench, CREATOR, "public")

    assert [await can_read(bench, reader) for reader in (CREATOR, STRANGER, None)] == [True, True, True]


async def test_a_private_upload_does_not_hide_what_is_public(bench: Bench) -> None:
    await put(bench, CREATOR, "public")
    await put(bench, STRANGER)
    await put(bench, CREATOR)

    assert await can_read(bench, None)


async def test_a_node_reads_the_input_of_a_task_only_while_it_holds_the_lease(bench: Bench) -> None:
    await put(bench, CREATOR)
    reply = await bench.submit(command_submission(inputs=[{"kind": "cid", "name": "data", "cid": CID}]))
    ada = new_node("ada").node_id
    seen = [await can_read(bench, ada)]
    await bench.lease("ada", reply.id)
    seen.append(await can_read(bench, ada))
    await bench.store.write(lambda tx: leases.reap(tx, bench.market, bench.now + timedelta(seconds=31)))
    seen.append(await can_read(bench, ada))

    assert seen == [False, True, False]


async def test_naming_somebody_elses_private_blob_as_an_input_does_not_open_it(bench: Bench) -> None:
    await put(bench, STRANGER)
    reply = await bench.submit(command_submission(inputs=[{"kind": "cid", "name": "data", "cid": CID}]))
    await bench.lease("ada", reply.id)

    assert not await can_read(bench, new_node("ada").node_id)
    assert not await can_read(bench, CREATOR)


async def test_only_an_owner_can_pin(bench: Bench) -> None:
    await put(bench, CREATOR)

    await bench.store.write(lambda tx: blobs.pin(tx, CID, CREATOR))
    with pytest.raises(NotFound):
        await bench.store.write(lambda tx: blobs.pin(tx, CID, STRANGER))

    assert (await bench.store.read(lambda tx: blobs.info(tx, CID, CREATOR))).pinned == 1
    assert await bench.store.read(lambda tx: blobs.bytes_of_owner(tx, CREATOR)) == len(DATA)


# -- sessions -----------------------------------------------------------------------------------------------------------


async def _open(bench: Bench, nonce: str, session_id: str) -> None:
    await bench.store.write(
        lambda tx: sessions.open_session(
            tx,
            nonce=nonce,
            nonce_expires=bench.now + sessions.NONCE_TTL,
            session_id=session_id,
            account=CREATOR,
            key="key",
            now=bench.now,
        )
    )


async def test_a_nonce_opens_one_session_of_one_hour(bench: Bench) -> None:
    outcomes = await asyncio.gather(
        *(_open(bench, "nonce", f"s{number}") for number in range(5)), return_exceptions=True
    )
    winners = [f"s{number}" for number, outcome in enumerate(outcomes) if outcome is None]

    assert len(winners) == 1
    assert sum(isinstance(outcome, Replayed) for outcome in outcomes) == 4
    found = await bench.store.read(lambda tx: sessions.get(tx, winners[0], bench.now + timedelta(minutes=59)))
    assert found.account == CREATOR
    with pytest.raises(Unauthenticated):
        await bench.store.read(lambda tx: sessions.get(tx, winners[0], bench.now + timedelta(hours=1)))


async def test_a_used_nonce_is_remembered_for_as_long_as_it_is_good(bench: Bench) -> None:
    await _open(bench, "nonce", "one")

    for later in (timedelta(0), sessions.NONCE_TTL - timedelta(microseconds=1)):
        await bench.store.write(lambda tx, later=later: sessions.forget_expired(tx, bench.now + later))  # type: ignore[misc]
        with pytest.raises(Replayed):
            await _open(bench, "nonce", "two")


def test_a_nonce_is_known_again_without_being_stored_until_it_is_over() -> None:
    maker, now = sessions.NonceMaker(b"secret"), datetime(2026, 1, 1, tzinfo=UTC)
    nonce, expires = maker.make(now)

    assert nonce.isalnum()
    assert sessions.NonceMaker(b"secret").check(nonce, now) == expires == now + sessions.NONCE_TTL
    with pytest.raises(Replayed):
        maker.check(nonce, expires)


def test_a_nonce_of_somebody_elses_making_is_refused() -> None:
    maker, now = sessions.NonceMaker(b"secret"), datetime(2026, 1, 1, tzinfo=UTC)
    nonce, _ = maker.make(now)
    longer = "f" + nonce[1:]  # a later expiry

    for forged in ("", "0" * 80, longer, nonce + "0", nonce[:-1], "é" * 80, sessions.NonceMaker(b"other").make(now)[0]):
        with pytest.raises(Replayed):
            maker.check(forged, now)


async def test_a_closed_session_is_gone_and_expired_ones_are_forgotten(bench: Bench) -> None:
    for name in ("one", "two"):
        await _open(bench, name, name)

    await bench.store.write(lambda tx: sessions.close(tx, "one"))
    with pytest.raises(Unauthenticated):
        await bench.store.read(lambda tx: sessions.get(tx, "one", bench.now))
    assert await bench.store.write(lambda tx: sessions.forget_expired(tx, bench.now + timedelta(hours=2))) == 1


async def test_an_input_of_many_tasks_counts_once_against_the_quota(bench: Bench) -> None:
    await put(bench, CREATOR)
    for _ in range(3):
        await bench.submit(command_submission(inputs=[{"kind": "cid", "name": "data", "cid": CID}]))

    assert await bench.store.read(lambda tx: blobs.bytes_of_owner(tx, CREATOR)) == len(DATA)
