"""A sample of campaign A12 (``scripts/chaos A12``): faulty gateways on real sockets."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from campaigns import gateways

pytestmark = [pytest.mark.anyio, pytest.mark.serial]


async def test_eight_faulty_gateways_cost_seconds_and_no_wrong_byte() -> None:
    found = await gateways.meet(50)

    slowest = max(met.slowest_s for met in found.values())
    requests = sum(met.asked for met in found.values())
    print(f"A12: 8 gateways × 50 files, {requests} faulty answers, 0 wrong bytes, slowest failover {slowest:.1f} s")
    assert {kind: met.wrong for kind, met in found.items()} == dict.fromkeys(gateways.KINDS, 0)
    assert {kind: met.missing for kind, met in found.items()} == dict.fromkeys(gateways.KINDS, 0)
    assert {kind: met.alone for kind, met in found.items()} == dict.fromkeys(gateways.KINDS, 0)
    assert all(met.asked >= 100 for met in found.values())  # every fetch met the faulty one
    assert slowest <= gateways.FAILOVER_S
