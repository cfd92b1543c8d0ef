"""JSON as it may come from a stranger: one reading only, bounded, and text that every other layer can store.

The standard parser takes what other parsers read differently or what later layers choke on: duplicate members (two
readers see two documents), NaN, lone surrogates (a 500 when the answer is encoded), NUL (text that databases refuse),
numbers of thousands of digits and nesting that exhausts the stack. All of them are refused here, before anything is
used. What is accepted follows RFC 8259 and I-JSON (RFC 7493 §2).

The C scanner does the work. Reasons are found by a second, slower reading that only a refused document pays for.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import TypeAlias

from parity_protocol.errors import BadDocument, TooLarge

__all__ = ["MAX_BYTES", "MAX_DEPTH", "MAX_DIGITS", "MAX_VALUES", "JsonValue", "check_depth", "dumps", "loads"]

MAX_BYTES = 262_144  # of one document
MAX_DEPTH = 32  # arrays and objects inside each other
MAX_VALUES = 100_000  # members and items together: a value costs far more memory and time than its two bytes
MAX_DIGITS = 40  # characters of one number without its sign: a 128-bit integer has 39, a double's shortest form 24

JsonValue: TypeAlias = "bool | int | float | str | list[JsonValue] | dict[str, JsonValue] | None"

_MAX_SHOWN = 200  # characters of a pointer in a message
_MAX_STEP = 64  # characters of one member name in a pointer

# The closing quote is optional so that an unterminated string is consumed once: with a mandatory one, every quote in
# it would start another search to the end.
_STRING_OR_MARK = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[\]{},]', re.DOTALL)
_SUSPECT_ESCAPE = re.compile(rb"\\u(?:[dD][89a-fA-F]|0000)")
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


class _Refused(Exception):
    """Something that the scanner's hooks refuse; says what, not where."""


class _Pairs(list[tuple[str, object]]):
    """An object with its duplicates, for finding where they are."""


class _Flaw(str):
    """A number or constant that is refused, kept in its place for finding where it is."""

    __slots__ = ()


def loads(
    data: bytes,
    *,
    max_bytes: int = MAX_BYTES,
    max_depth: int = MAX_DEPTH,
    max_digits: int = MAX_DIGITS,
    max_values: int = MAX_VALUES,
) -> JsonValue:
    """Read one JSON document.

    Args:
        data: UTF-8 text without a byte order mark.
        max_bytes: Longest ``data``.
        max_depth: Deepest nesting of arrays and objects; a scalar has depth 0.
        max_digits: Longest number, in characters without its sign.
        max_values: Most members and items in all.

    Returns:
        The value; an object has each member once, and no string holds NUL or a lone surrogate.

    Raises:
        TooLarge: ``data`` is longer than ``max_bytes``, or has more than ``max_values`` values.
        BadDocument: Anything else; ``field`` is the JSON pointer (RFC 6901) of the place where one can be named, cut
            to a bounded length and to ASCII.
    """
    if len(data) > max_bytes:
        raise TooLarge(f"the document has {len(data)} bytes, {max_bytes} are allowed")
    if data.startswith(b"\xef\xbb\xbf"):
        raise BadDocument("the document starts with a byte order mark, expected plain UTF-8")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as exc:
        field = _field_at(data, exc.start)
        raise BadDocument(f"the document is not UTF-8: bad byte at offset {exc.start}", field=field) from exc
    _check_shape(data, max_depth, max_values)
    try:
        value: JsonValue = _decoder(max_digits).decode(text)
    except json.JSONDecodeError as exc:
        field = _field_at(data, len(text[: exc.pos].encode()))
        reason = f"not JSON: {exc.msg.lower()} (line {exc.lineno}, column {exc.colno})"
        raise BadDocument(reason, field=field) from exc
    except _Refused as exc:
        raise _located(text, str(exc), max_digits) from exc
    # Bytes decoded as strict UTF-8 hold no surrogate and the scanner refuses a raw NUL, so only an escape can make one.
    if b"\\u" in data and _SUSPECT_ESCAPE.search(data):
        _check_strings(value)
    return value


def dumps(value: object) -> bytes:
    """Write ``value`` compactly, members sorted by code point, as UTF-8.

    Equal values give equal bytes as long as they hold no floats (1 and 1.0 differ).

    Raises:
        BadDocument: ``value`` has something that ``loads`` would refuse (NaN, a lone surrogate) or that JSON cannot
            express.
    """
    try:
        return _ENCODER.encode(value).encode("utf-8")
    except (ValueError, TypeError, RecursionError) as exc:
        raise BadDocument(f"the value cannot be written as JSON: {type(exc).__name__}") from exc


def check_depth(data: bytes, max_depth: int) -> None:
    """Refuse deep nesting in one pass, before a recursive parser sees it.

    Raises:
        BadDocument: Arrays and objects are nested deeper than ``max_depth``.
    """
    if data.count(b"[") + data.count(b"{") > max_depth:
        _check_shape(data, max_depth, len(data))


def _check_shape(data: bytes, max_depth: int, max_values: int) -> None:
    """Refuse deep nesting and a great many values before anything is built of them, in a time bounded by ``max_values``.

    Fifteen megabytes of ``[]`` are five million lists, and as many complaints of a model that expected something else:
    a minute and gigabytes for one request.
    """
    opened = data.count(b"[") + data.count(b"{")
    if opened <= max_depth and opened + data.count(b",") <= max_values:
        return
    depth = values = strings = 0
    for match in _STRING_OR_MARK.finditer(data):
        token = match[0]
        if token == b"," or token in (b"[", b"{"):
            values += 1
            if token != b",":
                depth += 1
                if depth > max_depth:
                    start = match.start()
                    reason = f"the document is nested deeper than {max_depth} at offset {start}"
                    raise BadDocument(reason, field=_field_at(data, start))
        elif token in (b"]", b"}"):
            depth -= 1
        else:
            strings += 1
        # Two strings to a value at most, so anything with more is no JSON, and need not be read to its end.
        if values > max_values or strings > 2 * max_values + 2:
            raise TooLarge(f"the document has more than the {max_values} values that are accepted here")


