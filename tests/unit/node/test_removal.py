"""Folders of executions go, several at a time, whatever is in them."""

from __future__ import annotations

from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from parity_node import removal
from parity_node.removal import FolderRemover, remove_folder


def _made(place: Path, count: int) -> list[Path]:
    folders = [place / f"execution-{number}" for number in range(count)]
    for folder in folders:
        (folder / "inside").mkdir(parents=True)
        (folder / "inside" / "file").write_text("x")
    return folders


async def test_folders_that_end_together_go_in_one_turn_of_a_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders, remover, turns = _made(tmp_path, 5), FolderRemover(), list[int]()
    remove_all = removal._remove_all

    def counted(batch: list[Path]) -> None:
        turns.append(len(batch))
        remove_all(batch)

    monkeypatch.setattr(removal, "_remove_all", counted)

    async def remove(folder: Path) -> None:
        await remover.remove(folder)
        assert folder not in await anyio.to_thread.run_sync(lambda: list(tmp_path.iterdir()))

    async with anyio.create_task_group() as group:
        for folder in folders:
            group.start_soon(remove, folder)
    assert sum(turns) == 5
    assert len(turns) <= 2


async def test_a_folder_that_cannot_be_removed_holds_up_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders, remover = _made(tmp_path, 2), FolderRemover()

    def remove(folder: Path) -> None:
        if folder == folders[0]:
            raise PermissionError(13, "not yours")
        remove_folder(folder)

    monkeypatch.setattr(removal, "remove_folder", remove)
    async with anyio.create_task_group() as group:
        for folder in folders:
            group.start_soon(remover.remove, folder)
    assert [folder.exists() for folder in folders] == [True, False]


def test_a_link_in_a_folder_is_not_followed(tmp_path: Path) -> None:
    (kept := tmp_path / "kept").mkdir()
    (kept / "file").write_text("x")
    (folder := tmp_path / "execution").mkdir()
    (folder / "link").symlink_to(kept)
    remove_folder(folder)
    assert not folder.exists()
    assert (kept / "file").exists()


def test_a_folder_that_is_gone_is_gone(tmp_path: Path) -> None:
    remove_folder(tmp_path / "never")
