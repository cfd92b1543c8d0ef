"""A whole market on this machine: chain, market and nodes as processes, each with its own folder and keys."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import anyio

from parity_cli.demo.processes import STOP_WITHIN_S, Child, Processes, child_environment
from parity_client import Client, Retry
from parity_contracts.chain.calls import AddFunds, Allow, Approve, Call, Faucet, Stake
from parity_contracts.chain.sending import send
from parity_contracts.chain.web3_chain import Web3Chain
from parity_contracts.deploy import faucet
from parity_contracts.deployment import Deployment
from parity_market.init import initialise
from parity_market.settings import MarketSettings
from parity_node.keys import load_keys
from parity_node.version import node_version
from parity_protocol.clock import Clock, SystemClock
from parity_protocol.errors import NotFound, Unavailable, Unreachable
from parity_protocol.ids import Address, NodeId
from parity_protocol.join import JoinString
from parity_protocol.quantities import TokenAmount
from parity_protocol.signing.keys import EvmKey

__all__ = ["PARITY", "Node", "Stack", "StackSettings"]

PARITY = (sys.executable, "-m", "parity_cli")
READY_WITHIN_S = 60.0
CHAIN_FILE = "ready.json"
_POLL_S = 0.05

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class StackSettings:
    """How the parts run."""

    lease_ttl: timedelta = timedelta(seconds=6)
    heartbeat: timedelta = timedelta(seconds=2)
    payout_interval: timedelta = timedelta(seconds=1)
    min_bond: str = "10"  # tokens
    slots: int = 1  # of each node
    block_interval: str = "1s"
    idle_interval: str = "2s"
    market: Mapping[str, str] = field(default_factory=dict)  # more settings, as environment
    node: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Node:
    """A node: who it is, and the process when it runs."""

    name: str
    id: NodeId
    operator: Address
    wallet: EvmKey  # owns the bond and gets the earnings
    state: Path
    process: Child | None = None
    was_killed: bool = False


class Stack:
    """Chain, market and nodes in ``folder``. Nothing is started until it is asked for; ``stop`` ends all of it."""

    def __init__(self, folder: Path, settings: StackSettings | None = None, *, clock: Clock | None = None) -> None:
        self.folder = folder
        self.settings = settings or StackSettings()
        self.processes = Processes(folder / "logs")
        self.nodes: list[Node] = []
        self.rpc_url = ""
        self.clock = clock or SystemClock()
        self.chain_process: Child | None = None
        self.market_process: Child | None = None
        self._join: JoinString | None = None
        self._chain: Web3Chain | None = None
        self._deployment: Deployment | None = None
        self._spender: Address | None = None
        self._ports: dict[str, int] = {}

    @property
    def join(self) -> JoinString:
        """The market's address and pins; ``make_market`` has made them."""
        assert self._join is not None
        return self._join

    @property
    def chain(self) -> Web3Chain:
        """The chain, with the market's contracts pinned."""
        assert self._chain is not None
        return self._chain

    @property
    def deployment(self) -> Deployment:
        """The market's contracts."""
        assert self._deployment is not None
        return self._deployment

    @property
    def spender(self) -> Address:
        """Who signs the market's vouchers."""
        assert self._spender is not None
        return self._spender

    # -- chain ---------------------------------------------------------------------------------------------------

    async def start_chain(self) -> str:
        """Start the embedded chain, or start it again where it was; return its RPC address."""
        data = self.folder / "chain"
        data.mkdir(parents=True, exist_ok=True)
        ready = data / CHAIN_FILE
        ready.unlink(missing_ok=True)
        command = [sys.executable, "-m", "parity_contracts.devnet", "--data", str(data), "--ready-file", str(ready)]
        command += ["--port", str(self._port("chain")), "--block-interval", self.settings.block_interval]
        command += ["--idle-interval", self.settings.idle_interval]
        self.chain_process = self.processes.start("chain", command, env=self.environment(), cwd=data)
        await self.until(anyio.Path(ready).exists, "the chain")
        self.rpc_url = str(json.loads(await anyio.Path(ready).read_bytes())["rpc_url"])
        return self.rpc_url

    async def fund(self, address: Address) -> None:
        """Have the embedded chain's faucet pay for an address's transactions."""
        await faucet(self.rpc_url, address)

    async def send(self, calls: Sequence[Call], key: EvmKey) -> None:
        """Send calls and wait until they are mined."""
        await send(self.chain, calls, key, clock=self.clock)

    # -- market --------------------------------------------------------------------------------------------------

    async def make_market(self, progress: Callable[[str], None] = lambda _: None) -> Deployment:
        """Make the market's keys, deploy its contracts and connect to them."""
        made = await initialise(
            MarketSettings(_env_file=None, **self._market_settings()),  # type: ignore[arg-type]  # as texts
            version=node_version(),
            progress=progress,
            clock=self.clock,
        )
        self._join, self._deployment, self._spender = made.join, made.deployment, made.spender
        self._chain = await Web3Chain.connect(self.rpc_url, made.deployment)
        return made.deployment

    async def start_market(self, **settings: str) -> None:
        """Start the market, or start it again, and wait until it answers.

        Args:
            settings: More of them, by field name.
        """
        wanted = {**self._market_settings(), **settings}
        env = {name.upper(): value for name, value in wanted.items() if value}
        self.market_process = self.processes.start(
            "market", [*PARITY, "market", "serve"], env=self.environment(**env), cwd=self.folder / "market"
        )
        await self.until(self.market_answers, "the market")

    async def market_answers(self) -> bool:
        """Return whether the market answers requests."""
        try:
            async with self.client() as market:
                await market.status()
        except Unreachable:
            return False
        return True

    def client(self, wallet: EvmKey | None = None) -> Client:
        """Return a client of the market that tries once."""
        return Client(self.join, wallet, retry=Retry(attempts=1), clock=self.clock)

    def _market_settings(self) -> dict[str, str]:
        settings = self.settings
        return {
            "server_host": "127.0.0.1",
            "server_port": str(self._port("market")),
            "market_state_dir": str(self.folder / "market"),
            "market_public_url": "",
            "market_name": "demo",
            "market_min_bond": settings.min_bond,
            "market_lease_ttl": f"{settings.lease_ttl.total_seconds():g}s",
            "market_heartbeat": f"{settings.heartbeat.total_seconds():g}s",
            "market_payout_interval": f"{settings.payout_interval.total_seconds():g}s",
            "market_confirmations": "1",
            "blockchain_rpc": self.rpc_url,
            "blockchain_token_address": "",
            "blockchain_stake_wallet_address": "",
            **settings.market,
        }

    # -- nodes ---------------------------------------------------------------------------------------------------

    def make_node(self, name: str) -> Node:
        """Make a node's keys; nothing runs yet."""
        state = self.folder / "nodes" / name
        state.parent.mkdir(mode=0o700, exist_ok=True)
        keys = load_keys(state)
        node = Node(name, keys.node_id, keys.operator.address, EvmKey.generate(), state)
        self.nodes.append(node)
        return node

    async def stake(self, node: Node, amount: TokenAmount) -> None:
        """Bond play money for a node, from a wallet of its own, and name its operator key on chain."""
        owner = node.wallet
        await self.fund(owner.address)
        calls: list[Call] = [
            Faucet(owner.address, amount),
            Approve(amount),
            Stake(amount, node.id, owner.address, node.operator),
        ]
        await self.send(calls, owner)

    async def set_aside(self, submitter: EvmKey, amount: TokenAmount) -> None:
        """Fund a submitter's escrow for this market with play money."""
        account = submitter.address
        await self.fund(account)
        calls: list[Call] = [Faucet(account, amount), Approve(amount), AddFunds(amount, account, account)]
        await self.send([*calls, Allow(account, self.spender, amount)], submitter)

    def start_node(self, node: Node, command: Sequence[str] = (*PARITY, "node", "run"), **env: str) -> None:
        """Start a node's process, or start it again on the same folder.

        Args:
            command: Tests give other agents.
            env: More settings.
        """
        settings = {
            "RUNNER_MARKET_JOIN": str(self.join),
            "RUNNER_STATE_DIR": str(node.state),
            "RUNNER_EXEC_DIR": str(self.folder / "exec"),
            "RUNNER_SLOTS": str(self.settings.slots),
            "RUNNER_HOSTNAME": node.name,
            "RUNNER_GRACE": "1s",
            **self.settings.node,
            **env,
        }
        node.process = self.processes.start(node.name, command, env=self.environment(**settings), cwd=node.state)

    async def online(self, nodes: Sequence[Node]) -> bool:
        """Return whether the market sees all of these nodes and would give them work."""
        async with self.client() as market:
            try:
                found = [await market.node(node.id) for node in nodes]
            except NotFound:
                return False
        return all(node.online and node.eligible for node in found)

    def kill_node(self, node: Node) -> None:
        """End a node with SIGKILL, its tasks with it."""
        if node.process is not None:
            self.processes.kill(node.process)
        node.was_killed = True

    # -- all -----------------------------------------------------------------------------------------------------

    async def until(self, condition: Callable[[], Awaitable[T]], what: str, *, within_s: float = READY_WITHIN_S) -> T:
        """Return the first true answer of ``condition``.

        Raises:
            ProcessEnded: A process ended meanwhile.
            Unavailable: None came in time.
        """
        deadline = self.clock.monotonic() + within_s
        while True:
            self.processes.check()
            if answer := await condition():
                return answer
            if self.clock.monotonic() >= deadline:
                raise Unavailable(f"{what}: not ready within {within_s:g} s", hint=f"See {self.folder / 'logs'}.")
            await self.clock.sleep(_POLL_S)

    async def aclose(self) -> None:
        """Close connections; processes go on."""
        if self._chain is not None:
            await self._chain.aclose()

    def stop(self, *, within_s: float = STOP_WITHIN_S) -> None:
        """End every process: the nodes together, then the market, then the chain."""
        nodes = [node.process for node in self.nodes if node.process is not None]
        try:
            self.processes.stop(nodes, within_s=within_s)
        finally:
            self.processes.stop_all(within_s=within_s)

    def environment(self, **settings: str) -> dict[str, str]:
        """Return a child's environment; its PARITY_HOME is ours, so that no setting of the user's own is read."""
        return child_environment(PARITY_HOME=str(self.folder / "home"), **settings)

    def _port(self, name: str) -> int:
        """Return a port of this machine that was free a moment ago; the same for the same name."""
        if name not in self._ports:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                self._ports[name] = probe.getsockname()[1]
        return self._ports[name]
