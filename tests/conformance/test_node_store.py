"""One suite for every journal of a node: in memory, and in SQLite."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from parity_node.store.base import Execution, IntentState, NodeStore, OutboxEntry, Phase
from parity_node.store.memory import MemoryNodeStore
from parity_node.store.sqlite import SqliteNodeStore
from parity_protocol.errors import Internal, StorageFull

NOW = 1_767_225_600


class Reopenable:
    """A journal that can be closed and opened again, as a restart does."""

    def __init__(self, kind: str, folder: Path) -> None:
        self._path = folder / "journal.sqlite" if kind == "sqlite" else None
        self.store: NodeStore = MemoryNodeStore() if self._path is None else SqliteNodeStore(self._path)

    async def reopen(self) -> NodeStore:
        if self._path is not None:
            await self.store.close()
            self.store = SqliteNodeStore(self._path)
        return self.store


@pytest.fixture(params=["memory", "sqlite"])
async def journal(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Reopenable]:
    found = Reopenable(request.param, tmp_path)
    yield found
    await found.store.close()


def execution(**changes: object) -> Execution:
    made = Execution(
        id=str(uuid4()),
        task_id=str(uuid4()),
        jti=str(uuid4()),
        jti_expires_at=NOW + 300,
        claim_id=str(uuid4()),
        kind="command",
        manifest="a.b.c",
        manifest_hash="0" * 64,
        order_hash="0x" + "1" * 64,
        reward=2**90,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def entry(execution_id: str, name: str = "r", *, is_final: bool = True) -> OutboxEntry:
    return OutboxEntry(f"{execution_id}:{name}", execution_id, b'{"x": 1}', is_final, "/tmp/result", "bafy")


async def test_intent_is_recorded_once_and_its_own_claim_is_resumed(journal: Reopenable) -> None:
    first = execution()
    second = replace(execution(), jti=first.jti)

    (new,) = await journal.store.record_intents([first], now=NOW)
    store = await journal.reopen()
    (resumed,) = await store.record_intents([second], now=NOW)

    assert (new.state, resumed.state) == (IntentState.NEW, IntentState.RESUMED)
    assert resumed.execution == first  # with its own claim id, and an amount beyond 64 bits


async def test_two_offers_with_one_jti_in_one_call_make_one_intent(journal: Reopenable) -> None:
    first = execution()

    answers = await journal.store.record_intents([first, replace(execution(), jti=first.jti)], now=NOW)

    assert [answer.state for answer in answers] == [IntentState.NEW, IntentState.RESUMED]


@pytest.mark.parametrize("phase", [phase for phase in Phase if phase is not Phase.VERIFIED])
async def test_manifest_whose_claim_was_decided_is_used(journal: Reopenable, phase: Phase) -> None:
    first = execution()
    await journal.store.record_intents([first], now=NOW)
    journal.store.note(first.id, phase=phase)

    (answer,) = await journal.store.record_intents([replace(execution(), jti=first.jti)], now=NOW)

    assert answer.state is IntentState.USED


async def test_forgotten_execution_leaves_its_manifest_used(journal: Reopenable) -> None:
    first = execution()
    await journal.store.record_intents([first], now=NOW)
    journal.store.forget(first.id)
    store = await journal.reopen()

    (answer,) = await store.record_intents([replace(execution(), jti=first.jti)], now=NOW)

    assert answer.state is IntentState.USED
    assert (await store.load()).executions == ()


async def test_ids_of_manifests_that_expired_long_ago_are_forgotten(journal: Reopenable) -> None:
    first = execution()
    await journal.store.record_intents([first], now=NOW)
    journal.store.forget(first.id)

    (answer,) = await journal.store.record_intents([replace(execution(), jti=first.jti)], now=NOW + 4_000)

    assert answer.state is IntentState.NEW


async def test_notes_take_effect_in_their_order_and_survive(journal: Reopenable) -> None:
    first = execution()
    await journal.store.record_intents([first], now=NOW)
    journal.store.note(first.id, phase=Phase.CLAIMED, lease_id="l", fence=3, ttl_s=30.0, deadline=12.5, boot_id="b")
    journal.store.note(first.id, phase=Phase.STARTED, handle={"executor": "x", "state": {"pid": 7}}, started_at=5.5)

    (found,) = (await (await journal.reopen()).load()).executions

    assert (found.phase, found.lease_id, found.fence, found.deadline, found.boot_id) == (
        Phase.STARTED,
        "l",
        3,
        12.5,
        "b",
    )
    assert found.handle == {"executor": "x", "state": {"pid": 7}}
    assert found.started_at == 5.5


async def test_report_and_phase_are_written_together_and_settled_together(journal: Reopenable) -> None:
    first = execution()
    await journal.store.record_intents([first], now=NOW)
    await journal.store.collect(entry(first.id), phase=Phase.COLLECTED)

    collected = await (await journal.reopen()).load()
    await journal.store.settle([collected.outbox[0].id])
    settled = await (await journal.reopen()).load()

    assert [row.phase for row in collected.executions] == [Phase.COLLECTED]
    assert replace(collected.outbox[0], position=0) == entry(first.id)
    assert [row.phase for row in settled.executions] == [Phase.REPORTED]
    assert settled.outbox == ()


async def test_report_that_is_queued_twice_is_kept_once(journal: Reopenable) -> None:
    first = execution()
    await journal.store.record_intents([first], now=NOW)

    for _ in range(2):
        await journal.store.collect(entry(first.id), phase=Phase.COLLECTED)

    assert len((await journal.store.load()).outbox) == 1


async def test_outbox_keeps_its_order(journal: Reopenable) -> None:
    rows = [execution() for _ in range(20)]
    await journal.store.record_intents(rows, now=NOW)
    await asyncio.gather(*(journal.store.collect(entry(row.id), phase=Phase.COLLECTED) for row in rows))

    outbox = (await (await journal.reopen()).load()).outbox

    assert [item.execution_id for item in outbox] == [row.id for row in rows]
    assert sorted(item.position for item in outbox) == [item.position for item in outbox]


async def test_forgetting_drops_queued_progress_and_keeps_the_final_report(journal: Reopenable) -> None:
    first = execution()
    await journal.store.record_intents([first], now=NOW)
    await journal.store.collect(entry(first.id, "progress", is_final=False), phase=None)
    await journal.store.collect(entry(first.id, "final"), phase=Phase.COLLECTED)
    journal.store.forget(first.id)

    assert [item.id for item in (await journal.store.load()).outbox] == [f"{first.id}:final"]


async def test_pinned_value_is_never_replaced(journal: Reopenable) -> None:
    assert await journal.store.pin("market", "one") == "one"
    store = await journal.reopen()

    assert await store.pin("market", "two") == "one"
    assert (await store.load()).pins == {"market": "one"}


async def test_closed_journal_refuses_work_and_closes_again(journal: Reopenable) -> None:
    await journal.store.close()
    await journal.store.close()

    with pytest.raises(Internal):
        await journal.store.pin("a", "b")


# -- SQLite's own ------------------------------------------------------------------------------------------------


async def test_operations_that_arrive_together_share_a_commit_and_one_failure_stays_alone(tmp_path: Path) -> None:
    store = SqliteNodeStore(tmp_path / "journal.sqlite")
    rows = [execution() for _ in range(50)]
    clash = replace(execution(), id=rows[0].id)  # the same primary name under another jti

    answers = await asyncio.gather(
        *(store.record_intents([row], now=NOW) for row in [*rows, clash]), return_exceptions=True
    )

    assert isinstance(answers[-1], Internal)
    assert len((await store.load()).executions) == 50
    await store.close()


async def test_journal_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    import sqlite3

    path = tmp_path / "journal.sqlite"
    await SqliteNodeStore(path).close()
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 99")
    db.close()

    with pytest.raises(Internal, match="newer version"):
        SqliteNodeStore(path)


async def test_journal_is_private_and_keeps_a_ballast_for_a_full_disk(tmp_path: Path) -> None:
    store = SqliteNodeStore(tmp_path / "journal.sqlite", ballast_bytes=1 << 20)

    assert (tmp_path / "journal.sqlite").stat().st_mode & 0o077 == 0
    assert (tmp_path / "journal.sqlite.ballast").stat().st_size == 1 << 20
    await store.close()


async def test_full_disk_fails_every_waiting_write_and_the_ballast_gives_one_more_try(
    tmp_path: Path, limited_pages: Callable[[Path], None]
) -> None:
    store = SqliteNodeStore(tmp_path / "journal.sqlite")
    big = "m" * 200_000
    limited_pages(tmp_path / "journal.sqlite")

    failures = 0
    for _ in range(20):
        try:
            await store.record_intents([execution(manifest=big)], now=NOW)
        except StorageFull:
            failures += 1
    kept = len((await store.load()).executions)

    assert failures > 0
    assert kept == 20 - failures
    assert not (tmp_path / "journal.sqlite.ballast").exists()
    await store.close()


@pytest.fixture
def limited_pages(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Return what makes SQLite meet a full disk: a cap on the pages of the journal's own connection."""
    import sqlite3

    opened: list[sqlite3.Connection] = []
    connect = sqlite3.connect

    def remember(*args: object, **kwargs: object) -> sqlite3.Connection:
        kwargs["check_same_thread"] = False
        opened.append(connect(*args, **kwargs))  # type: ignore[call-overload]
        return opened[-1]

    monkeypatch.setattr("parity_node.store.sqlite.sqlite3.connect", remember)
    return lambda _path: opened[-1].execute("PRAGMA max_page_count = 300") and None
