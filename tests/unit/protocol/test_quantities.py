"""Durations, sizes and amounts: what operators type, exactly, or a refusal in words."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parity_protocol.errors import BadField
from parity_protocol.quantities import (
    MAX_TOKEN_AMOUNT,
    format_bytes,
    format_duration,
    format_tokens,
    parse_bytes,
    parse_duration,
    parse_tokens,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("15m", 900), ("1h30m", 5400), ("250ms", 0.25), ("1.5s", 1.5), ("30", 30), (30, 30), ("0", 0), ("7d", 604_800)],
)
def test_a_duration_is_read_as_go_programs_write_it(text: object, seconds: float) -> None:
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "text", ["", "m", "15", "1h 30m", "-5s", "5x", "1h30", "nan", "1e9s", "9" * 70, None, True, [], -1]
)
def test_anything_else_is_no_duration(text: object) -> None:
    if text == "15":
        assert parse_duration(text) == timedelta(seconds=15)  # a bare number is seconds
        return
    with pytest.raises(BadField):
        parse_duration(text)


@given(st.timedeltas(min_value=timedelta(0), max_value=timedelta(days=3650)))
def test_a_duration_is_read_as_it_was_written(value: timedelta) -> None:
    assert abs(parse_duration(format_duration(value)) - value) < timedelta(microseconds=2)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("2g", 2 << 30),
        ("512m", 512 << 20),
        ("512MiB", 512 << 20),
        ("1048576", 1 << 20),
        (7, 7),
        ("1.5k", 1536),
        ("0", 0),
    ],
)
def test_a_size_is_in_powers_of_1024(text: object, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "g", "-1", "1e6", "2 x", "٣g", "9" * 40 + "t", None, True, 1.5, -1])
def test_anything_else_is_no_size(text: object) -> None:
    with pytest.raises(BadField):
        parse_bytes(text)


@given(st.integers(0, 1 << 50))
def test_a_size_is_shown_within_a_hundredth(size: int) -> None:
    shown = parse_bytes(format_bytes(size).replace(" ", ""))

    assert abs(shown - size) <= max(1, size // 20)


@given(st.integers(0, MAX_TOKEN_AMOUNT))
def test_an_amount_is_read_exactly_as_it_was_written(units: int) -> None:
    assert parse_tokens(format_tokens(units)) == units


@pytest.mark.parametrize(("text", "units"), [("0.1", 10**17), ("10", 10**19), ("0.000000000000000001", 1), ("0", 0)])
def test_an_amount_is_whole_tokens_in_decimal(text: str, units: int) -> None:
    assert parse_tokens(text) == units


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-1",
        "1e3",
        "0.0000000000000000001",
        "NaN",
        "Infinity",
        "1,5",
        "0x10",
        "79228162515",
        "9" * 100,
        "1_000",
        "١",
    ],
)
def test_an_amount_that_is_not_exact_or_too_large_is_refused(text: str) -> None:
    with pytest.raises(BadField):
        parse_tokens(text)


def test_no_float_ever_holds_money() -> None:
    with pytest.raises(BadField):
        parse_tokens(0.1)  # type: ignore[arg-type]

    assert parse_tokens(format_tokens(10**17 + 1)) == 10**17 + 1
    assert Decimal(format_tokens(1)) == Decimal("1E-18")
