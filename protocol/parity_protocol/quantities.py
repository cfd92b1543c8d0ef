"""Durations, byte sizes and token amounts, with the text forms that operators type.

Durations and sizes parse as Go programs write them (``15m``, ``1h30m``, ``2g``), since operators bring their
``.env`` from there. Token amounts are integers of base units; a float never holds money.
"""

from __future__ import annotations

import re
from datetime import timedelta
from decimal import Decimal
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PlainSerializer, ValidationInfo, WithJsonSchema

from parity_protocol.errors import BadField

__all__ = [
    "MAX_TOKEN_AMOUNT",
    "TOKEN_DECIMALS",
    "ByteSize",
    "Duration",
    "TokenAmount",
    "WireByteSize",
    "WireDuration",
    "WireTokenAmount",
    "format_bytes",
    "format_duration",
    "format_tokens",
    "parse_bytes",
    "parse_duration",
    "parse_tokens",
]

TOKEN_DECIMALS = 18  # digits after the point of one token, as ERC-20 tokens commonly have
MAX_TOKEN_AMOUNT = 2**96 - 1  # base units; what a slot of the vault holds

TokenAmount = int  # base units; 10**18 of them are one token
Duration = timedelta
ByteSize = int  # bytes

_UNIT_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ns|us|µs|ms|s|m|h|d)")
_MAX_DURATION = timedelta(days=3650)

_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?)(i?b?)", re.IGNORECASE | re.ASCII)
_SIZE_UNIT = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_MAX_SIZE = 1 << 60  # bytes


def parse_duration(text: object) -> timedelta:
    """Read a duration such as ``15m``, ``1h30m`` or ``250ms``; a bare number is seconds.

    Raises:
        BadField: The text is not a duration, is negative, or is longer than ten years.
    """
    if isinstance(text, timedelta):
        found = text
    elif isinstance(text, int | float) and not isinstance(text, bool):
        if not 0 <= text <= _MAX_DURATION.total_seconds():
            raise BadField(f"a duration must be between 0 and 10 years, got {text!r} seconds")
        found = timedelta(seconds=text)
    elif isinstance(text, str):
        found = _parse_duration_text(text.strip())
    else:
        raise BadField(f"expected a duration such as '15m' or '30s', got {type(text).__name__}")
    if not timedelta(0) <= found <= _MAX_DURATION:
        raise BadField(f"a duration must be between 0 and 10 years, got {text!r}")
    return found


def _parse_duration_text(text: str) -> timedelta:
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text):
        return timedelta(seconds=float(text))
    seconds, at = 0.0, 0
    if len(text) <= 64:
        for part in _DURATION_PART.finditer(text):
            if part.start() != at:
                break
            seconds += float(part[1]) * _UNIT_S[part[2]]
            at = part.end()
    if not text or at != len(text) or seconds > _MAX_DURATION.total_seconds():
        raise BadField(f"expected a duration such as '15m', '1h30m' or '30s', got {text[:64]!r}")
    return timedelta(seconds=seconds)


def format_duration(value: timedelta) -> str:
    """Write a duration as its shortest Go-style text: ``1h30m``, ``250ms``."""
    micros = round(value / timedelta(microseconds=1))
    if micros == 0:
        return "0s"
    out = []
    for unit, size in (("h", 3_600_000_000), ("m", 60_000_000), ("s", 1_000_000), ("ms", 1_000), ("us", 1)):
        count, micros = divmod(micros, size)
        if count:
            out.append(f"{count}{unit}")
    return "".join(out)


def parse_bytes(text: object) -> int:
    """Read a size such as ``2g``, ``512MiB`` or ``1048576``; units are powers of 1024, as Docker reads them.

    Raises:
        BadField: The text is not a size, or is over 1 EiB.
    """
    if isinstance(text, bool) or not isinstance(text, str | int):
        raise BadField(f"expected a size such as '512m' or '2g', got {text!r}")
    if isinstance(text, int):
        size = text
    else:
        match = _SIZE.fullmatch(text.strip()) if len(text) <= 64 else None
        if match is None:
            raise BadField(f"expected a size such as '512m' or '2g', got {text[:64]!r}")
        size = int(Decimal(match[1]) * _SIZE_UNIT[match[2].lower()])
    if not 0 <= size <= _MAX_SIZE:
        raise BadField(f"a size must be between 0 and 1 EiB, got {text!r}")
    return size


def format_bytes(size: int) -> str:
    """Write a size for people: ``1.5 GiB``."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            return f"{size} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError(size)


def parse_tokens(text: object, *, decimals: int = TOKEN_DECIMALS) -> TokenAmount:
    """Read an amount in whole tokens (``10``, ``0.25``) as base units, exactly.

    Raises:
        BadField: Not a plain decimal number, negative, finer than a base unit, or over 2**96 - 1.
    """
    if isinstance(text, bool) or not isinstance(text, str | int):
        raise BadField(f"expected an amount of tokens such as '10' or '0.25', got {text!r}")
    shown = str(text).strip()[:80]
    if not re.fullmatch(r"[0-9]{1,40}(\.[0-9]{1,40})?", shown):
        raise BadField(f"expected an amount of tokens such as '10' or '0.25', got {shown!r}")
    whole, _, fraction = shown.partition(".")
    if len(fraction.rstrip("0")) > decimals:
        raise BadField(f"a token has {decimals} decimals, {shown!r} is finer than that")
    amount = int(whole) * 10**decimals + int(fraction.rstrip("0").ljust(decimals, "0") or "0")
    if amount > MAX_TOKEN_AMOUNT:
        raise BadField(f"an amount is at most {MAX_TOKEN_AMOUNT} base units, got {shown!r} tokens")
    return int(amount)


def format_tokens(amount: TokenAmount, *, decimals: int = TOKEN_DECIMALS) -> str:
    """Write base units as whole tokens, exactly and without trailing zeros: ``1.5``."""
    sign = "-" if amount < 0 else ""
    whole, fraction = divmod(abs(amount), 10**decimals)
    digits = str(fraction).rjust(decimals, "0").rstrip("0")
    return f"{sign}{whole}.{digits}" if digits else f"{sign}{whole}"


def _wire_amount(value: Any, info: ValidationInfo) -> int:
    """Amounts travel as decimal strings of base units: JSON numbers lose precision above 2**53."""
    if isinstance(value, int) and not isinstance(value, bool) and info.mode == "python":
        amount = value  # already inside the process
    elif isinstance(value, str) and re.fullmatch(r"0|[1-9][0-9]{0,28}", value):
        amount = int(value)
    else:
        raise ValueError("expected base units as a decimal string such as '1000000000000000000'")
    if not 0 <= amount <= MAX_TOKEN_AMOUNT:
        raise ValueError(f"expected 0 to {MAX_TOKEN_AMOUNT} base units")
    return amount


WireTokenAmount = Annotated[
    int,
    BeforeValidator(_wire_amount),
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"type": "string", "pattern": r"^(0|[1-9][0-9]{0,28})$", "description": "base units"}),
]
WireDuration = Annotated[float, Field(ge=0, le=315_360_000, description="seconds")]
WireByteSize = Annotated[int, Field(ge=0, le=_MAX_SIZE, description="bytes")]
