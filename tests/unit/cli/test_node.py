from __future__ import annotations

import stat
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from parity_cli.node_place import node_settings
from parity_client import Config, Home, Wallet
from parity_client.config import MarketEntry, NodeEntry
from parity_client.testing import FakeMarket, JumpClock
from parity_contracts import keystore
from parity_contracts.chain.calls import Faucet, SetOperator
from parity_contracts.chain.sending import send
from parity_node.control import serve_control
from parity_node.keys import load_keys, load_operator_key
from parity_protocol.errors import NotFound
from parity_protocol.signing.keys import EvmKey
from parity_protocol.testing.keys import deterministic_evm_key

if TYPE_CHECKING:
    from .conftest import ClosableChain, Parity
else:
    ClosableChain = Parity = Any

TOKEN = 10**18
PASSPHRASE = "correct horse battery staple"
PAYOUT = "0x" + "ab" * 20


@pytest.fixture
def owner() -> EvmKey:
    return deterministic_evm_key("owner")


@pytest.fixture
def owned(home: Home, market: FakeMarket, chain: ClosableChain, owner: EvmKey) -> ClosableChain:
    """A machine with a joined market, a node's owner with 20 tokens, and no agent."""
    join = str(market.join)
    home.save(Config(current="m", markets={"m": MarketEntry(join=join)}, node=NodeEntry(payout=PAYOUT)))
    keystore.create(home.wallet_file("node-owner"), owner, PASSPHRASE)
    anyio.run(fund, chain, owner)
    return chain


async def fund(chain: ClosableChain, key: EvmKey) -> None:
    await send(chain, [Faucet(key.address, 20 * TOKEN)], key, clock=JumpClock())


def account(chain: ClosableChain, home: Home) -> Any:
    return anyio.run(chain.account, load_keys(home.path / "node").node_id)


def test_auth_makes_three_keys_and_prints_no_secret(parity: Parity, home: Home) -> None:
    done = parity("node", "auth", "--generate", "--payout", PAYOUT, "--json")

    keys = load_keys(home.path / "node")
    assert done.code == 0
    assert done.json["node_id"] == keys.node_id
    assert done.json["operator"] == keys.operator.address
    assert done.json["payout"] == PAYOUT
    assert Wallet.of_keystore(home.wallet_file("node-owner"), str).address == done.json["owner"]
    assert len({done.json["owner"], done.json["operator"], PAYOUT}) == 3
    for secret in (keys.operator.reveal_secret(), keys.device.reveal_seed()):
        assert secret.hex() not in done.out + done.err
    assert stat.S_IMODE((home.path / "node" / "operator.key").stat().st_mode) == 0o600


@pytest.mark.parametrize("source", ["--generate", "--key-file"])
def test_dry_run_of_auth_writes_nothing(parity: Parity, home: Home, tmp_path: Path, owner: EvmKey, source: str) -> None:
    key = tmp_path / "owner.txt"
    key.write_text(owner.reveal_secret().hex(), encoding="utf-8")
    before = sorted(home.path.rglob("*"))

    done = parity("node", "auth", source, *([str(key)] if source == "--key-file" else []), "--dry-run", "--json")

    assert done.code == 0
    assert done.json["dry_run"] is True
    assert done.json["owner"] == (owner.address if source == "--key-file" else None)
    assert sorted(home.path.rglob("*")) == before
    assert not home.wallet_file("node-owner").exists()
    assert not (home.path / "node").exists()
    assert key.read_text(encoding="utf-8") not in done.out + done.err


def test_auth_without_a_key_and_without_a_person_says_how(parity: Parity, home: Home) -> None:
    done = parity("node", "auth")

    assert done.code == 2
    assert "--key-file" in done.err
    assert home.wallets() == []


