"""What a node has opened stays known: by part, over restarts, or nothing is opened at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from parity_node.executors.opened_sums import OpenedSums
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
