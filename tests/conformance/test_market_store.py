"""Every implementation of ``MarketStore`` keeps the same promises."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from parity_market.store import MarketStore, ReadTx, Tx, open_sqlite, sql, sql_blobs
from parity_market.store.rows import ChainEscrowRow, EarningRow, SmallBlobRow
from parity_protocol.errors import Unavailable


async def _sqlite(folder: Path) -> MarketStore:
    return await open_sqlite(folder / "market.db")


ALL_MARKET_STORES = [pytest.param(_sqlite, id="sqlite")]


@pytest.fixture(params=ALL_MARKET_STORES)
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Awaitable[MarketStore]]:
    return lambda: request.param(tmp_path)


@pytest.fixture
async def store(opened: Callable[[], Awaitable[MarketStore]]) -> AsyncIterator[MarketStore]:
    found = await opened()
    yield found
    await found.close()


def put(key: str, value: str) -> Callable[[Tx], str]:
    def op(tx: Tx) -> str:
        tx.insert(sql.META_PUT, (key, value))
        return value

    return op


def get(key: str) -> Callable[[ReadTx], str | None]:
    return lambda tx: tx.one(sql.META, key=key)


async def test_a_read_sees_every_write_that_has_returned(store: MarketStore) -> None:
    assert await store.write(put("a", "1")) == "1"

    assert await store.read(get("a")) == "1"


async def test_a_raising_operation_is_undone_alone(store: MarketStore) -> None:
    def bad(tx: Tx) -> None:
        tx.insert(sql.META_PUT, ("bad", "x"))
        raise LookupError("mine")

    outcomes = await asyncio.gather(
        store.write(put("before", "1")), store.write(bad), store.write(put("after", "2")), return_exceptions=True
    )

    assert outcomes[0] == "1"
    assert isinstance(outcomes[1], LookupError)
    assert outcomes[2] == "2"
    assert [await store.read(get(key)) for key in ("before", "bad", "after")] == ["1", None, "2"]


async def test_operations_run_one_at_a_time_in_the_order_of_their_calls(store: MarketStore) -> None:
    def append(number: int) -> Callable[[Tx], None]:
        def op(tx: Tx) -> None:
            tx.insert(sql.META_PUT, ("list", (tx.one(sql.META, key="list") or "") + f"{number} "))

        return op

    await asyncio.gather(*(store.write(append(number)) for number in range(50)))

    assert await store.read(get("list")) == "".join(f"{number} " for number in range(50))


async def test_an_operation_sees_its_own_and_earlier_writes(store: MarketStore) -> None:
    def op(tx: Tx) -> tuple[str | None, str | None]:
        tx.insert(sql.META_PUT, ("own", "2"))
        return tx.one(sql.META, key="earlier"), tx.one(sql.META, key="own")

    _, found = await asyncio.gather(store.write(put("earlier", "1")), store.write(op))

    assert found == ("1", "2")


async def test_a_read_does_not_see_what_is_not_committed(store: MarketStore) -> None:
    writing = asyncio.ensure_future(store.write(put("a", "1")))

    seen_before = await store.read(get("a"))
    await writing

    assert seen_before is None
    assert await store.read(get("a")) == "1"


async def test_hooks_run_after_the_commit_and_before_the_answer(store: MarketStore) -> None:
    order: list[str] = []
    reads: list[asyncio.Future[str | None]] = []

    def op(tx: Tx) -> None:
        tx.insert(sql.META_PUT, ("a", "1"))
        tx.after_commit(lambda: order.append("hook"))
        tx.after_commit(lambda: reads.append(asyncio.ensure_future(store.read(get("a")))))

    await store.write(op)
    order.append("answer")

    assert order == ["hook", "answer"]
    assert await reads[0] == "1"


async def test_hooks_of_a_failed_operation_do_not_run(store: MarketStore) -> None:
    hooked: list[int] = []

    def bad(tx: Tx) -> None:
        tx.after_commit(lambda: hooked.append(1))
        raise LookupError

    with pytest.raises(LookupError):
        await store.write(bad)
    await store.write(put("a", "1"))

    assert hooked == []


async def test_a_failing_hook_does_not_hide_that_the_operation_is_durable(store: MarketStore) -> None:
    def op(tx: Tx) -> str:
        tx.insert(sql.META_PUT, ("a", "1"))
        tx.after_commit(lambda: 1 / 0)  # type: ignore[arg-type,return-value]  # it raises before it returns
        return "kept"

    assert await store.write(op) == "kept"
    assert await store.read(get("a")) == "1"


async def test_a_cancelled_caller_does_not_undo_the_operation(store: MarketStore) -> None:
    waiting = asyncio.ensure_future(store.write(put("a", "1")))
    await asyncio.sleep(0)

    waiting.cancel()
    await store.write(put("b", "2"))

    assert await store.read(get("a")) == "1"


async def test_amounts_above_every_machine_integer_come_back_exactly(store: MarketStore) -> None:
    largest = 2**96 - 1
    row = ChainEscrowRow("chain", "creator", "spender", largest, 0, 10 * 10**18, 7, 1)

    await store.write(lambda tx: tx.insert(sql.CHAIN_ESCROW_PUT, row))

    assert (
        await store.read(lambda tx: tx.one(sql.CHAIN_ESCROW, chain="chain", creator="creator", spender="spender"))
        == row
    )


async def test_a_negative_amount_is_refused(store: MarketStore) -> None:
    row = ChainEscrowRow("chain", "creator", "spender", -1, 0, 0, 7, 1)

    with pytest.raises(ValueError, match="negative"):
        await store.write(lambda tx: tx.insert(sql.CHAIN_ESCROW_PUT, row))


async def test_an_upsert_keeps_one_row_and_an_ignored_duplicate_says_so(store: MarketStore) -> None:
    first = await store.write(lambda tx: tx.insert(sql_blobs.SMALL_BLOB_PUT, SmallBlobRow("cid", b"\x00one")))
    second = await store.write(lambda tx: tx.insert(sql_blobs.SMALL_BLOB_PUT, SmallBlobRow("cid", b"two")))
    await store.write(put("a", "1"))
    await store.write(put("a", "2"))

    assert (first, second) == (1, 0)
    assert await store.read(lambda tx: tx.one(sql_blobs.SMALL_BLOB, cid="cid")) == b"\x00one"
    assert await store.read(get("a")) == "2"


async def test_a_task_earns_once_for_each_solver_and_kind(store: MarketStore) -> None:
    def earn(solver: str) -> Callable[[Tx], int]:
        row = EarningRow(0, "chain", "task", solver, "execution", "creator", "spender", 5, "0x", 1, None, None)
        return lambda tx: tx.insert(sql.EARNING_INSERT, row[1:])

    await store.write(earn("one"))
    await store.write(earn("two"))

    with pytest.raises(Unavailable, match="CONSTRAINT"):
        await store.write(earn("one"))
    assert len(await store.read(lambda tx: tx.all(sql.EARNING_OF_TASK, task_id="task"))) == 2


async def test_what_was_written_is_there_after_opening_again(opened: Callable[[], Awaitable[MarketStore]]) -> None:
    first = await opened()
    await first.write(put("a", "1"))
    await first.close()

    second = await opened()

    assert await second.read(get("a")) == "1"
    await second.close()


async def test_close_finishes_what_was_accepted_and_refuses_the_rest(
    opened: Callable[[], Awaitable[MarketStore]],
) -> None:
    store = await opened()
    accepted = [asyncio.ensure_future(store.write(put(f"key {number}", "x"))) for number in range(20)]
    await asyncio.sleep(0)

    await store.close()
    await store.close()

    assert [await answer for answer in accepted] == ["x"] * 20
    with pytest.raises(Unavailable):
        await store.write(put("late", "x"))
    with pytest.raises(Unavailable):
        await store.read(get("key 0"))
