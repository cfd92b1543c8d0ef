"""The operator's data sets: read from a setting, announced only when a task could read them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from parity_node.settings import load_settings
from parity_node.shards import MAX_SHARDS, LentData, parse_shards, usable_shards
from parity_protocol.errors import BadField, ConfigInvalid


def test_pairs_are_read_in_order() -> None:
    assert parse_shards("mnist=/data/mnist, logs.2024=/srv/a=b,") == {
        "mnist": Path("/data/mnist"),
        "logs.2024": Path("/srv/a=b"),
    }
    assert parse_shards("") == {}


@pytest.mark.parametrize("text", ["mnist", "mnist=relative", "=/x", "../x=/x", "a=/x,a=/y", "a b=/x"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected|twice"):
        parse_shards(text)


def test_a_wrong_setting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNNER_SHARDS", "mnist=data")

    with pytest.raises(ConfigInvalid, match="RUNNER_SHARDS"):
        load_settings()


def test_what_cannot_be_read_is_not_offered_and_says_why(tmp_path: Path) -> None:
    for folder in (tmp_path, *tmp_path.parents[:-1]):
        if folder.stat().st_uid == os.geteuid():
            folder.chmod(folder.stat().st_mode | 0o011)
    good, closed = tmp_path / "good", tmp_path / "closed"
    good.mkdir()
    good.chmod(0o755)
    closed.mkdir()
    closed.chmod(0o000)
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "file").chmod(0o644)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(good)

    names = ("good", "closed", "file", "pipe", "link", "missing")
    usable, problems = usable_shards({name: tmp_path / name for name in names})

    assert usable == {"good": good.resolve(), "file": (tmp_path / "file").resolve(), "link": good.resolve()}
    assert set(problems) == {"closed", "pipe", "missing"}
    assert "neither a file nor a folder" in problems["pipe"]


def test_a_running_node_lends_what_it_is_told_to_and_takes_names_back() -> None:
    lent = LentData({"a": Path("/old"), "b": Path("/kept")})
    before = lent.items()

    lent.answer({"command": "data", "name": "a", "path": "/new"})
    lent.answer({"command": "data", "name": "c", "path": "/more"})
    lent.answer({"command": "data", "name": "b", "path": None})
    lent.answer({"command": "data", "name": "unknown"})

    assert dict(lent) == {"a": Path("/new"), "c": Path("/more")}
    assert dict(before) == dict(lent)  # who holds it sees the change


@pytest.mark.parametrize(
    "request_",
    [
        {},
        {"name": 1},
        {"name": "a", "path": 1},
        {"name": "../a", "path": "/x"},
        {"name": "a", "path": "x"},
        {"name": "a", "path": "/x,b=/y"},
    ],
)
def test_a_running_node_refuses_what_its_settings_could_not_say(request_: dict[str, object]) -> None:
    lent = LentData({"kept": Path("/x")})

    with pytest.raises(BadField):
        lent.answer(request_)

    assert dict(lent) == {"kept": Path("/x")}


def test_a_running_node_lends_no_more_than_its_settings_could_name() -> None:
    lent = LentData({f"n{number}": Path("/x") for number in range(MAX_SHARDS)})

    lent.answer({"name": "n1", "path": "/y"})
    with pytest.raises(BadField, match=f"at most {MAX_SHARDS}"):
        lent.answer({"name": "one-more", "path": "/x"})
