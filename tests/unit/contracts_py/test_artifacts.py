from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from eth_abi.abi import encode
from eth_utils.abi import event_abi_to_log_topic, function_abi_to_4byte_selector
from web3 import Web3

from parity_contracts import artifacts
from parity_contracts.chain import calls
from parity_contracts.deployment import Deployment
from parity_contracts.reverts import decode_revert, error_string
from parity_protocol.errors import BadField, ConfigInvalid, Internal
from parity_protocol.ids import Address

VAULT = artifacts.load("StakeVault")
HERE = Address("0x" + "11" * 20)
GOOD = Deployment(31337, "0x" + "ab" * 32, HERE, Address("0x" + "22" * 20), 60, "PDEV", 18)
EVERY_CALL: list[calls.Call] = [
    calls.Approve(2**256 - 1),
    calls.Stake(1, "id", HERE),
    calls.AddFunds(1, "id", HERE),
    calls.Allow("id", HERE, 1),
    calls.RequestUnstake("id", 1),
    calls.CancelUnstake("id"),
    calls.Withdraw("id", 1),
    calls.SetOperator("id", None),
    calls.SetPayout("id", HERE),
    calls.RequestRelease("id", HERE, 1),
    calls.CancelRelease("id", HERE),
    calls.FinishRelease("id", HERE),
    calls.Faucet(HERE, 1),
]


@pytest.mark.parametrize("name", ["StakeVault", "DevToken"])
def test_selectors_and_topics_are_those_of_eth_utils(name: str) -> None:
    artifact = artifacts.load(name)
    entries: list[Any] = list(artifact.abi)

    for entry in entries:
        if entry["type"] == "function":
            assert artifact.functions[entry["name"]].selector == function_abi_to_4byte_selector(entry)
        if entry["type"] == "event":
            assert artifact.events[event_abi_to_log_topic(entry)].name == entry["name"]
    assert len(artifact.functions) >= 10


def test_an_artifact_that_is_not_there_is_our_fault() -> None:
    with pytest.raises(Internal, match="Nowhere"):
        artifacts.load("Nowhere")


@pytest.mark.parametrize("call", EVERY_CALL, ids=lambda call: type(call).__name__)
def test_every_call_fits_a_function_of_the_contracts(call: calls.Call) -> None:
    name, values, is_token = calls.arguments(call, GOOD.vault)
    artifact = artifacts.load("DevToken" if is_token else "StakeVault")

    encoded = encode(artifact.functions[name].inputs, values)

    assert len(encoded) % 32 == 0
    assert calls.gas_ceiling(call) >= 80_000


@pytest.mark.parametrize("amount", [-1, 2**96])
def test_amounts_are_bounded_by_what_the_vault_stores(amount: int) -> None:
    with pytest.raises(BadField, match="base units"):
        calls.arguments(calls.Withdraw("id", amount), GOOD.vault)


def test_a_redeem_has_at_least_one_voucher_and_a_bounded_number() -> None:
    with pytest.raises(BadField, match="1 to 200"):
        calls.Redeem(())


# -- reverts -----------------------------------------------------------------------------------------------------


def reverted(name: str, kinds: list[str], values: list[Any]) -> bytes:
    return bytes(Web3.keccak(text=f"{name}({','.join(kinds)})")[:4]) + encode(kinds, values)


@pytest.mark.parametrize(
    ("data", "name", "words"),
    [
        (reverted("Insufficient", ["uint256"], [2**200]), "Insufficient", f"insufficient (available {2**200})"),
        (reverted("NotOwner", ["address"], [HERE]), "NotOwner", f"not owner (owner {HERE})"),
        (reverted("ZeroAmount", [], []), "ZeroAmount", "zero amount"),
        (reverted("Error", ["string"], ["no way"]), "Error", "no way"),
        (reverted("Panic", ["uint256"], [0x11]), "Panic", "arithmetic overflow or underflow"),
        (b"", "", "no reason was given"),
        (b"\x01\x02", "", "no reason was given"),
        (b"\x01\x02\x03\x04", "", "unknown error 0x01020304"),
        (reverted("Insufficient", ["uint256"], [1])[:20], "Insufficient", "insufficient"),
        (bytes.fromhex("08c379a0") + b"\xff" * 64, "", "unknown error 0x08c379a0"),
    ],
)
def test_a_revert_is_said_in_words(data: bytes, name: str, words: str) -> None:
    found = decode_revert(data, VAULT.errors)

    assert (found.name, found.message) == (name, words)


def test_a_reason_is_cut_to_a_bounded_length() -> None:
    assert len(error_string(reverted("Error", ["string"], ["x" * 10_000])) or "") == 500


# -- the deployment file -----------------------------------------------------------------------------------------


def test_a_deployment_survives_its_file(tmp_path: Path) -> None:
    GOOD.save(tmp_path / "deployment.json")

    assert Deployment.load(tmp_path / "deployment.json") == GOOD


def test_every_bad_member_is_named_at_once() -> None:
    document = GOOD.to_json() | {
        "chain_id": True,
        "genesis_hash": "0x1",
        "vault": "0xAB",
        "symbol": "",
        "decimals": "18",
    }

    with pytest.raises(ConfigInvalid) as caught:
        Deployment.from_json(document)

    assert len(caught.value.problems) == 5


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b'{"chain_id":1,"chain_id":2}', json.dumps({"chain_id": 1}).encode(), b"\xff" * 10]
)
def test_a_file_that_is_no_deployment_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "deployment.json"
    path.write_bytes(content)

    with pytest.raises(ConfigInvalid, match="deployment"):
        Deployment.load(path)
    with pytest.raises(ConfigInvalid, match=r"missing\.json"):
        Deployment.load(tmp_path / "missing.json")


def test_a_deployment_is_checked_however_it_is_made() -> None:
    with pytest.raises(ConfigInvalid, match="unbonding_s"):
        replace(GOOD, unbonding_s=0)
