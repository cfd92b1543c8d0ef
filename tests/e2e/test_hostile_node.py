"""What a node that does not follow the rules sends, and that it gains nothing by it and ends nobody's task."""

from __future__ import annotations

import random
import re
import shutil
import sys
from base64 import b64encode
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from parity_cli.demo.stack import PARITY, Node
from parity_cli.testing.hand import HandNode, Taken
from parity_cli.testing.town import REWARD, Town
from parity_client import Client, Retry
from parity_protocol.api.leases import ClaimReply, FinalReport, ReportItem, ReportsRequest
from parity_protocol.clock import SystemClock
from parity_protocol.errors import Blame, ClockSkew, NodeInUse, ParityError
from parity_protocol.signing.jws import b64url_encode
from parity_protocol.signing.keys import EvmKey

pytestmark = pytest.mark.timeout(90)


class ShiftedClock(SystemClock):
    """A machine whose wall clock is wrong."""

    def now(self) -> datetime:
        return super().now() + timedelta(minutes=10)


@pytest.fixture
async def hand(town: Town) -> AsyncIterator[HandNode]:
    async with town.hand(town.nodes[0]) as hand:
        await hand.enrol()
        yield hand


@pytest.fixture
async def other(town: Town) -> AsyncIterator[HandNode]:
    async with town.hand(town.nodes[1]) as other:
        await other.enrol()
        yield other


async def send(node: HandNode, *reports: FinalReport) -> list[ReportItem]:
    return list((await node.market.report(ReportsRequest(reports=reports))).reports)


async def take_one(town: Town, node: HandNode) -> Taken:
    [task_id] = await town.submit()
    [taken] = await node.take()
    assert (taken.task_id, taken.lease.status) == (task_id, 200)
    return taken


async def earned(town: Town, node: Node) -> int:
    return (await town.market.node(node.id)).earned


async def test_result_from_a_node_that_holds_no_lease_is_refused_and_unpaid(
    town: Town, hand: HandNode, other: HandNode
) -> None:
    taken = await take_one(town, hand)
    before = await earned(town, town.nodes[1])

    [stolen] = await send(other, other.report(taken))

    assert stolen.status == 409
    assert (await town.market.task(taken.task_id)).state == "leased"
    [honest] = await send(hand, hand.report(taken))
    task = await town.market.task(taken.task_id)
    assert (honest.status, task.state, task.runner_id) == (200, "completed", town.nodes[0].id)
    assert await earned(town, town.nodes[1]) == before


async def test_result_without_any_lease_is_refused(town: Town, hand: HandNode) -> None:
    [task_id] = await town.submit()
    [offer] = await hand.offers()
    invented = Taken(offer, ClaimReply(status=200, claim_id="", lease_id=offer.manifest.jti, fence=1, ttl_s=3))

    [answer] = await send(hand, hand.report(invented))

    assert answer.status == 409
    assert (await town.market.task(task_id)).state == "pending"


async def test_same_reports_sent_three_times_and_shuffled_count_once(town: Town, hand: HandNode) -> None:
    task_ids = await town.submit(3)
    taken: list[Taken] = []
    while len(taken) < 3:
        taken += await hand.take(slots=3)
    before = await earned(town, town.nodes[0])
    reports = [hand.report(one) for one in taken] * 3
    random.Random(7).shuffle(reports)

    answers = await send(hand, *reports)

    assert {answer.status for answer in answers} == {200}
    assert await earned(town, town.nodes[0]) - before == 3 * REWARD
    for task_id in task_ids:
        events = [event.event for event in await town.events(task_id)]
        assert events.count("report") == events.count("accept") == 1
    await town.paid(task_ids)
    assert await town.credit(town.nodes[0]) == await earned(town, town.nodes[0])


async def test_replay_with_other_metrics_is_refused_and_changes_nothing(town: Town, hand: HandNode) -> None:
    taken = await take_one(town, hand)
    await send(hand, hand.report(taken, metrics={"accuracy": 0.5}))
    before = await earned(town, town.nodes[0])

    [better] = await send(hand, hand.report(taken, metrics={"accuracy": 0.99}))
    [longer] = await send(hand, hand.report(taken, b"another result", metrics={"accuracy": 0.5}))

    assert (better.status, longer.status) == (409, 409)
    task = await town.market.task(taken.task_id)
    assert task.metrics == {"accuracy": 0.5}
    assert (await town.market.result(taken.task_id)).data == b"ok"
    assert await earned(town, town.nodes[0]) == before


