"""The submitter's signed consent to pay: what for, how much at most, at which market, until when."""

from __future__ import annotations

from datetime import UTC, datetime
from hashlib import sha256

from pydantic import Field

from parity_protocol.errors import BadSignature, DigestMismatch, Expired, PolicyDenied, WrongAudience
from parity_protocol.ids import Address, WireAddress, WireBytes32
from parity_protocol.quantities import TokenAmount, WireTokenAmount
from parity_protocol.signing.eip712 import Eip712Domain, OrderMessage, order_digest, recover_order
from parity_protocol.wire import SignedDocument

__all__ = ["Order", "check_order", "spec_hash"]


class Order(SignedDocument):
    """EIP-712 ``Order`` as it travels; ``signature`` is the creator's over the market domain."""

    creator: WireAddress
    spec_hash: WireBytes32
    max_reward: WireTokenAmount
    market: WireBytes32
    deadline: int = Field(ge=0, lt=2**63, description="unix seconds after which no lease may start")
    nonce: WireBytes32
    signature: str = Field(pattern=r"^0x[0-9a-f]{130}$", max_length=132)

    def message(self) -> OrderMessage:
        """Return the typed message that the signature covers."""
        return OrderMessage(
            creator=self.creator,
            spec_hash=bytes.fromhex(self.spec_hash[2:]),
            max_reward=self.max_reward,
            market=bytes.fromhex(self.market[2:]),
            deadline=self.deadline,
            nonce=bytes.fromhex(self.nonce[2:]),
        )

    def digest(self, domain: Eip712Domain) -> bytes:
        """Return the EIP-712 digest, 32 bytes: the order's hash in receipts."""
        return order_digest(domain, self.message())


def spec_hash(spec_text: str) -> bytes:
    """Return the hash of a spec's exact text that an order carries, 32 bytes."""
    return sha256(spec_text.encode()).digest()


def check_order(
    order: Order, spec_text: str, reward: TokenAmount, *, domain: Eip712Domain, market: bytes, now: datetime
) -> Address:
    """Return the creator who signed ``order`` for exactly this spec, market and at least this reward.

    The node calls it on what a manifest carries, so that a market cannot invent work on somebody's money; the market
    calls it at submission.

    Args:
        market: The market identity's thumbprint, 32 bytes.
        reward: Base units for everything the order covers.
        now: Current time, UTC.

    Raises:
        BadSignature: The signer is not the creator.
        DigestMismatch: The spec is not the one that was signed.
        WrongAudience: The order is for another market.
        Expired: The deadline has passed.
        PolicyDenied: The reward is above what the creator agreed to.
    """
    if order.spec_hash != "0x" + spec_hash(spec_text).hex():
        raise DigestMismatch(
            f"the order signs a spec with hash {order.spec_hash}, this one has 0x{spec_hash(spec_text).hex()}"
        )
    if order.market != "0x" + market.hex():
        raise WrongAudience(f"the order is for market {order.market}, this is 0x{market.hex()}")
    if now.astimezone(UTC).timestamp() > order.deadline:
        raise Expired(f"the order's deadline {order.deadline} has passed")
    if reward > order.max_reward:
        raise PolicyDenied(f"the order allows {order.max_reward} base units, the reward is {reward}")
    signer = recover_order(domain, order.message(), bytes.fromhex(order.signature[2:]))
    if signer != order.creator:
        raise BadSignature(f"the order names {order.creator} as its creator, but {signer} signed it")
    return signer
