"""``.env.sample`` says what the settings models say."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import pytest
from pydantic import BeforeValidator, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from parity_protocol.quantities import parse_bytes, parse_duration, parse_tokens


@pytest.fixture(scope="module")
def env_sample(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("env_sample")


def comma_list(value: Any) -> Any:
    return value.split(",") if isinstance(value, str) else value


class Sample(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="X_")

    wait: Annotated[timedelta, BeforeValidator(parse_duration)] = Field(timedelta(minutes=90), description="How long.")
    flag: bool = Field(default=False, description="Whether.")
    secret: SecretStr = Field(SecretStr("hidden"), description="Never shown.")
    slots: int = Field(default_factory=lambda: 7, description="Each machine's own.")
    kinds: Annotated[frozenset[str], BeforeValidator(comma_list)] = Field(frozenset({"b", "a"}), description="Some.")
    bond: Annotated[int, BeforeValidator(parse_tokens)] = Field(10 * 10**18, description="Tokens.")
    room: Annotated[int, BeforeValidator(parse_bytes)] = Field(2 << 30, description="Bytes.")
    count: int = Field(2048, description="A plain number.")


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
    assert text.count("#X_WAIT=") == 1
    assert "# X_WAIT stands above. Here: How long. Default: 1h30m\n" in text


def test_a_value_reads_back_as_the_default_and_not_as_base_units(
    env_sample: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(env_sample, "models", lambda: iter([("One", Sample)]))

    text = env_sample.render()

    assert "#X_BOND=10\n" in text
    assert "#X_ROOM=2g\n" in text
    assert "#X_COUNT=2048\n" in text


def test_a_default_that_no_text_can_say_is_refused(env_sample: ModuleType) -> None:
    class Odd(BaseSettings):
        thing: int = Field(-5, ge=0, description="Out of its own range.")

    with pytest.raises(SystemExit, match="no spelling of THING's default -5"):
        env_sample.spelled("THING", Odd.model_fields["thing"])


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
