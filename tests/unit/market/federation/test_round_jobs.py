"""Jobs of a session's worker that meet its files."""

from __future__ import annotations

from pathlib import Path

import pytest

from parity_market import round_jobs
from parity_market.round_worker import answer_of
from parity_protocol.errors import StorageFull, TooLarge


def test_files_that_cannot_be_used_are_an_answer_that_names_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(job: object) -> None:
        raise PermissionError(13, "Permission denied", str(tmp_path / "checkpoints"))

    monkeypatch.setattr(round_jobs, "_do", refuse)

    with pytest.raises(StorageFull, match=r"checkpoints: Permission denied") as caught:
        answer_of(round_jobs.execute({"do": "reduce"}))
    assert caught.value.retryable


def test_a_file_is_never_read_in_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(round_jobs, "MAX_FILE_BYTES", 4)
    (tmp_path / "dataset").write_bytes(b"1234")
    assert round_jobs._read(tmp_path / "dataset") == b"1234"

    (tmp_path / "dataset").write_bytes(b"12345")
    with pytest.raises(TooLarge, match="dataset"):
        round_jobs._read(tmp_path / "dataset")
