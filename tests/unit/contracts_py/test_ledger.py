from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from parity_contracts import artifacts
from parity_contracts.chain.encoding import sign
from parity_contracts.devnet.datadir import DataDir
from parity_contracts.devnet.journal import BlockRecord
from parity_contracts.devnet.ledger import BLOCK_GAS_LIMIT, CallRequest, Genesis, Ledger, created_address
from parity_contracts.devnet.node import FAUCET_GRANT, ChainNode
from parity_protocol.errors import BadDocument, BadField, ConfigInvalid, Conflict, NotFound, Overloaded, Unprocessable
from parity_protocol.ids import Address
from parity_protocol.testing.keys import deterministic_evm_key

START = 1_700_000_000
FAUCET = deterministic_evm_key("faucet")
FAUCET_RAW = bytes.fromhex(FAUCET.address[2:])
BOB = Address("0x" + "b0" * 20)
GENESIS = Genesis(31337, START, b"s" * 32, FAUCET_RAW)


def transfer(nonce: int, **changes: Any) -> bytes:
    fields: dict[str, Any] = {
        "chain_id": 31337, "nonce": nonce, "gas": 21_000, "to": BOB, "payload": "0x", "value": 5,
        "max_fee_per_gas": 3 * 10**9, "max_priority_fee_per_gas": 10**9,
    }  # fmt: skip
    return sign(FAUCET, **(fields | changes)).raw


@pytest.fixture
def ledger() -> Ledger:
    return Ledger(GENESIS)


def seal(ledger: Ledger, *raws: bytes, at: int | None = None) -> bytes:
    sealed, refused = ledger.seal([ledger.decode(raw) for raw in raws], at or ledger.head.timestamp + 1)
    assert refused == []
    ledger.adopt(sealed)
    return bytes(sealed.header.hash)


def test_the_same_history_gives_the_same_hashes(ledger: Ledger) -> None:
    twin = Ledger(GENESIS)

    for chain in (ledger, twin):
        seal(chain)
        seal(chain, transfer(0), transfer(1))
        seal(chain, transfer(2), at=START + 100)

    assert ledger.head.hash == twin.head.hash
    assert ledger.state(3).get_balance(bytes.fromhex(BOB[2:])) == 15


def test_a_genesis_differs_by_its_salt_alone(ledger: Ledger) -> None:
    assert Ledger(Genesis(31337, START, b"t" * 32, FAUCET_RAW)).genesis_hash != ledger.genesis_hash


def test_a_block_that_was_not_adopted_left_nothing(ledger: Ledger) -> None:
    ledger.seal([ledger.decode(transfer(0))], START + 1)

    assert ledger.head.block_number == 0
    assert ledger.state(0).get_nonce(FAUCET_RAW) == 0
    with pytest.raises(NotFound):
        ledger.block(1)


def test_what_cannot_be_in_the_block_is_returned_and_the_rest_goes_in(ledger: Ledger) -> None:
    poor = deterministic_evm_key("poor")
    from_poor = sign(
        poor, chain_id=31337, nonce=0, gas=21_000, to=BOB, payload="0x", max_fee_per_gas=10**10, max_priority_fee_per_gas=1
    ).raw  # fmt: skip
    then = sign(
        poor, chain_id=31337, nonce=1, gas=21_000, to=BOB, payload="0x", max_fee_per_gas=10**10, max_priority_fee_per_gas=1
    ).raw  # fmt: skip

    sealed, refused = ledger.seal([ledger.decode(raw) for raw in (from_poor, then, transfer(0))], START + 1)

    assert [tx.nonce for tx in sealed.transactions] == [0]
    assert [tx.nonce for tx, _ in refused] == [0], "the one behind it is not refused, it waits"


