"""What only the SQLite store promises: durability settings, batches, one process, failures of the disk."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy.dialects import postgresql, sqlite

from parity_market.store import SqliteStore, Tx, open_sqlite, sql, sql_blobs
from parity_market.store import tables as tables_module
from parity_market.store.statements import Command
from parity_market.store.writer import Writer
from parity_protocol.errors import ConfigInvalid, Overloaded, StorageFull, Unavailable


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    found = await open_sqlite(tmp_path / "market.db")
    yield found
    await found.close()


def put(key: str) -> Callable[[Tx], None]:
    def op(tx: Tx) -> None:
        tx.insert(sql.META_PUT, (key, "x"))

    return op


async def test_the_writer_syncs_every_commit_to_disk(store: SqliteStore) -> None:
    connection = store.writer._connection
    assert isinstance(connection, sqlite3.Connection)

    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
    assert connection.execute("PRAGMA foreign_keys").fetchone() == (1,)


async def test_operations_that_arrive_together_share_commits(store: SqliteStore) -> None:
    before = store.writer.commits

    await asyncio.gather(*(store.write(put(str(number))) for number in range(400)))

    assert store.writer.operations >= 400
    assert store.writer.commits - before < 100


async def test_reads_cannot_write(store: SqliteStore) -> None:
    def sneak(tx: object) -> None:
        tx._cursor.execute("INSERT INTO market_meta VALUES ('a', 'b')")  # type: ignore[attr-defined]

    with pytest.raises(Unavailable, match="READONLY"):
        await store.read(sneak)


async def test_a_full_queue_tells_callers_to_come_back(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "x.db", isolation_level=None, check_same_thread=False)
    connection.execute("CREATE TABLE market_meta (key TEXT PRIMARY KEY, value TEXT)")
    writer = Writer(
        connection, sqlite.dialect(paramstyle="qmark"), begin="BEGIN", on_hook_error=pytest.fail, max_waiting=3
    )
    accepted = [asyncio.ensure_future(writer.write(put(str(number)))) for number in range(3)]
    await asyncio.sleep(0)
    waiting = [asyncio.ensure_future(writer.write(put(f"late {number}"))) for number in range(10)]

    outcomes = await asyncio.gather(*accepted, *waiting, return_exceptions=True)
    await writer.close()

    refused = [outcome for outcome in outcomes if isinstance(outcome, Overloaded)]
    assert refused
    assert refused[0].retry_after_s
    assert outcomes[:3] == [None, None, None]


async def test_a_full_disk_fails_the_whole_batch_and_the_next_one_works(store: SqliteStore) -> None:
    connection = store.writer._connection
    assert isinstance(connection, sqlite3.Connection)
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count = {pages + 4}")

    def large(tx: Tx) -> None:
        tx.insert(sql_blobs.SMALL_BLOB_PUT, ("cid", b"x" * 200_000))

    outcomes = await asyncio.gather(store.write(put("small")), store.write(large), return_exceptions=True)
    connection.execute("PRAGMA max_page_count = 1000000")
    await store.write(put("later"))

    assert isinstance(outcomes[1], StorageFull)
    kept = await store.read(lambda tx: [tx.one(sql.META, key=key) for key in ("small", "later")])
    assert kept[1] == "x"
    assert (kept[0] == "x") == (outcomes[0] is None), (
        "an operation that failed must not be there, one that did not must"
    )


async def test_a_failing_begin_fails_the_waiting_and_not_the_later_ones(store: SqliteStore) -> None:
    writer = store.writer
    writer._begin = "BEGIN NONSENSE"

    with pytest.raises(Unavailable):
        await writer.write(put("a"))
    writer._begin = "BEGIN IMMEDIATE"

    await writer.write(put("b"))


async def test_a_second_market_on_the_same_database_is_refused(store: SqliteStore, tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match="another market"):
        await open_sqlite(tmp_path / "market.db")


async def test_a_file_that_is_no_database_is_refused_in_words(tmp_path: Path) -> None:
    path = tmp_path / "market.db"
    path.write_bytes(b"this is not a database, but long enough to look at" * 100)

    with pytest.raises(ConfigInvalid, match="not a database"):
        await open_sqlite(path)


async def test_a_database_of_a_newer_market_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "market.db"
    await (await open_sqlite(path)).close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()

    with pytest.raises(ConfigInvalid, match="9999"):
        await open_sqlite(path)


async def test_the_migrations_make_exactly_the_tables_that_the_code_knows(tmp_path: Path) -> None:
    path = tmp_path / "market.db"
    await (await open_sqlite(path)).close()
    engine = sa.create_engine(f"sqlite:///{path}", poolclass=sa.pool.NullPool)

    with engine.connect() as connection:
        found = compare_metadata(MigrationContext.configure(connection), tables_module.metadata)
        layouts = dict(connection.exec_driver_sql("SELECT name, wr FROM pragma_table_list").fetchall())
    engine.dispose()

    assert found == []
    assert [name for name, wr in layouts.items() if wr == 0 and name in tables_module.metadata.tables] == [
        name for name in layouts if name in ("earning", "fl_small_file", "small_blob")
    ]


async def test_only_its_owner_can_read_the_database(store: SqliteStore, tmp_path: Path) -> None:
    assert (tmp_path / "market.db").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("name", [name for name, value in vars(sql).items() if isinstance(value, Command)])
def test_every_statement_compiles_for_both_databases(name: str) -> None:
    statement = getattr(sql, name)

    for dialect in (sqlite.dialect(paramstyle="qmark"), postgresql.dialect(paramstyle="format")):  # type: ignore[no-untyped-call]
        assert statement.prepared(dialect).text


async def test_every_statement_is_accepted_by_sqlite(store: SqliteStore) -> None:
    cursor = store.writer._connection.cursor()

    for name, statement in vars(sql).items():
        if isinstance(statement, Command):
            prepared = statement.prepared(sqlite.dialect(paramstyle="qmark"))
            cursor.execute("EXPLAIN " + prepared.text, [None] * len(prepared.names))
            assert cursor.fetchall(), name


_INDEX_OF = {
    "LEASES_EXPIRED": "lease_live",
    "LEASES_OF_NODE": "lease_of_node",
    "TASKS_IN_STATE": "task_live",
    "TASKS_PAST_DEADLINE": "task_live",
    "TASKS_OF_GROUP": "task_by_group",
    "TASKS_OF_CREATOR": "task_by_creator",
    "EARNINGS_NEW": "earning_new",
    "EARNINGS_UNVOUCHERED_OF_SOLVER": "earning_new_of_solver",
    "TXS_IN_STATE": "chain_tx_by_state",
    "VOUCHERS_UNSIGNED": "voucher_unsigned",
    "REPORT_FINAL": "report_one_final",
}


async def test_the_hot_statements_use_their_index(store: SqliteStore) -> None:
    cursor = store.writer._connection.cursor()
    plans = {}

    for name in _INDEX_OF:
        prepared = getattr(sql, name).prepared(sqlite.dialect(paramstyle="qmark"))
        cursor.execute("EXPLAIN QUERY PLAN " + prepared.text, [None] * len(prepared.names))
        plans[name] = " ".join(str(row[3]) for row in cursor.fetchall())

    assert [name for name, index in _INDEX_OF.items() if index not in plans[name]] == [], plans
