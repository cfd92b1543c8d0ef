"""House rules that no linter knows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def house_rules(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("house_rules")


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("node/x.py", "a = 1\n" * 501, "501 lines, at most 500"),
        ("node/x.py", "# TODO: later\n", "node/x.py:1: a left-over needs an issue"),
        ("scripts/x", "# FIXME\n", "a left-over needs an issue"),
        ("node/x.py", "def f():\n    raise NotImplementedError\n", "node/x.py:2: unfinished code"),
        ("docs/x.md", "see /root/thing\n", "a path of one machine"),
        ("README.md", "<<<<<<< HEAD\n", "a merge conflict"),
        ("requirements/x.lock", "--index-url https://example.org/simple\n", "an address in a lock file"),
        ("contracts/package-lock.json", '"resolved": "https://example.org/x.tgz"\n', "an address in a lock file"),
    ],
)
def test_what_breaks_a_rule_is_named_with_its_line(
    house_rules: ModuleType, name: str, text: str, complaint: str
) -> None:
    [found] = house_rules.complaints(name, text)

    assert complaint in found


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("node/x.py", "a = 1\n" * 500),
        ("requirements/x.lock", "a==1\n" * 501),
        ("tests/unit/test_x.py", "a = 1\n" * 501),
        ("contracts/test/X.t.sol", "a\n" * 501),
        ("node/x.py", "# TODO(#12): later\n"),
        ("docs/x.md", "a TODO list is no code\n"),
        ("docs/x.md", "https://example.org/work/thing and ~/work/thing and $HOME/work/x\n"),
    ],
)
def test_what_keeps_the_rules_passes(house_rules: ModuleType, name: str, text: str) -> None:
    assert list(house_rules.complaints(name, text)) == []


def test_binary_files_and_lost_files_are_passed_over(house_rules: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\xff")

    assert house_rules.main([str(tmp_path / "picture.png"), str(tmp_path / "gone.py")]) == 0


def test_a_broken_rule_is_status_1(house_rules: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.py").write_text("# FIXME\n")

    assert house_rules.main([str(tmp_path / "x.py")]) == 1
    assert "x.py:1" in capsys.readouterr().err