def test_init_writes_settings_that_run_reads(parity: Parity, home: Home, market: FakeMarket) -> None:
    done = parity("node", "init", "--yes", "--join", str(market.join), "--slots", "3", "--shell", "--max-memory", "2g")

    settings = node_settings()
    assert done.code == 0
    assert settings.join() == market.join
    assert (settings.runner_slots, settings.runner_max_memory) == (3, 2 << 30)
    assert settings.runner_shell_enabled
    assert settings.state_dir() == home.path / "node"
    assert stat.S_IMODE((home.path / "node.env").stat().st_mode) == 0o600
    assert home.load().current == "127.0.0.1-8080"
    assert "parity node stake --amount 10" in done.out


def test_init_asks_and_can_be_repeated(parity: Parity, home: Home, market: FakeMarket) -> None:
    first = parity("node", "init", types=[str(market.join), PAYOUT, "2", "", "y", "y"])
    keys = load_keys(home.path / "node")
    second = parity("node", "init", types=["", "", "", "n", "y"])

    assert (first.code, second.code) == (0, 0)
    assert load_keys(home.path / "node").node_id == keys.node_id
    assert home.load().node.payout == PAYOUT
    assert node_settings().runner_slots == 2
    assert not node_settings().runner_shell_enabled


def test_init_asks_again_instead_of_giving_up(parity: Parity, home: Home, market: FakeMarket) -> None:
    bad_and_good = ["nonsense", str(market.join), "0x12", "", "many", "0", "2", "lots", "2g", "y", "y"]

    done = parity("node", "init", types=bad_and_good)

    assert done.code == 0
    assert "an address is 0x and 40 hex digits" in done.err
    assert done.err.count("expected a whole number from 1 to 256") == 2
    assert "expected a size such as '512m'" in done.err
    assert (node_settings().runner_slots, node_settings().runner_max_memory) == (2, 2 << 30)


def test_repeated_init_keeps_the_memory_limit_until_told_otherwise(
    parity: Parity, home: Home, market: FakeMarket
) -> None:
    parity("node", "init", "--yes", "--join", str(market.join), "--max-memory", "2g")

    again = parity("node", "init", "--yes")
    kept = node_settings().runner_max_memory
    lifted = parity("node", "init", "--yes", "--max-memory", "all")

    assert (again.code, lifted.code) == (0, 0)
    assert kept == 2 << 30
    assert node_settings().runner_max_memory is None


def test_a_node_that_nobody_set_up_does_not_start(parity: Parity, home: Home) -> None:
    done = parity("node", "run")

    assert done.code != 0
    assert "parity node init" in done.err
    assert not (home.path / "node").exists()


def test_init_that_is_refused_at_the_end_writes_no_settings(parity: Parity, home: Home, market: FakeMarket) -> None:
    done = parity("node", "init", types=[str(market.join), "", "2", "", "n", "n"])

    assert done.code == 130
    assert not (home.path / "node.env").exists()


def test_settings_beside_the_command_win_over_inits(parity: Parity, home: Home, market: FakeMarket) -> None:
    parity("node", "init", "--yes", "--join", str(market.join), "--slots", "3")

    Path(".env").write_text("RUNNER_SLOTS=5\n")

    assert node_settings().runner_slots == 5
    assert node_settings().join() == market.join  # the one in use


def test_the_first_stake_names_operator_and_payout(
    parity: Parity, home: Home, owned: ClosableChain, owner: EvmKey
) -> None:
    done = parity("node", "stake", "--amount", "10", "--yes", "--json")

    assert done.code == 0
    assert [call["name"] for call in done.json["calls"]] == ["Approve", "Stake", "SetPayout"]
    found = account(owned, home)
    assert (found.bond, found.owner, found.payout) == (10 * TOKEN, owner.address, PAYOUT)
    assert found.operator == load_operator_key(home.path / "node").address


