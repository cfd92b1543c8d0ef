"""What the vault's actions cost on a chain, as its receipts say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from benchmarks.figures import Figure
from benchmarks.stage import TOKEN, Stage, open_stage
from parity_contracts.chain.calls import AddFunds, Allow, Approve, Call, Faucet, Redeem, Stake
from parity_contracts.chain.sending import send
from parity_protocol.clock import SystemClock
from parity_protocol.receipt import Voucher
from parity_protocol.signing.eip712 import (
    EMPTY_RECEIPTS_HEAD,
    Eip712Domain,
    VoucherMessage,
    account_key,
    extend_receipts_head,
    sign_voucher,
)
from parity_protocol.signing.keys import Ed25519PrivateKey, EvmKey, node_id_of

__all__ = ["measure"]

BATCH = 50  # vouchers of the large redemption
STAKES_AT_ONCE = 10


async def measure(*, quick: bool) -> list[Figure]:
    """Return gas of each action on the embedded chain."""
    del quick  # a number of instructions does not vary
    async with open_stage() as stage:
        stack, owner, spender = stage.stack, stage.submitter, EvmKey.generate()
        account = owner.address
        solvers = [node_id_of(Ed25519PrivateKey.generate().public_key) for _ in range(BATCH)]
        await stack.fund(spender.address)
        gas: dict[str, int] = {}

        first = Stake(TOKEN, solvers[0], account, account)
        used = await _gas(stage, [Faucet(account, 500 * TOKEN), Approve(500 * TOKEN), first, replace(first)], owner)
        gas["approve"], gas["stake, first"], gas["stake, again"] = used[1:]
        used = await _gas(stage, [AddFunds(TOKEN, account, account), Allow(account, spender.address, TOKEN)], owner)
        gas["add funds"], gas["allow"] = used
        for start in range(1, BATCH, STAKES_AT_ONCE):
            batch = solvers[start : start + STAKES_AT_ONCE]
            await _gas(stage, [Stake(TOKEN, solver, account, account) for solver in batch], owner)

        def voucher(solver: str, count: int) -> Voucher:
            return _voucher(stage, account, solver, spender, count)

        gas["redeem 1, first"] = (await _gas(stage, [Redeem((voucher(solvers[0], 1),))], spender))[0]
        gas["redeem 1, again"] = (await _gas(stage, [Redeem((voucher(solvers[0], 2),))], spender))[0]
        await _gas(stage, [Redeem(tuple(voucher(solver, 3) for solver in solvers))], spender)
        many = tuple(voucher(solver, 4) for solver in solvers)
        gas[f"redeem {BATCH}, again"] = (await _gas(stage, [Redeem(many)], spender))[0]
        paid = gas[f"redeem {BATCH}, again"] / BATCH
    return [
        Figure(f"gas: {name}", used, "gas", note=f"{paid:,.0f} a voucher" if str(BATCH) in name else "")
        for name, used in gas.items()
    ]


async def _gas(stage: Stage, calls: Sequence[Call], key: EvmKey) -> list[int]:
    receipts = await send(stage.stack.chain, calls, key, clock=SystemClock())
    return [receipt.gas_used for receipt in receipts]


def _voucher(stage: Stage, creator: str, solver: str, spender: EvmKey, count: int) -> Voucher:
    deployment = stage.stack.deployment
    head = EMPTY_RECEIPTS_HEAD
    for number in range(count):
        head = extend_receipts_head(head, number.to_bytes(32, "big"))
    message = VoucherMessage(
        creator=account_key(creator),
        solver=account_key(solver),
        spender=spender.address,
        cumulative=count * 10**12,
        count=count,
        receipts_head=head,
    )
    signature = sign_voucher(Eip712Domain.stake_vault(deployment.chain_id, deployment.vault), message, spender)
    return Voucher(
        creator="0x" + message.creator.hex(),
        solver="0x" + message.solver.hex(),
        spender=message.spender,
        cumulative=message.cumulative,
        count=message.count,
        receipts_head="0x" + message.receipts_head.hex(),
        signature="0x" + signature.hex(),
    )
