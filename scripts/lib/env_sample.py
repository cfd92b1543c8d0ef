"""Renders ``.env.sample`` from the settings models, so that the sample cannot tell anything else than the programs do.

Usage: python env_sample.py [--check] FILE
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
import textwrap
from collections.abc import Collection, Iterator
from datetime import timedelta
from enum import Enum
from pathlib import Path
from typing import Any

from pydantic import SecretStr
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings

from parity_protocol.quantities import format_duration

MODULES = {"The node": "parity_node.settings", "The market": "parity_market.settings"}
WIDTH = 100

HEADER = """\
# Settings of the programs, each with its default. Copy this file to .env and uncomment what you change.
# A real environment variable wins over the file. Durations read like 90s, 15m or 1h30m; sizes like 512m or 2g.
# Rendered by scripts/env-sample from the settings models: change those, not this.
"""


def models() -> Iterator[tuple[str, type[BaseSettings]]]:
    """Yield each settings model with its title, in the order of the file."""
    for title, name in MODULES.items():
        if importlib.util.find_spec(name.partition(".")[0]) is None or importlib.util.find_spec(name) is None:
            continue
        module = importlib.import_module(name)
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, BaseSettings) and value.__module__ == name:
                yield title, value


def spelled(value: Any) -> str:
    """Return a default as the file spells it; empty for None, for a secret and for what each machine decides."""
    match value:
        case None | SecretStr():
            return ""
        case bool():
            return "true" if value else "false"
        case timedelta():
            return format_duration(value)
        case Enum():
            return str(value.value)
        case str():
            return value
        case dict():
            return json.dumps(value)
        case Collection():
            return ",".join(sorted(spelled(item) for item in value))
    return str(value)


def key_of(model: type[BaseSettings], name: str, field: FieldInfo) -> str:
    """Return the environment variable of a field."""
    alias = field.validation_alias if isinstance(field.validation_alias, str) else field.alias
    return (alias or f"{model.model_config.get('env_prefix', '')}{name}").upper()


def default_of(field: FieldInfo) -> Any:
    """Return a field's default; None if it must be given, or if each machine decides it (a factory)."""
    return None if field.is_required() or field.default_factory is not None else field.default


def render() -> str:
    """Return the whole file. A key that two programs share stands once, where it comes first."""
    lines = [HEADER]
    seen: set[str] = set()
    for title, model in models():
        lines += [f"# ---- {title} ----", ""]
        for name, field in model.model_fields.items():
            key = key_of(model, name, field)
            if key in seen:
                continue
            seen.add(key)
            if not field.description:
                raise SystemExit(f"{model.__module__}.{model.__qualname__}.{name} has no description")
            lines += textwrap.wrap(field.description, WIDTH, initial_indent="# ", subsequent_indent="# ")
            lines += [f"#{key}={spelled(default_of(field))}", ""]
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Write the file, or compare it under ``--check``; 1 if it differs."""
    check, path = arguments[0] == "--check", Path(arguments[-1])
    wanted = render()
    if path.is_file() and path.read_text(encoding="utf-8") == wanted:
        return 0
    if check:
        print(f"{path.name} is not what the settings models say. Run scripts/env-sample", file=sys.stderr)
        return 1
    path.write_text(wanted, encoding="utf-8")
    print(f"wrote {path.name}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
