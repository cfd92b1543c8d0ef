"""The Solidity tests: units, fuzzing, the known thefts, and the promises after random actions. Needs Node and npm."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

Build = Callable[..., str]


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("selection", "at_least"),
    [
        pytest.param(("--no-match-contract", "Invariants"), 88, id="units_fuzzing_and_thefts"),
        pytest.param(("--match-contract", "Invariants"), 7, id="invariants"),
    ],
)
def test_solidity_tests_pass(build_contracts: Build, selection: tuple[str, str], at_least: int) -> None:
    report = build_contracts("--test", *selection)

    summary = re.search(r"(\d+) tests passed, (\d+) failed, (\d+) skipped", report)
    assert summary is not None, report
    passed, failed, skipped = map(int, summary.groups())
    assert (failed, skipped) == (0, 0), report
    assert passed >= at_least, "a suite of contracts/test was not found"