@lru_cache(maxsize=8)
def _decoder(max_digits: int) -> json.JSONDecoder:
    def integer(text: str) -> int:
        if len(text) > max_digits and len(text.lstrip("-")) > max_digits:
            raise _Refused("a number is too long")
        return int(text)

    def real(text: str) -> float:
        value = float(text)
        if len(text.lstrip("-")) > max_digits:
            raise _Refused("a number is too long")
        if math.isinf(value):
            raise _Refused("a number is too large")
        return value

    return json.JSONDecoder(
        object_pairs_hook=_unique, parse_int=integer, parse_float=real, parse_constant=_refuse_constant
    )


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _Refused("a member comes twice")
    return found


def _refuse_constant(name: str) -> object:
    raise _Refused(f"{name} is not JSON")


_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


# -- finding where ------------------------------------------------------------------------------------------------


def _located(text: str, reason: str, max_digits: int) -> BadDocument:
    """Read again, keeping what was refused in its place, and name the first such place."""

    def integer(digits: str) -> object:
        return _Flaw("a number is too long") if len(digits.lstrip("-")) > max_digits else 0

    def real(digits: str) -> object:
        if len(digits.lstrip("-")) > max_digits:
            return _Flaw("a number is too long")
        return _Flaw("a number is too large") if math.isinf(float(digits)) else 0.0

    decoder = json.JSONDecoder(
        object_pairs_hook=_Pairs,
        parse_int=integer,
        parse_float=real,
        parse_constant=lambda name: _Flaw(f"{name} is not JSON"),
    )
    try:
        tree = decoder.decode(text)
    except json.JSONDecodeError:  # malformed further on
        return BadDocument(reason)
    for pointer, value in _walk(tree):
        if isinstance(value, _Flaw):
            return _at(pointer, value)
        if isinstance(value, _Pairs):
            names: set[str] = set()
            for name, _ in value:
                if name in names:
                    return _at((pointer, name), "a member comes twice")
                names.add(name)
    return BadDocument(reason)


def _check_strings(value: object) -> None:
    for pointer, found in _walk(value):
        if isinstance(found, str) and _UNSTORABLE.search(found):
            raise _at(pointer, "a string holds NUL or half of a surrogate pair")
        if isinstance(found, dict):
            for name in found:
                if _UNSTORABLE.search(name):
                    raise _at((pointer, name), "a member name holds NUL or half of a surrogate pair")


_Pointer: TypeAlias = "tuple[_Pointer, str | int] | None"  # linked from the leaf up: a step costs nothing until shown


def _walk(root: object) -> Iterator[tuple[_Pointer, object]]:
    """Yield every value with its place, parents first, in document order, without recursion."""
    stack: list[tuple[_Pointer, object]] = [(None, root)]
    while stack:
        pointer, value = stack.pop()
        yield pointer, value
        if isinstance(value, _Pairs):
            stack.extend(((pointer, name), child) for name, child in reversed(value))
        elif isinstance(value, dict):
            stack.extend(((pointer, name), child) for name, child in reversed(value.items()))
        elif isinstance(value, list):
            stack.extend(((pointer, index), value[index]) for index in range(len(value) - 1, -1, -1))


def _field_at(data: bytes, offset: int) -> str:
    """Return the place of a byte in text that need not be JSON, as far as what comes before it tells.

    Where the text is nested deeper than ``MAX_DEPTH`` the place of the outermost of those is named. Nothing is named
    beyond ``MAX_BYTES``: a pass over so much more is not worth a better answer.
    """
    if offset > MAX_BYTES:
        return ""
    places: list[str | int] = []  # one step for each that is open: a member's name, or an item's number
    last = b""
    for match in _STRING_OR_MARK.finditer(data, 0, offset):
        token = match[0]
        if token in (b"{", b"["):
            places.append("" if token == b"{" else 0)
        elif token in (b"}", b"]"):
            del places[-1:]
        elif token == b",":
            if places:
                step = places[-1]
                places[-1] = step + 1 if isinstance(step, int) else ""
        elif places and isinstance(places[-1], str) and last in (b"{", b","):
            places[-1] = _name_of(token)
        last = token
    pointer: _Pointer = None
    for step in places[:MAX_DEPTH]:
        if step == "":
            break
        pointer = (pointer, step)
    return _shown(pointer)


def _name_of(token: bytes) -> str:
    try:
        name: str = json.loads(token.decode("utf-8", "replace"), strict=False)
    except ValueError:  # it has no end, or an escape that is none
        return ""
    return name


def _at(pointer: _Pointer, reason: str) -> BadDocument:
    place = _shown(pointer)
    return BadDocument(f"{reason}, at {place or 'the top'}", field=place)


def _shown(pointer: _Pointer) -> str:
    steps: list[str] = []
    while pointer is not None:
        pointer, step = pointer
        escaped = str(step)[:_MAX_STEP].replace("~", "~0").replace("/", "~1")
        steps.append(ascii(escaped)[1:-1])
    return "".join(f"/{step}" for step in reversed(steps))[:_MAX_SHOWN]
