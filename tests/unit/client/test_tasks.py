from __future__ import annotations

import gzip
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta

import httpx
import pytest

from parity_client import Client
from parity_client.results import raise_unless_completed
from parity_client.testing import FakeMarket, FakeTask
from parity_protocol.api import paths
from parity_protocol.api.tasks import EventReply
from parity_protocol.errors import (
    BadDocument,
    BadField,
    DigestMismatch,
    EscrowTooLow,
    ExecutionFailed,
    FailureReason,
    InvalidInput,
    NotFinished,
    NotFound,
    Overloaded,
    ParityError,
    TaskCancelled,
    Unauthenticated,
    Unavailable,
    Unreachable,
)

HELLO = {"type": "command", "command": ["echo", "hello"]}
FOREST = {
    "type": "federated_learning",
    "model_type": "random_forest",
    "dataset_cid": "bafkreicysg23kiwv34eg2d7qweipxwosdo2py4ldv42nbauguluen5v6am",
    "data_format": "csv",
    "partition_config": {"strategy": "random", "total_parts": 3, "min_samples": 1},
}


def only_task(market: FakeMarket) -> FakeTask:
    [task] = market.tasks.values()
    return task


async def test_the_sample_of_the_readme(client: Client, market: FakeMarket) -> None:
    async with client:
        task = await client.submit(HELLO, reward="0.1")
        result = await task.result(wait=60)

    assert result.output == "hello\n"
    assert result.node_id == market.node_id
    assert only_task(market).request.reward == 10**17


async def test_the_order_signs_exactly_the_text_that_is_sent(client: Client, market: FakeMarket) -> None:
    text = '{ "type": "command",  "command": ["echo", "\\u00e9"] }'

    async with client:
        await client.submit(text, reward=5, max_reward=9, valid_for=timedelta(hours=2))

    request = only_task(market).request
    assert request.spec == text
    assert (request.reward, request.order.max_reward) == (5, 9)
    assert request.order.deadline == int(market.clock.now().timestamp()) + 7_200


async def test_a_lost_answer_does_not_make_a_second_task(client: Client, market: FakeMarket) -> None:
    async with client:
        market.fail_next(Unavailable("gone"), times=2, after_acting=True, path=paths.TASKS)
        submission = await client.submit(HELLO, reward="0.1")

    assert submission.id == only_task(market).id
    assert not submission.created


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"type": "command"}, "spec.command"),
        ({"type": "command", "command": ["a\0b"]}, "/spec/command/0"),
        ({"type": "command", "command": ["a"], "colour": "red"}, "spec.colour"),
        ({"type": "command", "command": ["a"], "budgets": {"wall_time_s": float("nan")}}, "spec"),
        ("[1]", "spec.type"),
    ],
)
async def test_a_spec_that_the_market_would_refuse_is_not_sent(
    client: Client, market: FakeMarket, spec: dict[str, object] | str, field: str
) -> None:
    async with client:
        with pytest.raises(InvalidInput) as caught:
            await client.submit(spec, reward="0.1")

    assert caught.value.field == field
    assert market.requests == [("GET", paths.JWKS)]


@pytest.mark.parametrize("reward", [0.1, True, None, "-1", "1e3", "0.0000000000000000001", -1])
async def test_a_reward_that_is_no_exact_amount_is_refused(client: Client, market: FakeMarket, reward: object) -> None:
    async with client:
        with pytest.raises(BadField):
            await client.submit(HELLO, reward=reward)  # type: ignore[arg-type]

    assert not market.tasks


async def test_a_maximum_below_the_reward_is_refused(client: Client) -> None:
    async with client:
        with pytest.raises(BadField, match="max_reward"):
            await client.submit(HELLO, reward="2", max_reward="1")


async def test_what_the_market_refuses_arrives_as_what_it_raised(client: Client, market: FakeMarket) -> None:
    async with client:
        market.fail_next(EscrowTooLow("only 1 is free", hint="deposit"), path=paths.TASKS)
        with pytest.raises(EscrowTooLow, match="only 1 is free") as caught:
            await client.submit(HELLO, reward="2")

    assert caught.value.hint() == "deposit"
    assert market.requests.count(("POST", paths.TASKS)) == 1


async def test_an_overloaded_market_is_asked_again_when_it_says(client: Client, market: FakeMarket) -> None:
    async with client:
        await client.tasks()
        market.fail_next(Overloaded("busy", retry_after_s=7), path=paths.TASKS)

        await client.tasks()

    assert market.clock.slept == [7.0]


async def test_retries_have_an_end_and_growing_pauses(client: Client, market: FakeMarket) -> None:
    async with client:
        await client.tasks()
        market.fail_next(Unavailable("down"), times=9, path=paths.TASKS)

        with pytest.raises(Unavailable, match="down"):
            await client.tasks()

    assert market.clock.slept == [0.125, 0.25, 0.5, 1.0]


