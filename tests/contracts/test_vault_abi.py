"""What programs outside of this repository rely on: selectors, topics, and the digest that spenders sign."""

from __future__ import annotations

from typing import Any

import pytest

from parity_protocol.ids import Address
from parity_protocol.signing.eip712 import Eip712Domain, VoucherMessage, account_key, sign_voucher, voucher_digest
from parity_protocol.signing.keccak import keccak256
from parity_protocol.signing.keys import EvmKey

CHAIN_ID = 31337
OWNER = "0x" + "a1" * 20
SUBMITTER = "0x" + "c1" * 20
ADMIN = "0x" + "ad" * 20
ZERO = "0x" + "00" * 20
NODE = "6e2f5b6d4f0e6a3b1c9d8e7f60718293a4b5c6d7e8f90123456789abcdef0123"
SPENDER = EvmKey(bytes([7]) * 32)


@pytest.fixture
def token(evm: Any) -> Any:
    token = evm.deploy("DevToken")
    for holder in (OWNER, SUBMITTER):
        token("faucet", holder, 10**20)
    return token


@pytest.fixture
def vault(evm: Any, token: Any) -> Any:
    vault = evm.deploy("StakeVault", token.address, 1000, ADMIN)
    for holder in (OWNER, SUBMITTER):
        token("approve", vault.address, 2**256 - 1, sender=holder)
    return vault


def signature_of(entry: dict[str, Any]) -> str:
    return f"{entry['name']}({','.join(i['type'] for i in entry['inputs'])})"


@pytest.mark.parametrize(
    ("function", "selector"),
    [
        ("addFunds", "9360b1e3"),
        ("withdrawFunds", "9769b439"),
        ("updateWalletAddress", "d369be73"),
        ("getWalletInfo", "13c6bbfb"),
        ("getBalance", "3a51d246"),
        ("token", "fc0c546a"),
        ("recoverTokens", "069c9fae"),
    ],
)
def test_older_programs_find_the_functions_they_call(vault: Any, function: str, selector: str) -> None:
    assert keccak256(signature_of(vault.functions[function]).encode())[:4].hex() == selector


@pytest.mark.parametrize(
    ("event", "topic"),
    [
        ("FundsAdded", "638d080340ef92be09fcea1c0d842ca1c8faa43b2107e345738baae64faed80a"),
        ("FundsWithdrawn", "04f1cd9c278166a000e1b082998f5bdbdf1b11c193aafbd7d1a90a0c9093a2ec"),
        ("TokenRecovered", "4590b594be6fdef6bd5e18792a2494ddf2156b618c7bbe48d13a92831208af05"),
    ],
)
def test_older_programs_find_the_events_they_listen_for(vault: Any, event: str, topic: str) -> None:
    entry = next(e for e in vault.abi if e["type"] == "event" and e["name"] == event)

    assert keccak256(signature_of(entry).encode()).hex() == topic


def test_vault_has_no_function_that_moves_anothers_money(vault: Any) -> None:
    """What changes state is this list; a new entry has to be thought about here and in the thefts."""
    writes = {name for name, entry in vault.functions.items() if entry["stateMutability"] not in ("view", "pure")}

    assert writes == {
        *("stake", "addFunds", "requestUnstake", "cancelUnstake", "withdrawFunds"),
        *("allow", "requestRelease", "cancelRelease", "finishRelease", "redeem"),
        *("updateWalletAddress", "setOperator", "setOwner", "pauseDeposits", "recoverTokens"),
    }


def test_no_function_takes_the_chains_own_money(vault: Any) -> None:
    assert not [e for e in vault.abi if e.get("stateMutability") == "payable" or e["type"] in ("receive", "fallback")]


def test_protocol_and_vault_hash_a_voucher_alike(vault: Any) -> None:
    message = VoucherMessage(
        account_key(SUBMITTER), account_key(NODE), SPENDER.address, 2**200 + 5, 2**63 - 1, bytes(range(32))
    )
    domain = Eip712Domain.stake_vault(CHAIN_ID, Address(vault.address))

    digest = vault(
        "voucherDigest",
        (
            message.creator,
            message.solver,
            message.spender,
            message.cumulative,
            message.count,
            message.receipts_head,
        ),
    )

    assert digest == voucher_digest(domain, message)


def test_voucher_signed_by_the_protocol_is_paid(vault: Any) -> None:
    vault("stake", 1, NODE, OWNER, ZERO, sender=OWNER)
    vault("addFunds", 100, SUBMITTER, SUBMITTER, sender=SUBMITTER)
    vault("allow", SUBMITTER, SPENDER.address, 60, sender=SUBMITTER)
    message = VoucherMessage(account_key(SUBMITTER), account_key(NODE), SPENDER.address, 25, 1, bytes(32))
    domain = Eip712Domain.stake_vault(CHAIN_ID, Address(vault.address))

    voucher = (message.creator, message.solver, message.spender, 25, 1, bytes(32))
    vault("redeem", [voucher], [sign_voucher(domain, message, SPENDER)])

    assert vault("creditOf", NODE) == 25
    assert vault("escrowOf", SUBMITTER, SPENDER.address) == 35


def test_refusal_carries_the_number_that_explains_it(evm: Any, vault: Any, reverted: type[Exception]) -> None:
    vault("stake", 10, NODE, OWNER, ZERO, sender=OWNER)
    vault("requestUnstake", NODE, 4, sender=OWNER)

    with pytest.raises(reverted) as caught:
        vault("withdrawFunds", NODE, 4, sender=OWNER)

    assert caught.value.args == ("Locked", (evm.now + 1000,))
