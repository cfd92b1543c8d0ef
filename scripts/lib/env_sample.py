"""Renders ``.env.sample`` from the settings models, so that the sample cannot tell anything else than the programs do.

Usage: python env_sample.py [--check] FILE
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
import textwrap
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from datetime import timedelta
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

from pydantic import SecretStr, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings

from parity_protocol.quantities import TokenAmount, format_duration, format_tokens

MODULES = {
    "The node": "parity_node.settings",
    "The market": "parity_market.settings",
    "Federated learning": "parity_fl.settings",
}
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


def spellings(value: Any) -> Iterator[str]:
    """Yield how a default may be spelled, most readable first; the field's own parser decides which is right."""
    match value:
        case bool():
            yield "true" if value else "false"
        case int():
            # Amounts are held in base units and written in whole tokens; sizes are held in bytes.
            yield format_tokens(TokenAmount(value))
            for unit, size in (("g", 1 << 30), ("m", 1 << 20), ("k", 1 << 10)):
                if value % size == 0:
                    yield f"{value // size}{unit}"
            yield str(value)
        case timedelta():
            yield format_duration(value)
            yield str(value.total_seconds())
        case Enum():
            yield str(value.value)
        case str() | Path() | float():
            yield str(value)
        case dict():
            yield json.dumps(value)
        case AbstractSet():
            yield ",".join(sorted(next(spellings(item)) for item in value))
        case Sequence():
            yield ",".join(next(spellings(item)) for item in value)


def spelled(key: str, field: FieldInfo) -> str:
    """Return a field's default as the file spells it.

    Empty where there is none to show: it must be given, it is None or a secret, or each machine decides it (a factory).

    Raises:
        SystemExit: No spelling of it reads back as the default.
    """
    default = field.default
    if field.is_required() or field.default_factory is not None or default is None or isinstance(default, SecretStr):
        return ""
    # The key is there because Annotated wants something beside the type; pydantic passes over what it does not know.
    wanted: Any = Annotated[field.annotation, *field.metadata, key]
    adapter: TypeAdapter[Any] = TypeAdapter(wanted)
    for text in spellings(default):
        if text == "" and not default:
            return ""
        try:
            if adapter.validate_python(text) == default:
                return text
        except ValidationError:
            continue
    raise SystemExit(f"no spelling of {key}'s default {default!r} reads back as it")


def key_of(model: type[BaseSettings], name: str, field: FieldInfo) -> str:
    """Return the environment variable of a field."""
    alias = field.validation_alias if isinstance(field.validation_alias, str) else field.alias
    return (alias or f"{model.model_config.get('env_prefix', '')}{name}").upper()


def render() -> str:
    """Return the whole file. A key that two programs share stands once, where it comes first; the second only explains."""
    lines = [HEADER]
    seen: set[str] = set()
    for title, model in models():
        lines += [f"# ---- {title} ----", ""]
        for name, field in model.model_fields.items():
            key = key_of(model, name, field)
            if not field.description:
                raise SystemExit(f"{model.__module__}.{model.__qualname__}.{name} has no description")
            text, value = field.description, spelled(key, field)
            if key in seen:
                text = f"{key} stands above. Here: {text}{f' Default: {value}' if value else ''}"
            lines += textwrap.wrap(text, WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)
            lines += [""] if key in seen else [f"#{key}={value}", ""]
            seen.add(key)
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
