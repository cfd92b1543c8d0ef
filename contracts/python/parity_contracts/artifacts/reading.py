"""Reads the compiled contracts that lie beside this module."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from types import MappingProxyType
from typing import Any

from eth_utils.crypto import keccak

from parity_contracts.reverts import ErrorAbi
from parity_protocol.errors import Internal

__all__ = ["Artifact", "EventAbi", "FunctionAbi", "load"]


@dataclass(frozen=True, slots=True)
class FunctionAbi:
    """One function: its 4-byte selector and the ABI types of what goes in and comes out."""

    name: str
    selector: bytes
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class EventAbi:
    """One event. ``indexed`` and ``plain`` are (name, type): the first are topics, the second are data."""

    name: str
    topic: bytes
    indexed: tuple[tuple[str, str], ...]
    plain: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Artifact:
    """A compiled contract. ``bytecode`` deploys it; ``deployed`` is what then lies at its address, immutables as 0."""

    name: str
    compiler: str
    abi: tuple[dict[str, Any], ...]
    bytecode: bytes
    deployed: bytes
    constructor: tuple[str, ...]
    functions: Mapping[str, FunctionAbi]
    events: Mapping[bytes, EventAbi]  # by topic
    errors: Mapping[bytes, ErrorAbi]  # by selector


@lru_cache(maxsize=8)
def load(name: str) -> Artifact:
    """Read a committed artifact.

    Args:
        name: The contract's name, ``StakeVault`` or ``DevToken``.

    Raises:
        Internal: The installation has no such artifact, or it is not one.
    """
    try:
        document = json.loads((files("parity_contracts.artifacts") / f"{name}.json").read_bytes())
        abi: tuple[dict[str, Any], ...] = tuple(document["abi"])
        functions = [_function(entry) for entry in abi if entry["type"] == "function"]
        if len({function.name for function in functions}) != len(functions):
            raise Internal(f"the contract {name} overloads a function; calls here go by name")
        events = [_event(entry) for entry in abi if entry["type"] == "event"]
        errors = [_error(entry) for entry in abi if entry["type"] == "error"]
        made_with = [entry["inputs"] for entry in abi if entry["type"] == "constructor"]
        return Artifact(
            name=str(document["contractName"]),
            compiler=str(document["compiler"]),
            abi=abi,
            bytecode=bytes.fromhex(document["bytecode"].removeprefix("0x")),
            deployed=bytes.fromhex(document["deployedBytecode"].removeprefix("0x")),
            constructor=tuple(_kind(item) for item in (made_with[0] if made_with else ())),
            functions=MappingProxyType({function.name: function for function in functions}),
            events=MappingProxyType({event.topic: event for event in events}),
            errors=MappingProxyType({error.selector: error for error in errors}),
        )
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise Internal(f"the contract artifact {name!r} cannot be read: {exc}") from exc


def _kind(item: dict[str, Any]) -> str:
    """Return the canonical type, with tuples written out."""
    kind = str(item["type"])
    if not kind.startswith("tuple"):
        return kind
    return f"({','.join(_kind(part) for part in item['components'])}){kind.removeprefix('tuple')}"


def _function(entry: dict[str, Any]) -> FunctionAbi:
    inputs = tuple(_kind(item) for item in entry["inputs"])
    selector = keccak(f"{entry['name']}({','.join(inputs)})".encode())[:4]
    return FunctionAbi(str(entry["name"]), selector, inputs, tuple(_kind(item) for item in entry["outputs"]))


def _event(entry: dict[str, Any]) -> EventAbi:
    items = [(str(item["name"]), _kind(item), bool(item["indexed"])) for item in entry["inputs"]]
    return EventAbi(
        str(entry["name"]),
        keccak(f"{entry['name']}({','.join(kind for _, kind, _ in items)})".encode()),
        tuple((name, kind) for name, kind, indexed in items if indexed),
        tuple((name, kind) for name, kind, indexed in items if not indexed),
    )


def _error(entry: dict[str, Any]) -> ErrorAbi:
    return ErrorAbi(str(entry["name"]), tuple((str(item["name"]), _kind(item)) for item in entry["inputs"]))