async def test_a_pause_that_the_deadline_does_not_allow_is_not_begun(client: Client, market: FakeMarket) -> None:
    async with client:
        await client.tasks()
        market.fail_next(Overloaded("busy", retry_after_s=50), path=paths.TASKS)

        with pytest.raises(Overloaded):
            await client.tasks()

    assert market.clock.slept == []


async def test_a_market_that_does_not_answer_is_unreachable(market: FakeMarket) -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("connection refused", request=request)

    with pytest.raises(Unreachable, match="connection refused"):
        async with Client(market.join, clock=market.clock, transport=httpx.MockTransport(refuse)):
            pass


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (401, b"", Unauthenticated),
        (404, b"<html>", NotFound),
        (418, b"", Unreachable),
        (429, b"", Overloaded),
        (502, b"bad gateway", Unavailable),
    ],
)
async def test_an_answer_without_a_problem_document_is_judged_by_its_status(
    market: FakeMarket, status: int, body: bytes, expected: type[ParityError]
) -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(status, content=body))

    with pytest.raises(expected):
        async with Client(market.join, clock=market.clock, transport=transport):
            pass


@pytest.mark.parametrize(
    "body", [b"", b"[]", b'{"tasks": 1}', b'{"tasks": [], "tasks": []}', b'{"tasks": [NaN]}', b"\xff"]
)
async def test_an_answer_that_is_not_what_was_asked_for_is_a_bad_document(
    client: Client, market: FakeMarket, body: bytes
) -> None:
    real = market.handle_async_request

    async def garbled(request: httpx.Request) -> httpx.Response:
        if request.url.path == paths.TASKS:
            return httpx.Response(200, content=body)
        return await real(request)

    market.handle_async_request = garbled  # type: ignore[method-assign]

    async with client:
        with pytest.raises(BadDocument):
            await client.tasks()


async def test_events_come_in_order_and_once(client: Client, market: FakeMarket) -> None:
    seen: list[tuple[str, int]] = []
    market.finish_after = 2

    def note(_: str, event: EventReply) -> None:
        seen.append((event.event, event.seq))

    async with client:
        submission = await client.submit(HELLO, reward="0.1")
        ended = await submission.wait(on_event=note)

    assert ended.state == "completed"
    assert seen == [("submit", 1), ("claim", 2), ("report", 3), ("accept", 4)]


async def test_waiting_ends_when_its_time_is_over_and_may_be_repeated(client: Client, market: FakeMarket) -> None:
    market.finish_after = None

    async with client:
        submission = await client.submit(HELLO, reward="0.1")
        with pytest.raises(NotFinished, match="30 s"):
            await submission.wait(timeout=30)
        market.finish_after = 0
        assert (await submission.wait(timeout=30)).state == "completed"


async def test_a_group_is_followed_to_its_merged_result(client: Client, market: FakeMarket) -> None:
    seen: list[str] = []

    async with client:
        submission = await client.submit(FOREST, reward="3")
        result = await submission.result()
        ended = await submission.wait(on_event=lambda task_id, event: seen.append(f"{task_id[-1]} {event.event}"))

    assert (submission.kind, len(submission.task_ids)) == ("group", 3)
    assert (result.kind, result.data, result.node_id) == ("group", b"merged", None)
    assert ended.state == "completed"
    assert sorted(seen) == sorted(
        f"{part} {event}" for part in range(3) for event in ("submit", "claim", "report", "accept")
    )


@pytest.mark.parametrize(
    ("state", "failure", "expected"),
    [
        ("failed", "exit_status", ExecutionFailed),
        ("failed", "a_word_of_the_future", ExecutionFailed),
        ("not_verified", None, ExecutionFailed),
        ("cancelled", None, TaskCancelled),
        ("pending", None, NotFinished),
        ("running", None, NotFinished),
        ("splendid", None, BadDocument),
    ],
)
def test_only_a_completed_task_has_a_result(state: str, failure: str | None, expected: type[ParityError]) -> None:
    with pytest.raises(expected):
        raise_unless_completed("t", state, failure, "message")


async def test_a_failed_task_says_why(client: Client, market: FakeMarket) -> None:
    async with client:
        submission = await client.submit(HELLO, reward="0.1")
        task = only_task(market)
        task.failure, task.message = "out_of_memory", "killed at 512 MiB"
        market.step(task, "task_fault", "failed")
        with pytest.raises(ExecutionFailed, match="512 MiB") as caught:
            await submission.result()

    assert caught.value.reason is FailureReason.OUT_OF_MEMORY


async def test_a_result_that_does_not_match_its_cid_is_refused(client: Client, market: FakeMarket) -> None:
    async with client:
        submission = await client.submit(HELLO, reward="0.1")
        task = only_task(market)
        await market.finish(task)
        task.result = b"another\n"
        with pytest.raises(DigestMismatch):
            await submission.result()


