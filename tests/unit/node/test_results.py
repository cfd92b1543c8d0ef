"""What the disk's errors become when a result is stored."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from parity_node.executors.base import ExecutionResult
from parity_node.results import failure_of, store_result
from parity_protocol.errors import FailureReason, StorageFull
from parity_protocol.report import Outcome

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT], ids=errno.errorcode.get)
async def test_no_room_for_a_result_is_the_disks_word_whether_disk_or_quota(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(code, "no room")

    monkeypatch.setattr("parity_node.results.pack_car", full)
    (tmp_path / "output").mkdir()
    result = ExecutionResult(Outcome.SUCCEEDED, result_path=tmp_path / "output")

    with pytest.raises(StorageFull):
        await store_result(result, tmp_path, "execution")
    assert failure_of(OSError(code, "no room")).reason is FailureReason.DISK_FULL
