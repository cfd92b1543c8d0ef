"""A model of paying: whatever fails in whatever order, nobody gets more than was earned, and in the end everybody gets it."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from parity_contracts.chain.base import PaidKey, PreparedTx, TxReceipt
from parity_contracts.chain.calls import Call, Redeem
from parity_contracts.chain.memory import MemoryChain
from parity_market.loops import starting, vouchers
from parity_market.loops.chain_follower import Follower, refresh_account
from parity_market.loops.payouts import Payouts
from parity_market.operations import vouchers as ledger
from parity_market.operations.vouchers import wire_voucher
from parity_market.testing.builders import SPENDER, TOKEN, new_node
from parity_market.testing.rig import DEPLOYMENT, Rig, inline, open_rig
from parity_protocol.ids import Address
from parity_protocol.signing.eip712 import account_key
from parity_protocol.signing.keys import EvmKey
from parity_protocol.testing.clock import FakeClock
from parity_protocol.testing.keys import deterministic_evm_key

CREATOR = deterministic_evm_key("creator").address
NODES = ("n1", "n2")
ESCROW = 1_000 * TOKEN
POINTS = ("prepared", "before the broadcast", "after the broadcast", "at the receipt")
ACTIONS = ("earn", "work", "pay", "mine", "crash", "crash", "away", "back", "redeem", "restart")


class Crash(BaseException):
    """The process ends here: nothing may catch it."""


class UnsafeChain(MemoryChain):
    """A chain in memory whose caller can be made to die just before or just after its next effect."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock, DEPLOYMENT)
        self.dies = ""
        self.died = World.seen
        self.sent: dict[tuple[Address, int], bytes] = {}

    def _die(self, here: str) -> None:
        if self.dies == here:
            self.dies = ""
            self.died[here] += 1
            raise Crash

    async def prepare(self, call: Call, key: EvmKey, *, nonce: int | None = None, gas: int | None = None) -> PreparedTx:
        made = await super().prepare(call, key, nonce=nonce, gas=gas)
        self._die("prepared")
        return made

    async def broadcast(self, raw: bytes) -> str:
        tx = self._prepared[raw].tx
        known = self.sent.setdefault((tx.sender, tx.nonce), raw)
        assert known == raw, "two transactions for one nonce"
        self._die("before the broadcast")
        tx_hash = await super().broadcast(raw)
        self._die("after the broadcast")
        return tx_hash

    async def receipt(self, tx_hash: str) -> TxReceipt | None:
        found = await super().receipt(tx_hash)
        if found is not None:
            self._die("at the receipt")
        return found


class World:
    """One market, run and killed and run again, on one chain."""

    seen: ClassVar[Counter[str]] = Counter()
    parent: ClassVar[Path]  # of each history's folder

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = FakeClock()
        self.chain = UnsafeChain(self.clock)
        self.earned = dict.fromkeys(NODES, 0)

    async def play(self, actions: list[tuple[str, int]]) -> None:
        queue = list(actions)
        is_first = True
        while True:
            async with open_rig(self.folder, self.chain, self.clock, offload=inline) as rig:
                if is_first:
                    await self._found(rig)
                    is_first = False
                try:
                    await starting.start_up(rig.state)
                    while queue:
                        name, number = queue.pop(0)
                        if name == "restart":
                            raise Crash
                        await self._do(rig, name, number)
                        await self._check(rig)
                    await self._end(rig)
                    return
                except Crash:
                    continue

    async def _found(self, rig: Rig) -> None:
        for name in NODES:
            await rig.stake(name)
            await rig.bench.enrol(name)
        await rig.allow(ESCROW)
        await refresh_account(rig.state, CREATOR)
        self._begin(rig)
        await self.follower.step()
        self.chain.auto_mine = False

    def _begin(self, rig: Rig) -> None:
        self.rig, self.follower, self.payouts = rig, Follower(rig.state), Payouts(rig.state)

    async def _do(self, rig: Rig, name: str, number: int) -> None:
        if getattr(self, "rig", None) is not rig:
            self._begin(rig)
        match name:
            case "earn":
                node = NODES[number % 2]
                await rig.earn(node, TOKEN + number)
                self.earned[node] += TOKEN + number
            case "work":
                await self._do(rig, "earn", number)
                await vouchers.step(rig.state)
                await self.follower.step()
            case "pay":
                await self._pay(rig)
            case "mine":
                self.chain.mine()
            case "crash":
                point = POINTS[number % len(POINTS)]
                if point == "at the receipt":
                    await self._pay(rig)
                    self.chain.mine()
                self.chain.dies = point
                await self._pay(rig)
            case "away":
                self.chain.go_offline()
            case "back":
                self.chain.go_online()
            case "redeem":
                await self._redeem(rig)
        self.seen[name] += 1

    async def _pay(self, rig: Rig) -> None:
        await vouchers.step(rig.state)
        await self.follower.step()
        await self.clock.advance(timedelta(seconds=20))
        await self.payouts.step()

    async def _redeem(self, rig: Rig) -> None:
        """A node takes its newest voucher to the vault itself."""
        waiting = await rig.store.read(lambda tx: ledger.unpaid_vouchers(tx, rig.state.market.chain))
        if not waiting or self.chain._offline:
            return
        call, key = Redeem((wire_voucher(waiting[0]),)), deterministic_evm_key("n1")
        await MemoryChain.broadcast(self.chain, (await MemoryChain.prepare(self.chain, call, key)).raw)

    async def _check(self, rig: Rig) -> None:
        for name in NODES:
            assert self._paid(name) <= self.earned[name]

    def _paid(self, name: str) -> int:
        vault = self.chain._blocks[-1].vault
        place = (account_key(CREATOR), Address(SPENDER), account_key(new_node(name).node_id))
        return vault.paid.get(place, 0)

    async def _end(self, rig: Rig) -> None:
        """Let everything heal; then each node has exactly what it earned."""
        self.chain.go_online()
        self.chain.dies = ""
        self.chain.auto_mine = True
        self.chain.mine()
        self._begin(rig)
        for _ in range(6):
            while await vouchers.step(rig.state):
                pass
            await self.follower.step()
            await self.payouts.step()
            await self.clock.advance(timedelta(seconds=20))
        keys = [PaidKey(CREATOR, Address(SPENDER), new_node(name).node_id) for name in NODES]
        amounts = (await self.chain.paid(keys)).amounts
        assert dict(zip(NODES, amounts, strict=True)) == self.earned
        escrow = await self.chain.escrow(CREATOR, Address(SPENDER))
        assert escrow.amount == ESCROW - sum(self.earned.values())
        self.seen["healed"] += 1
        if any(amounts):
            self.seen["paid"] += 1


@settings(
    max_examples=25,
    derandomize=True,  # every crash point is reached in each run
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 99)), min_size=8, max_size=25))
def _play(actions: list[tuple[str, int]]) -> None:
    with TemporaryDirectory(dir=World.parent) as folder:
        asyncio.run(World(Path(folder)).play(actions))


def test_everybody_is_paid_exactly_once_whatever_happens(tmp_path: Path) -> None:
    World.parent = tmp_path
    World.seen.clear()

    _play()

    assert set(World.seen) >= {*ACTIONS, *POINTS, "healed", "paid"} - {"crash", "restart"}
