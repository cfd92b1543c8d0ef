"""What the shell executor needs before it tries anything, and that a sandbox which proves nothing is refused."""

from __future__ import annotations

import pytest

from parity_node.executors.sandbox import probe
from parity_node.executors.sandbox.probes import ProbeReport
from parity_protocol.isolation import IsolationTier


async def test_without_bubblewrap_nothing_is_tried(monkeypatch, tmp_path):
    monkeypatch.setattr(probe, "find_bwrap", lambda: None)

    found = await probe.try_sandbox(tmp_path)

    assert found is not None
    assert "bubblewrap is not installed" in found.reason or "needs Linux" in found.reason


def test_a_machine_without_a_filter_has_no_sandbox(monkeypatch):
    monkeypatch.setattr(probe, "machine_architecture", lambda: None)

    found = probe.find_missing()

    assert found is not None
    assert "filter" in found.reason or "Linux" in found.reason


@pytest.mark.parametrize(("problem", "is_refused"), [("", False), ("the sandbox does not contain a task", True)])
async def test_only_a_proven_sandbox_is_taken(monkeypatch, tmp_path, problem, is_refused):
    async def prove(*_: object, **__: object) -> ProbeReport:
        return ProbeReport(IsolationTier.BWRAP, problem)

    monkeypatch.setattr(probe, "find_missing", lambda: None)
    monkeypatch.setattr(probe, "prove_bwrap", prove)

    found = await probe.try_sandbox(tmp_path)

    assert (found is not None) == is_refused
    assert found is None or found.reason == problem
