"""``parity node data``: what an operator lends by name, kept in the node's settings."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from parity_cli.node_place import node_file, node_settings
from parity_client import Home
from parity_protocol.errors import BadDocument

if TYPE_CHECKING:
    from .conftest import Parity
else:
    Parity = Any


@pytest.fixture
def lent() -> Iterator[Path]:
    """Return a folder that everybody may read, as a node that is root asks for."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        for each in ("a.csv", "b.csv"):
            (folder / each).write_text("x,label\n1,0\n")
            (folder / each).chmod(0o644)
        yield folder


def test_what_is_added_is_what_the_node_reads_and_the_rest_of_its_settings_stay(
    parity: Parity, home: Home, lent: Path
) -> None:
    home.write(node_file(home), b"# mine\nRUNNER_SLOTS=3\n")

    done = [parity("node", "data", "add", name, str(lent / f"{name}.csv")) for name in ("a", "b")]

    assert [each.code for each in done] == [0, 0], done[0].err
    settings = node_settings()
    assert settings.shards() == {"a": lent / "a.csv", "b": lent / "b.csv"}
    assert settings.runner_slots == 3
    assert "# mine" in node_file(home).read_text()
    listed = parity("node", "data", "list", "--json").json["items"]
    assert [(item["name"], item["bytes"], item["problem"]) for item in listed] == [("a", 12, ""), ("b", 12, "")]


def test_a_name_that_is_taken_back_is_gone(parity: Parity, home: Home, lent: Path) -> None:
    parity("node", "data", "add", "a", str(lent / "a.csv"))

    done = parity("node", "data", "remove", "a")

    assert done.code == 0
    assert node_settings().shards() == {}
    assert "nothing is lent" in parity("node", "data", "list").out
    assert parity("node", "data", "remove", "a").code != 0


def test_a_taken_name_is_replaced_only_when_that_is_said(parity: Parity, home: Home, lent: Path) -> None:
    parity("node", "data", "add", "a", str(lent / "a.csv"))

    again = parity("node", "data", "add", "a", str(lent / "a.csv"))
    other = parity("node", "data", "add", "a", str(lent / "b.csv"))
    said = parity("node", "data", "add", "a", str(lent / "b.csv"), "--replace")

    assert (again.code, other.code, said.code) == (0, other.code, 0)
    assert "a.csv already" in other.err
    assert node_settings().shards() == {"a": lent / "b.csv"}


@pytest.mark.parametrize(
    ("name", "path", "words"),
    [
        ("../a", "a.csv", "expected NAME=/PATH"),
        ("a b", "a.csv", "expected NAME=/PATH"),
        ("a", "gone.csv", "No such file"),
    ],
)
def test_what_no_task_could_read_is_refused(
    parity: Parity, home: Home, lent: Path, name: str, path: str, words: str
) -> None:
    done = parity("node", "data", "add", name, str(lent / path))

    assert done.code != 0
    assert words in done.err
    assert node_settings().shards() == {}


def test_data_that_went_away_are_listed_with_the_reason(parity: Parity, home: Home, lent: Path) -> None:
    parity("node", "data", "add", "a", str(lent / "a.csv"))
    (lent / "a.csv").unlink()

    shown = parity("node", "data", "list")

    assert "No such file" in shown.out


def test_what_the_environment_says_is_not_written_over(
    parity: Parity, home: Home, lent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNNER_SHARDS", f"a={lent / 'a.csv'}")

    done = parity("node", "data", "add", "b", str(lent / "b.csv"))

    assert done.code != 0
    assert "set in the environment" in done.err


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the commands tell a running node, which agrees."""
    found: list[dict[str, Any]] = []

    def ask(_state_dir: Path, request: dict[str, Any]) -> dict[str, Any]:
        found.append(request)
        return {"ok": True}

    monkeypatch.setattr("parity_node.control.ask_agent", ask)
    return found


def test_a_running_node_is_told_at_once(parity: Parity, home: Home, lent: Path, asked: list[dict[str, Any]]) -> None:
    added = parity("node", "data", "add", "a", str(lent / "a.csv"))
    removed = parity("node", "data", "remove", "a", "--json")

    assert asked == [
        {"command": "data", "name": "a", "path": str(lent / "a.csv")},
        {"command": "data", "name": "a", "path": None},
    ]
    assert "from now on" in added.out
    assert removed.json["told"] is True


def test_without_a_running_node_the_next_one_is_promised(parity: Parity, home: Home, lent: Path) -> None:
    added = parity("node", "data", "add", "a", str(lent / "a.csv"))

    assert added.code == 0
    assert "no node runs here now; it reads this when it starts" in added.out


def test_a_node_that_does_not_take_it_is_quoted(
    parity: Parity, home: Home, lent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> dict[str, Any]:
        raise BadDocument("expected the command status")

    monkeypatch.setattr("parity_node.control.ask_agent", refuse)

    added = parity("node", "data", "add", "a", str(lent / "a.csv"))

    assert added.code == 0
    assert "did not take it (expected the command status); it reads this when it starts again" in added.out