def test_a_later_stake_replaces_a_foreign_operator_and_says_so(
    parity: Parity, home: Home, owned: ClosableChain, owner: EvmKey
) -> None:
    async def hijack() -> None:
        node_id = load_keys(home.path / "node").node_id
        await send(owned, [SetOperator(node_id, deterministic_evm_key("old").address)], owner, clock=JumpClock())

    parity("node", "stake", "--amount", "10", "--yes")
    anyio.run(hijack)

    done = parity("node", "stake", "--amount", "1", "--yes")

    assert done.code == 0
    assert "is replaced" in done.err
    assert account(owned, home).operator == load_operator_key(home.path / "node").address


def test_a_new_operator_is_named_on_chain_before_it_is_used(
    parity: Parity, home: Home, owned: ClosableChain, monkeypatch: pytest.MonkeyPatch
) -> None:
    unstaked = parity("node", "auth", "--new-operator", "--yes")
    parity("node", "stake", "--amount", "10", "--yes")
    old = load_operator_key(home.path / "node").address

    dry = parity("node", "auth", "--new-operator", "--dry-run")
    refused = parity("node", "auth", "--new-operator", types=["n"])
    unchanged = (load_operator_key(home.path / "node").address, account(owned, home).operator)
    done = parity("node", "auth", "--new-operator", "--yes")

    new = load_operator_key(home.path / "node").address
    assert unstaked.code == 22
    assert (dry.code, refused.code, done.code) == (0, 130, 0)
    assert unchanged == (old, old)
    assert account(owned, home).operator == new != old
    assert not (home.path / "node" / "operator.key.next").exists()
    assert parity("node", "auth", "--new-operator", "--generate").code == 2


def test_a_crash_while_the_operator_is_replaced_loses_no_key(
    parity: Parity, home: Home, owned: ClosableChain, monkeypatch: pytest.MonkeyPatch
) -> None:
    parity("node", "stake", "--amount", "10", "--yes")
    with monkeypatch.context() as crash:
        crash.setattr(
            "parity_cli.commands.node_money.adopt_operator", lambda *_: (_ for _ in ()).throw(OSError("gone"))
        )
        assert parity("node", "auth", "--new-operator", "--yes").code == 80
    named = account(owned, home).operator

    parity("node", "auth", "--new-operator", "--yes")

    assert load_operator_key(home.path / "node").address == named == account(owned, home).operator


def test_somebody_elses_node_is_not_staked_for(parity: Parity, home: Home, owned: ClosableChain) -> None:
    parity("node", "stake", "--amount", "10", "--yes")
    other = deterministic_evm_key("other")
    home.wallet_file("node-owner").unlink()
    keystore.create(home.wallet_file("node-owner"), other, PASSPHRASE)
    anyio.run(fund, owned, other)

    done = parity("node", "stake", "--amount", "1", "--yes")

    assert done.code == 33
    assert "owner" in done.err
    assert account(owned, home).bond == 10 * TOKEN


def test_a_bond_leaves_by_unbonding_only(parity: Parity, home: Home, owned: ClosableChain) -> None:
    parity("node", "stake", "--amount", "10", "--yes")

    too_much = parity("node", "unstake", "--amount", "11", "--yes")
    parity("node", "unstake", "--amount", "4", "--yes")
    early = parity("node", "withdraw", "--all", "--yes")
    parity("node", "unstake", "--cancel", "--yes")

    assert too_much.code == 50
    assert early.code == 50
    assert "4 PDEV more from" in early.err
    assert account(owned, home).bond == 10 * TOKEN
    assert parity("node", "unstake", "--yes").code == 2
    assert parity("node", "withdraw", "--all", "--amount", "1").code == 2


def test_the_bond_of_a_lost_machine_is_the_owners_still(parity: Parity, home: Home, owned: ClosableChain) -> None:
    parity("node", "stake", "--amount", "10", "--yes")
    lost = load_keys(home.path / "node").node_id
    (home.path / "node" / "device.key").unlink()

    wrong = parity("node", "unstake", "--amount", "10", "--yes")
    done = parity("node", "unstake", "--amount", "10", "--node", lost, "--yes")

    assert wrong.code == 50
    assert done.code == 0
    assert anyio.run(owned.account, lost).unbonding == 10 * TOKEN
    assert parity("node", "withdraw", "--all", "--node", "nonsense").code == 20