async def test_report_with_a_stale_fence_is_refused_and_the_next_holder_is_paid(
    town: Town, hand: HandNode, other: HandNode
) -> None:
    slow = await take_one(town, hand)
    await town.until_state(slow.task_id, "pending", within_s=10)
    before = await earned(town, town.nodes[0])
    [next_one] = await other.take(wait_s=5)

    [late] = await send(hand, hand.report(slow))
    [forged] = await send(hand, hand.report(slow, fence=next_one.lease.fence))
    [good] = await send(other, other.report(next_one))

    task = await town.market.task(slow.task_id)
    assert (late.status, forged.status, good.status) == (409, 409, 200)
    assert next_one.lease.fence > slow.lease.fence
    assert (task.state, task.runner_id, task.attempts) == ("completed", town.nodes[1].id, 2)
    assert await earned(town, town.nodes[0]) == before


async def test_garbage_results_are_refused_unpaid_and_leave_the_task_to_an_honest_report(
    town: Town, hand: HandNode
) -> None:
    taken = await take_one(town, hand)
    before = await earned(town, town.nodes[0])
    honest = hand.report(taken)
    assert honest.receipt is not None
    elsewhere = honest.receipt.model_copy(update={"manifest_hash": "0x" + "11" * 32})
    garbage = {
        "bytes that are not the CID": honest.model_copy(update={"result": b64encode(b"no").decode()}),
        "a size that is not the bytes'": honest.model_copy(
            update={"report": honest.report.model_copy(update={"result_size": 7})}
        ),
        "a result that is nowhere": hand.report(taken, b"stored nowhere").model_copy(update={"result": None}),
        "a receipt by another key": hand.report(taken, operator=EvmKey.generate()),
        "a receipt about another manifest": honest.model_copy(update={"receipt": elsewhere}),
        "no receipt": honest.model_copy(update={"receipt": None}),
    }

    for what, report in garbage.items():
        [answer] = await send(hand, report)

        assert answer.status == 422, what
        assert answer.problem is not None, what
        assert (await town.market.task(taken.task_id)).state == "leased", what
        assert await earned(town, town.nodes[0]) == before, what

    [answer] = await send(hand, honest)
    assert answer.status == 200


async def test_hostile_node_that_calls_the_task_faulty_cannot_end_it(
    town: Town, hand: HandNode, other: HandNode
) -> None:
    taken = await take_one(town, hand)

    [answer] = await send(hand, hand.failure(taken, "task_fault", Blame.TASK, "it cannot be done"))

    assert (answer.status, answer.task_state) == (200, "pending")
    [again] = await other.take()
    await send(other, other.report(again))
    task = await town.market.task(taken.task_id)
    assert (again.task_id, task.state, task.runner_id) == (taken.task_id, "completed", town.nodes[1].id)


async def test_task_that_failed_is_not_paid_as_success(town: Town, hand: HandNode, other: HandNode) -> None:
    taken = await take_one(town, hand)
    before = [await earned(town, node) for node in town.nodes[:2]]
    reserved = (await town.market.account()).reserved

    await send(hand, hand.failure(taken, "exit_status", Blame.TASK, "exit status 3"))
    [again] = await other.take()
    [second] = await send(other, other.failure(again, "exit_status", Blame.TASK, "exit status 3"))

    task = await town.market.task(taken.task_id)
    assert (second.task_state, task.state, task.failure) == ("failed", "failed", "exit_status")
    assert task.payout is None
    assert [await earned(town, node) for node in town.nodes[:2]] == before
    assert reserved - (await town.market.account()).reserved == REWARD
    [late] = await send(other, other.report(again))
    assert late.status == 409


async def test_garbage_update_of_a_model_is_rejected_and_the_part_done_by_an_honest_node(
    town: Town, hand: HandNode
) -> None:
    rows = "\n".join(f"{at},{at % 5},{at % 2}" for at in range(60))
    file = town.stack.folder / "xor.csv"
    file.write_text(f"a,b,label\n{rows}\n")
    cid = (await town.market.data.add(file)).cid
    await hand.enrol(model_types=("random_forest",))
    submission = await town.market.submit(
        {
            "type": "federated_learning",
            "model_type": "random_forest",
            "dataset_cid": cid,
            "data_format": "csv",
            "model_config": {"num_trees": 4},
            "partition_config": {"strategy": "stratified", "total_parts": 1, "min_samples": 5},
        },
        REWARD,
    )
    [taken] = await hand.take()
    before = await earned(town, town.nodes[0])

    [answer] = await send(hand, hand.report(taken, b"\x00garbage that is no update" * 10))
    task = await town.until_state(taken.task_id, "pending", within_s=20)
    town.stack.start_node(town.nodes[1], [*PARITY, "node", "run"], RUNNER_SLOTS="1")
    ended = await submission.wait(60)

    assert answer.status == 200  # taken; what it is worth is found out afterwards
    assert task.failure == "node_fault"
    assert ended.state == "completed"
    done = await town.market.task(taken.task_id)
    assert (done.runner_id, done.attempts) == (town.nodes[1].id, 2)
    assert await earned(town, town.nodes[0]) == before


# -- manifests and leases ------------------------------------------------------------------------------------------------


