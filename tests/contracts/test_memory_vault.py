"""The vault in memory agrees with the compiled contract, call by call."""

from __future__ import annotations

import random
from typing import Any

import pytest
from eth_abi.abi import decode, encode

from parity_contracts import artifacts
from parity_contracts.chain import calls
from parity_contracts.chain.calls import AddFunds, Approve, Call, Faucet
from parity_contracts.chain.encoding import sign
from parity_contracts.chain.memory_vault import Escrow, MemoryVault
from parity_contracts.chain.refusals import refusal
from parity_contracts.chain.web3_chain import known_errors
from parity_contracts.deployment import Deployment
from parity_contracts.devnet.ledger import CallRequest, Genesis, Ledger, created_address
from parity_contracts.reverts import decode_revert
from parity_protocol.errors import ParityError
from parity_protocol.ids import Address
from parity_protocol.receipt import Voucher
from parity_protocol.signing.eip712 import Eip712Domain, VoucherMessage, account_key, sign_voucher
from parity_protocol.signing.keys import EvmKey
from parity_protocol.testing.keys import deterministic_evm_key

UNBONDING_S = 10
START = 1_700_000_000
ACTORS = tuple(deterministic_evm_key(name) for name in ("alice", "bob", "carol"))
SPENDER = ACTORS[2]
IDS = ("ab" * 32, ACTORS[0].address, ACTORS[1].address.upper().replace("0X", "0x"), "")
ERRORS = known_errors()


class Contract:
    """The compiled contracts on py-evm, with blocks at any time."""

    def __init__(self) -> None:
        self.ledger = Ledger(Genesis(31337, START, b"s" * 32, bytes.fromhex(ACTORS[0].address[2:])))
        self.nonces = {key.address: 0 for key in ACTORS}
        token = self._send(ACTORS[0], None, artifacts.load("DevToken").bytecode, START + 1)
        vault_code = artifacts.load("StakeVault")
        made_with = encode(vault_code.constructor, ("0x" + token.hex(), UNBONDING_S, ACTORS[0].address))
        vault = self._send(ACTORS[0], None, vault_code.bytecode + made_with, START + 2)
        for key in ACTORS[1:]:
            self._send(ACTORS[0], Address(key.address), b"", START + 3, value=10**24)
        self.deployment = Deployment(
            31337, "0x" + self.ledger.genesis_hash.hex(), Address("0x" + token.hex()), Address("0x" + vault.hex()),
            UNBONDING_S, "PDEV", 18,
        )  # fmt: skip

    def _send(self, key: EvmKey, to: Address | None, payload: bytes, now: int, *, value: int = 0) -> bytes:
        nonce = self.nonces[key.address]
        self.nonces[key.address] += 1
        raw = sign(
            key, chain_id=31337, nonce=nonce, gas=5_000_000, to=to, payload="0x" + payload.hex(), value=value,
            max_fee_per_gas=4 * 10**9, max_priority_fee_per_gas=1,
        ).raw  # fmt: skip
        sealed, refused = self.ledger.seal([self.ledger.decode(raw)], max(now, self.ledger.head.timestamp + 1))
        assert refused == []
        self.ledger.adopt(sealed)
        return created_address(bytes.fromhex(key.address[2:]), nonce)

    def apply(self, call: Call, key: EvmKey, now: int) -> tuple[int, str | None]:
        """Mine a call; returns the block's time, and why it was refused (empty if only the block's time decides)."""
        name, values, is_token = calls.arguments(call, self.deployment.vault)
        artifact = artifacts.load("DevToken" if is_token else "StakeVault")
        to = self.deployment.token if is_token else self.deployment.vault
        payload = artifact.functions[name].selector + encode(artifact.functions[name].inputs, values)
        request = CallRequest(bytes.fromhex(key.address[2:]), bytes.fromhex(to[2:]), payload, 0, 5_000_000)
        before = self.ledger.call(request, self.ledger.head.block_number)
        self._send(key, to, payload, now)
        sealed = self.ledger.block(self.ledger.head.block_number)
        if sealed.receipts[0].state_root == b"\x01":
            return int(sealed.header.timestamp), None
        words = refusal(decode_revert(before.output, ERRORS)).message if before.error else ""
        return int(sealed.header.timestamp), words

    def read(self, name: str, *values: Any) -> tuple[Any, ...]:
        function = artifacts.load("StakeVault").functions[name]
        vault = bytes.fromhex(self.deployment.vault[2:])
        request = CallRequest(bytes(20), vault, function.selector + encode(function.inputs, values), 0, 5_000_000)
        return decode(function.outputs, self.ledger.call(request, self.ledger.head.block_number).output)


def voucher(deployment: Deployment, creator: str, solver: str, cumulative: int, signer: EvmKey) -> Voucher:
    message = VoucherMessage(account_key(creator), account_key(solver), SPENDER.address, cumulative, 1, bytes(32))
    domain = Eip712Domain.stake_vault(deployment.chain_id, deployment.vault)
    return Voucher(
        creator="0x" + message.creator.hex(), solver="0x" + message.solver.hex(), spender=SPENDER.address,
        cumulative=cumulative, count=1, receipts_head="0x" + "00" * 32,
        signature="0x" + sign_voucher(domain, message, signer).hex(),
    )  # fmt: skip


