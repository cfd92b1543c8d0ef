"""The market of this machine: its settings, as ``parity market`` reads them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parity_protocol.errors import BadField, ConfigInvalid

if TYPE_CHECKING:
    from parity_client import Home
    from parity_fl.settings import FlSettings
    from parity_market.settings import MarketSettings

__all__ = ["MARKET_FILE", "market_file", "market_settings", "serving_settings", "write_settings"]

MARKET_FILE = "market.env"  # written by `parity market init`


def market_file(home: Home | None = None) -> Path:
    """Return where ``parity market init`` writes the settings."""
    from parity_client import Home

    return (home or Home()).path / MARKET_FILE


def market_settings(path: Path | None = None, **overrides: Any) -> MarketSettings:
    """Read the market's settings: ``--config-path``, else ``PARITY_CONFIG_PATH``, else ``./.env``, else init's file.

    Raises:
        ConfigInvalid: Carries every problem at once.
    """
    from parity_client import Home
    from parity_market.settings import load_settings

    home, chosen = Home(), _chosen(path)
    settings = load_settings(chosen, **overrides)
    if "market_state_dir" not in settings.model_fields_set and os.environ.get("PARITY_HOME"):
        return load_settings(chosen, **{"market_state_dir": home.path / "market", **overrides})
    return settings


def serving_settings(path: Path | None = None) -> tuple[MarketSettings, FlSettings]:
    """Read the market's settings and what holds for training sessions that say nothing themselves, from the same file.

    Raises:
        ConfigInvalid: Carries every problem of both at once.
    """
    from parity_fl.settings import load_fl_settings

    problems: list[str] = []
    market: MarketSettings | None = None
    training: FlSettings | None = None
    try:
        market = market_settings(path)
    except ConfigInvalid as exc:
        problems += exc.problems
    try:
        training = load_fl_settings(_chosen(path))
    except ConfigInvalid as exc:
        problems += exc.problems
    if market is None or training is None:
        raise ConfigInvalid(list(dict.fromkeys(problems)))
    return market, training


def _chosen(path: Path | None) -> Path | None:
    from parity_protocol.settings import config_path

    chosen = config_path(path)
    return market_file() if chosen is None and market_file().is_file() else chosen


def write_settings(home: Home, file: Path, values: Mapping[str, str | None], *, title: str) -> None:
    """Set keys in a settings file of KEY=value lines, mode 0600; raises as ``Home.write``.

    Args:
        home: Owns the file.
        file: Made if it is not there; its other lines stay as somebody wrote them.
        values: By key; None takes the key away.
        title: First line, as a comment.
    """
    heading = f"# {title}"
    there = file.read_text().splitlines() if file.is_file() else []
    kept = [line for line in there if line != heading and _key_of(line) not in values]
    made = [f"{key}={_quoted(value)}" for key, value in values.items() if value is not None]
    home.write(file, ("\n".join([heading, *made, *kept]) + "\n").encode())


def _key_of(line: str) -> str:
    return line.partition("=")[0].strip().removeprefix("export ").strip()


def _quoted(value: str) -> str:
    if "${" in value or "\n" in value:
        raise BadField(f"a setting cannot hold '${{' or a line end: {value[:80]!r}", field="settings")
    plain = all(char.isalnum() or char in "-_./:,@%+=" for char in value)
    return value if plain else "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
