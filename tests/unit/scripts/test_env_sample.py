"""``.env.sample`` says what the settings models say."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


@pytest.fixture(scope="module")
def env_sample(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("env_sample")


class Sample(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="X_")

    wait: timedelta = Field(timedelta(minutes=90), description="How long.")
    flag: bool = Field(default=False, description="Whether.")
    secret: SecretStr = Field(SecretStr("hidden"), description="Never shown.")
    slots: int = Field(default_factory=lambda: 7, description="Each machine's own.")
    kinds: frozenset[str] = Field(frozenset({"b", "a"}), description="Some.")


def test_the_committed_file_is_what_the_models_say(env_sample: ModuleType, repo_root: Path) -> None:
    assert env_sample.main(["--check", str(repo_root / ".env.sample")]) == 0


def test_each_key_stands_with_its_meaning_and_default(env_sample: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(env_sample, "models", lambda: iter([("One", Sample), ("Two", Sample)]))

    text = env_sample.render()

    assert "# How long.\n#X_WAIT=1h30m\n" in text
    assert "#X_FLAG=false\n" in text
    assert "#X_SECRET=\n" in text
    assert "hidden" not in text
    assert "#X_SLOTS=\n" in text
    assert "#X_KINDS=a,b\n" in text
    assert text.count("X_WAIT") == 1


def test_a_difference_is_found_and_mended(
    env_sample: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / ".env.sample"
    path.write_text("OLD=1\n")

    assert env_sample.main(["--check", str(path)]) == 1
    assert "Run scripts/env-sample" in capsys.readouterr().err
    assert path.read_text() == "OLD=1\n"
    assert env_sample.main([str(path)]) == 0
    assert env_sample.main(["--check", str(path)]) == 0


def test_a_setting_without_a_description_is_refused(env_sample: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def undocumented() -> Any:
        class Bare(BaseSettings):
            thing: int = 1

        yield "One", Bare

    monkeypatch.setattr(env_sample, "models", undocumented)

    with pytest.raises(SystemExit, match="thing has no description"):
        env_sample.render()
