"""Where the contracts are: what a market publishes and everybody pins."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from parity_contracts.files import write_file
from parity_protocol import strict_json
from parity_protocol.errors import ConfigInvalid, ParityError
from parity_protocol.ids import Address

__all__ = ["Deployment"]

_MAX_FILE_BYTES = 16 * 1024


@dataclass(frozen=True, slots=True)
class Deployment:
    """One vault on one chain. Everything off chain is keyed by (``chain_id``, ``genesis_hash``, ``vault``).

    Attributes:
        genesis_hash: Hash of block 0, ``0x`` and 64 hex digits: two dev chains share their id, never this.
        unbonding_s: Seconds between asking for bond or escrow back and having it.
        symbol: The token's, for people.
        decimals: The token's, for people; amounts are base units everywhere.

    Raises:
        ConfigInvalid: With every value that is not of its form.
    """

    chain_id: int
    genesis_hash: str
    token: Address
    vault: Address
    unbonding_s: int
    symbol: str
    decimals: int

    def __post_init__(self) -> None:
        given: dict[str, object] = asdict(self)  # whatever a file held, not what the annotations say
        problems = [problem for name, value in given.items() if (problem := _PROBLEM[name](value))]
        if problems:
            raise ConfigInvalid(problems)

    def to_json(self) -> dict[str, Any]:
        """Return the members as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: object) -> Deployment:
        """Read what ``to_json`` wrote; members that are not known are ignored.

        Raises:
            ConfigInvalid: A member is missing or not of its form.
        """
        if not isinstance(document, dict):
            raise ConfigInvalid(["deployment: expected a JSON object"])
        missing = [item.name for item in fields(cls) if item.name not in document]
        if missing:
            raise ConfigInvalid([f"deployment: {name} is missing" for name in missing])
        return cls(**{item.name: document[item.name] for item in fields(cls)})

    def save(self, path: Path) -> None:
        """Write the file in one step; readable by everybody, since nothing in it is secret."""
        write_file(path, json.dumps(self.to_json(), indent=2).encode() + b"\n", mode=0o644)

    @classmethod
    def load(cls, path: Path) -> Deployment:
        """Read a file that ``save`` wrote.

        Raises:
            ConfigInvalid: It cannot be read, or is not a deployment.
        """
        try:
            return cls.from_json(strict_json.loads(path.read_bytes(), max_bytes=_MAX_FILE_BYTES))
        except OSError as exc:
            raise ConfigInvalid([f"{path}: {exc.strerror}"]) from exc
        except ConfigInvalid as exc:
            raise ConfigInvalid([f"{path}: {problem}" for problem in exc.problems]) from exc
        except ParityError as exc:
            raise ConfigInvalid([f"{path}: {exc.message}"]) from exc


def _whole(name: str, low: int, high: int) -> Callable[[object], str]:
    def check(value: object) -> str:
        if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high:
            return ""
        return f"{name}: expected a whole number from {low} to {high}, got {value!r:.60}"

    return check


def _text(name: str, pattern: str, form: str) -> Callable[[object], str]:
    compiled = re.compile(pattern)

    def check(value: object) -> str:
        if isinstance(value, str) and compiled.fullmatch(value):
            return ""
        return f"{name}: expected {form}, got {value!r:.90}"

    return check


_PROBLEM: dict[str, Callable[[object], str]] = {
    "chain_id": _whole("chain_id", 1, 2**53 - 1),
    "genesis_hash": _text("genesis_hash", r"0x[0-9a-f]{64}", "0x and 64 lower-case hex digits"),
    "token": _text("token", r"0x[0-9a-f]{40}", "a lower-case 0x address"),
    "vault": _text("vault", r"0x[0-9a-f]{40}", "a lower-case 0x address"),
    "unbonding_s": _whole("unbonding_s", 1, 365 * 86_400),
    "symbol": _text("symbol", r"[!-~]{1,32}", "1 to 32 printable ASCII characters"),
    "decimals": _whole("decimals", 0, 36),
}
