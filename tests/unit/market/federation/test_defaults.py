"""A market's ``FL_*`` variables: filled into what a session leaves open, published in its plan, and lasting."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from parity_contracts.chain.memory import MemoryChain
from parity_fl.session import SessionPlan
from parity_market.testing.playing import NODES, Play
from parity_market.testing.rig import DEPLOYMENT, Rig, inline, open_rig
from parity_protocol.errors import BadField, ConfigInvalid
from parity_protocol.testing.clock import FakeClock

OPEN: dict[str, Any] = {"strategy_config": {}, "rounds_config": {"quorum": 2}}


@pytest.fixture
def variables(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv("FL_STRATEGY", "FedProx")
    monkeypatch.setenv("FL_PROXIMAL_MU", "0.3")
    monkeypatch.setenv("FL_MIN_AVAILABLE_CLIENTS", "3")
    return monkeypatch


async def test_they_are_in_the_plan_and_train_the_session_also_after_a_restart_with_others(
    tmp_path: Path, clock: FakeClock, variables: pytest.MonkeyPatch
) -> None:
    chain = MemoryChain(clock, DEPLOYMENT)
    async with open_rig(tmp_path, chain, clock, offload=inline) as rig:
        await rig.bench.open(*NODES)
        play = await Play.begin(rig, **OPEN)
        group = await play.group()
        published = SessionPlan.from_dict(json.loads(group.row.plan_doc or ""))
    variables.setenv("FL_STRATEGY", "FedAvg")
    variables.delenv("FL_PROXIMAL_MU")

    async with open_rig(tmp_path, chain, clock, offload=inline) as rig:
        play.rig = rig
        known = rig.state.rounds.known(await play.group())
        shown = await play.show()

    assert published.settings["FL_STRATEGY"] == ("FedProx", "market")
    assert (known.strategy.strategy, known.strategy.mu, known.config.min_available_clients) == ("fedprox", 0.3, 3)
    assert shown.settings["sources"] == {
        "FL_STRATEGY": ["FedProx", "market"],
        "FL_PROXIMAL_MU": [0.3, "market"],
        "FL_NUM_ROUNDS": [3, "session"],
        "FL_MIN_AVAILABLE_CLIENTS": [3, "market"],
    }


async def test_a_session_that_does_not_suit_the_markets_rule_is_told_whose_rule_that_is(
    tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FL_STRATEGY", "Krum")
    monkeypatch.setenv("FL_NUM_MALICIOUS", "1")
    monkeypatch.setenv("FL_MIN_AVAILABLE_CLIENTS", "5")
    async with open_rig(tmp_path, MemoryChain(clock, DEPLOYMENT), clock, offload=inline) as rig:
        await rig.bench.open(*NODES)
        with pytest.raises(BadField, match="this market sets FL_STRATEGY Krum, FL_NUM_MALICIOUS 1"):
            await Play.begin(rig, **OPEN)

        own = await Play.begin(rig, strategy_config={"strategy": "FedAvg"}, rounds_config={"quorum": 2})
        assert (await own.show()).state == "running"


async def test_a_market_with_a_wrong_variable_does_not_start_and_names_it(
    tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FL_SERVER_LR", "-1")

    with pytest.raises(ConfigInvalid, match="FL_SERVER_LR"):
        async with open_rig(tmp_path, MemoryChain(clock, DEPLOYMENT), clock):
            raise AssertionError("it started")


async def test_a_variable_of_another_rule_is_reported_as_ignored_at_the_start(
    tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FL_TRIM_BETA", "0.25")

    async with open_rig(tmp_path, MemoryChain(clock, DEPLOYMENT), clock):
        said = capsys.readouterr().out

    assert "FL_TRIM_BETA is ignored: it belongs to FedTrimmedAvg, not to FedAvg" in said


async def test_without_variables_a_session_is_as_documented(rig: Rig) -> None:
    play = await Play.begin(rig, **OPEN)

    assert (await play.show()).settings["sources"] == {
        "FL_STRATEGY": ["FedAvg", "default"],
        "FL_NUM_ROUNDS": [3, "session"],
        "FL_MIN_AVAILABLE_CLIENTS": [2, "default"],
    }