def test_balance_names_the_missing_bond_and_an_unknown_node(parity: Parity, owned: ClosableChain) -> None:
    done = parity("node", "balance", "--json")

    assert done.code == 0
    assert done.json["chain"]["owner_tokens"] == str(20 * TOKEN)
    assert done.json["terms"]["min_bond"] == str(10 * TOKEN)
    assert "error" in done.json["market"]
    assert "parity node stake --amount 10" in parity("node", "balance").out


def test_without_an_owner_the_first_step_is_named(parity: Parity, market: FakeMarket) -> None:
    done = parity("node", "stake", "--amount", "1", "--yes")

    assert done.code == 22
    assert "parity node auth" in done.err


def test_status_without_an_agent_still_shows_money(parity: Parity, owned: ClosableChain) -> None:
    done = parity("node", "status", "--json")

    assert done.code == 0
    assert "error" in done.json["agent"]
    assert done.json["chain"]["bond"] == "0"
    assert "STOPPED" in parity("node", "status").out
    assert parity("node", "status", "--watch", "--json").code == 2


class Agent:
    """The control socket of an agent, answered as the real one does."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        self.asked: list[Mapping[str, Any]] = []
        self.running = [{"task_id": "t-1", "kind": "command", "phase": "started", "seconds": 1.0}]
        self._stop: Any = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=anyio.run, args=(self._serve,), daemon=True)

    def start(self) -> None:
        self._thread.start()
        assert self._ready.wait(10)

    def stop(self) -> None:
        if self._thread.is_alive():
            self._stop()
            self._thread.join(10)

    async def _serve(self) -> None:
        async with anyio.create_task_group() as group:
            token = anyio.lowlevel.current_token()
            self._stop = lambda: anyio.from_thread.run_sync(group.cancel_scope.cancel, token=token)
            group.start_soon(serve_control, self.state_dir, self._answer)
            group.start_soon(self._announce)

    async def _announce(self) -> None:
        with anyio.fail_after(10):
            while not (self.state_dir / "control.json").exists():  # noqa: ASYNC110 - the file is the event
                await anyio.sleep(0.01)
        self._ready.set()

    async def _answer(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        self.asked.append(request)
        if request["command"] == "logs":
            if request["task_id"] != "t-1" or not self.running:
                raise NotFound("does not run here now")
            text = "hello\n"[int(request["offset"]) :]
            if not text:
                self.running = []
            return {"task_id": "t-1", "offset": request["offset"], "next_offset": 6, "text": text}
        if request["command"] == "drain":
            threading.Timer(0.2, self.stop).start()
            return {"draining": True, "running": 1}
        return {"running": self.running, "outbox": {"reports": 0, "bytes": 0, "error": ""}}


@pytest.fixture
def agent(home: Home) -> Iterator[Agent]:
    (home.path / "node").mkdir(parents=True)
    found = Agent(home.path / "node")
    found.start()
    yield found
    found.stop()


def test_logs_follow_the_only_task_to_its_end(parity: Parity, agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("parity_cli.commands.node_agent.LOG_POLL_S", 0.0)

    done = parity("node", "logs", "-f")

    assert done.code == 0
    assert done.out == "hello\n"
    assert parity("node", "logs").code == 22
    assert parity("node", "logs", "t-2").code == 22


def test_drain_waits_until_the_agent_has_stopped(parity: Parity, agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("parity_cli.commands.node_agent.POLL_S", 0.02)

    done = parity("node", "drain", "--grace", "10m", "--json")

    assert done.code == 0
    assert done.json == {"stopped": True, "was_running": 1}
    assert agent.asked[0] == {"command": "drain", "grace_s": 600.0}


def test_drain_without_an_agent_says_so(parity: Parity, home: Home) -> None:
    done = parity("node", "drain")

    assert done.code == 61
    assert "parity node run" in done.err
