"""How every process of ours reads its settings: one file, the environment over it, every mistake named at once.

The file is ``--config-path``, else ``PARITY_CONFIG_PATH``, else ``./.env``; the real environment overrides it.
Durations, sizes and amounts are written as people write them (``15m``, ``2g``, ``0.25``).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, SecretStr, TypeAdapter, ValidationError
from pydantic_settings import BaseSettings

from parity_protocol.errors import ConfigInvalid, InvalidInput
from parity_protocol.quantities import parse_bytes, parse_duration, parse_tokens

__all__ = ["CommaList", "Seconds", "Size", "Tokens", "config_path", "load"]

S = TypeVar("S", bound=BaseSettings)

_MAX_SHOWN = 80  # characters of a wrong value in a message


def _reading(parse: Callable[[Any], Any]) -> BeforeValidator:
    """Turn a parser of ours into a validator: pydantic collects only ``ValueError``."""

    def read(value: Any) -> Any:
        try:
            return parse(value)
        except InvalidInput as exc:
            raise ValueError(exc.message) from exc

    return BeforeValidator(read)


def _comma_list(value: Any) -> Any:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _size(value: Any) -> int:
    return parse_bytes(int(value) if isinstance(value, str) and value.strip().isdigit() else value)


Seconds = Annotated[timedelta, _reading(parse_duration)]
Size = Annotated[int, _reading(_size)]
Tokens = Annotated[int, _reading(parse_tokens)]
CommaList = BeforeValidator(_comma_list)  # add to a field together with pydantic_settings.NoDecode


def config_path(given: Path | None = None) -> Path | None:
    """Return the configuration file to read, or None when there is none.

    Raises:
        ConfigInvalid: A file was named and is not there.
    """
    named = given or (Path(os.environ["PARITY_CONFIG_PATH"]) if os.environ.get("PARITY_CONFIG_PATH") else None)
    if named is None:
        return Path(".env") if Path(".env").is_file() else None
    if not named.expanduser().is_file():
        raise ConfigInvalid([f"the configuration file {named} does not exist or is not a file"])
    return named.expanduser()


def load(model: type[S], path: Path | None = None, **overrides: Any) -> S:
    """Read the settings of ``model``.

    Args:
        model: Its field names in upper case are the keys.
        path: ``--config-path``.
        overrides: Values by field name that win over file and environment.

    Raises:
        ConfigInvalid: Carries every problem at once: key, what came, what was expected.
    """
    file = config_path(path)
    try:
        return model(_env_file=file, **overrides)
    except ValidationError as exc:
        raise ConfigInvalid([_describe(model, problem) for problem in exc.errors(include_url=False)]) from exc


def _describe(model: type[BaseSettings], problem: Any) -> str:
    place = problem["loc"]
    message = str(problem["msg"]).removeprefix("Value error, ")
    if not place:
        return message
    field = model.model_fields.get(str(place[0]))
    key = str(place[0]).upper()
    if field is not None and field.annotation is SecretStr:
        return f"{key}: {message}"
    shown = TypeAdapter(object).dump_json(problem.get("input"), fallback=repr).decode()[:_MAX_SHOWN]
    return f"{key}={shown}: {message}"
