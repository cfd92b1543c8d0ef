"""Ends a test run: what failed, what could not run and why, by name; then one plain line with the counts.

Usage: python test_summary.py REPORT.xml…   (JUnit XML as pytest writes it, one file per stage)
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree as ET

NO_TEST_RAN = 5


@dataclass
class Tally:
    """What the stages came to. Each list holds (test, reason)."""

    passed: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)


def tally(reports: list[Path]) -> Tally:
    """Add up the stages. An expected failure (xfail) counts as passed: it did what its test says."""
    total = Tally()
    for report in reports:
        for case in ET.parse(report).iter("testcase"):
            name = f"{case.get('file') or case.get('classname', '')}::{case.get('name')}"
            for kind in ("failure", "error", "skipped"):
                found = case.find(kind)
                if found is not None:
                    break
            if found is None or found.get("type") == "pytest.xfail":
                total.passed += 1
                continue
            reason = (found.get("message") or "").strip().splitlines()
            entry = (name, reason[0] if reason else kind)
            (total.skipped if kind == "skipped" else total.failed).append(entry)
    return total


def render(total: Tally) -> str:
    """Return the closing text; its last line is the one that programs read."""
    lines = [""]
    for title, entries in (("COULD NOT RUN HERE", total.skipped), ("FAILED", total.failed)):
        if entries:
            lines += [f"{title} ({len(entries)}):", *(f"  {name}: {reason}" for name, reason in sorted(entries)), ""]
    lines.append(f"{total.passed} passed, {len(total.failed)} failed, {len(total.skipped)} skipped")
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Print the summary; 0 if something ran and nothing failed."""
    total = tally([Path(argument) for argument in arguments if Path(argument).is_file()])
    print(render(total))
    if total.failed:
        return 1
    return 0 if total.passed or total.skipped else NO_TEST_RAN


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
