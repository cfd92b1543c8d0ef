"""What a contract's revert data says, in words. Pure; knows the ABI of errors only as far as our contracts use it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from eth_utils.crypto import keccak

__all__ = ["ErrorAbi", "Revert", "decode_revert", "error_string", "in_words"]

_ERROR = bytes.fromhex("08c379a0")  # Error(string)
_PANIC = bytes.fromhex("4e487b71")  # Panic(uint256)
_MAX_REASON = 500  # characters of a reason that is passed on
_PANICS = {
    0x01: "an assertion failed",
    0x11: "arithmetic overflow or underflow",
    0x12: "division by zero",
    0x21: "a value is not of its enum",
    0x32: "an index is out of bounds",
    0x41: "out of memory",
}


@dataclass(frozen=True, slots=True)
class ErrorAbi:
    """A custom error: its name, and its parameters as (name, type)."""

    name: str
    parameters: tuple[tuple[str, str], ...]

    @property
    def selector(self) -> bytes:
        """The first four bytes of revert data that carries it."""
        signature = f"{self.name}({','.join(kind for _, kind in self.parameters)})"
        return keccak(signature.encode())[:4]


@dataclass(frozen=True, slots=True)
class Revert:
    """Why a contract refused. ``arguments`` holds integers, addresses as lower-case text, and the rest as hex."""

    name: str
    arguments: Mapping[str, int | str | bool]
    message: str


def error_string(data: bytes) -> str | None:
    """Return the reason of ``Error(string)``, cut to a bounded length; None if it is something else."""
    if data[:4] != _ERROR or len(data) < 68:
        return None
    length = int.from_bytes(data[36:68], "big")
    if length > len(data) - 68:
        return None
    return data[68 : 68 + length].decode("utf-8", "replace")[:_MAX_REASON]


def decode_revert(data: bytes, errors: Mapping[bytes, ErrorAbi]) -> Revert:
    """Read revert data.

    Args:
        data: What the contract returned; may be anything.
        errors: The custom errors that are known, by selector.
    """
    reason = error_string(data)
    if reason is not None:
        return Revert("Error", {}, reason)
    if data[:4] == _PANIC and len(data) >= 36:
        code = int.from_bytes(data[4:36], "big")
        return Revert("Panic", {"code": code}, _PANICS.get(code, f"panic 0x{code:x}"))
    abi = errors.get(data[:4]) if len(data) >= 4 else None
    if abi is None:
        shown = f"unknown error 0x{data[:4].hex()}" if len(data) >= 4 else "no reason was given"
        return Revert("", {}, shown)
    arguments: dict[str, int | str | bool] = {}
    for index, (name, kind) in enumerate(abi.parameters):
        word = data[4 + 32 * index : 36 + 32 * index]
        if len(word) == 32:
            arguments[name or f"arg{index}"] = _value(word, kind)
    return Revert(abi.name, arguments, in_words(abi.name, arguments))


def _value(word: bytes, kind: str) -> int | str | bool:
    if kind == "address":
        return "0x" + word[12:].hex()
    if kind == "bool":
        return word[-1] == 1
    if kind.startswith("uint"):
        return int.from_bytes(word, "big")
    if kind.startswith("int"):
        return int.from_bytes(word, "big", signed=True)
    return "0x" + word.hex()


def in_words(name: str, arguments: Mapping[str, int | str | bool]) -> str:
    """Write a custom error for people: ``not owner (owner 0x…)``."""
    spaced = "".join(
        f" {letter.lower()}" if letter.isupper() and at else letter.lower() for at, letter in enumerate(name)
    )
    listed = ", ".join(f"{key} {value}" for key, value in arguments.items())
    return f"{spaced} ({listed})" if listed else spaced
