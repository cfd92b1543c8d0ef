"""Reading one JSON object field by field, with errors that name the field."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NoReturn

from parity_protocol.errors import BadField

__all__ = ["Section", "fail"]


def fail(field: str, message: str, *, hint: str = "") -> NoReturn:
    """Raise ``BadField`` for ``field``; ``hint`` says what to do instead."""
    raise BadField(message, field=field, hint=hint)


@dataclass(frozen=True, slots=True)
class Section:
    """One object of a configuration; ``name`` is its dotted place, empty for the outermost."""

    members: Mapping[str, object]
    name: str

    @classmethod
    def open(cls, raw: object, name: str, known: Iterable[str]) -> Section:
        """Accept an object with only known members; ``None`` reads as an empty one.

        Raises:
            BadField: ``raw`` is no object, or has a member that is not ``known``.
        """
        if raw is None:
            raw = {}
        if not isinstance(raw, dict):
            fail(name or "config", f"{name or 'configuration'} must be an object")
        section = cls(raw, name)
        allowed = set(known)
        for member in raw:
            if member not in allowed:
                shown = str(member)[:64]
                fail(section.place(shown), f"unknown field {section.place(shown)!a}")
        return section

    def place(self, member: str) -> str:
        """Return the dotted name of a member."""
        return f"{self.name}.{member}" if self.name else member

    def get(self, member: str, default: object = None) -> object:
        """Return the raw value, or ``default`` when the member is absent or null."""
        value = self.members.get(member)
        return default if value is None else value

    def refuse(self, member: str, message: str) -> NoReturn:
        """Raise ``BadField`` about a member: its name, then ``message``."""
        fail(self.place(member), f"{member} {message}")

    def text(self, member: str, max_chars: int) -> str:
        """Return a required string of printable characters."""
        value = self.get(member)
        if value is None or value == "":
            self.refuse(member, "is required")
        if not isinstance(value, str) or len(value) > max_chars or not value.isprintable():
            self.refuse(member, f"must be a string of at most {max_chars} printable characters")
        return value

    def whole(self, member: str, low: int, high: int, default: int) -> int:
        """Return a whole number in ``low … high``; a boolean is none."""
        value = self.get(member, default)
        if type(value) is not int:
            self.refuse(member, f"must be a whole number, got {_shown(value)}")
        if not low <= value <= high:
            self.refuse(member, f"must be from {low} to {high}, got {_shown(value)}")
        return value

    def number(self, member: str, default: float) -> float:
        """Return a finite number; a boolean is none."""
        value = self.get(member, default)
        if type(value) is int and abs(value) < 1 << 53:
            return float(value)
        if type(value) is not float or not math.isfinite(value):
            self.refuse(member, f"must be a finite number, got {_shown(value)}")
        return value

    def flag(self, member: str, default: bool) -> bool:  # noqa: FBT001 - the value of a default, not a switch
        """Return true or false."""
        value = self.get(member, default)
        if not isinstance(value, bool):
            self.refuse(member, f"must be true or false, got {_shown(value)}")
        return value

    def choice(self, member: str, allowed: tuple[str, ...], default: str) -> str:
        """Return one of the allowed words."""
        value = self.get(member, default)
        if not isinstance(value, str) or value not in allowed:
            self.refuse(member, f"must be one of {', '.join(allowed)}, got {_shown(value)}")
        return value


def _shown(value: object) -> str:
    """Show a value of the caller's without letting it grow the message; a huge int is not even rendered."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 64:
        return "a number of more than 64 bits"
    if isinstance(value, (str, int, float)):
        return ascii(value)[:64]
    return type(value).__name__