def one_step(rng: random.Random, deployment: Deployment) -> Call:
    """Return any call, with values that are right about half of the time."""
    amount = rng.choice([0, 1, 2, 5, 40, 10**9])
    account, other = rng.choice(IDS), rng.choice(IDS)
    address = rng.choice([*(key.address for key in ACTORS), Address("0x" + "0" * 40)])
    spender = rng.choice([SPENDER.address, SPENDER.address, Address("0x" + "0" * 40)])
    signer = rng.choice(ACTORS[1:])
    redeem = [voucher(deployment, rng.choice(IDS), rng.choice(IDS), amount, signer) for _ in range(2)]
    choices: list[Call] = [
        Approve(rng.choice([3, 10**6])),
        Faucet(address, rng.choice([7, 2 * 10**24])) if int(address, 16) else Approve(10),
        calls.Stake(amount, account, address, rng.choice([None, address, ACTORS[1].address])),
        calls.Stake(amount, IDS[0], ACTORS[0].address),
        AddFunds(amount, account, address),
        AddFunds(amount, other, ACTORS[0].address),
        calls.Allow(account, spender, amount),
        calls.Allow(IDS[0], SPENDER.address, amount),
        calls.RequestUnstake(account, amount),
        calls.CancelUnstake(account),
        calls.Withdraw(account, amount),
        calls.SetOperator(account, rng.choice([None, address])),
        calls.SetPayout(account, address),
        calls.RequestRelease(account, SPENDER.address, amount),
        calls.CancelRelease(account, SPENDER.address),
        calls.FinishRelease(account, SPENDER.address),
        calls.Redeem((*redeem, voucher(deployment, IDS[0], other, amount, SPENDER))),
        # What has to meet other steps to matter comes more often.
        calls.Stake(3, IDS[0], ACTORS[0].address, ACTORS[rng.randrange(3)].address),
        calls.RequestRelease(IDS[0], SPENDER.address, rng.randrange(1, 60)),
        calls.FinishRelease(IDS[0], SPENDER.address),
        calls.Redeem((voucher(deployment, IDS[0], IDS[0], rng.randrange(1, 300), SPENDER),)),
        calls.Withdraw(IDS[0], rng.randrange(1, 50)),
        calls.RequestUnstake(IDS[0], rng.randrange(1, 5)),
    ]
    return rng.choice(choices)


@pytest.mark.parametrize("seed", range(5))
def test_the_memory_vault_agrees_with_the_contract_on_any_story(seed: int) -> None:
    rng = random.Random(seed)
    contract = Contract()
    vault = MemoryVault(contract.deployment)
    now = START + 10
    opening: list[tuple[EvmKey, Call]] = []
    for key in ACTORS:
        opening += [(key, Faucet(key.address, 1000)), (key, Approve(500))]
    opening += [
        (ACTORS[0], AddFunds(100, IDS[0], ACTORS[0].address)),
        (ACTORS[0], calls.Allow(IDS[0], SPENDER.address, 50)),
    ]
    # Every story begins by paying out of an escrow that is partly on its way back.
    opening += [
        (ACTORS[0], calls.RequestRelease(IDS[0], SPENDER.address, 40)),
        (ACTORS[1], calls.Redeem((voucher(contract.deployment, IDS[0], IDS[0], 30, SPENDER),))),
    ]
    script = opening + [(rng.choice([ACTORS[0], *ACTORS]), one_step(rng, contract.deployment)) for _ in range(120)]
    succeeded = set()

    for key, call in script:
        now += rng.choice([1, 6, 20])
        at, refused = contract.apply(call, key, now)
        after = vault.snapshot()
        words = None
        try:
            after.apply(call, key.address, at)
            vault = after
            succeeded.add(type(call))
        except ParityError as exc:
            words = str(exc)
        assert (words is None) == (refused is None), f"{call}: chain {refused!r}, memory {words!r}"
        assert refused in (words, ""), call
        if isinstance(call, calls.Redeem):
            held = vault.escrows[account_key(IDS[0]), SPENDER.address]
            assert (held.releasing, held.ready_at) == contract.read("releaseOf", IDS[0], SPENDER.address)

    assert len(succeeded) >= 6, "a story in which little happens proves little"
    zero = "0x" + "0" * 40
    for account_id in IDS:
        key_hash = account_key(account_id)
        [(owner, credit, payout, bond, operator, unbonding, ready_at)] = contract.read("accountOf", key_hash)
        found = vault.accounts.get(key_hash)
        mine = (
            (found.owner, found.credit, found.payout, found.bond, found.operator, found.unbonding)
            if found
            else (zero, 0, zero, 0, zero, 0)
        )
        assert mine == (owner, credit, payout, bond, operator, unbonding)
        if unbonding and found:
            assert found.ready_at == ready_at
        escrow = vault.escrows.get((key_hash, SPENDER.address), Escrow())
        assert (escrow.amount,) == contract.read("escrowOf", account_id, SPENDER.address)
        for solver in IDS:
            place = (key_hash, SPENDER.address, account_key(solver))
            assert (vault.paid.get(place, 0),) == contract.read("paid", *place)
