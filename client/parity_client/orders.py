"""Making an order: the submitter's signed consent to pay at most so much, for exactly this spec, at this market."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, TypeAlias

from parity_blobs.spec_cids import cids_of_spec
from parity_protocol.api.tasks import SubmitRequest
from parity_protocol.errors import BadField
from parity_protocol.join import TrustedMarket
from parity_protocol.needs import CidInput, HttpsInput, ShardInput
from parity_protocol.order import Order, spec_hash
from parity_protocol.quantities import TokenAmount, parse_tokens
from parity_protocol.shards import SALT_BYTES, seal_shard, shard_digest
from parity_protocol.signing import jws
from parity_protocol.signing.eip712 import Eip712Domain, OrderMessage, sign_order
from parity_protocol.signing.keys import EvmKey
from parity_protocol.task import parse_spec

__all__ = [
    "DEFAULT_VALIDITY",
    "Source",
    "amount_of",
    "make_submission",
    "market_domain",
    "sharded_spec",
    "spec_and_shards",
    "spec_text",
]

Source: TypeAlias = CidInput | HttpsInput | ShardInput
"""Where one part's data lie."""

DEFAULT_VALIDITY = timedelta(days=1)  # in which a lease may start


def market_domain(market: TrustedMarket) -> Eip712Domain:
    """Return the EIP-712 domain of the market's orders and receipts."""
    chain = market.document.chain
    return Eip712Domain.market(chain.chain_id, chain.vault)


def spec_text(spec: Mapping[str, Any] | str) -> str:
    """Return the exact text that is signed; a text stays as it is.

    Raises:
        InvalidInput: It is not a spec; ``field`` names what is wrong.
    """
    if isinstance(spec, str):
        text = spec
    else:
        try:
            text = json.dumps(spec, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        except (TypeError, ValueError, RecursionError) as exc:
            raise BadField(f"spec: {exc}", field="spec") from exc
    cids_of_spec(parse_spec(text))
    return text


def amount_of(amount: str | TokenAmount, *, decimals: int) -> TokenAmount:
    """Return base units: a text counts whole tokens (``"0.5"``), an int base units.

    Raises:
        BadField: Not an amount.
    """
    if isinstance(amount, bool) or not isinstance(amount, str | int):
        raise BadField(
            f"an amount is a text of whole tokens such as '0.5', or an int of base units, got {type(amount).__name__}",
            field="reward",
        )
    return parse_tokens(amount, decimals=decimals if isinstance(amount, str) else 0)


def make_submission(
    key: EvmKey,
    text: str,
    reward: TokenAmount,
    *,
    market: TrustedMarket,
    now: datetime,
    max_reward: TokenAmount | None = None,
    valid_for: timedelta = DEFAULT_VALIDITY,
    nonce: bytes | None = None,
    shards: Sequence[str] = (),
) -> SubmitRequest:
    """Return a signed submission; sending it twice makes one task.

    Args:
        text: The spec, from ``spec_text``.
        reward: Base units for everything that the spec becomes.
        max_reward: What the order allows; None allows exactly ``reward``.
        nonce: 32 random bytes; None draws them.
        shards: Of a sharded session: each part's sealed source, whose hash ``text`` holds.

    Raises:
        BadField: ``max_reward`` is below ``reward``, or the validity is not above zero.
    """
    most = reward if max_reward is None else max_reward
    if most < reward:
        raise BadField(f"max_reward is {most} base units, below the reward of {reward}", field="max_reward")
    if valid_for <= timedelta(0):
        raise BadField("an order is valid for more than 0 s", field="valid_for")
    message = OrderMessage(
        creator=key.address,
        spec_hash=spec_hash(text),
        max_reward=most,
        market=jws.thumbprint_bytes(market.thumbprint),
        deadline=int((now + valid_for).timestamp()),
        nonce=nonce if nonce is not None else secrets.token_bytes(32),
    )
    signature = sign_order(market_domain(market), message, key)
    order = Order(
        creator=message.creator,
        spec_hash="0x" + message.spec_hash.hex(),
        max_reward=message.max_reward,
        market="0x" + message.market.hex(),
        deadline=message.deadline,
        nonce="0x" + message.nonce.hex(),
        signature="0x" + signature.hex(),
    )
    return SubmitRequest(spec=text, order=order, reward=reward, shards=tuple(shards))


def sharded_spec(spec: Mapping[str, Any], sources: Sequence[Source]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the spec of a sharded session, and each part's sealed source.

    The spec holds hashes only, salted with fresh random bytes: nobody who reads it learns where a part's data lie.

    Args:
        spec: Of a federated session, without data.
        sources: One of each part, in part order.

    Raises:
        BadField: The spec names data of its own, or there are no sources.
    """
    if not sources:
        raise BadField("a sharded session names the source of each part", field="shards")
    given = sorted({"dataset_cid", "shards"} & {name for name, value in spec.items() if value})
    if given:
        raise BadField(f"a sharded session has no {given[0]} of its own: its parts have sources", field=given[0])
    sealed = tuple(seal_shard(source, secrets.token_bytes(SALT_BYTES)) for source in sources)
    return {**spec, "data_mode": "sharded", "shards": [shard_digest(text) for text in sealed]}, sealed


def spec_and_shards(spec: Mapping[str, Any] | str, sources: Sequence[Source]) -> tuple[str, tuple[str, ...]]:
    """Return the text to sign, and each part's sealed source; without ``sources`` there are none.

    Raises:
        InvalidInput: As ``spec_text`` and ``sharded_spec``; or the spec of shards is a text already.
    """
    if not sources:
        return spec_text(spec), ()
    if isinstance(spec, str):
        raise BadField("shards need a spec that is not a text yet: their hashes are put into it", field="spec")
    members, sealed = sharded_spec(spec, sources)
    return spec_text(members), sealed
