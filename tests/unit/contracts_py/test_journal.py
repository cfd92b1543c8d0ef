from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parity_contracts.devnet.journal import BlockRecord, Journal, TxRecord
from parity_protocol.errors import ConfigInvalid, StorageFull

GENESIS = b"g" * 32
BLOCK = BlockRecord(1_700_000_000, b"h" * 32, (b"1" * 32, b"2" * 32))


def open_and_read(path: Path, genesis: bytes = GENESIS) -> tuple[Journal, list[TxRecord | BlockRecord]]:
    journal = Journal(path, genesis)
    try:
        return journal, list(journal.replay())
    except BaseException:
        journal.close()
        raise


def written(path: Path) -> None:
    journal, found = open_and_read(path)
    assert found == []
    journal.append_tx(b"first")
    journal.append_block(BLOCK)
    journal.append_tx(b"second")
    journal.close()


def test_records_come_back_in_their_order(tmp_path: Path) -> None:
    written(tmp_path / "journal")

    journal, found = open_and_read(tmp_path / "journal")

    assert found == [TxRecord(b"first"), BLOCK, TxRecord(b"second")]
    journal.close()
    assert stat.S_IMODE((tmp_path / "journal").stat().st_mode) == 0o600


def test_a_cut_at_any_byte_keeps_every_whole_record_and_appending_goes_on(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    written(whole)
    content = whole.read_bytes()
    first, records = open_and_read(whole)
    first.close()

    for length in range(len(content)):
        path = tmp_path / f"cut{length}"
        path.write_bytes(content[:length])
        journal, kept = open_and_read(path)
        assert kept == records[: len(kept)]
        journal.append_tx(b"later")
        journal.close()
        again, after = open_and_read(path)
        again.close()
        assert after == [*kept, TxRecord(b"later")]


def test_damage_before_whole_records_is_refused_and_nothing_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    written(path)
    content = bytearray(path.read_bytes())
    at = content.index(b"first")
    content[at] ^= 1
    path.write_bytes(content)

    with pytest.raises(ConfigInvalid, match="is damaged at byte"):
        open_and_read(path)

    assert path.read_bytes() == bytes(content)


def test_the_journal_of_another_chain_is_refused(tmp_path: Path) -> None:
    written(tmp_path / "journal")

    with pytest.raises(ConfigInvalid, match="journal of another chain"):
        open_and_read(tmp_path / "journal", b"x" * 32)


@given(tail=st.binary(max_size=60))
def test_no_tail_of_garbage_costs_an_earlier_record(tmp_path_factory: pytest.TempPathFactory, tail: bytes) -> None:
    path = tmp_path_factory.mktemp("tail") / "journal"
    written(path)
    with path.open("ab") as file:
        file.write(tail)

    journal, found = open_and_read(path)

    journal.close()
    assert found[:3] == [TxRecord(b"first"), BLOCK, TxRecord(b"second")]


def test_a_sync_covers_what_was_appended_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal, _ = open_and_read(tmp_path / "journal")
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(fd))

    first = journal.append_tx(b"one")
    second = journal.append_tx(b"two")

    assert journal.sync(first) == second
    assert journal.sync(second) == second
    assert len(synced) == 1
    journal.close()


def test_a_full_disk_leaves_no_half_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal, _ = open_and_read(tmp_path / "journal")
    journal.append_tx(b"kept")
    real_write = os.write
    calls = []

    def write(fd: int, data: bytes) -> int:
        calls.append(data)
        if len(calls) == 1:
            return real_write(fd, data[:5])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write)
        with pytest.raises(StorageFull, match="No space left"):
            journal.append_tx(b"lost")
    journal.append_tx(b"after")
    journal.close()

    again, found = open_and_read(tmp_path / "journal")
    again.close()
    assert found == [TxRecord(b"kept"), TxRecord(b"after")]