def test_a_full_block_leaves_the_rest_for_the_next(ledger: Ledger) -> None:
    heavy = [ledger.decode(transfer(nonce, gas=BLOCK_GAS_LIMIT // 2 + 1)) for nonce in range(3)]

    by_gas, refused = ledger.seal(heavy, START + 1)
    by_time, _ = ledger.seal([ledger.decode(transfer(nonce)) for nonce in range(3)], START + 1, full=lambda: True)

    # Gas is used, not reserved, so that two halves fit after the first has given back what it did not use.
    assert len(by_gas.transactions) >= 1
    assert refused == []
    assert len(by_time.transactions) == 1


def test_a_contract_is_deployed_where_its_creator_and_nonce_say(ledger: Ledger) -> None:
    token = artifacts.load("DevToken")
    seal(ledger, transfer(0, to=None, payload="0x" + token.bytecode.hex(), gas=3_000_000, value=0))

    code = ledger.state(1).get_code(created_address(FAUCET_RAW, 0))

    assert len(code) == len(token.deployed)


def test_a_caller_without_money_can_ask_and_one_with_too_little_cannot_pay(ledger: Ledger) -> None:
    nobody = bytes(20)

    free = ledger.call(CallRequest(nobody, FAUCET_RAW, b"", 0, 100_000), 0)
    paying = ledger.call(CallRequest(nobody, FAUCET_RAW, b"", 1, 100_000), 0)

    assert free.error is None
    assert paying.error is not None
    assert "insufficient funds" in paying.error


def test_an_estimate_is_enough_and_not_much_more(ledger: Ledger) -> None:
    token = artifacts.load("DevToken")
    creation = CallRequest(FAUCET_RAW, b"", token.bytecode, 0, BLOCK_GAS_LIMIT)

    gas, execution = ledger.estimate(creation, 0)

    assert execution.error is None
    assert ledger.call(CallRequest(FAUCET_RAW, b"", token.bytecode, 0, gas), 0).error is None
    assert ledger.call(CallRequest(FAUCET_RAW, b"", token.bytecode, 0, gas * 9 // 10), 0).error is not None


def test_the_chain_id_of_a_transaction_must_be_the_chains(ledger: Ledger) -> None:
    with pytest.raises(BadField, match="invalid chain id: expected 31337, got 1"):
        ledger.decode(transfer(0, chain_id=1))
    with pytest.raises(BadDocument):
        ledger.decode(transfer(0)[:-1])


# -- the node: pool and journal ----------------------------------------------------------------------------------


def opened(path: Path) -> DataDir:
    return DataDir.open(path, chain_id=31337, now=datetime(2026, 1, 1, tzinfo=UTC))


def node_at(path: Path) -> tuple[DataDir, ChainNode]:
    data = opened(path)
    return data, ChainNode(data, monotonic=lambda: 0.0)


def stop(data: DataDir, node: ChainNode) -> None:
    node.close()
    data.close()


def test_pending_and_mined_transactions_are_there_after_a_restart(tmp_path: Path) -> None:
    data, node = node_at(tmp_path)
    to = bytes.fromhex(BOB[2:])
    node.grant(to)
    node.grant(to)
    first = node.mine(1_800_000_000)
    node.mine(1_800_000_004)
    waiting = node.grant(to)
    stop(data, node)

    data, node = node_at(tmp_path)

    assert node.ledger.head.block_number == 2
    assert node.ledger.block(1).header.hash == first.header.hash
    assert node.ledger.state(2).get_balance(to) == 2 * FAUCET_GRANT
    assert node.pool.get(waiting.tx_hash) is not None
    assert [tx.hash for tx in node.mine(1_800_000_005).transactions] == [waiting.tx_hash]
    stop(data, node)


def test_a_torn_end_costs_nothing_that_was_whole(tmp_path: Path) -> None:
    data, node = node_at(tmp_path)
    node.grant(bytes.fromhex(BOB[2:]))
    mined = node.mine(1_800_000_000).header.hash
    stop(data, node)
    with (tmp_path / "journal").open("ab") as journal:
        journal.write(b"\x00\x00\x00\x50\x12\x34")

    data, node = node_at(tmp_path)

    assert node.ledger.head.hash == mined
    stop(data, node)


def test_a_block_that_does_not_replay_to_its_hash_is_refused(tmp_path: Path) -> None:
    data, node = node_at(tmp_path)
    node.journal.append_block(BlockRecord(1_800_000_000, b"x" * 32, ()))
    stop(data, node)
    data = opened(tmp_path)

    with pytest.raises(ConfigInvalid, match="replaying it gives"):
        ChainNode(data)

    data.close()


def test_a_clock_set_back_does_not_stop_the_chain(tmp_path: Path) -> None:
    data, node = node_at(tmp_path)
    node.mine(1_800_000_000)

    node.mine(1_700_000_000)

    assert node.ledger.head.timestamp == 1_800_000_001
    stop(data, node)


def test_a_folder_belongs_to_one_process_and_one_chain(tmp_path: Path) -> None:
    data, node = node_at(tmp_path)

    with pytest.raises(Conflict, match="another chain process uses"):
        opened(tmp_path)
    assert "***" in repr(data)
    assert data.faucet_key.hex() not in repr(data)
    stop(data, node)
    with pytest.raises(ConfigInvalid, match="holds a chain with id 31337, expected 9"):
        DataDir.open(tmp_path, chain_id=9, now=datetime(2026, 1, 1, tzinfo=UTC))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("genesis.json", b"{}", "not the description of a chain"),
        ("genesis.json", b"\xff", "not the description of a chain"),
        ("faucet.key", b"ab", "64 hex digits"),
        ("faucet.key", b"11" * 32, "not the key of this chain's faucet"),
    ],
)
def test_files_that_were_changed_are_refused(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    data, node = node_at(tmp_path)
    stop(data, node)
    (tmp_path / name).write_bytes(content)

    with pytest.raises(ConfigInvalid, match=words):
        opened(tmp_path)


def test_a_genesis_that_this_program_builds_otherwise_is_refused(tmp_path: Path) -> None:
    data, node = node_at(tmp_path)
    stop(data, node)
    path = tmp_path / "genesis.json"
    path.write_text(path.read_text().replace(node.ledger.genesis_hash.hex(), "00" * 32))
    data = opened(tmp_path)

    with pytest.raises(ConfigInvalid, match="expected genesis 0x0000"):
        ChainNode(data)
    data.close()


def test_nonces_may_come_out_of_order_and_are_mined_in_order(tmp_path: Path) -> None:
    data, node = node_at(tmp_path)
    rich = deterministic_evm_key("rich")
    node.grant(bytes.fromhex(rich.address[2:]))
    node.mine(1_800_000_000)

    def raw(nonce: int) -> bytes:
        return sign(
            rich, chain_id=31337, nonce=nonce, gas=21_000, to=BOB, payload="0x", value=1,
            max_fee_per_gas=10**10, max_priority_fee_per_gas=10**9,
        ).raw  # fmt: skip

    node.submit(raw(2))
    node.submit(raw(1))
    assert node.mine(1_800_000_001).transactions == ()
    node.submit(raw(0))

    assert [tx.nonce for tx in node.mine(1_800_000_002).transactions] == [0, 1, 2]
    stop(data, node)


def test_the_pool_is_bounded_per_sender_and_ahead(tmp_path: Path) -> None:
    data, node = node_at(tmp_path)
    rich = deterministic_evm_key("rich")
    node.grant(bytes.fromhex(rich.address[2:]))
    node.mine(1_800_000_000)

    def raw(nonce: int) -> bytes:
        return sign(
            rich, chain_id=31337, nonce=nonce, gas=21_000, to=BOB, payload="0x", value=1,
            max_fee_per_gas=10**10, max_priority_fee_per_gas=10**9,
        ).raw  # fmt: skip

    with pytest.raises(Unprocessable, match="nonce too high"):
        node.submit(raw(65))
    for nonce in range(256):
        node.submit(raw(nonce))
    with pytest.raises(Overloaded, match="txpool is full"):
        node.submit(raw(256))
    stop(data, node)
