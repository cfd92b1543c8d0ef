"""Reports: taken once, believed only with proof, and never the end of somebody's task on one node's word."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest

from parity_blobs import cid_of_bytes
from parity_market.operations import blobs, leases, reports, tasks, views
from parity_market.store import sql
from parity_market.testing import (
    DOMAIN,
    Bench,
    checked_report,
    command_submission,
    final_report,
    fl_submission,
    new_node,
)
from parity_protocol.api.leases import FinalReport, LogChunk
from parity_protocol.errors import BadField, BadSignature, DigestMismatch, FailureReason, ParityError
from parity_protocol.lease import Lease
from parity_protocol.receipt import Usage, check_receipt
from parity_protocol.report import ReportKind, report_id
from parity_protocol.testing.keys import deterministic_evm_key

TOKEN = 10**18


async def leased(bench: Bench, name: str = "ada", **spec: Any) -> tuple[Lease, str]:
    new = command_submission(**spec)
    reply = await bench.submit(new)
    return await bench.lease(name, reply.id), new.order_hash


async def test_a_completed_task_has_a_proof_that_needs_no_market(bench: Bench) -> None:
    lease, order_hash = await leased(bench)

    await bench.report("ada", final_report("ada", lease, order_hash=order_hash, result=b"42\n"))
    proof = await bench.store.read(lambda tx: views.proof(tx, lease.task_id))
    result = await bench.store.read(lambda tx: views.result(tx, lease.task_id))

    check_receipt(
        proof.receipt,
        domain=DOMAIN,
        operator=deterministic_evm_key("ada").address,
        task_id=lease.task_id,
        node_id=lease.node_id,
        fence=lease.fence,
        order_hash="0x" + proof.order.digest(DOMAIN).hex(),
        manifest_hash=proof.manifest_hash,
        result_cid=proof.result_cid,
    )
    assert result.output == "42\n"
    assert result.cid == str(cid_of_bytes(b"42\n"))


async def test_the_same_report_three_times_is_one_row_and_one_earning(bench: Bench) -> None:
    lease, order_hash = await leased(bench)
    final = final_report("ada", lease, order_hash=order_hash)

    answers = [await bench.report("ada", final) for _ in range(3)]
    earned = await bench.store.read(lambda tx: tx.all(sql.EARNING_OF_TASK, task_id=lease.task_id))

    assert [(answer.status, answer.task_state) for answer in answers] == [(200, "completed")] * 3
    assert [(row.amount, row.solver) for row in earned] == [(TOKEN, lease.node_id)]


async def test_a_replay_with_other_metrics_is_refused(bench: Bench) -> None:
    lease, order_hash = await leased(bench)
    await bench.report("ada", final_report("ada", lease, order_hash=order_hash, metrics={"loss": 1.0}))

    answer = await bench.report("ada", final_report("ada", lease, order_hash=order_hash, metrics={"loss": 0.0}))
    found = await bench.store.read(lambda tx: views.task(tx, lease.task_id))

    assert (answer.status, answer.problem and answer.problem.code) == (409, "conflict")
    assert found.metrics == {"loss": 1.0}


async def test_a_report_from_a_node_without_the_lease_is_refused_and_unpaid(bench: Bench) -> None:
    lease, order_hash = await leased(bench)
    stolen = Lease(
        lease.lease_id,
        lease.task_id,
        new_node("bob").node_id,  # type: ignore[arg-type]  # a node id
        lease.claim_id,
        lease.fence,
        lease.manifest_hash,
        lease.ttl,
        lease.expires_at,
    )

    answer = await bench.report("bob", final_report("bob", stolen, order_hash=order_hash))

    assert answer.status == 409
    assert await bench.store.read(lambda tx: tx.all(sql.EARNING_OF_TASK, task_id=lease.task_id)) == []


async def test_a_stale_fence_is_refused_after_the_task_went_on(bench: Bench) -> None:
    lease, order_hash = await leased(bench)
    bench.now += timedelta(seconds=31)
    await bench.store.write(lambda tx: leases.reap(tx, bench.market, bench.now))
    second = await bench.lease("bob", lease.task_id)

    old = await bench.report("ada", final_report("ada", lease, order_hash=order_hash))
    new = await bench.report("bob", final_report("bob", second, order_hash=order_hash))

    assert (old.status, old.problem and old.problem.code) == (409, "stale_fence")
    assert (new.status, new.task_state) == (200, "completed")


@pytest.mark.parametrize("field", ["order_hash", "manifest_hash", "result_hash", "node_id"])
async def test_a_receipt_about_something_else_is_refused_and_changes_nothing(bench: Bench, field: str) -> None:
    lease, order_hash = await leased(bench)
    final = final_report("ada", lease, order_hash=order_hash)
    assert final.receipt is not None
    wrong = "ee" * 32 if field == "node_id" else "0x" + "ee" * 32
    forged = final.model_copy(update={"receipt": final.receipt.model_copy(update={field: wrong})})

    answer = await bench.report("ada", forged)

    assert answer.status == 422
    assert answer.problem is not None
    assert answer.problem.field == f"receipt.{field}"
    assert (await bench.store.read(lambda tx: views.task(tx, lease.task_id))).state == "leased"
    assert (await bench.report("ada", final)).status == 200, "the honest report still counts"


async def test_a_receipt_by_another_key_is_refused(bench: Bench) -> None:
    lease, order_hash = await leased(bench)

    answer = await bench.report("ada", final_report("mallory", lease, order_hash=order_hash))

    assert (answer.status, answer.problem and answer.problem.code) == (422, "bad_signature")


async def test_a_receipt_from_the_future_is_refused_until_its_time(bench: Bench) -> None:
    lease, order_hash = await leased(bench)
    ahead = final_report("ada", lease, order_hash=order_hash, at=bench.now + timedelta(seconds=62))

    early = await bench.report("ada", ahead)
    bench.now += timedelta(seconds=2)
    within_the_leeway = await bench.report("ada", ahead)

    assert (early.status, early.problem and early.problem.code) == (422, "not_yet_valid")
    assert (within_the_leeway.status, within_the_leeway.task_state) == (200, "completed")


@pytest.mark.parametrize(("wall_ms", "status"), [(61_000, 422), (59_000, 200)])
async def test_more_wall_time_than_the_lease_has_lasted_is_refused(bench: Bench, wall_ms: int, status: int) -> None:
    lease, order_hash = await leased(bench)

    answer = await bench.report("ada", final_report("ada", lease, order_hash=order_hash, usage=Usage(wall_ms=wall_ms)))

    assert answer.status == status
    assert status == 200 or (answer.problem and answer.problem.field) == "receipt.usage.wall_ms"


async def test_a_receipt_that_states_other_usage_than_its_report_is_refused(bench: Bench) -> None:
    lease, order_hash = await leased(bench)
    final = final_report("ada", lease, order_hash=order_hash)
    cheaper = final.model_copy(update={"report": final.report.model_copy(update={"usage": Usage(wall_ms=1)})})

    with pytest.raises(BadField, match="different usage"):
        await bench.report("ada", cheaper)

    assert (await bench.report("ada", final)).status == 200


async def test_a_result_that_is_not_here_is_refused_until_it_is(bench: Bench) -> None:
    lease, order_hash = await leased(bench)
    big = b"x" * 40_000
    final = final_report("ada", lease, order_hash=order_hash, result=big, inline=False)
    node = new_node("ada").node_id

    missing = await bench.report("ada", final)
    await bench.store.write(
        lambda tx: blobs.add_ref(tx, str(cid_of_bytes(big)), node, visibility="private", size=len(big), now=bench.now)
    )
    there = await bench.report("ada", final)

    assert (missing.status, missing.problem and "not here" in missing.problem.detail) == (422, True)
    assert there.status == 200


async def test_somebody_elses_upload_does_not_stand_in_for_the_result(bench: Bench) -> None:
    lease, order_hash = await leased(bench)
    final = final_report("ada", lease, order_hash=order_hash, result=b"y" * 40_000, inline=False)
    await bench.store.write(
        lambda tx: blobs.add_ref(
            tx, str(cid_of_bytes(b"y" * 40_000)), "0x" + "99" * 20, visibility="private", size=40_000, now=bench.now
        )
    )

    assert (await bench.report("ada", final)).status == 422


async def test_a_task_fault_ends_the_task_when_nobody_else_could_try(bench: Bench) -> None:
    lease, order_hash = await leased(bench)

    answer = await bench.report(
        "ada",
        final_report("ada", lease, order_hash=order_hash, failed=FailureReason.EXIT_STATUS, message="exit status 1"),
    )
    found = await bench.store.read(lambda tx: views.task(tx, lease.task_id))

    assert answer.task_state == "failed"
    assert (found.failure, found.message, found.payout) == ("exit_status", "exit status 1", None)


async def test_one_lying_node_cannot_end_somebodys_task(bench: Bench) -> None:
    lease, order_hash = await leased(bench)
    bench.signals.others = True

    answer = await bench.report(
        "ada", final_report("ada", lease, order_hash=order_hash, failed=FailureReason.EXIT_STATUS)
    )
    again = await bench.claim("ada", lease.task_id)
    second = await bench.lease("bob", lease.task_id)
    honest = await bench.report("bob", final_report("bob", second, order_hash=order_hash))

    assert answer.task_state == "pending"
    assert isinstance(again, ParityError)
    assert honest.task_state == "completed"


async def test_two_nodes_that_agree_end_a_faulty_task(bench: Bench) -> None:
    lease, order_hash = await leased(bench)
    bench.signals.others = True
    await bench.report("ada", final_report("ada", lease, order_hash=order_hash, failed=FailureReason.EXIT_STATUS))
    second = await bench.lease("bob", lease.task_id)

    answer = await bench.report(
        "bob", final_report("bob", second, order_hash=order_hash, failed=FailureReason.DATA_INVALID)
    )

    assert answer.task_state == "failed"


async def test_a_nodes_own_fault_sends_the_task_elsewhere_and_counts(bench: Bench) -> None:
    lease, order_hash = await leased(bench)

    await bench.report("ada", final_report("ada", lease, order_hash=order_hash, failed=FailureReason.DISK_FULL))
    node = await bench.store.read(lambda tx: tx.one(sql.NODE, id=lease.node_id))

    assert node is not None
    assert (node.failed, node.completed) == (1, 0)
    assert isinstance(await bench.claim("ada", lease.task_id), ParityError)
    assert isinstance(await bench.claim("bob", lease.task_id), Lease)


async def test_an_interrupted_node_may_have_the_task_again(bench: Bench) -> None:
    lease, order_hash = await leased(bench)

    await bench.report("ada", final_report("ada", lease, order_hash=order_hash, failed=FailureReason.NODE_RESTARTED))

    assert isinstance(await bench.claim("ada", lease.task_id), Lease)


async def test_attempts_are_bounded(bench: Bench) -> None:
    new = command_submission(max_attempts=2)
    reply = await bench.submit(new)
    for expected in ("pending", "failed"):
        lease = await bench.lease("ada", reply.id)
        answer = await bench.report(
            "ada", final_report("ada", lease, order_hash=new.order_hash, failed=FailureReason.NETWORK_FAULT)
        )
        assert answer.task_state == expected

    found = await bench.store.read(lambda tx: views.events(tx, reply.id))
    assert found.events[-1].event == "attempts_exhausted"


async def test_a_report_after_a_cancel_is_told_so(bench: Bench) -> None:

    lease, order_hash = await leased(bench)
    creator = deterministic_evm_key("creator").address
    await bench.store.write(lambda tx: tasks.cancel(tx, bench.market, lease.task_id, creator, bench.now))

    answer = await bench.report("ada", final_report("ada", lease, order_hash=order_hash))

    assert (answer.status, answer.problem and answer.problem.code) == (409, "cancelled")


async def test_progress_moves_nothing(bench: Bench) -> None:
    lease, order_hash = await leased(bench)
    final = final_report("ada", lease, order_hash=order_hash)
    progress = final.report.model_copy(
        update={
            "id": report_id(lease.lease_id, lease.fence, ReportKind.PROGRESS, 1),
            "kind": ReportKind.PROGRESS,
            "seq": 1,
            "outcome": None,
        }
    )

    answer = await bench.report("ada", FinalReport(report=progress))

    assert (answer.status, answer.task_state) == (200, "leased")


async def test_an_update_waits_for_verification_before_it_is_paid(bench: Bench) -> None:
    new = fl_submission(parts=1, reward=9)
    reply = await bench.submit(new)
    (task_id,) = reply.task_ids
    lease = await bench.lease("ada", task_id)

    answer = await bench.report("ada", final_report("ada", lease, order_hash=new.order_hash))
    waiting = await bench.store.read(reports.waiting_for_verification)
    unpaid = await bench.store.read(lambda tx: tx.all(sql.EARNING_OF_TASK, task_id=task_id))
    await bench.store.write(
        lambda tx: reports.accept(tx, bench.market, task_id, lease.fence, bench.now, metrics={"oob": 0.9})
    )
    found = await bench.store.read(lambda tx: views.task(tx, task_id))

    assert answer.task_state == "verifying"
    assert [task.id for task in waiting] == [task_id]
    assert unpaid == []
    assert (found.state, found.metrics) == ("completed", {"oob": 0.9})
    assert found.payout is not None


async def test_a_rejected_update_goes_to_another_node_unpaid(bench: Bench) -> None:
    new = fl_submission(parts=1, reward=9)
    (task_id,) = (await bench.submit(new)).task_ids
    lease = await bench.lease("ada", task_id)
    await bench.report("ada", final_report("ada", lease, order_hash=new.order_hash, result=b"garbage"))

    row = await bench.store.write(
        lambda tx: reports.reject(tx, bench.market, task_id, lease.fence, "not a forest", bench.now)
    )

    assert (row.state, row.result_cid) == ("pending", None)
    assert await bench.store.read(lambda tx: tx.all(sql.EARNING_OF_TASK, task_id=task_id)) == []
    assert isinstance(await bench.claim("ada", task_id), ParityError)
    assert isinstance(await bench.claim("bob", task_id), Lease)


# -- what is checked before the writer ----------------------------------------------------------------------------------


async def test_a_result_that_does_not_hash_to_its_cid_is_refused(bench: Bench) -> None:
    lease, order_hash = await leased(bench)
    final = final_report("ada", lease, order_hash=order_hash, result=b"good")
    other = final_report("ada", lease, order_hash=order_hash, result=b"evil")

    with pytest.raises(DigestMismatch):
        checked_report(final.model_copy(update={"result": other.result}), lease.node_id)


@pytest.mark.parametrize("result", ["not base64!", "AAAA"])
async def test_a_result_of_another_form_or_size_is_refused(bench: Bench, result: str) -> None:
    lease, order_hash = await leased(bench)
    final = final_report("ada", lease, order_hash=order_hash)

    with pytest.raises(BadField):
        checked_report(final.model_copy(update={"result": result}), lease.node_id)


async def test_success_needs_a_receipt_and_failure_has_none(bench: Bench) -> None:
    lease, order_hash = await leased(bench)
    good = final_report("ada", lease, order_hash=order_hash)
    bad = final_report("ada", lease, order_hash=order_hash, failed=FailureReason.EXIT_STATUS)

    with pytest.raises(BadField):
        checked_report(good.model_copy(update={"receipt": None}), lease.node_id)
    with pytest.raises(BadField):
        checked_report(bad.model_copy(update={"receipt": good.receipt}), lease.node_id)


async def test_a_signature_that_is_none_is_refused(bench: Bench) -> None:
    lease, order_hash = await leased(bench)
    final = final_report("ada", lease, order_hash=order_hash)
    assert final.receipt is not None
    broken = final.receipt.model_copy(update={"signature": "0x" + "00" * 65})

    with pytest.raises(BadSignature):
        checked_report(final.model_copy(update={"receipt": broken}), lease.node_id)


# -- logs ---------------------------------------------------------------------------------------------------------------


async def append(bench: Bench, lease: Lease, offset: int, text: str) -> ParityError | None:
    chunk = LogChunk(task_id=lease.task_id, lease_id=lease.lease_id, fence=lease.fence, offset=offset, text=text)
    answers = await bench.store.write(
        lambda tx: leases.append_logs(tx, bench.market, lease.node_id, [chunk], bench.now)
    )
    return answers[0]


async def test_logs_are_read_from_any_offset_and_a_repeated_chunk_changes_nothing(bench: Bench) -> None:
    lease, _ = await leased(bench)
    for _ in range(2):
        assert await append(bench, lease, 0, "héllo ") is None
        assert await append(bench, lease, 7, "world") is None

    whole = await bench.store.read(lambda tx: views.logs(tx, lease.task_id))
    rest = await bench.store.read(lambda tx: views.logs(tx, lease.task_id, offset=9))

    assert (whole.text, whole.next_offset, whole.done) == ("héllo world", 12, False)
    assert rest.text == "rld"


async def test_logs_beyond_the_cap_are_dropped_and_said_to_be(bench: Bench) -> None:
    lease, _ = await leased(bench)
    for number in range(20):
        assert await append(bench, lease, number * 60_000, "x" * 60_000) is None

    kept = await bench.store.read(lambda tx: tx.one(sql.LOG_SIZE, task_id=lease.task_id, fence=lease.fence))
    shown = await bench.store.read(lambda tx: views.logs(tx, lease.task_id))

    assert kept is not None
    assert kept <= bench.market.max_log_bytes
    assert shown.truncated


async def test_logs_under_an_old_fence_are_refused(bench: Bench) -> None:
    lease, _ = await leased(bench)
    bench.now += timedelta(seconds=31)
    await bench.store.write(lambda tx: leases.reap(tx, bench.market, bench.now))
    assert await append(bench, lease, 0, "nobody else has it") is None

    await bench.lease("bob", lease.task_id)

    assert isinstance(await append(bench, lease, 18, "late"), ParityError)


async def test_the_last_words_may_come_after_the_report(bench: Bench) -> None:
    lease, order_hash = await leased(bench)
    await bench.report("ada", final_report("ada", lease, order_hash=order_hash))

    assert await append(bench, lease, 0, "bye\n") is None
    shown = await bench.store.read(lambda tx: views.logs(tx, lease.task_id))

    assert (shown.text, shown.done) == ("bye\n", True)


async def test_metrics_are_kept_as_they_came(bench: Bench) -> None:
    lease, order_hash = await leased(bench)
    await bench.report("ada", final_report("ada", lease, order_hash=order_hash, metrics={"r2": 0.48, "loss": 1e-9}))

    row = await bench.store.read(lambda tx: tx.one(sql.TASK, id=lease.task_id))

    assert row is not None
    assert json.loads(row.metrics_doc) == {"r2": 0.48, "loss": 1e-9}