def altered(token: str) -> dict[str, str]:
    head, payload, signature = token.split(".")
    flipped = signature[:10] + ("A" if signature[10] != "A" else "B") + signature[11:]
    other_payload = payload[:30] + ("A" if payload[30] != "A" else "B") + payload[31:]
    none = b64url_encode(b'{"alg":"none","typ":"manifest+jws"}')
    symmetric = b64url_encode(b'{"alg":"HS256","typ":"manifest+jws","kid":"x"}')
    return {
        "one character of the signature": f"{head}.{payload}.{flipped}",
        "one character of the payload": f"{head}.{other_payload}.{signature}",
        "alg none": f"{none}.{payload}.",
        "alg HS256": f"{symmetric}.{payload}.{signature}",
        "no token": "not a token",
    }


async def test_claim_with_an_altered_or_foreign_manifest_is_refused_and_grants_nothing(
    town: Town, hand: HandNode, other: HandNode
) -> None:
    [task_id] = await town.submit()
    [offer] = await hand.offers()

    for what, token in altered(offer.token).items():
        reply = await hand.claim(replace(offer, token=token))
        assert reply.status in (400, 422), what  # 400: not even the form of a token
        assert reply.lease == "", what
    foreign = await other.claim(offer)
    assert (foreign.status, foreign.lease) == (422, "")
    assert (await town.market.task(task_id)).state == "pending"


async def test_repeated_claim_gets_the_same_lease_and_another_one_none(town: Town, hand: HandNode) -> None:
    await town.submit()
    [offer] = await hand.offers()
    claim_id = "6f0c2f5e-6f0b-4c59-9f0e-0d6a6a3c9d11"

    first, repeated, second = [
        await hand.claim(offer, claim_id=name) for name in (claim_id, claim_id, "00000000-0000-4000-8000-000000000000")
    ]

    assert (first.status, repeated.status, second.status) == (200, 200, 409)
    assert (first.lease_id, first.fence) == (repeated.lease_id, repeated.fence)


# -- identity and time ---------------------------------------------------------------------------------------------------


async def test_second_machine_with_a_copied_key_is_refused_with_409(town: Town) -> None:
    original = town.nodes[2]
    await town.start(original)
    copy = town.stack.folder / "copied"
    shutil.copytree(original.state, copy, ignore=shutil.ignore_patterns("*.sock", "agent.lock", ".*.tmp"))

    async with town.hand(original) as hand:
        with pytest.raises(NodeInUse) as refused:
            await hand.enrol(instance="f" * 64)
    thief = town.stack.processes.start(
        "thief",
        [sys.executable, "-m", "parity_node.testing.node", "noop"],
        env=town.stack.environment(
            RUNNER_MARKET_JOIN=str(town.stack.join), RUNNER_STATE_DIR=str(copy), RUNNER_HOSTNAME="elsewhere"
        ),
        cwd=copy,
    )
    thief.may_end = True
    status = thief.process.wait(20)

    assert refused.value.status == 409
    assert original.name in refused.value.message
    assert status != 0
    assert "node_in_use" in thief.last_lines()
    assert await town.stack.online([original])


async def test_clock_10_minutes_off_is_told_in_words_with_both_times(town: Town) -> None:
    async with town.hand(town.nodes[0], clock=ShiftedClock()) as late:
        with pytest.raises(ClockSkew) as refused:
            await late.enrol()

    times = [datetime.fromisoformat(text) for text in re.findall(r"[\d-]{10}T[\d:]{8}Z", refused.value.message)]
    assert len(times) == 2
    assert abs(abs(times[0] - times[1]) - timedelta(minutes=10)) < timedelta(seconds=5)
    assert "clock" in refused.value.hint().lower()


async def test_agent_whose_clock_is_10_minutes_off_says_so_in_its_log(town: Town) -> None:
    script = (
        "from datetime import timedelta\n"
        "import parity_node.run as run\n"
        "from parity_node.testing.node import main\n"
        "class Late(run.SystemClock):\n"
        "    def now(self):\n"
        "        return super().now() + timedelta(minutes=10)\n"
        "run.SystemClock = Late\n"
        "main('noop')\n"
    )
    node = town.nodes[0]
    town.stack.start_node(node, [sys.executable, "-c", script])
    assert node.process is not None
    log = node.process.log
    start = log.stat().st_size if log.exists() else 0

    async def told() -> bool:
        return "clock_skew" in log.read_text()[start:]

    await town.stack.until(told, "the words about the clock", within_s=20)

    said = log.read_text()[start:]
    assert "this machine's time is" in said
    assert "Set the clock" in said


async def test_submitter_whose_clock_is_10_minutes_off_is_told_so(town: Town) -> None:
    with pytest.raises(ParityError) as refused:
        async with Client(town.stack.join, town.submitter, clock=ShiftedClock(), retry=Retry(attempts=1)) as market:
            await market.submit({"type": "command", "command": ["true"]}, REWARD)

    assert "clock" in (refused.value.message + refused.value.hint()).lower()
