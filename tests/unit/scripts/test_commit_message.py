"""Commit messages: what the hook lets through."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def commit_message(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("commit_message")


@pytest.mark.parametrize(
    "message",
    [
        "fix(node): refuse bundles older than the active one\n",
        "feat!: drop the old wire format",
        "build: pin uv\n\nA body.\n\nRefs: #41\n",
        "Merge branch 'main'",
        "fixup! fix(node): x",
        "docs: explain\n# Please enter the commit message\n#\ton branch main\n",
    ],
)
def test_a_conventional_commit_is_accepted(commit_message: ModuleType, message: str) -> None:
    assert commit_message.complaints(message) == []


@pytest.mark.parametrize(
    ("message", "complaint"),
    [
        ("Fixed the thing", "expected `type(scope): subject`"),
        ("feature: add a thing", "expected `type(scope): subject`"),
        ("fix(Node): a thing", "expected `type(scope): subject`"),
        ("fix:no space", "expected `type(scope): subject`"),
        ("fix: a thing.", "full stop"),
        (f"fix: {'x' * 68}", "73 characters"),
        ("fix: a thing\nmore of it", "second line"),
        ("# only a comment\n", "empty"),
    ],
)
def test_anything_else_is_refused_in_words(commit_message: ModuleType, message: str, complaint: str) -> None:
    assert complaint in " ".join(commit_message.complaints(message))


def test_text_below_the_scissors_of_git_is_not_read(commit_message: ModuleType) -> None:
    message = "fix: a thing\n# ------------------------ >8 ------------------------\ndiff --git a b\n"

    assert commit_message.complaints(message) == []


def test_the_hook_refuses_with_status_1_and_an_example(
    commit_message: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "MSG").write_text("Fixed it")

    assert commit_message.main(str(tmp_path / "MSG")) == 1
    assert "example: fix(node)" in capsys.readouterr().err
