from __future__ import annotations

import json

import pytest

from parity_client import money
from parity_client.testing import FakeMarket, JumpClock
from parity_contracts.chain.calls import AddFunds, Allow, Approve, Faucet
from parity_contracts.chain.memory import MemoryChain
from parity_contracts.chain.sending import send
from parity_protocol.api.market import MarketDocument
from parity_protocol.errors import ChainUnavailable, ConfigInvalid, Unprocessable
from parity_protocol.signing.keys import EvmKey

TOKEN = 10**18


@pytest.fixture
def chain() -> MemoryChain:
    return MemoryChain(JumpClock())


async def test_a_deposit_is_approved_for_exactly_its_amount(chain: MemoryChain, key: EvmKey) -> None:
    await send(chain, [Faucet(key.address, 5 * TOKEN)], key, clock=JumpClock())
    call = AddFunds(3 * TOKEN, key.address, key.address)

    calls = money.approval_before(call, (await chain.holdings(key.address)).allowance)
    await money.send(chain, calls, key, clock=JumpClock())

    assert calls == (Approve(3 * TOKEN), call)
    assert (await chain.account(key.address)).credit == 3 * TOKEN
    assert (await chain.holdings(key.address)).allowance == 0


def test_an_allowance_that_is_enough_is_used(key: EvmKey) -> None:
    call = AddFunds(3, key.address, key.address)

    assert money.approval_before(call, 3) == (call,)
    assert money.spent_by(Allow(key.address, key.address, 3)) == 0


async def test_a_preview_sums_the_fees_and_sends_nothing(chain: MemoryChain, key: EvmKey) -> None:
    await send(chain, [Faucet(key.address, 5 * TOKEN)], key, clock=JumpClock())
    before = await chain.head()
    calls = money.approval_before(AddFunds(TOKEN, key.address, key.address), 0)

    found = await money.preview(chain, calls, key.address)

    assert found.max_fee_wei == sum(found.gas) * found.quote.max_fee_per_gas > 0
    assert found.quote.holdings.tokens == 5 * TOKEN
    assert await chain.head() == before


async def test_too_few_tokens_are_told_in_whole_tokens(chain: MemoryChain, key: EvmKey) -> None:
    with pytest.raises(Unprocessable, match=r"needs 1\.5 PDEV, 0x\w+ has 0") as caught:
        await money.preview(chain, [AddFunds(3 * TOKEN // 2, key.address, key.address)], key.address)

    assert "faucet" in caught.value.hint()


async def test_a_chain_without_an_address_is_a_question_of_settings() -> None:
    document = MarketDocument.model_validate_json(json.dumps(FakeMarket().document(rpc_hint="")))

    with pytest.raises(ConfigInvalid, match="BLOCKCHAIN_RPC"):
        await money.connect(document)


@pytest.mark.parametrize(
    ("url", "shown", "hint"),
    [
        ("http://127.0.0.1:8545", "http://127.0.0.1:8545", "ssh -N -L"),
        ("https://me:pw@rpc.example:9/v3/secret?key=secret", "https://rpc.example:9", "--rpc"),
    ],
)
async def test_a_chain_that_does_not_answer_is_named_without_its_secrets(
    monkeypatch: pytest.MonkeyPatch, url: str, shown: str, hint: str
) -> None:
    async def refuse(*_: object, **__: object) -> None:
        raise ChainUnavailable("the chain does not answer: refused")

    monkeypatch.setattr("parity_contracts.deploy.discover", refuse)
    document = MarketDocument.model_validate_json(json.dumps(FakeMarket().document()))

    with pytest.raises(ChainUnavailable) as caught:
        await money.connect(document, url)

    assert f"the chain at {shown} cannot be used" in caught.value.message
    assert hint in caught.value.hint()
    assert "secret" not in str(caught.value) + caught.value.hint()
    assert "pw" not in str(caught.value)
