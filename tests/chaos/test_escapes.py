"""The campaign A8 of ``scripts/chaos``: its figures are met here, and one that escaped is a miss."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from campaigns import probes
from parity_node.executors.sandbox.probes import Probe, ProbeReport, ProbeResult
from parity_protocol.isolation import IsolationTier


@pytest.mark.root
@pytest.mark.serial
@pytest.mark.service("bubblewrap", "docker")
@pytest.mark.timeout(120)
async def test_every_attempt_is_denied_in_every_sandbox() -> None:
    figures = await probes.run(quick=True)

    assert [f"{each.name}: {each.shown()} ({each.note})" for each in figures if not each.is_met] == []
    assert {each.name.split(":")[0] for each in figures} >= {"A8 bwrap", "A8 docker"}


@pytest.mark.parametrize(
    ("problem", "results"),
    [
        ("file.shadow escaped", [ProbeResult.DENIED] * 50 + [ProbeResult.ESCAPED]),
        ("the probe did not end within 40 s", [ProbeResult.DENIED] * 50),
        ("", [ProbeResult.DENIED] * 39),
    ],
)
def test_one_that_escaped_or_was_not_made_is_a_miss(problem: str, results: list[ProbeResult]) -> None:
    made = tuple(Probe(f"probe.{number}", "try", each, "EPERM") for number, each in enumerate(results))

    figures = probes.told(ProbeReport(IsolationTier.BWRAP, problem, made))

    assert [each.is_met for each in figures].count(False) == 1
