"""The end of a test run: names, reasons, and one line that programs read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

REPORT = """<?xml version="1.0"?><testsuites><testsuite>
<testcase classname="tests.unit.test_a" file="tests/unit/test_a.py" name="test_good"/>
<testcase classname="tests.unit.test_a" file="tests/unit/test_a.py" name="test_known"><skipped type="pytest.xfail"
 message="known"/></testcase>
<testcase file="tests/integration/test_k.py" name="test_kubo"><skipped type="pytest.skip"
 message="kubo is not installed"/></testcase>
<testcase file="tests/unit/test_b.py" name="test_bad"><failure message="assert 1 == 2&#10;more"/></testcase>
<testcase file="tests/unit/test_b.py" name="test_broken"><error message="fixture failed"/></testcase>
</testsuite></testsuites>"""


@pytest.fixture(scope="module")
def summary(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("test_summary")


def test_stages_add_up_to_names_reasons_and_one_last_line(
    summary: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for stage in ("one.xml", "two.xml"):
        (tmp_path / stage).write_text(REPORT)

    status = summary.main([str(tmp_path / "one.xml"), str(tmp_path / "two.xml")])

    printed = capsys.readouterr().out
    assert status == 1
    assert printed.splitlines()[-1] == "4 passed, 4 failed, 2 skipped"
    assert "COULD NOT RUN HERE (2):\n  tests/integration/test_k.py::test_kubo: kubo is not installed" in printed
    assert "tests/unit/test_b.py::test_bad: assert 1 == 2\n" in printed


@pytest.mark.parametrize(
    ("report", "status"),
    [
        ('<testsuites><testsuite><testcase file="a" name="b"/></testsuite></testsuites>', 0),
        ("<testsuites/>", 5),
    ],
)
def test_success_needs_a_test_that_ran(summary: ModuleType, tmp_path: Path, report: str, status: int) -> None:
    (tmp_path / "r.xml").write_text(report)

    assert summary.main([str(tmp_path / "r.xml")]) == status


def test_a_stage_that_left_no_report_is_not_a_success(summary: ModuleType, tmp_path: Path) -> None:
    assert summary.main([str(tmp_path / "missing.xml")]) == 5
