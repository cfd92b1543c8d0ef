"""A submitter's money on chain: what to call for a deposit, an escrow or a release. Sending is the caller's.

The chain is the one that the market's pinned document names; nothing is signed for another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from parity_protocol.api.market import MarketDocument
from parity_protocol.clock import Clock, SystemClock
from parity_protocol.errors import ChainUnavailable, ConfigInvalid, Unprocessable
from parity_protocol.ids import Address
from parity_protocol.join import is_loopback
from parity_protocol.quantities import TokenAmount, format_tokens
from parity_protocol.signing.keys import EvmKey

if TYPE_CHECKING:
    from parity_contracts.chain.base import Chain, Quote, TxReceipt
    from parity_contracts.chain.calls import Call
    from parity_contracts.chain.web3_chain import Web3Chain

__all__ = ["Preview", "approval_before", "connect", "preview", "send", "spent_by"]


@dataclass(frozen=True, slots=True)
class Preview:
    """What a list of calls would cost at most, and what the sender has.

    Attributes:
        calls: In the order in which they are sent.
        gas: Limit of each; the first one's is estimated, the others' are fixed ceilings.
    """

    sender: Address
    calls: tuple[Call, ...]
    gas: tuple[int, ...]
    quote: Quote  # of the first call

    @property
    def max_fee_wei(self) -> int:
        """The most that all of them can cost in fees."""
        return sum(self.gas) * self.quote.max_fee_per_gas


async def connect(document: MarketDocument, rpc_url: str = "", *, timeout_s: float = 10.0) -> Web3Chain:
    """Connect to the chain that the market's document names; close it with ``aclose``.

    Args:
        rpc_url: The chain's endpoint; empty takes the market's hint.

    Raises:
        ConfigInvalid: No endpoint is known, or it is another chain.
        ChainUnavailable: It does not answer.
    """
    from parity_contracts.chain.web3_chain import Web3Chain
    from parity_contracts.deploy import discover

    url = rpc_url or document.rpc_hint
    if not url:
        raise ConfigInvalid(["BLOCKCHAIN_RPC is missing: the market names no endpoint of its chain"])
    try:
        found = await discover(url, document.chain.vault, timeout_s=timeout_s)
    except ChainUnavailable as exc:
        raise ChainUnavailable(f"the chain at {_place(url)} cannot be used: {exc.message}", hint=_hint(url)) from exc
    pinned = replace(
        found,
        chain_id=document.chain.chain_id,
        genesis_hash=document.chain.genesis,
        token=document.token,
        decimals=document.token_decimals,
    )
    return await Web3Chain.connect(url, pinned, timeout_s=timeout_s)


def _place(url: str) -> str:
    """Return the part of an endpoint's address that may be shown: paths and queries of such hold keys."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def _hint(url: str) -> str:
    if is_loopback(urlsplit(url).hostname or ""):
        return (
            "`parity chain serve` starts the embedded chain; if it runs on another machine, "
            "forward the port: ssh -N -L 8545:127.0.0.1:8545 MACHINE"
        )
    return "Check that it runs, and its address: BLOCKCHAIN_RPC for a node, `parity config use NAME --rpc URL` else."


def approval_before(call: Call, allowance: TokenAmount) -> tuple[Call, ...]:
    """Return ``call``, after an approval of exactly its amount when the vault may not pull that much yet."""
    from parity_contracts.chain.calls import Approve

    amount = spent_by(call)
    return (call,) if allowance >= amount else (Approve(amount), call)


def spent_by(call: Call) -> TokenAmount:
    """Return the tokens that a call takes from the sender's own balance, base units."""
    from parity_contracts.chain.calls import AddFunds, Stake

    return call.amount if isinstance(call, AddFunds | Stake) else 0


async def preview(chain: Chain, calls: Sequence[Call], sender: Address) -> Preview:
    """Return what ``calls`` would cost; nothing is sent.

    Raises:
        Unprocessable: The sender has too few tokens, or too little ether for the fees.
        ParityError: What the vault would refuse the first call with.
    """
    from parity_contracts.chain.calls import gas_ceiling

    deployment = chain.deployment
    holdings = await chain.holdings(sender)
    needed = sum(spent_by(call) for call in calls)
    if needed > holdings.tokens:
        have, need = (format_tokens(each, decimals=deployment.decimals) for each in (holdings.tokens, needed))
        raise Unprocessable(
            f"this needs {need} {deployment.symbol}, {sender} has {have}",
            hint=f"Send tokens to {sender}; on a development chain `parity wallet faucet --to {sender}` does.",
        )
    if holdings.wei == 0:
        raise Unprocessable(
            f"{sender} has no ether to pay fees with",
            hint=f"Send it some; on a development chain `parity wallet faucet --to {sender}` does.",
        )
    quote = await chain.quote(calls[0], sender)
    found = Preview(sender, tuple(calls), (quote.gas, *(gas_ceiling(call) for call in calls[1:])), quote)
    if found.max_fee_wei > holdings.wei:
        need, have = (format_tokens(each) for each in (found.max_fee_wei, holdings.wei))
        raise Unprocessable(
            f"the fees can cost up to {need} ether, {sender} has {have}", hint=f"Send ether to {sender}."
        )
    return found


async def send(chain: Chain, calls: Sequence[Call], key: EvmKey, *, clock: Clock | None = None) -> list[TxReceipt]:
    """Send calls in order and wait until all are mined; raises as ``parity_contracts.chain.sending.send``."""
    from parity_contracts.chain import sending

    return await sending.send(chain, calls, key, clock=clock or SystemClock())
