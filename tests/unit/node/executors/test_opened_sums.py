"""What a node has opened stays known: by part, over restarts, or nothing is opened at all."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from parity_node.executors.opened_sums import KEPT_FOR, OpenedSums
from parity_protocol.errors import ExecutionFailed, FailureReason, StorageFull

MINE, OTHER = "11" * 16, "22" * 16


def test_each_part_has_a_list_that_only_grows(tmp_path: Path) -> None:
    OpenedSums(tmp_path / "sums").add(MINE, ["round 1"])
    OpenedSums(tmp_path / "sums").add(MINE, ["round 2", "round 1"])

    assert OpenedSums(tmp_path / "sums").of(MINE) == ["round 1", "round 2"]
    assert OpenedSums(tmp_path / "sums").of(OTHER) == []


def test_the_salt_is_not_in_the_name_of_the_list(tmp_path: Path) -> None:
    OpenedSums(tmp_path).add(MINE, ["round 1"])
    assert [MINE in path.name for path in tmp_path.iterdir()] == [False]


@pytest.mark.parametrize("damaged", [b"", b"[", b"{}", b"[1]", b"\xff"])
def test_with_a_damaged_list_nothing_is_opened(tmp_path: Path, damaged: bytes) -> None:
    sums = OpenedSums(tmp_path)
    sums.add(MINE, ["round 1"])
    next(tmp_path.iterdir()).write_bytes(damaged)

    with pytest.raises(ExecutionFailed, match="opened sums"):
        sums.of(MINE)
    with pytest.raises(ExecutionFailed, match="opened sums"):
        sums.add(MINE, ["round 2"])


def test_a_list_that_cannot_be_written_ends_the_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise StorageFull("no room")

    monkeypatch.setattr("parity_node.executors.opened_sums.write_file", full)

    with pytest.raises(ExecutionFailed, match="no room") as caught:
        OpenedSums(tmp_path).add(MINE, ["round 1"])

    assert caught.value.reason is FailureReason.DISK_FULL


def test_only_lists_that_nothing_was_added_to_for_four_hundred_days_are_forgotten(tmp_path: Path) -> None:
    sums, now = OpenedSums(tmp_path), datetime(2030, 1, 1, tzinfo=UTC)
    ages = {MINE: KEPT_FOR + timedelta(seconds=1), OTHER: KEPT_FOR, "33" * 16: timedelta(0)}
    for salt, age in ages.items():
        before = set(tmp_path.iterdir())
        sums.add(salt, ["round 1"])
        [made] = set(tmp_path.iterdir()) - before
        os.utime(made, times=((now - age).timestamp(),) * 2)
    (tmp_path / "notes.json").touch()
    os.utime(tmp_path / "notes.json", times=(0, 0))

    forgotten = sums.forget_old(now)

    assert forgotten == 1
    assert [sums.of(salt) for salt in ages] == [[], ["round 1"], ["round 1"]]
    assert (tmp_path / "notes.json").exists()


def test_one_sweep_is_bounded_and_a_folder_that_is_not_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("parity_node.executors.opened_sums.MAX_LOOKED_AT", 2)
    sums = OpenedSums(tmp_path)
    for number in range(3):
        sums.add(str(number), ["round 1"])
    later = datetime.now(UTC) + 2 * KEPT_FOR

    assert OpenedSums(tmp_path / "none").forget_old(later) == 0
    assert [sums.forget_old(later), sums.forget_old(later), sums.forget_old(later)] == [2, 1, 0]
