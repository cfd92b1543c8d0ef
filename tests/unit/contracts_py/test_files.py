"""Files that are whole or not there, and secrets that nobody else may read."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from parity_contracts.files import make_private_dir, read_private, write_file
from parity_protocol.errors import ConfigInvalid, StorageFull


def _failing(number: int):
    def fail(_fd: int) -> None:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize(("number", "expected"), [(errno.EIO, OSError), (errno.ENOSPC, StorageFull)])
def test_failed_write_leaves_the_old_content_and_no_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, expected: type[Exception]
) -> None:
    path = tmp_path / "file"
    write_file(path, b"old")

    monkeypatch.setattr(os, "fsync", _failing(number))
    with pytest.raises(expected):
        write_file(path, b"new")

    assert path.read_bytes() == b"old"
    assert [item.name for item in tmp_path.iterdir()] == ["file"]


def test_content_and_name_are_synced_before_it_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(Path(f"/proc/self/fd/{fd}").readlink().name))

    write_file(tmp_path / "file", b"new")

    assert [name.startswith(".file.") for name in synced] == [True, False]
    assert synced[1] == tmp_path.name


@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_mode_is_the_one_that_was_asked_for(tmp_path: Path, mode: int) -> None:
    before = os.umask(0o077)
    try:
        write_file(tmp_path / "file", b"x", mode=mode)
    finally:
        os.umask(before)

    assert (tmp_path / "file").stat().st_mode & 0o777 == mode


def test_secret_is_read_back_and_a_missing_one_is_none(tmp_path: Path) -> None:
    write_file(tmp_path / "secret", b"x" * 10)

    assert read_private(tmp_path / "secret", max_bytes=10) == b"x" * 10
    assert read_private(tmp_path / "other", max_bytes=10) is None


def test_secret_that_is_not_ours_alone_is_refused(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    write_file(secret, b"x" * 10)
    (tmp_path / "link").symlink_to(secret)
    os.mkfifo(tmp_path / "pipe", 0o600)

    for name, max_bytes in (("secret", 9), ("link", 10), ("pipe", 10), (".", 10)):
        with pytest.raises(ConfigInvalid, match="plain file"):
            read_private(tmp_path / name, max_bytes=max_bytes)
    secret.chmod(0o640)
    with pytest.raises(ConfigInvalid, match="chmod 600"):
        read_private(secret, max_bytes=10)


def test_secret_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_file(tmp_path / "secret", b"x")
    monkeypatch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + 1)

    with pytest.raises(ConfigInvalid, match="must be yours"):
        read_private(tmp_path / "secret", max_bytes=10)


def test_folder_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o777)

    with pytest.raises(ConfigInvalid, match="nobody else may write"):
        make_private_dir(folder)
