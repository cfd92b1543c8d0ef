"""Jobs of a session's worker that meet its files."""

from __future__ import annotations

from asyncio.subprocess import Process
from pathlib import Path
from typing import cast

import pytest

from parity_market import round_jobs
from parity_market.round_worker import MAX_PLACES, RoundWorkers, answer_of
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


def test_a_session_keeps_its_process_and_a_new_one_goes_where_the_fewest_are() -> None:
    workers = RoundWorkers(3)

    first = [workers._place_of(name) for name in ("a", "b", "c", "d")]
    again = [workers._place_of(name) for name in ("d", "b", "a")]

    assert sorted(first[:3]) == [0, 1, 2]
    assert again == [first[3], first[1], first[0]]


def test_a_session_that_comes_alone_goes_to_a_process_that_runs_already() -> None:
    workers = RoundWorkers(2)
    workers._processes[1] = cast("Process", object())

    assert workers._place_of("a") == 1


def test_sessions_that_never_end_are_not_remembered_for_ever() -> None:
    workers = RoundWorkers(2)

    for number in range(2 * MAX_PLACES):
        workers._place_of(str(number))

    assert len(workers._places) == MAX_PLACES
