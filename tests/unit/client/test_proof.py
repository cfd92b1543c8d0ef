from __future__ import annotations

from typing import Any

import pytest

from parity_client import Client, verify_proof
from parity_client.testing import FakeMarket
from parity_protocol.api.tasks import ProofReply
from parity_protocol.errors import BadSignature, DigestMismatch, NotFound, ParityError, WrongAudience
from parity_protocol.ids import Address
from parity_protocol.signing.eip712 import Eip712Domain
from parity_protocol.testing.keys import deterministic_ed25519, deterministic_evm_key

HELLO = {"type": "command", "command": ["echo", "hello"]}


@pytest.fixture
async def proof(client: Client, market: FakeMarket) -> ProofReply:
    async with client:
        submission = await client.submit(HELLO, reward="0.1")
        await submission.result()
        return await client.proof(submission.id)


async def test_a_proof_holds_without_asking_anybody(market: FakeMarket, proof: ProofReply) -> None:
    asked = len(market.requests)

    verified = verify_proof(proof, domain=market.domain, market=market.join.market, operator=market.operator.address)

    assert (verified.node_id, verified.operator) == (market.node_id, market.operator.address)
    assert verified.result_cid == proof.result_cid
    assert verified.usage.wall_ms == 12
    assert len(market.requests) == asked


@pytest.mark.parametrize(
    ("part", "change", "expected"),
    [
        ("", {"task_id": "00000000-0000-4000-8000-000000000009"}, DigestMismatch),
        ("", {"fence": 2}, DigestMismatch),
        ("", {"node_id": "0" * 64}, DigestMismatch),
        ("", {"manifest_hash": "0x" + "22" * 32}, DigestMismatch),
        ("", {"result_cid": "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku"}, DigestMismatch),
        ("", {"spec": '{"type":"command","command":["rm"]}'}, DigestMismatch),
        ("", {"operator": "0x" + "dd" * 20}, BadSignature),
        ("order", {"max_reward": "1"}, BadSignature),
        ("order", {"creator": "0x" + "dd" * 20}, BadSignature),
        ("order", {"market": "0x" + "22" * 32}, WrongAudience),
        ("receipt", {"finished_at": 1}, BadSignature),
        ("receipt", {"usage": {"wall_ms": 13}}, BadSignature),
    ],
)
async def test_a_proof_that_was_changed_is_refused(
    market: FakeMarket, proof: ProofReply, part: str, change: dict[str, Any], expected: type[ParityError]
) -> None:
    document = proof.model_dump(mode="json")
    (document[part] if part else document).update(change)

    with pytest.raises(expected):
        verify_proof(ProofReply.model_validate(document), domain=market.domain, market=market.join.market)


async def test_a_proof_for_another_market_chain_or_operator_is_refused(market: FakeMarket, proof: ProofReply) -> None:
    other_market = deterministic_ed25519("other").public_key.thumbprint()
    other_vault = Eip712Domain.market(31337, Address("0x" + "ee" * 20))

    with pytest.raises(WrongAudience):
        verify_proof(proof, domain=market.domain, market=other_market)
    with pytest.raises(BadSignature):
        verify_proof(proof, domain=other_vault, market=market.join.market)
    with pytest.raises(BadSignature, match="the chain names"):
        verify_proof(
            proof,
            domain=market.domain,
            market=market.join.market,
            operator=deterministic_evm_key("impostor").address,
        )


async def test_a_proof_of_another_task_than_was_asked_for_is_refused(client: Client, market: FakeMarket) -> None:
    async with client:
        first, second = [await client.submit(HELLO, reward="0.1") for _ in range(2)]
        for each in (first, second):
            await each.result()
        assert len(await first.receipts()) == 1
        market.tasks[first.id] = market.tasks[second.id]

        with pytest.raises(DigestMismatch, match=first.id):
            await client.proof(first.id)


async def test_there_is_no_proof_before_the_end(client: Client, market: FakeMarket) -> None:
    async with client:
        submission = await client.submit(HELLO, reward="0.1")
        with pytest.raises(NotFound):
            await client.proof(submission.id)
