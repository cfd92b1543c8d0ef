"""The training guide names every variable, rule and member that there is, with the defaults that they have."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from parity_fl.settings import FlSettings
from parity_fl.strategy import STRATEGIES, StrategyConfig


@pytest.fixture(scope="module")
def guide(repo_root: Path) -> str:
    return (repo_root / "docs/training-configuration.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", list(FlSettings.model_fields))
def test_each_variable_is_there_with_its_default(guide: str, name: str) -> None:
    (row,) = [line for line in guide.splitlines() if line.startswith(f"| `{name.upper()}` |")]

    default = FlSettings.model_fields[name].default
    if default is not None:
        shown = {True: "YES", False: "NO"}[default] if isinstance(default, bool) else str(default)
        assert row.split("|")[3].strip().strip("`") == shown


@pytest.mark.parametrize("strategy", STRATEGIES.values())
def test_each_rule_is_there(guide: str, strategy: str) -> None:
    assert any(line.startswith(f"| `{strategy}` |") for line in guide.splitlines())


@pytest.mark.parametrize("member", [field.name for field in fields(StrategyConfig)])
def test_each_member_is_there(guide: str, member: str) -> None:
    assert f"`{member}`" in guide or f"`FL_{member.upper()}`" in guide
