"""What this machine's user has set up: the markets that were joined, which one is used, and where the wallets lie.

Everything is in one folder, ``PARITY_HOME`` (default ``~/.parity``)::

    config.json        joined markets, the one in use, the wallet in use, the node's owner and payout
    wallets/NAME.json  encrypted v3 keystores
    sessions/…         sign-ins that are still good, mode 0600
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, field_validator

from parity_contracts.files import write_file
from parity_protocol import strict_json
from parity_protocol.errors import BadField, ConfigInvalid, InvalidInput, NotFound
from parity_protocol.join import JoinString, parse_join
from parity_protocol.wire import Request, parse_as

__all__ = ["Config", "Home", "MarketEntry", "NodeEntry", "checked_name"]

MAX_CONFIG_BYTES = 256 * 1024
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


class MarketEntry(Request):
    """One joined market: its join string, and the chain's RPC address when it is not the one the market names."""

    join: Annotated[str, StringConstraints(max_length=1024)]
    rpc: Annotated[str, StringConstraints(max_length=2048)] = ""

    @field_validator("join")
    @classmethod
    def _is_join_string(cls, value: str) -> str:
        try:
            parse_join(value)
        except InvalidInput as exc:
            raise ValueError(exc.message) from exc
        return value

    def parsed(self) -> JoinString:
        """Return the join string's parts."""
        return parse_join(self.join)


class NodeEntry(Request):
    """Whose bond the node on this machine has, and where its earnings go."""

    wallet: Annotated[str, StringConstraints(max_length=64)] = "node-owner"
    payout: Annotated[str, StringConstraints(pattern=r"^(0x[0-9a-f]{40})?$")] = ""  # empty: the owner itself


class Config(Request):
    """The content of ``config.json``."""

    version: Literal[1] = 1
    current: str | None = None  # name of the market in use
    wallet: Annotated[str, StringConstraints(max_length=64)] = "default"
    markets: Annotated[dict[str, MarketEntry], Field(max_length=256)] = {}
    node: NodeEntry = NodeEntry()

    def market(self, name: str | None = None) -> tuple[str, MarketEntry]:
        """Return a joined market by name, or the one in use.

        Raises:
            ConfigInvalid: None was joined, or none has this name.
        """
        wanted = name or self.current
        if wanted is None:
            raise ConfigInvalid(["no market was joined yet: run `parity config use JOIN` with its join string"])
        if wanted not in self.markets:
            known = ", ".join(sorted(self.markets)) or "none"
            raise ConfigInvalid([f"market={wanted}: no market was joined by this name (joined: {known})"])
        return wanted, self.markets[wanted]


class Home:
    """The folder of a user's settings and keys.

    Args:
        path: None takes ``PARITY_HOME``, else ``~/.parity``.
    """

    def __init__(self, path: Path | None = None) -> None:
        chosen = path or Path(os.environ.get("PARITY_HOME") or "~/.parity")
        self.path = chosen.expanduser().absolute()

    @property
    def config_file(self) -> Path:
        """Where the settings are."""
        return self.path / "config.json"

    def wallet_file(self, name: str) -> Path:
        """Return where the keystore called ``name`` is or would be."""
        return self.path / "wallets" / f"{checked_name(name)}.json"

    def load(self) -> Config:
        """Read the settings; without a file they are the defaults.

        Raises:
            ConfigInvalid: The file cannot be read or holds something else.
        """
        try:
            data = self.config_file.read_bytes()
        except FileNotFoundError:
            return Config()
        except OSError as exc:
            raise ConfigInvalid([f"{self.config_file}: {exc.strerror}"]) from exc
        try:
            strict_json.loads(data, max_bytes=MAX_CONFIG_BYTES)
            return parse_as(Config, data)
        except InvalidInput as exc:
            raise ConfigInvalid([f"{self.config_file}: {exc.message}"]) from exc

    def save(self, config: Config) -> None:
        """Replace the settings in one step.

        Raises:
            ConfigInvalid: The folder cannot be used.
            StorageFull: No room.
        """
        self.write(self.config_file, config.model_dump_json(indent=2).encode() + b"\n")

    def write(self, path: Path, data: bytes) -> None:
        """Replace a file below the folder in one step, mode 0600; folders that this makes are 0700.

        Raises:
            ConfigInvalid: The folder cannot be used.
            StorageFull: No room.
        """
        try:
            for folder in (self.path, path.parent):
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_file(path, data)
        except OSError as exc:
            raise ConfigInvalid([f"{path}: {exc.strerror}"]) from exc

    def wallets(self) -> list[str]:
        """Return the names of the wallets."""
        folder = self.path / "wallets"
        return sorted(path.stem for path in folder.glob("*.json")) if folder.is_dir() else []

    def existing_wallet(self, name: str) -> Path:
        """Return the keystore called ``name``.

        Raises:
            NotFound: There is none.
        """
        path = self.wallet_file(name)
        if not path.is_file():
            raise NotFound(
                f"there is no wallet {name!r} in {path.parent}",
                hint=f"Make one with `parity wallet create --name {name}`.",
            )
        return path


def checked_name(name: str) -> str:
    """Return a market's or wallet's name.

    Raises:
        BadField: Not 1 to 64 of a–z, 0–9, dot, dash and underscore.
    """
    if not _NAME.fullmatch(name):
        raise BadField(f"a name is 1 to 64 of a-z, 0-9, '.', '-' and '_', got {name[:80]!r}", field="name")
    return name
