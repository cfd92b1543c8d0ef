"""A task's hostile output folder becomes a result folder, or a failure that says why."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from parity_node.outputs import MAX_OUTPUT_DEPTH, gather_output
from parity_protocol.errors import ExecutionFailed, FailureReason
from parity_protocol.needs import OutputFolder

LIMITS = OutputFolder(max_bytes=10_000, max_files=20)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    folder = tmp_path / "output"
    folder.mkdir()
    (tmp_path / "printed.log").write_bytes(b"hello\n")
    return folder


def gather(output: Path, limits: OutputFolder = LIMITS) -> Path:
    return gather_output(output, output.parent / "printed.log", output.parent / "result", limits)


def refusal(output: Path, limits: OutputFolder = LIMITS) -> ExecutionFailed:
    with pytest.raises(ExecutionFailed) as caught:
        gather(output, limits)
    assert not (output.parent / "result").exists()
    assert not list(output.parent.glob(".*gathering*"))
    return caught.value


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_files_and_folders_stand_beside_what_was_printed(output: Path) -> None:
    (output / "model").mkdir()
    (output / "model" / "weights.bin").write_bytes(b"\x00\x01")
    (output / ".hidden ü").write_bytes(b"h")
    (output / "empty").mkdir()

    result = gather(output)

    assert contents(result) == {"output.log": b"hello\n", "files/model/weights.bin": b"\0\1", "files/.hidden ü": b"h"}
    assert (result / "files" / "empty").is_dir()
    assert not output.exists()


def test_a_task_that_printed_and_left_nothing_has_an_empty_result(output: Path) -> None:
    (output.parent / "printed.log").unlink()

    assert contents(gather(output)) == {"output.log": b""}


def test_modes_and_owners_of_the_task_do_not_survive(output: Path) -> None:
    (output / "locked").mkdir()
    secret = output / "locked" / "x"
    secret.write_bytes(b"x")
    secret.chmod(0o4000)
    (output / "locked").chmod(0)
    output.chmod(0o500)
    if os.geteuid() == 0:
        os.chown(output / "locked", 61_003, 61_003)

    result = gather(output)

    found = {path.name: path.stat() for path in (result / "files" / "locked", result / "files" / "locked" / "x")}
    assert {name: (each.st_mode & 0o7777, each.st_uid) for name, each in found.items()} == {
        "locked": (0o700, os.geteuid()),
        "x": (0o600, os.geteuid()),
    }


def link(folder: Path) -> None:
    (folder / "x").symlink_to("/etc/passwd")


def dangling(folder: Path) -> None:
    (folder / "x").symlink_to("nowhere")


def folder_link(folder: Path) -> None:
    (folder / "x").symlink_to(folder.parent, target_is_directory=True)


def pipe(folder: Path) -> None:
    os.mkfifo(folder / "x")


def a_socket(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as end:
        here = Path.cwd()
        os.chdir(folder)  # a socket's path has at most 108 bytes
        try:
            end.bind("x")
        finally:
            os.chdir(here)


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (link, "a symbolic link"),
        (dangling, "a symbolic link"),
        (folder_link, "a symbolic link"),
        (pipe, "a pipe"),
        (a_socket, "a socket"),
    ],
)
def test_what_is_no_plain_file_is_refused_by_its_kind(output: Path, make: Callable[[Path], None], kind: str) -> None:
    (output / "sub").mkdir()
    make(output / "sub")

    error = refusal(output)

    assert error.reason is FailureReason.DATA_INVALID
    assert f"holds {kind}: /output/sub/x" in error.message


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a device")
def test_a_device_is_refused(output: Path) -> None:
    os.mknod(output / "null", 0o20666, os.makedev(1, 3))

    assert "holds a device: /output/null" in refusal(output).message


@pytest.mark.parametrize("name", [b"\xff\xfe", b"a\nb", b"\x1b[2J", "\u2028".encode(), "\x85".encode(), b"\x7f"])
def test_a_name_that_is_no_printable_text_is_refused(output: Path, name: bytes) -> None:
    Path(os.fsdecode(os.fsencode(output) + b"/" + name)).touch()

    error = refusal(output)

    assert error.reason is FailureReason.DATA_INVALID
    assert error.message.isprintable()


def test_bytes_count_exactly(output: Path) -> None:
    (output / "a").write_bytes(b"a" * 6_000)
    (output / "b").write_bytes(b"b" * 4_000)

    assert sum(map(len, contents(gather(output) / "files").values())) == LIMITS.max_bytes


def test_one_byte_over_is_too_large(output: Path) -> None:
    (output / "a").write_bytes(b"a" * 10_001)

    error = refusal(output)

    assert error.reason is FailureReason.OUTPUT_TOO_LARGE
    assert "more than 10000 bytes" in error.message


def test_a_sparse_file_counts_whole(output: Path) -> None:
    with (output / "hole").open("wb") as file:
        file.truncate(1 << 40)

    assert refusal(output).reason is FailureReason.OUTPUT_TOO_LARGE


def test_each_name_of_a_file_counts(output: Path) -> None:
    (output / "a").write_bytes(b"a" * 6_000)
    (output / "b").hardlink_to(output / "a")

    assert refusal(output).reason is FailureReason.OUTPUT_TOO_LARGE


def test_names_of_one_file_become_files_of_their_own(output: Path) -> None:
    (output / "a").write_bytes(b"same")
    (output / "b").hardlink_to(output / "a")
    (output.parent / "kept open").hardlink_to(output / "a")

    result = gather(output)

    (output.parent / "kept open").write_bytes(b"changed later")
    assert contents(result / "files") == {"a": b"same", "b": b"same"}


def test_folders_count_as_files(output: Path) -> None:
    for number in range(21):
        (output / str(number)).mkdir()

    assert "more than 20 files and folders" in refusal(output).message


def test_a_folder_too_deep_is_refused(output: Path) -> None:
    path = output
    for _ in range(MAX_OUTPUT_DEPTH + 1):
        path /= "d"
        path.mkdir()

    assert "folders deep" in refusal(output).message


def test_the_deepest_accepted_folder_is_kept(output: Path) -> None:
    deepest = output.joinpath(*"d" * MAX_OUTPUT_DEPTH)
    deepest.mkdir(parents=True)

    assert gather(output).joinpath("files", *"d" * MAX_OUTPUT_DEPTH).is_dir()


def test_a_path_too_long_is_refused(output: Path) -> None:
    path = output
    for _ in range(5):
        path /= "d" * 250
        path.mkdir()

    assert "a path of 1254 bytes" in refusal(output).message


def test_more_names_than_one_folder_block_holds_are_refused(output: Path) -> None:
    for number in range(950):
        (output / (f"{number:04}" + "n" * 240)).touch()

    error = refusal(output, OutputFolder(max_files=1_000))

    assert error.reason is FailureReason.OUTPUT_TOO_LARGE
    assert "950 entries in /output" in error.message


def test_gathering_again_returns_what_is_complete(output: Path) -> None:
    (output / "a").write_bytes(b"a")

    first = gather(output)

    assert gather(output) == first
    assert contents(first / "files") == {"a": b"a"}


def test_a_crash_after_the_move_is_gone_on_from(output: Path) -> None:
    (output / "a").write_bytes(b"a")
    (output.parent / ".result.gathering").mkdir()
    output.rename(output.parent / ".result.gathering" / "files")

    assert contents(gather(output)) == {"output.log": b"hello\n", "files/a": b"a"}


def test_a_folder_that_cannot_be_moved_is_copied(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (output / "sub").mkdir()
    (output / "sub" / "a").write_bytes(b"a" * 3_000)
    rename = Path.rename

    def refuse(path: Path, target: Path) -> Path:
        if path == output:
            raise OSError(18, "Invalid cross-device link")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    (output.parent / ".result.gathering" / "files").mkdir(parents=True)
    (output.parent / ".result.gathering" / "files" / "of a crash").touch()

    assert contents(gather(output)) == {"output.log": b"hello\n", "files/sub/a": b"a" * 3_000}
    assert (output / "sub" / "a").exists()


def test_a_missing_output_folder_is_the_nodes_fault(tmp_path: Path) -> None:
    with pytest.raises(ExecutionFailed) as caught:
        gather(tmp_path / "output")

    assert caught.value.reason is FailureReason.NODE_FAULT
