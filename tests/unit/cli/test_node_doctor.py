from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from parity_client import Config, Home
from parity_client.config import MarketEntry, NodeEntry
from parity_client.testing import FakeMarket, JumpClock
from parity_contracts import keystore
from parity_contracts.chain.calls import Faucet
from parity_contracts.chain.sending import send
from parity_node import doctor as doctors
from parity_node.doctor import Finding, FindingResult, Sandboxes
from parity_node.executors.sandbox.probes import Probe, ProbeReport, ProbeResult
from parity_node.keys import load_keys
from parity_protocol.errors import Forbidden
from parity_protocol.isolation import IsolationTier
from parity_protocol.testing.keys import deterministic_evm_key

if TYPE_CHECKING:
    from .conftest import ClosableChain, Done, Parity
else:
    ClosableChain = Done = Parity = Any

TOKEN = 10**18
PASSPHRASE = "correct horse battery staple"
DENIED = Probe("kernel.bpf", "load a program into the kernel", ProbeResult.DENIED, "EPERM")
ESCAPED = Probe(
    "net.internet", "reach the internet", ProbeResult.ESCAPED, "there is a route to 1.1.1.1", "update Docker"
)
GOOD = Sandboxes((), (ProbeReport(IsolationTier.BWRAP, "", (DENIED,)),))
BAD = Sandboxes(
    (Finding("isolation.docker", FindingResult.FAIL, "the sandbox does not contain a task", "update Docker"),),
    (ProbeReport(IsolationTier.DOCKER, "the sandbox does not contain a task", (DENIED, ESCAPED)),),
)

Found = Callable[[Sandboxes], None]


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Found:
    """Say what the sandboxes of this machine prove; the folder of executions is the test's own."""
    executions = tmp_path / "exec"
    executions.mkdir()
    monkeypatch.setenv("RUNNER_EXEC_DIR", str(executions))
    # pytest's own folders are closed to others, which is a finding as root.
    monkeypatch.setattr("parity_node.doctor.place._is_root", lambda: False)

    def choose(sandboxes: Sandboxes) -> None:
        async def examine(_settings: object) -> Sandboxes:
            return sandboxes

        monkeypatch.setattr(doctors, "examine_sandboxes", examine)

    choose(GOOD)
    return choose


def checks(done: Done) -> dict[str, dict[str, str]]:
    return {each["id"]: each for each in done.json["checks"]}


def test_it_works_before_init_and_says_what_is_missing(
    parity: Parity, home: Home, found: Found, monkeypatch: Any
) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("PARITY_HOME", str(home.path))
    monkeypatch.setattr(doctors, "examine_sandboxes", _good)

    done = parity("node", "doctor", "--json")

    assert done.code == 1
    assert checks(done)["state.folder"]["fix"] == "parity node init"
    assert checks(done)["market"]["result"] == "fail"
    assert checks(done)["stake"]["result"] == "not_applicable"
    assert not (home.path / "node").exists()


async def _good(_settings: object) -> Sandboxes:
    return GOOD


def test_a_fit_machine_exits_with_zero_and_says_what_it_can_take(
    parity: Parity, home: Home, found: Found, monkeypatch: Any
) -> None:
    load_keys(home.path / "node")
    monkeypatch.setenv("RUNNER_SHELL_ENABLED", "true")

    done = parity("node", "doctor", "--offline")

    assert done.code == 0, done.out
    last = " ".join(done.out.split())
    assert "This machine is fit to run a node. Isolation proven: bwrap." in last
    assert last.endswith("Tasks it can take: commands, federated learning.")


def test_commands_that_are_off_are_no_kind_that_can_be_taken(parity: Parity, found: Found) -> None:
    assert parity("node", "doctor", "--offline", "--json").json["kinds"] == ["federated_learning"]


def test_an_escape_fails_and_is_shown_with_its_fix(parity: Parity, found: Found) -> None:
    found(BAD)

    done = parity("node", "doctor", "--offline")

    assert done.code == 1
    assert "ESCAPED" in done.out
    assert "net.internet" in done.out
    assert "→ update Docker" in done.out
    assert "Isolation proven: none" in " ".join(done.out.split())
    assert "kernel.bpf" not in done.out


def test_all_attempts_are_shown_when_asked(parity: Parity, found: Found) -> None:
    assert "kernel.bpf" in parity("node", "doctor", "--offline", "--probes").out


def test_the_document_has_every_check_and_probe_with_result_cause_and_fix(parity: Parity, found: Found) -> None:
    found(BAD)

    done = parity("node", "doctor", "--offline", "--json")

    assert all(set(each) == {"id", "result", "cause", "fix"} for each in done.json["checks"])
    assert {each["result"] for each in done.json["checks"]} <= {"ok", "warn", "fail", "not_applicable"}
    assert [(each["id"], each["sandbox"], each["result"]) for each in done.json["probes"]] == [
        ("kernel.bpf", "docker", "denied"),
        ("net.internet", "docker", "escaped"),
    ]
    assert done.json["ok"] is False
    assert done.json["proven"] == []


def test_settings_that_are_wrong_are_a_finding_and_no_crash(parity: Parity, found: Found, monkeypatch: Any) -> None:
    monkeypatch.setenv("RUNNER_SLOTS", "many")

    done = parity("node", "doctor", "--offline", "--json")

    assert done.code == 1
    assert "RUNNER_SLOTS" in checks(done)["settings"]["cause"]


@pytest.fixture
def owned(home: Home, market: FakeMarket, chain: ClosableChain, found: Found) -> ClosableChain:
    """A machine with a joined market and a node's owner with 20 tokens."""
    owner = deterministic_evm_key("owner")
    join = str(market.join)
    home.save(Config(current="m", markets={"m": MarketEntry(join=join)}, node=NodeEntry()))
    keystore.create(home.wallet_file("node-owner"), owner, PASSPHRASE)
    load_keys(home.path / "node")

    async def fund() -> None:
        await send(chain, [Faucet(owner.address, 20 * TOKEN)], owner, clock=JumpClock())

    anyio.run(fund)
    return chain


def test_a_node_without_a_bond_is_told_to_stake(parity: Parity, owned: ClosableChain) -> None:
    found = checks(parity("node", "doctor", "--json"))

    assert found["market"]["result"] == "ok"
    assert found["stake"]["result"] == "fail"
    assert found["stake"]["fix"] == "parity node stake"


def test_a_bonded_node_is_fine(parity: Parity, owned: ClosableChain) -> None:
    assert parity("node", "stake", "--amount", "10", "--yes").code == 0

    found = checks(parity("node", "doctor", "--json"))

    assert found["stake"]["result"] == "ok", found["stake"]


def test_a_market_that_does_not_answer_leaves_the_other_checks(
    parity: Parity, owned: ClosableChain, market: FakeMarket
) -> None:
    market.fail_next(Forbidden("not for you"), times=50)

    found = checks(parity("node", "doctor", "--json"))

    assert found["market"]["result"] == "fail"
    assert found["chain"]["result"] == "not_applicable"
    assert found["python"]["result"] == "ok"
