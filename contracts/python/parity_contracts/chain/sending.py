"""Send calls and wait for them: what a command does; a market journals between the steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from parity_contracts.chain.base import Chain, Holdings, PreparedTx, TxReceipt
from parity_contracts.chain.calls import AddFunds, Approve, Call, Stake, gas_ceiling
from parity_protocol.clock import Clock
from parity_protocol.errors import ChainUnavailable, Unprocessable
from parity_protocol.ids import Address
from parity_protocol.quantities import TokenAmount
from parity_protocol.signing.keys import EvmKey

__all__ = ["Preview", "preview", "send", "wait_for", "with_approval"]

_POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class Preview:
    """What a list of calls would cost, before anything is sent.

    Attributes:
        gas: Gas limit of each call; the first is estimated, the others are what surely is enough.
        max_cost_wei: The most that all can cost in fees.
        deposit: Base units that the calls move from the sender into the vault.
        holdings: Of the sender, now.
    """

    calls: tuple[Call, ...]
    gas: tuple[int, ...]
    max_fee_per_gas: int
    max_cost_wei: int
    deposit: TokenAmount
    holdings: Holdings

    @property
    def missing_wei(self) -> int:
        """What the sender lacks for the fees."""
        return max(0, self.max_cost_wei - self.holdings.wei)

    @property
    def missing_tokens(self) -> TokenAmount:
        """What the sender lacks for the deposits."""
        return max(0, self.deposit - self.holdings.tokens)


async def with_approval(chain: Chain, call: Stake | AddFunds, sender: Address) -> list[Call]:
    """Return ``call`` with the approval before it that the vault needs to pull its amount, if one is missing."""
    holdings = await chain.holdings(sender)
    return [call] if holdings.allowance >= call.amount else [Approve(call.amount), call]


async def preview(chain: Chain, calls: Sequence[Call], sender: Address) -> Preview:
    """Return what ``calls``, sent in order, would cost.

    Raises:
        ParityError: What the contract would refuse the first call with, or ChainUnavailable.
    """
    quote = await chain.quote(calls[0], sender)
    gas = (quote.gas, *(gas_ceiling(call) for call in calls[1:]))
    return Preview(
        calls=tuple(calls),
        gas=gas,
        max_fee_per_gas=quote.max_fee_per_gas,
        max_cost_wei=sum(gas) * quote.max_fee_per_gas,
        deposit=sum(call.amount for call in calls if isinstance(call, Stake | AddFunds)),
        holdings=quote.holdings,
    )


async def send(
    chain: Chain, calls: Sequence[Call], key: EvmKey, *, clock: Clock, timeout_s: float = 60.0
) -> list[TxReceipt]:
    """Send calls in order, in one block where it takes them, and wait until all are mined.

    Only the first is estimated, so that it is refused before anything is sent; the others may need what it does and
    go out with a fixed gas limit.

    Args:
        timeout_s: For all of them to be mined.

    Raises:
        Unprocessable: One was mined and failed; the ones before it count.
        ChainUnavailable: Not all were mined in time. They may still be.
    """
    prepared: list[PreparedTx] = []
    for call in calls:
        nonce = prepared[0].nonce + len(prepared) if prepared else None
        prepared.append(await chain.prepare(call, key, nonce=nonce, gas=gas_ceiling(call) if prepared else None))
    for tx in prepared:
        await chain.broadcast(tx.raw)
    receipts = []
    deadline = clock.monotonic() + timeout_s
    for call, tx in zip(calls, prepared, strict=True):
        receipt = await wait_for(chain, tx.tx_hash, clock=clock, timeout_s=deadline - clock.monotonic())
        if not receipt.succeeded:
            raise Unprocessable(f"the transaction {tx.tx_hash} ({type(call).__name__}) was mined and failed")
        receipts.append(receipt)
    return receipts


async def wait_for(
    chain: Chain, tx_hash: str, *, clock: Clock, timeout_s: float = 60.0, confirmations: int = 1
) -> TxReceipt:
    """Return a transaction's receipt once it has the confirmations.

    Raises:
        ChainUnavailable: It did not in time.
    """
    deadline = clock.monotonic() + timeout_s
    while True:
        receipt = await chain.receipt(tx_hash)
        if receipt is not None and receipt.confirmations >= confirmations:
            return receipt
        if clock.monotonic() >= deadline:
            raise ChainUnavailable(f"the transaction {tx_hash} was not mined within {timeout_s:g} s")
        await clock.sleep(_POLL_S)