async def test_a_large_result_comes_block_by_block_and_a_larger_one_is_left_there(
    client: Client, market: FakeMarket
) -> None:
    content = bytes(range(256)) * 4_096

    async with client:
        submission = await client.submit(HELLO, reward="0.1")
        await market.finish(only_task(market), content)
        whole = await submission.result()
        left = await submission.result(max_bytes=len(content) - 1)

    assert whole.data == content
    assert whole.output is None
    assert (left.data, left.size, left.cid) == (None, len(content), whole.cid)


async def test_a_result_before_the_end_is_not_waited_for_unless_asked(client: Client, market: FakeMarket) -> None:
    async with client:
        submission = await client.submit(HELLO, reward="0.1")
        with pytest.raises(NotFinished):
            await client.result(submission.id)


async def test_a_result_takes_one_request(client: Client, market: FakeMarket) -> None:
    market.finish_after = 1

    async with client:
        submission = await client.submit(HELLO, reward="0.1")
        with pytest.raises(NotFinished):
            await submission.result(wait=1)
        asked = len(market.requests)
        await submission.result()

    assert len(market.requests) - asked == 1


async def test_a_task_that_the_market_lost_is_not_waited_for_for_ever(client: Client, market: FakeMarket) -> None:
    market.finish_after = None

    async with client:
        submission = await client.submit(HELLO, reward="0.1")
        market.tasks.clear()
        with pytest.raises(NotFound, match="no task and no group"):
            await submission.result()


async def test_logs_are_followed_to_the_end(client: Client, market: FakeMarket) -> None:
    async with client:
        submission = await client.submit(HELLO, reward="0.1")
        task = only_task(market)
        market.step(task, "claim", "leased")
        task.log = "eins\n"
        logs = submission.logs()
        first = await anext(logs)
        task.log = "eins\nzwei ü\n"
        second = await anext(logs)
        task.state = "completed"
        rest = [text async for text in logs]

    assert (first, second, rest) == ("eins\n", "zwei ü\n", [])


async def test_a_new_attempts_log_is_read_from_its_start(client: Client, market: FakeMarket) -> None:
    async with client:
        submission = await client.submit(HELLO, reward="0.1")
        task = only_task(market)
        market.step(task, "claim", "leased")
        task.log = "first attempt\n"
        logs = submission.logs()
        await anext(logs)
        market.step(task, "claim", "leased")
        task.log, task.state = "second\n", "completed"
        rest = [text async for text in logs]

    assert rest == ["second\n"]


async def test_why_cancel_list_and_find(client: Client, market: FakeMarket) -> None:
    async with client:
        submission = await client.submit(HELLO, reward="0.1")
        [why] = await submission.why()
        cancelled = await submission.cancel()
        page = await client.tasks(limit=5)

        assert why.summary == "no node fits"
        assert cancelled.cancelled == (submission.id,)
        assert [task.id for task in page.tasks] == [submission.id]
        assert (await submission.status()).state == "cancelled"
        for strange in ("nope", "../../etc", "a/b", "", "x" * 200, "ä"):
            with pytest.raises(NotFound):
                await client.find(strange)

    assert all(".." not in path for _, path in market.requests)


async def test_groups_are_listed_page_by_page_without_their_tasks(client: Client, market: FakeMarket) -> None:
    async with client:
        ids = [(await client.submit(FOREST, reward="0.3")).id for _ in range(3)]
        await client.submit(HELLO, reward="0.1")
        first = await client.groups(limit=2)
        second = await client.groups(limit=2, cursor=first.next_cursor)

    assert [row.id for row in (*first.groups, *second.groups)] == ids[::-1]
    assert (first.next_cursor, second.next_cursor) == (ids[1], None)
    assert {(row.kind, row.state, row.parts, row.completed_at) for row in first.groups} == {
        ("federated_learning", "running", 3, None)
    }


async def test_a_market_on_another_authority_than_its_address_is_signed_for(market: FakeMarket) -> None:
    market.authority = market.nonce_domain = "market.example:8443"
    from parity_protocol.testing.keys import deterministic_evm_key

    join = replace(market.join, url="http://localhost:9999")
    async with Client(join, deterministic_evm_key("x"), clock=market.clock, transport=market) as client:
        assert (await client.tasks()).tasks == ()


def test_the_result_of_a_task_can_be_read_by_programs() -> None:
    from parity_client import Result

    result = Result(id="t", kind="task", state="completed", data=b"{}", metrics={"r2": 0.5})

    assert json.loads(result.output or "") == {}
    assert "data" not in repr(result)


class _Compressed(httpx.AsyncByteStream):
    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield gzip.compress(gzip.compress(b"\0" * (1 << 20)))


async def test_a_compressed_answer_is_not_unpacked(market: FakeMarket) -> None:
    headers = {"content-encoding": "gzip, gzip"}
    transport = httpx.MockTransport(lambda _: httpx.Response(200, headers=headers, stream=_Compressed()))

    with pytest.raises(BadDocument, match="compressed"):
        async with Client(market.join, clock=market.clock, transport=transport):
            pass
