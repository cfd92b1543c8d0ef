"""The market's payouts on the real embedded chain, which is killed in the middle: everybody is paid exactly once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import pytest

from parity_contracts.chain.base import PaidKey
from parity_contracts.chain.web3_chain import Web3Chain
from parity_contracts.deploy import deploy, faucet
from parity_contracts.deployment import Deployment
from parity_contracts.testing import DevChain
from parity_market import loops
from parity_market.loops.chain_follower import check_chain, refresh_account
from parity_market.operations import vouchers
from parity_market.operations.vouchers import payout_of_task
from parity_market.testing import builders
from parity_market.testing.rig import Rig, open_rig
from parity_protocol.clock import SystemClock
from parity_protocol.errors import ConfigInvalid
from parity_protocol.ids import Address
from parity_protocol.signing.eip712 import Eip712Domain
from parity_protocol.testing.keys import deterministic_evm_key

TOKEN = builders.TOKEN
CREATOR = deterministic_evm_key("creator").address
NODES = ("n1", "n2")
WITHIN_S = 60.0


@pytest.fixture(scope="module")
def devnet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevChain]:
    folder = tmp_path_factory.mktemp("chain")
    with DevChain(folder / "data") as chain:
        yield chain


@pytest.fixture
async def deployment(devnet: DevChain, monkeypatch: pytest.MonkeyPatch) -> Deployment:
    """Deploy a vault of this test's own, and let the builders sign for it."""
    key = deterministic_evm_key("deployer")
    for name in ("deployer", "creator", "transaction", *(f"{name} owner" for name in NODES)):
        await faucet(devnet.rpc_url, deterministic_evm_key(name).address)
    await asyncio.sleep(2.0)  # a block
    found = await deploy(devnet.rpc_url, key, unbonding_s=60)
    monkeypatch.setattr(builders, "DOMAIN", Eip712Domain.market(found.chain_id, found.vault))
    return found


@asynccontextmanager
async def market(folder: Path, devnet: DevChain, deployment: Deployment) -> AsyncIterator[Rig]:
    """Run a market with all its loops; leaving stops it as SIGKILL would: nothing is finished first."""
    async with await Web3Chain.connect(devnet.rpc_url, deployment, timeout_s=5.0) as chain:
        settings = {
            "blockchain_rpc": devnet.rpc_url, "market_payout_interval": "300ms", "market_chain_grace": "10m",
        }  # fmt: skip
        async with open_rig(folder, chain, SystemClock(), settings=settings) as rig:
            await loops.start_up(rig.state)
            running = asyncio.create_task(loops.run_all(rig.state))
            try:
                yield rig
            finally:
                running.cancel()
                with suppress(asyncio.CancelledError):
                    await running


async def ready(rig: Rig) -> None:
    for name in NODES:
        node_id = await rig.stake(name)
        await rig.bench.enrol(name, bond=0)
        await refresh_account(rig.state, node_id)
    await rig.allow(100 * TOKEN)
    await refresh_account(rig.state, CREATOR)


async def until_confirmed(rig: Rig, task_ids: list[str]) -> None:
    """Wait until every task's pay is confirmed on chain."""

    async def states() -> set[str]:
        unfunded = rig.state.chain_health.unfunded
        found = [await rig.store.read(partial(payout_of_task, task_id=task, unfunded=unfunded)) for task in task_ids]
        return {each.state for each in found if each is not None}

    async with asyncio.timeout(WITHIN_S):
        while await states() != {"confirmed"}:
            await rig.state.clock.sleep(0.1)


async def paid(rig: Rig) -> dict[str, int]:
    spender = Address(rig.state.market.spender)
    keys = [PaidKey(CREATOR, spender, builders.new_node(name).node_id) for name in NODES]
    return dict(zip(NODES, (await rig.state.chain.paid(keys)).amounts, strict=True))


async def test_work_is_paid_on_the_chain(tmp_path: Path, devnet: DevChain, deployment: Deployment) -> None:
    async with market(tmp_path, devnet, deployment) as rig:
        await ready(rig)
        tasks = [await rig.earn("n1", 3 * TOKEN), await rig.earn("n2", TOKEN), await rig.earn("n1", 2 * TOKEN)]

        await until_confirmed(rig, tasks)

        assert await paid(rig) == {"n1": 5 * TOKEN, "n2": TOKEN}
        credit = (await rig.state.chain.account(builders.new_node("n1").node_id)).credit
        assert credit == 5 * TOKEN
        escrow = await rig.state.chain.escrow(CREATOR, Address(rig.state.market.spender))
        assert escrow.amount == 94 * TOKEN


async def test_killing_the_chain_and_the_market_in_the_middle_pays_once(
    tmp_path: Path, devnet: DevChain, deployment: Deployment
) -> None:
    tasks: list[str] = []
    earned = dict.fromkeys(NODES, 0)

    async def work(rig: Rig, count: int) -> None:
        for index in range(count):
            name = NODES[index % 2]
            tasks.append(await rig.earn(name, TOKEN + index))
            earned[name] += TOKEN + index
            await asyncio.sleep(0.1)

    async with market(tmp_path, devnet, deployment) as rig:
        await ready(rig)
        await work(rig, 6)
        devnet.kill()
        await work(rig, 4)  # nobody waits for the chain
        devnet.start()
        await work(rig, 4)
    async with market(tmp_path, devnet, deployment) as rig:
        await work(rig, 4)
        devnet.kill()
        devnet.start()

        await until_confirmed(rig, tasks)

        assert await paid(rig) == earned
        for name in NODES:
            account = await rig.state.chain.account(builders.new_node(name).node_id)
            assert account.credit == earned[name]
        escrow = await rig.state.chain.escrow(CREATOR, Address(rig.state.market.spender))
        assert escrow.amount == 100 * TOKEN - sum(earned.values())
        for state in ("signed", "sent", "failed"):
            open_ones = await rig.store.read(partial(vouchers.txs_in_state, chain=rig.state.market.chain, state=state))
            assert open_ones == []


async def test_another_chain_at_the_same_address_is_refused(
    tmp_path: Path, devnet: DevChain, deployment: Deployment
) -> None:
    (tmp_path / "market").mkdir()
    async with market(tmp_path / "market", devnet, deployment) as rig:
        await check_chain(rig.state)
        with DevChain(tmp_path / "other") as other:
            moved = rig.state.settings.model_copy(update={"blockchain_rpc": other.rpc_url})
            object.__setattr__(rig.state, "settings", moved)

            with pytest.raises(ConfigInvalid, match="genesis hash"):
                await check_chain(rig.state)
