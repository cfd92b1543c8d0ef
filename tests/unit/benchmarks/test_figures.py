"""What the table of figures says of a number."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.figures import Aim, Figure, percentile


@pytest.mark.parametrize(
    ("share", "expected"), [(0.5, 50), (0.99, 99), (1.0, 100), (0.0, 1)], ids=["p50", "p99", "max", "min"]
)
def test_a_percentile_is_one_of_the_values(share: float, expected: float) -> None:
    assert percentile([float(value) for value in range(100, 0, -1)], share) == expected


def test_of_few_values_the_99th_percentile_is_the_largest() -> None:
    assert percentile([3.0, 1.0, 2.0], 0.99) == 3.0


def test_an_aim_counts_its_limit_as_met() -> None:
    assert Aim(15, "at most").is_met(15)
    assert not Aim(15, "at most").is_met(15.1)
    assert Aim(300, "at least").is_met(300)
    assert not Aim(300, "at least").is_met(299)


def test_a_figure_without_an_aim_or_a_value_is_neither_met_nor_missed() -> None:
    assert Figure("x", 1.0, "ms").is_met is None
    assert Figure("x", None, "ms", Aim(1, "at most")).is_met is None


def test_a_missing_value_is_said_loudly() -> None:
    assert Figure("x", None, "ms").shown() == "not available"


@pytest.mark.parametrize(
    ("value", "shown"), [(1_239_535, "1,239,535 gas"), (0.1834, "0.18 gas"), (24.61, "24.6 gas"), (0.0, "0 gas")]
)
def test_a_value_has_as_many_digits_as_it_needs(value: float, shown: str) -> None:
    assert Figure("x", value, "gas").shown() == shown


def test_the_document_for_programs_has_the_verdict() -> None:
    document = Figure("x", 12.0, "ms", Aim(15, "at most"), "how", load=1.5).document()

    told = {"name": "x", "value": 12.0, "unit": "ms", "aim": "≤ 15", "note": "how", "load": 1.5}
    assert document == {**told, "met": True}
